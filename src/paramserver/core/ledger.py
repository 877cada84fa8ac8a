"""Exactly-once record of one group on one server: what each push did, and for which samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from paramserver.core.receipts import KEPT_LEASES, OpenPush, Pushed, Receipt
from paramserver.core.spans import check_spans
from paramserver.errors import (
    ClockError,
    FencedError,
    InvalidRequestError,
    ResourceError,
    ReusedClockError,
)
from paramserver.types import Span, WorkerId

__all__ = ["KEPT_LEASES", "WINDOW", "Ledger", "Receipt"]

WINDOW = 64
MASK = (1 << 64) - 1


class Ledger:
    """What every worker pushed to one group of one server.

    A push is opened, its slices are taken one by one, then it is completed with a receipt; under
    Sync the receipt is amended when its clock closes. Not thread-safe; never blocks.

    Args:
        keep: receipts kept per worker, for duplicates; at least ``WINDOW``.

    Attributes:
        duplicates: slices that came again after they had been taken.
    """

    def __init__(self, *, keep: int = 128) -> None:
        self._keep = max(keep, WINDOW)
        self._workers: dict[WorkerId, Pushed] = {}
        self._newest: dict[int, int] = {}
        self.duplicates = 0

    def open(self, worker: WorkerId, clock: int, slices: Sequence[int]) -> Receipt | None:
        """Begins a push, or resumes one that is under way.

        The first push of an incarnation may carry any clock, unless ``expect`` has set it.

        Returns:
            None: take its slices. A receipt: it was completed before.

        Raises:
            FencedError: a newer incarnation of the rank has come.
            ClockError: the clock has passed, or skips one.
            InvalidRequestError: resumed with other slices, or a slice declared twice.
            ResourceError: too many pushes of this worker are under way or staged.
        """
        self._fence(worker)
        declared = _declared(clock, slices)
        known = self._workers.get(worker) or Pushed()
        receipt = known.receipts.get(clock)
        if receipt is not None:
            self.duplicates += len(declared)
            return receipt
        if clock in known.open:
            if known.open[clock].slices != declared:
                raise InvalidRequestError(f"clock {clock}: resumed with other slices than before")
            return None
        self._admit(known, clock)
        self._newest[worker.rank] = worker.incarnation
        self._workers[worker] = known
        known.open[clock] = OpenPush(declared)
        return None

    def redeclare(self, worker: WorkerId, clock: int, slices: Sequence[int]) -> None:
        """Replaces the slices of an open, deferred push; those taken beyond them are forgotten."""
        push = self._open(worker, clock)
        push.slices = _declared(clock, slices)
        push.taken = {s: checksum for s, checksum in push.taken.items() if s in push.slices}

    def take(
        self, worker: WorkerId, clock: int, slice_: int, checksum: int, *, replace: bool = False
    ) -> bool:
        """Records one slice of an open push.

        Args:
            replace: other bytes take the place of earlier ones (a deferred push).

        Returns:
            True: apply or stage it. False: it was taken before, with the same bytes.

        Raises:
            InvalidRequestError: the push is not open, or the slice was not declared.
            ReusedClockError: the slice was taken with other bytes.
            FencedError: a newer incarnation of the rank has come.
        """
        self._fence(worker)
        known = self._workers.get(worker)
        push = known.open.get(clock) if known else None
        if push is None:
            if known and clock in known.receipts:
                self.duplicates += 1
                return False
            raise InvalidRequestError(f"clock {clock}: slice {slice_} of a push that is not open")
        before = push.taken.get(slice_)
        if before is None:
            if slice_ not in push.slices:
                raise InvalidRequestError(f"clock {clock}: slice {slice_} was not declared")
        elif before == checksum:
            self.duplicates += 1
            return False
        elif not replace:
            raise ReusedClockError(
                f"clock {clock}: slice {slice_} came before with other bytes; "
                "a push that is sent again must be the same"
            )
        push.taken[slice_] = checksum
        return True

    def untake(self, worker: WorkerId, clock: int, slices: Iterable[int]) -> None:
        """The bytes of these slices turned out to be damaged: they were not taken after all."""
        for slice_ in slices:
            del self._open(worker, clock).taken[slice_]

    def missing(self, worker: WorkerId, clock: int) -> frozenset[int]:
        """Declared slices of an open push that have not been taken."""
        push = self._open(worker, clock)
        return push.slices.difference(push.taken)

    def complete(
        self, worker: WorkerId, clock: int, receipt: Receipt, samples: Sequence[Span]
    ) -> None:
        """All slices were taken: the push is staged, or applied, as the receipt says.

        Raises:
            InvalidRequestError: slices are missing, or a span is malformed.
        """
        push = self._open(worker, clock)
        if len(push.taken) != len(push.slices):
            count = len(push.slices) - len(push.taken)
            raise InvalidRequestError(
                f"clock {clock}: {count} of {len(push.slices)} slices missing"
            )
        spans = check_spans(samples)
        known = self._workers[worker]
        del known.open[clock]
        known.receipts[clock] = receipt
        known.digests[clock] = digest(push.taken)
        if receipt.applied:
            known.count(spans)
        elif not receipt.dropped:
            known.staged += 1
            known.pending[clock] = spans
        self._trim(known)

    def amend(self, worker: WorkerId, clock: int, receipt: Receipt) -> None:
        """A staged push was applied or dropped; its spans count only when applied.

        A push under way may be dropped too. A settled one stays as it is.

        Raises:
            InvalidRequestError: no such push, or one under way would count as applied.
        """
        known = self._workers.get(worker)
        before = known.receipts.get(clock) if known else None
        if known is not None and before is None and clock in known.open and receipt.dropped:
            del known.open[clock]
        elif known is None or before is None:
            raise InvalidRequestError(f"clock {clock}: no completed push of rank {worker.rank}")
        elif before.settled:
            return
        elif receipt.settled:
            known.staged -= 1
            spans = known.pending.pop(clock)
            if receipt.applied:
                known.count(spans)
        known.receipts[clock] = receipt
        self._trim(known)

    def abandon(self, worker: WorkerId, clock: int) -> None:
        """A push that was not completed, or only staged, was freed: it may be sent again whole.

        What was applied or dropped, or never came, stays as it is.
        """
        known = self._workers.get(worker)
        if known is None:
            return
        receipt = known.receipts.get(clock)
        if known.open.pop(clock, None) is None:
            if receipt is None or receipt.settled:
                return
            del known.receipts[clock]
            known.digests.pop(clock, None)
            del known.pending[clock]
            known.staged -= 1
        assert known.next is not None
        known.holes.add(clock)
        while known.next - 1 in known.holes:
            known.next -= 1
            known.holes.remove(known.next)

    def expect(self, worker: WorkerId, clock: int) -> None:
        """The lead set the worker's clock (activation, dropped push). Never moves backwards.

        Raises:
            FencedError: a newer incarnation of the rank has come.
        """
        self._fence(worker)
        self._newest[worker.rank] = worker.incarnation
        known = self._workers.setdefault(worker, Pushed())
        if known.next is None or clock > known.next:
            known.next = clock
        known.holes = {hole for hole in known.holes if hole >= clock}

    def expected(self, worker: WorkerId) -> int | None:
        """The clock that the next new push must carry; None: any."""
        known = self._workers.get(worker)
        return known.next if known else None

    def receipt(self, worker: WorkerId, clock: int) -> Receipt | None:
        """The receipt of a completed push, while it is kept."""
        known = self._workers.get(worker)
        return known.receipts.get(clock) if known else None

    def restore(
        self,
        worker: WorkerId,
        receipt: Receipt,
        samples: Sequence[Span] = (),
        digest: int | None = None,
    ) -> None:
        """A journal tells what became of a push; a second time changes nothing."""
        clock = receipt.clock
        known = self._workers.setdefault(worker, Pushed())
        self._newest[worker.rank] = max(
            worker.incarnation, self._newest.get(worker.rank, worker.incarnation)
        )
        before = known.receipts.get(clock)
        if before is not None and before.settled:
            return
        if before is not None:
            del known.pending[clock]
            known.staged -= 1
        known.open.pop(clock, None)
        known.holes.discard(clock)
        known.next = max(known.next or 0, clock + 1)
        known.receipts[clock] = receipt
        if digest is not None:
            known.digests[clock] = digest
        if receipt.applied:
            known.count(check_spans(samples))
        self._trim(known)

    def digest(self, worker: WorkerId, clock: int) -> int | None:
        """The digest of the bytes of a completed push; None: nothing is known of them."""
        known = self._workers.get(worker)
        return known.digests.get(clock) if known else None

    def applied_spans(self, worker: WorkerId) -> list[Span]:
        """Samples of applied pushes, merged, by lease; of the newest ``KEPT_LEASES`` leases."""
        known = self._workers.get(worker)
        if known is None:
            return []
        return [
            Span(lease, start, stop)
            for lease, spans in sorted(known.leases.items())
            for start, stop in spans
        ]

    def all_spans(self) -> list[Span]:
        """Samples of applied pushes of all workers, merged, by lease."""
        return [span for worker in sorted(self._workers) for span in self.applied_spans(worker)]

    def opened(self) -> dict[WorkerId, int]:
        """By worker the first clock beyond all that pushes have opened here."""
        newest = {w: max((*k.open, *k.receipts), default=-1) for w, k in self._workers.items()}
        return {worker: clock + 1 for worker, clock in newest.items() if clock >= 0}

    def applied(self) -> list[tuple[WorkerId, int]]:
        """Pushes that are applied, as far as their receipts are kept; by worker in their order."""
        return [
            (worker, clock)
            for worker, known in sorted(self._workers.items())
            for clock, receipt in known.receipts.items()
            if receipt.applied
        ]

    def through(self, worker: WorkerId, below: int) -> bool:
        """Whether all pushes of smaller clocks are complete, the last of them here."""
        known = self._workers.get(worker)
        if known is None:
            return False
        under_way = any(clock < below for clock in (*known.open, *known.holes))
        return below - 1 in known.receipts and not under_way

    def reshape(self) -> None:
        """Slices moved here or away: what a push sent again brings is another part of it."""
        for known in self._workers.values():
            known.digests.clear()

    def dump(self, *, settled: bool = False) -> dict[str, Any]:
        """All of it as JSON-able values.

        Args:
            settled: without what is under way or staged, as if it had never come.
        """
        return {
            "newest": sorted(self._newest.items()),
            "duplicates": self.duplicates,
            "workers": [
                [*worker, (known.settled() if settled else known).dump()]
                for worker, known in sorted(self._workers.items())
            ],
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Becomes what another has dumped."""
        self._newest = dict(state["newest"])
        self.duplicates = state["duplicates"]
        self._workers = {
            WorkerId(rank, incarnation): Pushed.load(known)
            for rank, incarnation, known in state["workers"]
        }

    def forget(self, rank: int, below: int) -> None:
        """Frees all records of incarnations below ``below``, and keeps them fenced."""
        self._newest[rank] = max(below, self._newest.get(rank, below))
        for worker in [w for w in self._workers if w.rank == rank and w.incarnation < below]:
            del self._workers[worker]

    def check_invariants(self) -> None:
        """Raises AssertionError where the state cannot be."""
        for worker, known in self._workers.items():
            assert worker.incarnation <= self._newest[worker.rank], f"{worker} is ahead"
            assert not known.open.keys() & known.receipts.keys(), f"{worker}: open and completed"
            for clock, push in known.open.items():
                assert push.taken.keys() <= push.slices, f"{worker} took undeclared slices"
                assert known.next is not None
                assert clock < known.next, f"{worker} opened a clock ahead of its next"
                assert clock not in known.holes
            unsettled = {c for c, r in known.receipts.items() if not r.settled}
            assert known.pending.keys() == unsettled, f"{worker}: spans of settled pushes pend"
            assert known.staged == len(unsettled)
            assert known.staged + len(known.open) <= WINDOW
            assert len(known.receipts) <= self._keep
            assert known.digests.keys() <= known.receipts.keys()
            assert len(known.leases) <= KEPT_LEASES
            for spans in known.leases.values():
                ends = [end for span in spans for end in span]
                assert ends == sorted(set(ends)), f"{worker}: spans overlap or touch"

    def _fence(self, worker: WorkerId) -> None:
        newest = self._newest.get(worker.rank, worker.incarnation)
        if worker.incarnation < newest:
            raise FencedError(
                f"rank {worker.rank}: incarnation {worker.incarnation} is fenced, "
                f"{newest} has come; stop this process or register again"
            )

    def _admit(self, known: Pushed, clock: int) -> None:
        """Checks that a new push may carry this clock, and moves the next one."""
        if clock < 0:
            raise ClockError(f"clock {clock}: must be >= 0")
        if len(known.open) + known.staged >= WINDOW:
            raise ResourceError(f"clock {clock}: {WINDOW} pushes wait already; pull before pushing")
        if clock in known.holes:
            known.holes.remove(clock)
            return
        if known.next is not None and clock != known.next:
            what = "has passed" if clock < known.next else "skips one"
            raise ClockError(f"clock {clock} {what}: expected clock {known.next}")
        known.next = clock + 1

    def _open(self, worker: WorkerId, clock: int) -> OpenPush:
        known = self._workers.get(worker)
        if known is None or clock not in known.open:
            raise InvalidRequestError(f"clock {clock}: rank {worker.rank} has no open push of it")
        return known.open[clock]

    def _trim(self, known: Pushed) -> None:
        """Forgets the oldest settled receipts beyond the number kept."""
        while len(known.receipts) > self._keep:
            # A dict keeps the order of arrival, which is that of the clocks.
            oldest = next(c for c, r in known.receipts.items() if r.settled)
            del known.receipts[oldest]
            known.digests.pop(oldest, None)


def digest(checksums: Mapping[int, int]) -> int:
    """One number for the checksums of slices, in whatever order; those of parts add up to it."""
    return sum(mark * (2 * slice_ + 1) for slice_, mark in checksums.items()) & MASK


def _declared(clock: int, slices: Sequence[int]) -> frozenset[int]:
    declared = frozenset(slices)
    if len(declared) != len(slices):
        raise InvalidRequestError(f"clock {clock}: a slice is declared twice")
    return declared
