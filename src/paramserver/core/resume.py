"""A shard queue that a snapshot can be taken of, and that goes on where a snapshot was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from paramserver.core.dataset import DatasetSpec
from paramserver.core.progress import LeaseRecord, Progress, advanced, union, without
from paramserver.core.shards import ShardQueue
from paramserver.types import Span


class ResumableQueue(ShardQueue):
    """As ``ShardQueue``; what was done is known by position, at any moment asked for."""

    def __init__(self, spec: DatasetSpec, leases: Iterator[int]) -> None:
        super().__init__(spec, leases)
        self._pinned: int | None = None  # leases of this epoch and later ones stay known
        self._dealt: dict[int, tuple[int, ...]] = {}  # of known epochs: the ranks dealt to

    def _open_epoch(self) -> None:
        before = self._closed
        super()._open_epoch()
        kept = self.epoch - 1 if self._pinned is None else min(self.epoch - 1, self._pinned)
        self._closed = {n: c for n, c in before.items() if c.epoch >= kept}
        self._dealt = {e: r for e, r in self._dealt.items() if e >= kept}
        self._dealt[self.epoch] = self._dealing_to()

    def _dealing_to(self) -> tuple[int, ...]:
        return () if self.policy.shared else tuple(sorted(self._live))

    def begin_snapshot(self) -> Progress:
        """How far it is now; leases stay known from here on, until ``end_snapshot``."""
        self._pinned = self.epoch
        if self.epoch < 0:
            return Progress(self.spec, unpushed=self.unpushed)
        free = [(a, b) for _, a, b in self._deal.pieces()]
        open_ = union(free + self._leased() + self.aside.parts)  # what was set aside is tried again
        done = tuple(without((0, self.spec.size), open_))
        dealt = self._dealt[self.epoch]
        return Progress(self.spec, self.epoch, dealt, done, self.unpushed, self.aside.before)

    def end_snapshot(self, before: Progress, applied: Iterable[Span]) -> Progress:
        """How far it was when servers had applied these spans; ``before``: as it began."""
        self._pinned = None
        found = advanced(before, applied, self._record, lambda epoch: self._dealt.get(epoch, ()))
        if found.epoch == self.epoch or found.samples_done == self.spec.size:
            return replace(found, aside=self.aside.before)
        return found

    def _record(self, number: int) -> LeaseRecord | None:
        held = self._leases.get(number) or self._closed.get(number)
        return None if held is None else LeaseRecord(held.epoch, held.start, held.stop)

    def resume(self, progress: Progress) -> None:
        """Goes on where a snapshot was; called once, with the workers that it begins with.

        The same workers get what they had still to come, in the same order; others share it.
        """
        self.epoch, self.unpushed = progress.epoch, progress.unpushed
        self.aside.total = progress.aside
        if self.epoch < 0:
            return
        live = tuple(sorted(self._live))
        same = self.spec.assign == progress.spec.assign and progress.ranks == self._dealing_to()
        self._dealt[self.epoch] = self._dealing_to()
        self._deal = self._deal_to(live)
        self._deal.remove(progress.done)
        if not same:
            self._deal.deal_again(live)
        for start, stop in progress.done:
            self._done(start, stop)
