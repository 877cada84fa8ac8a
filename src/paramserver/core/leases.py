"""Leases on positions of an epoch, and which of them idle workers take a part of."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from paramserver.core.spans import Range, Ranges
from paramserver.types import Span, WorkerId


class Numbers:
    """Numbers that are never repeated.

    Attributes:
        newest: the last one given; 0: none yet.
    """

    def __init__(self) -> None:
        self.newest = 0

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        self.newest += 1
        return self.newest

    def skip_to(self, newest: int) -> None:
        """Later numbers are larger than this."""
        self.newest = max(self.newest, newest)


@dataclass(slots=True)
class Lease:
    """Positions [start, stop) of one worker; ``open``: neither done nor given back.

    Attributes:
        recalled: the holder is asked to give back what it can from here on; None: it is not.
        thieves: how many workers wait for that.
    """

    shard: int
    epoch: int
    start: int
    stop: int
    holder: WorkerId
    open: Ranges
    returned: Ranges | None = None
    recalled: int | None = None
    thieves: int = 1

    def gave_back(self, span: Span) -> bool:
        """Whether some of the span went back to the queue."""
        return self.returned is not None and self.returned.overlap(span.start, span.stop) > 0


def recall(
    leases: Mapping[int, Lease],
    held: Mapping[WorkerId, Collection[int]],
    idle: Sequence[WorkerId],
    speed: Callable[[WorkerId], float],
    patience: float,
) -> tuple[WorkerId, int] | None:
    """Marks the tail of the lease that will end last as recalled; see ``ShardQueue.recall``.

    Args:
        leases: by number.
        held: numbers of leases by holder.
        idle: workers without a lease; some may wait for an earlier recall.
    """
    idle = idle[sum(h.thieves for h in leases.values() if h.recalled is not None) :]
    seconds, number = max(_running(leases, held, speed), default=(0.0, 0))
    if not idle or seconds <= patience:
        return None
    victim = leases[number]
    own = speed(victim.holder)
    share = stolen(len(victim.open), own, sum(speed(thief) or own for thief in idle))
    if share < 1:
        return None
    first, stop = victim.open.parts[0][0], victim.open.parts[-1][1]
    victim.recalled, victim.thieves = max(first, stop - share), len(idle)
    return victim.holder, stop - victim.recalled


def _running(
    leases: Mapping[int, Lease],
    held: Mapping[WorkerId, Collection[int]],
    speed: Callable[[WorkerId], float],
) -> Iterator[tuple[float, int]]:
    """Seconds that each holder still needs, and its newest lease: older ones are drawn already."""
    for who, numbers in held.items():
        newest = max(numbers)
        if speed(who) > 0 and leases[newest].recalled is None:
            yield sum(len(leases[n].open) for n in numbers) / speed(who), newest


def stolen(remaining: int, holder: float, thieves: float) -> int:
    """How many of a running lease's samples idle workers take, so that all end together.

    Args:
        remaining: samples that the holder has not done.
        holder, thieves: samples per second; thieves: of all of them.
    """
    return int((remaining - 1) * thieves / (thieves + holder))


def shares(part: Range, count: int, batch_size: int) -> list[Range]:
    """The range in at most ``count`` parts of nearly the same number of whole batches."""
    start, stop = part
    batches = -(-(stop - start) // batch_size)
    cuts = [start + batch_size * (batches * i // count) for i in range(count)] + [stop]
    return [(a, b) for a, b in itertools.pairwise(cuts) if a < b]
