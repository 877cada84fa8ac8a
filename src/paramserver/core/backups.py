"""A shard queue with backups: near the end, a shard that is out is leased to a second worker too.

The first to be done counts (the backup tasks of MapReduce and of Sandblaster). At any time a shard
has at most one lease and one backup of it, held by two workers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from paramserver.core.dataset import DatasetSpec, Drained, Empty, Leased
from paramserver.core.leases import Lease
from paramserver.core.shards import ShardQueue
from paramserver.core.spans import Range, Ranges
from paramserver.types import Span, WorkerId


class BackupQueue(ShardQueue):
    """As ``ShardQueue``; whoever would get nothing gets a backup of the oldest lease that has none.

    A position is free, or under a lease, or under a lease and its backup, or done.
    """

    def __init__(self, spec: DatasetSpec, leases: Iterator[int]) -> None:
        super().__init__(spec, leases)
        self._twins: dict[int, int] = {}  # a lease and its backup, both ways

    def next(
        self, who: WorkerId, epoch: int, sequence: int, want: int = 0
    ) -> Leased | Drained | Empty:
        """As ``ShardQueue.next``; a backup where that has no free shard."""
        found = super().next(who, epoch, sequence, want)
        if isinstance(found, Empty) and epoch == self.epoch:
            return self._back_up(who, sequence) or found
        return found

    def _back_up(self, who: WorkerId, sequence: int) -> Leased | None:
        for original, held in self._leases.items():  # the oldest first
            if held.holder == who or original in self._twins or len(held.open.parts) != 1:
                continue
            number = next(self._numbers)
            ((start, stop),) = held.open.parts
            part = Ranges(((start, stop),))
            self._leases[number] = Lease(held.shard, self.epoch, start, stop, who, part)
            self._held.setdefault(who, set()).add(number)
            self._last[who] = (sequence, number)
            self._twins[number], self._twins[original] = original, number
            return Leased(number, held.shard, self.epoch, start, stop)
        return None

    def _again(self, who: WorkerId, epoch: int, sequence: int) -> Leased | None:
        last, number = self._last.get(who, (-1, 0))
        if sequence == last and number not in self._leases:
            return None  # the answer was lost, and the other one was done with the shard meanwhile
        return super()._again(who, epoch, sequence)

    def _settle(self, who: WorkerId, span: Span) -> bool:
        held = self._leases.get(span.lease)
        other = self._other(span.lease)
        done = Ranges(held.open.parts) if held and held.holder == who else Ranges()
        ours = super()._settle(who, span)
        if other is not None:
            number, twin = other
            for start, stop in done.take(span.start, span.stop):
                twin.open.take(start, stop)
            self._close(number, twin)
        return ours

    def _other(self, number: int) -> tuple[int, Lease] | None:
        twin = self._twins.get(number)
        return None if twin is None else (twin, self._leases[twin])

    def _requeue(self, held: Lease, parts: Sequence[Range]) -> None:
        """What the other one still works on does not go back."""
        number = next(n for n in self._held[held.holder] if self._leases[n] is held)
        other = self._other(number)
        if other is not None:
            parts = [part for each in parts for part in _without(each, other[1].open)]
        super()._requeue(held, parts)

    def _close(self, number: int, held: Lease) -> None:
        if not held.open and number in self._leases:
            self._twins.pop(self._twins.pop(number, -1), None)
            super()._close(number, held)

    def recover(self, who: WorkerId, applied: Iterable[Span], failed: bool = False) -> int:
        """As ``ShardQueue.recover``; what has another holder stays with that one.

        Nothing is set aside: whoever asks for backups needs every sample.
        """
        for span in applied:
            held = self._leases.get(span.lease)
            if held is not None and held.holder == who:
                self._settle(who, span)
        return super().recover(who, ())

    def _leased(self) -> list[Range]:
        found: list[Range] = []
        for number, held in self._leases.items():
            other = self._other(number)
            if other is None or other[0] > number:
                found += held.open.parts
            else:
                found += [p for each in held.open.parts for p in _without(each, other[1].open)]
        return found

    def check_invariants(self) -> None:
        """Raises AssertionError when a position is lost, or held by more than two workers."""
        super().check_invariants()
        for number, twin in self._twins.items():
            assert self._twins[twin] == number
            assert self._leases[number].holder != self._leases[twin].holder
            assert self._leases[number].shard == self._leases[twin].shard


def _without(part: Range, ranges: Ranges) -> list[Range]:
    rest = Ranges((part,))
    for start, stop in ranges.parts:
        rest.take(start, stop)
    return rest.parts
