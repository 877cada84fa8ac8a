"""What the lead of a group decides, for all servers to carry out in the order given."""

from __future__ import annotations

from dataclasses import dataclass

from paramserver.types import Async, Consistency, Stale, WorkerId


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


def may_read(consistency: Consistency, clock: int, frontier: int) -> bool:
    """Whether the values of ``clock`` may be read.

    Args:
        clock: the step that the reader is about to start.
        frontier: clocks that count as complete: closed ones under Sync, min_clock under Stale.
    """
    if isinstance(consistency, Async):
        return True
    bound = consistency.bound if isinstance(consistency, Stale) else 0
    return frontier >= clock - bound
