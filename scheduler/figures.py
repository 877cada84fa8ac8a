"""What workers say of themselves: clocks, sums over steps, speeds, scalars of the training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from paramserver.core.speeds import fastest
from paramserver.errors import InvalidRequestError, ResourceError

MAX_SCALARS = 1024


class Figures:
    """The newest figures of each member, by name.

    Attributes:
        clocks: by member and group.
        stats: by member.
        scalars: of the job.
    """

    def __init__(self) -> None:
        self.clocks: dict[str, dict[str, int]] = {}
        self.stats: dict[str, dict[str, float]] = {}
        self.scalars: dict[str, float] = {}

    def heartbeat(
        self, name: str, clocks: Mapping[str, int], stats: Mapping[str, float], groups: int
    ) -> None:
        """Keeps what a member says; ``groups``: how many there may be."""
        if len(clocks) > groups or len(stats) > MAX_SCALARS:
            raise InvalidRequestError(f"heartbeat of {name} has too many entries")
        self.clocks[name], self.stats[name] = dict(clocks), dict(stats)

    def forget(self, name: str) -> None:
        """The member is gone."""
        self.clocks.pop(name, None)
        self.stats.pop(name, None)

    def log(self, scalars: Mapping[str, float]) -> None:
        """Keeps the newest value of each scalar."""
        if len(self.scalars.keys() | scalars.keys()) > MAX_SCALARS:
            raise ResourceError(f"a job has at most {MAX_SCALARS} scalars")
        self.scalars.update(scalars)

    def speed(self, name: str) -> float:
        """Samples per second of a worker; 0.0 while it has not told."""
        speed = self.stats.get(name, {}).get("speed", 0.0)
        return speed if 0 < speed < math.inf else 0.0

    def set_speed(self, name: str, speed: float) -> None:
        """A worker told its speed between two heartbeats."""
        self.stats.setdefault(name, {})["speed"] = speed

    def fastest(self, names: Iterable[str]) -> float:
        """Samples per second of the fastest of these workers; 0.0 while none has told."""
        return fastest(self.speed(name) for name in names)
