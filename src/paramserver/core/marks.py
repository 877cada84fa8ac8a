"""How far workers have come, as the lead of a group knows it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Mark:
    """How far one push has come: the servers that have it whole."""

    weight: float
    servers: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Progress:
    """Of one worker; ``clock`` is the first one that is not complete on every server."""

    clock: int
    marks: dict[int, Mark] = field(default_factory=dict)
