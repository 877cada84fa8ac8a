"""What the parts of the scheduler's state know of one another.

All of them derive from ``Parts``, so that what one part brings takes the place of what is only
named here, in whatever order they are put together.
"""

from __future__ import annotations

from collections.abc import Sequence

from paramserver.config import SchedulerConfig
from paramserver.core.members import Caller, Member
from paramserver.core.membership import Membership
from paramserver.core.placement import Groups
from paramserver.core.rounds import Rounds
from paramserver.scheduler.adaptation import Adaptation
from paramserver.scheduler.datasets import Datasets
from paramserver.scheduler.events import Recorded
from paramserver.scheduler.figures import Figures
from paramserver.scheduler.journal import Journal
from paramserver.scheduler.replicas import ReplicaGroups
from paramserver.scheduler.shape import Shape
from paramserver.scheduler.warm_start import WarmStarts
from paramserver.types import WorkerId


class Parts(Recorded):
    """What every part of ``SchedulerState`` may use of the others."""

    config: SchedulerConfig
    members: Membership
    journal: Journal
    groups: Groups
    data: Datasets
    rounds: Rounds
    shape: Shape
    figures: Figures
    adaptation: Adaptation
    replicas: ReplicaGroups
    warm: WarmStarts
    map_version: int
    _names: dict[WorkerId, str]

    def worker(self, caller: Caller) -> Member:
        """The live worker that speaks."""
        raise NotImplementedError

    def wake(self, topic: str) -> None:
        """Callers parked on a topic look again."""
        raise NotImplementedError

    def hold(self, servers: Sequence[str], *, only: bool = False) -> None:
        """These servers hold slices from now on."""
        raise NotImplementedError

    def speeds(self) -> dict[int, float]:
        """Samples per second of the workers by rank."""
        raise NotImplementedError

    def _servers(self) -> list[tuple[str, str]]:
        raise NotImplementedError

    def _next_map_version(self) -> int:
        raise NotImplementedError

    def _begin_anew(self) -> None:
        raise NotImplementedError

    def _after(self, now: float, *topics: str) -> None:
        raise NotImplementedError
