"""What the lead of a group decides, for all servers to carry out in the order given."""

from __future__ import annotations

from dataclasses import dataclass

from paramserver.types import WorkerId


@dataclass(frozen=True, slots=True)
class Contribution:
    """A push on the list of a closed clock."""

    worker: WorkerId
    weight: float


@dataclass(frozen=True, slots=True)
class Close:
    """Sync: apply exactly these pushes of this clock, in this order (by rank)."""

    clock: int
    contributors: tuple[Contribution, ...]


@dataclass(frozen=True, slots=True)
class Advance:
    """Stale, Async: all pushes of active workers with clock < min_clock are applied everywhere."""

    min_clock: int


@dataclass(frozen=True, slots=True)
class Drop:
    """Free what this incarnation staged and no clock has closed."""

    worker: WorkerId


@dataclass(frozen=True, slots=True)
class Cut:
    """Sync: capture what is here now, with all clocks below this one closed and no other.

    Attributes:
        id: of the snapshot; ids of a job grow.
    """

    id: int
    clock: int


Decision = Close | Advance | Drop | Cut
