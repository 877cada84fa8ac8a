"""The shard queue of one data set: every sample of an epoch done once, whoever comes or goes.

An epoch is cut into shards; a policy deals them. A shard is leased to one worker at a time; spans
of a lease are done, or go back to the queue. The epoch is drained when every position is done;
only then the next one opens.

    free positions + leased positions + done positions = all positions
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence

from paramserver.core.assignment import Assignment, assignment
from paramserver.core.dataset import Counts, DatasetSpec, Drained, Empty, Leased, Reported
from paramserver.core.deal import Deal, Piece
from paramserver.core.leases import Lease, recall, shares
from paramserver.core.quarantine import Quarantine
from paramserver.core.spans import Range, Ranges
from paramserver.errors import InvalidRequestError
from paramserver.types import Span, WorkerId


class ShardQueue:
    """The queue of one data set.

    Args:
        spec: completed (``complete``).
        leases: numbers for leases; shared by all data sets, never repeated.
    """

    def __init__(self, spec: DatasetSpec, leases: Iterator[int]) -> None:
        self.spec = spec
        self.policy: Assignment = assignment(spec.assign, spec.seed)
        self.shards = -(-spec.size // spec.shard_size)
        self.epoch = -1  # until somebody asks for the first
        self.unpushed = 0
        self._numbers = leases
        self._live: dict[int, WorkerId] = {}
        self._users: set[int] = set()  # ranks that opened the data set
        self._left: set[int] = set()  # ranks that asked for the next epoch
        self._last: dict[WorkerId, tuple[int, int]] = {}  # request number, lease
        self._leases: dict[int, Lease] = {}
        self._held: dict[WorkerId, set[int]] = {}
        self._closed: dict[int, Lease] = {}  # of the open epoch and the one before it
        self._deal = self._deal_to(())
        self._partial: dict[int, int] = {}  # positions of a begun shard that are not done
        self._samples_done = self._shards_done = self._requeued = 0
        self.aside = Quarantine()

    # -- members

    def join(self, who: WorkerId) -> None:
        """A worker is there; static deals of later epochs count it.

        A newer incarnation takes over the deal of the older one, not its leases.
        """
        old = self._live.get(who.rank)
        if old is not None and old != who:
            self._last.pop(old, None)
        self._live[who.rank] = who
        self._left.discard(who.rank)

    def use(self, who: WorkerId) -> None:
        """A worker opened the data set."""
        self._users.add(who.rank)

    def users(self) -> list[WorkerId]:
        """The live workers that opened the data set."""
        return [who for rank, who in self._live.items() if rank in self._users]

    def leave(self, who: WorkerId) -> None:
        """A worker has finished or was lost: its deal goes to the others, its leases stay until
        ``recover`` says which of their samples were applied."""
        self._last.pop(who, None)
        if self._live.get(who.rank) == who:
            del self._live[who.rank]
            self._left.discard(who.rank)
            self._share_out(who.rank)

    # -- asking

    @property
    def drained(self) -> bool:
        return self.epoch < 0 or self._samples_done + self.aside.samples == self.spec.size

    def next(
        self, who: WorkerId, epoch: int, sequence: int, want: int = 0
    ) -> Leased | Drained | Empty:
        """Leases the next shard to a worker.

        Args:
            epoch: the one the worker is in; the next one opens when the open one is drained.
            sequence: the worker's request number; asking again with it gives the same lease.
            want: samples to lease, whatever the shards are; 0: a whole shard.

        Raises:
            InvalidRequestError: an old request number, an epoch further ahead, or an epoch that
                can only be left by ending the one before it.
        """
        again = self._again(who, epoch, sequence)
        if again is not None:
            return again
        if epoch == self.epoch + 1 and self.drained:
            self._open_epoch()
        if epoch < self.epoch or (epoch == self.epoch and self.drained):
            return Drained(epoch)
        if epoch > self.epoch:
            return self._ahead(who, epoch)
        self._left.discard(who.rank)
        deal, rank = self._deal, who.rank
        piece = deal.take(rank, want) if want else deal.pop(rank)
        if piece is None:
            return Empty(self._reason(who))
        return self._lease(who, sequence, piece)

    def _again(self, who: WorkerId, epoch: int, sequence: int) -> Leased | None:
        last, number = self._last.get(who, (-1, 0))
        if sequence > last:
            return None
        held = self._leases.get(number)
        if sequence < last or held is None or held.epoch != epoch:
            raise InvalidRequestError(
                f"request {sequence} for {self.spec.name!r}: request {last} was answered already"
            )
        return Leased(number, held.shard, held.epoch, held.start, held.stop)

    def _lease(self, who: WorkerId, sequence: int, piece: Piece) -> Leased:
        number = next(self._numbers)
        shard, start, stop = piece
        self._leases[number] = Lease(shard, self.epoch, start, stop, who, Ranges(((start, stop),)))
        self._held.setdefault(who, set()).add(number)
        self._last[who] = (sequence, number)
        return Leased(number, shard, self.epoch, start, stop)

    def _ahead(self, who: WorkerId, epoch: int) -> Empty:
        if epoch > self.epoch + 1:
            raise InvalidRequestError(
                f"epoch {epoch} of {self.spec.name!r}: the open epoch is {max(self.epoch, 0)}"
            )
        self._left.add(who.rank)
        self._share_out(who.rank)
        free = self._deal.free
        if free and not self._leases and self._live.keys() & self._users <= self._left:
            raise InvalidRequestError(
                f"epoch {epoch} of {self.spec.name!r}: epoch {self.epoch} has {free} shards "
                "left and every worker asks for the next one; a pass that was broken off goes on "
                f"with epoch {self.epoch}"
            )
        reason = f"epoch {epoch} of {self.spec.name!r} opens when epoch {self.epoch} is drained"
        return Empty(f"{reason}: {self._state()}")

    def _reason(self, who: WorkerId) -> str:
        return (
            f"epoch {self.epoch} of {self.spec.name!r} has no free shard for rank {who.rank}: "
            f"{self._state()}"
        )

    def _state(self) -> str:
        return f"{self._deal.free} shards free, {len(self._leases)} leased"

    def holders(self, limit: int) -> list[WorkerId]:
        """Workers with leases, the lowest ranks first, at most ``limit``."""
        return heapq.nsmallest(limit, self._held)

    @property
    def holding(self) -> int:
        """How many workers have leases."""
        return len(self._held)

    # -- answering

    def report(
        self,
        who: WorkerId,
        done: Sequence[Span] = (),
        returned: Sequence[Span] = (),
        unpushed: int = 0,
    ) -> Reported:
        """Spans of leases that are done, or go back. A span counts once; done counts first.

        Raises:
            InvalidRequestError: a span outside its lease; nothing of the report counts then.
        """
        for span in (*done, *returned):
            self.check_span(span)
        lost: list[int] = []
        before = self._samples_done
        for span in done:
            if not self._settle(who, span):
                lost.append(span.lease)
        back = sum(self._give_back(who, span, lost) for span in returned)
        # Asking again adds nothing: only what this call did can have gone without a push.
        self.unpushed += min(unpushed, self._samples_done - before)
        over = self._samples_done > before and self.drained
        return Reported(tuple(dict.fromkeys(lost)), back > 0, over)

    def check_span(self, span: Span) -> None:
        """Raises InvalidRequestError for a span outside its lease."""
        held = self._leases.get(span.lease) or self._closed.get(span.lease)
        low, high = (held.start, held.stop) if held else (0, self.spec.size)
        if not low <= span.start <= span.stop <= high:
            raise InvalidRequestError(
                f"span [{span.start}, {span.stop}) of lease {span.lease}: "
                f"must lie in [{low}, {high})"
            )

    def _settle(self, who: WorkerId, span: Span) -> bool:
        """Marks a span done; False where it is not this worker's to say so."""
        held = self._leases.get(span.lease)
        if held is None:
            closed = self._closed.get(span.lease)
            return closed is not None and closed.holder == who and not closed.gave_back(span)
        if held.holder != who:
            return False
        for start, stop in held.open.take(span.start, span.stop):
            self._done(start, stop)
        ours = not held.gave_back(span)
        self._close(span.lease, held)
        return ours

    def _done(self, start: int, stop: int) -> None:
        self._samples_done += stop - start
        size = self.spec.shard_size
        for shard in range(start // size, -(-stop // size)):
            _, low, high = self._deal.piece(shard)
            left = self._partial.get(shard, high - low) - (min(stop, high) - max(start, low))
            if left:
                self._partial[shard] = left
            else:
                self._partial.pop(shard, None)
                self._shards_done += 1

    def _give_back(self, who: WorkerId, span: Span, lost: list[int]) -> int:
        held = self._leases.get(span.lease)
        if held is None or held.holder != who:
            closed = self._closed.get(span.lease)
            if closed is None or closed.holder != who:
                lost.append(span.lease)
            return 0
        parts = held.open.take(span.start, span.stop)
        if parts and held.recalled is not None:
            held.recalled = None
            parts = [s for p in parts for s in shares(p, held.thieves, self.spec.batch_size)]
        self._requeue(held, parts)
        self._close(span.lease, held)
        return len(parts)

    def _requeue(self, held: Lease, parts: Sequence[Range]) -> None:
        if held.returned is None:
            held.returned = Ranges()
        held.returned.parts += parts
        rank = held.holder.rank
        self._deal.put_back(parts, rank if rank in self._live else None)
        self._requeued += len(parts)
        if rank in self._left:
            self._share_out(rank)

    def _close(self, number: int, held: Lease) -> None:
        if held.open:
            return
        del self._leases[number]
        numbers = self._held[held.holder]
        numbers.discard(number)
        if not numbers:
            del self._held[held.holder]
        self._closed[number] = held

    # -- stealing

    def recall(
        self,
        waiting: Iterable[WorkerId],
        speed: Callable[[WorkerId], float],
        patience: float,
    ) -> tuple[WorkerId, int] | None:
        """Asks for the tail of the lease that will end last, for workers that wait for more.

        Args:
            speed: samples per second of a worker; 0.0: not known.
            patience: seconds; a lease that ends sooner stays as it is.

        Returns:
            The holder, and how many samples it is asked for; None: nothing more was asked for.
        """
        if self._deal.free or not self.policy.shared:
            return None
        idle = [w for w in waiting if w.rank not in self._left and w not in self._held]
        return recall(self._leases, self._held, idle, speed, patience)

    def recalled(self, who: WorkerId) -> list[Span]:
        """What this worker is to give back, as far as it has not drawn it."""
        found = [(n, self._leases[n]) for n in sorted(self._held.get(who, ()))]
        return [Span(n, h.recalled, h.stop) for n, h in found if h.recalled is not None]

    # -- losses

    def outstanding(self, who: WorkerId) -> bool:
        """Whether a worker holds leases."""
        return who in self._held

    def recover(self, who: WorkerId, applied: Iterable[Span], failed: bool = False) -> int:
        """The leases of a worker that left: what was applied is done, the rest is free again.

        Args:
            applied: spans that pushes carried, of any lease and data set.
            failed: it was lost; what several workers in a row are lost over is set aside.

        Returns:
            Positions that went back to the queue.
        """
        for span in applied:
            held = self._leases.get(span.lease)
            if held is not None and held.holder == who:
                for start, stop in held.open.take(span.start, span.stop):
                    self._done(start, stop)
        back = 0
        numbers = sorted(self._held.get(who, ()), reverse=True)
        first = min((n for n in numbers if self._leases[n].open), default=0)
        for number in numbers:
            held = self._leases[number]
            parts = held.open.take(held.start, held.stop)
            if failed and number == first and self.aside.takes(parts):
                held.returned = Ranges([*(held.returned or Ranges()).parts, *parts])
            else:
                back += sum(b - a for a, b in parts)
                self._requeue(held, parts)
            self._close(number, held)
        self._share_out(None)
        return back

    def _share_out(self, rank: int | None) -> None:
        """What nobody will take otherwise goes to those that stay in the epoch."""
        self._deal.share_out(rank, self._live.keys() - self._left)

    # -- epochs

    def _open_epoch(self) -> None:
        self.epoch += 1
        self._partial = {}
        self._samples_done = self._shards_done = self._requeued = 0
        self.aside.open_epoch()
        self._left.clear()
        self._closed = {n: c for n, c in self._closed.items() if c.epoch >= self.epoch - 1}
        self._deal = self._deal_to(sorted(self._live))

    def _deal_to(self, ranks: Sequence[int]) -> Deal:
        spec = self.spec
        return Deal(self.policy, max(self.epoch, 0), spec.size, spec.shard_size, ranks)

    # -- looking

    def counts(self) -> Counts:
        return Counts(
            max(self.epoch, 0), self.shards, self._deal.free, len(self._leases), self._shards_done,
            self._requeued, self._samples_done, self.unpushed, self.aside.total,
        )  # fmt: skip

    def _leased(self) -> list[Range]:
        """Positions under leases, each once."""
        return [part for held in self._leases.values() for part in held.open.parts]

    def check_invariants(self) -> None:
        """Raises AssertionError when a position is lost or held twice."""
        pieces = self._deal.pieces() if self.epoch >= 0 else []
        ranges = [(a, b) for _, a, b in pieces]
        ranges += self._leased()
        assert len(pieces) == self._deal.free or self.epoch < 0
        for (_, stop), (start, _) in zip(sorted(ranges), sorted(ranges)[1:], strict=False):
            assert stop <= start, "a position is held twice"
        assert sum(b - a for a, b in ranges) + self._samples_done + self.aside.samples == (
            self.spec.size if self.epoch >= 0 else 0
        )
        assert {n for held in self._held.values() for n in held} == self._leases.keys()
        assert all(held.open for held in self._leases.values())
