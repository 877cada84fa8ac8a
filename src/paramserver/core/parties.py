"""The shard queue when the features of a sample are split over parties.

Rank r is party r mod P of replica r div P. A shard is leased to a replica: all its parties get the
same shards in the same order, and work on them together. To the queue below, a replica is one
worker.

A sample is done when every party of its replica has said so. It goes back to the queue when the
label party (party 0) gives it back, or when the replica is not whole any more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from paramserver.core.dataset import Counts, DatasetSpec, Drained, Empty, Leased, Reported
from paramserver.core.progress import Progress
from paramserver.core.quarantine import Quarantine
from paramserver.core.resume import ResumableQueue
from paramserver.core.spans import Ranges
from paramserver.errors import InvalidRequestError
from paramserver.types import Span, WorkerId

LABEL = 0  # the party that has the labels


@dataclass(slots=True)
class _Shared:
    """A lease of a replica; ``open``: positions that a party has said nothing of, by party;
    ``done``: what the label party has done and others have not."""

    leased: Leased
    open: list[Ranges]
    done: list[Span] = field(default_factory=list)

    def others_open(self) -> bool:
        return any(self.open[LABEL + 1 :])


@dataclass(slots=True)
class _Replica:
    """``number``: what the queue knows it by; ``todo``: leases that a party has not had yet;
    ``last``: its newest request and the answer; ``back``: what it gave back before the label
    party said what becomes of it."""

    number: WorkerId
    members: tuple[WorkerId, ...]
    todo: list[deque[Leased]]
    last: list[tuple[int, Leased | None]]
    back: list[list[Span]]
    leases: dict[int, _Shared] = field(default_factory=dict)
    sequence: int = 0
    unpushed: int = 0


class ReplicaQueue:
    """A shard queue between replicas of several parties; the interface of ``ShardQueue``."""

    def __init__(self, queue: ResumableQueue, parties: int) -> None:
        self._queue = queue
        self.parties = parties
        self._members: dict[int, WorkerId] = {}  # by rank
        self._replicas: dict[int, _Replica] = {}  # those that are whole
        self._left: dict[WorkerId, _Replica] = {}  # with leases to recover, by label party

    # -- what is the same with parties

    @property
    def spec(self) -> DatasetSpec:
        return self._queue.spec

    @property
    def epoch(self) -> int:
        return self._queue.epoch

    @property
    def shards(self) -> int:
        return self._queue.shards

    @property
    def unpushed(self) -> int:
        return self._queue.unpushed

    @property
    def drained(self) -> bool:
        return self._queue.drained

    @property
    def aside(self) -> Quarantine:
        return self._queue.aside

    @property
    def holding(self) -> int:
        """How many replicas have leases."""
        return self._queue.holding

    def counts(self) -> Counts:
        return self._queue.counts()

    def holders(self, limit: int) -> list[WorkerId]:
        """The parties that have not done what their replicas hold, at most ``limit``."""
        late = [
            made.members[party]
            for made in self._replicas.values()
            for party in range(self.parties)
            if any(shared.open[party] for shared in made.leases.values())
        ]
        return sorted(late)[:limit]

    # -- members

    def join(self, who: WorkerId) -> None:
        """A worker is there; its replica takes part once all its parties are."""
        old = self._members.get(who.rank)
        if old == who:
            return
        if old is not None:
            self.leave(old)
        self._members[who.rank] = who
        number = who.rank // self.parties
        members = [self._members.get(number * self.parties + p) for p in range(self.parties)]
        whole = tuple(m for m in members if m is not None)
        if len(whole) == self.parties:
            newest = max(m.incarnation for m in whole)
            made = _Replica(
                WorkerId(number, newest),
                whole,
                [deque() for _ in whole],
                [(-1, None) for _ in whole],
                [[] for _ in whole],
            )
            self._replicas[number] = made
            self._queue.join(made.number)

    def use(self, who: WorkerId) -> None:
        """A worker opened the data set."""
        self._queue.use(WorkerId(who.rank // self.parties, who.incarnation))

    def leave(self, who: WorkerId) -> None:
        """A worker has finished or was lost: its replica takes part no more. Leases stay until
        ``recover`` says which samples of the label party were applied."""
        if self._members.get(who.rank) != who:
            return
        del self._members[who.rank]
        made = self._replicas.pop(who.rank // self.parties, None)
        if made is not None:
            if self._queue.outstanding(made.number):
                self._left[made.members[LABEL]] = made
            self._queue.leave(made.number)

    # -- asking

    def next(
        self, who: WorkerId, epoch: int, sequence: int, want: int = 0
    ) -> Leased | Drained | Empty:
        """The next shard of the worker's replica that this worker has not had; as ``ShardQueue``.

        Shards are given whole: ``want`` must be 0.

        Raises:
            InvalidRequestError: as ``ShardQueue.next``.
        """
        number, party = divmod(who.rank, self.parties)
        made = self._replicas.get(number)
        if made is None:
            over = epoch < self.epoch or (epoch == self.epoch and self.drained)
            return Drained(epoch) if over else Empty(self._missing(number))
        again = self._again(made, party, epoch, sequence)
        if again is not None:
            return again
        if epoch == self.epoch:
            reason = self._undecided(made, party)
            if reason:
                return Empty(reason)
            if made.todo[party]:
                return self._give(made, party, sequence, made.todo[party].popleft())
        found = self._queue.next(made.number, epoch, made.sequence + 1)
        if not isinstance(found, Leased):
            return found
        made.sequence += 1
        span = (found.start, found.stop)
        made.leases[found.lease] = _Shared(found, [Ranges((span,)) for _ in made.members])
        for other, todo in enumerate(made.todo):
            if other != party:
                todo.append(found)
        return self._give(made, party, sequence, found)

    def _give(self, made: _Replica, party: int, sequence: int, leased: Leased) -> Leased:
        made.last[party] = (sequence, leased)
        return leased

    def _again(self, made: _Replica, party: int, epoch: int, sequence: int) -> Leased | None:
        last, leased = made.last[party]
        if sequence > last:
            return None
        if sequence < last or leased is None or leased.epoch != epoch:
            raise InvalidRequestError(
                f"request {sequence} for {self.spec.name!r}: request {last} was answered already"
            )
        return leased

    def _missing(self, number: int) -> str:
        ranks = range(number * self.parties, (number + 1) * self.parties)
        missing = ", ".join(f"{r % self.parties} (rank {r})" for r in ranks if not self._is_in(r))
        return f"replica {number} of {self.spec.name!r} lacks party {missing}"

    def _is_in(self, rank: int) -> bool:
        return rank in self._members

    def _undecided(self, made: _Replica, party: int) -> str:
        """Whom the party waits for after a pass that it broke off, in words; else "".

        What the label party works on goes back, or is done, when it says so; what it has not had
        yet, or has done, this party will have again.
        """
        ahead = {leased.lease for leased in made.todo[LABEL]}
        again = []
        for span in made.back[party]:
            shared = made.leases.get(span.lease)
            if shared is None or not shared.open[party].overlap(span.start, span.stop):
                continue
            if span.lease in ahead or not shared.open[LABEL].overlap(span.start, span.stop):
                again.append(replace(shared.leased, start=span.start, stop=span.stop))
            else:
                return f"rank {made.members[LABEL].rank} has not said what it did of its last shard"
        made.todo[party].extendleft(reversed(again))
        made.back[party].clear()
        return ""

    # -- answering

    def report(
        self,
        who: WorkerId,
        done: Sequence[Span] = (),
        returned: Sequence[Span] = (),
        unpushed: int = 0,
    ) -> Reported:
        """Spans that a party has done, or gives back; as ``ShardQueue.report``.

        Raises:
            InvalidRequestError: a span outside its lease; nothing of the report counts then.
        """
        number, party = divmod(who.rank, self.parties)
        made = self._replicas.get(number)
        if made is None or made.members[party] != who:
            return Reported(tuple(dict.fromkeys(s.lease for s in (*done, *returned))), False, False)
        for span in (*done, *returned):
            self._queue.check_span(span)
        if party == LABEL:
            made.unpushed += unpushed
        over: list[Span] = []
        for span in done:
            over += self._done(made, party, span)
        if party == LABEL:
            over += self._give_back(made, returned)
        else:
            made.back[party] += returned
            returned = ()
        return self._forward(made, over, returned)

    def _forward(self, made: _Replica, done: list[Span], returned: Sequence[Span]) -> Reported:
        if not done and not returned:
            return Reported((), False, False)
        said = self._queue.report(made.number, done, returned, made.unpushed)
        made.unpushed = 0 if done else made.unpushed
        for lease in {span.lease for span in (*done, *returned)}:
            shared = made.leases.get(lease)
            if shared is not None and not shared.open[LABEL] and not shared.others_open():
                del made.leases[lease]
        return said

    def _done(self, made: _Replica, party: int, span: Span) -> list[Span]:
        """What all parties have done now that this one has."""
        shared = made.leases.get(span.lease)
        if shared is None:
            return [span] if party == LABEL else []  # told before; the queue knows what it was
        parts = shared.open[party].take(span.start, span.stop)
        if party == LABEL:
            shared.done += [Span(span.lease, a, b) for a, b in parts]
        if shared.others_open():
            return []
        over, shared.done = shared.done, []
        return over

    def _give_back(self, made: _Replica, returned: Sequence[Span]) -> list[Span]:
        """No party works on these any more; what all have done by that."""
        over: list[Span] = []
        for span in returned:
            shared = made.leases.get(span.lease)
            if shared is None:
                continue
            for ranges in shared.open:
                ranges.take(span.start, span.stop)
            if not shared.others_open():
                over += shared.done
                shared.done = []
            for todo in made.todo:
                rest = [self._without(leased, span) for leased in todo]
                todo.clear()
                todo.extend(leased for leased in rest if leased.start < leased.stop)
        return over

    def _without(self, leased: Leased, span: Span) -> Leased:
        """A pass is broken off at one place: what goes back is the end of a lease."""
        if leased.lease != span.lease:
            return leased
        return replace(leased, stop=min(leased.stop, span.start))

    # -- losses

    def outstanding(self, who: WorkerId) -> bool:
        """Whether a label party has left with leases of its replica."""
        return who in self._left

    def recover(self, who: WorkerId, applied: Iterable[Span], failed: bool = False) -> int:
        """The leases of a replica that is not whole any more; as ``ShardQueue.recover``.

        Args:
            applied: spans that pushes of its label party carried.
            failed: as for ``ShardQueue``.
        """
        made = self._left.pop(who)
        said = [span for shared in made.leases.values() for span in shared.done]
        return self._queue.recover(made.number, [*applied, *said], failed)

    # -- snapshots

    def begin_snapshot(self) -> Progress:
        """As ``ResumableQueue.begin_snapshot``; ranks are replicas."""
        return self._queue.begin_snapshot()

    def end_snapshot(self, before: Progress, applied: Iterable[Span]) -> Progress:
        """As ``ResumableQueue.end_snapshot``; all parties of a replica are cut at one clock."""
        return self._queue.end_snapshot(before, applied)

    def resume(self, progress: Progress) -> None:
        """As ``ResumableQueue.resume``."""
        self._queue.resume(progress)

    def check_invariants(self) -> None:
        """Raises AssertionError when the parts disagree."""
        self._queue.check_invariants()
        for made in [*self._replicas.values(), *self._left.values()]:
            for lease, shared in made.leases.items():
                assert shared.open[LABEL] or shared.others_open(), f"lease {lease} is over"
                left = Ranges(((shared.leased.start, shared.leased.stop),))
                for ranges in shared.open:
                    assert all(left.overlap(a, b) == b - a for a, b in ranges.parts)
            for party, todo in enumerate(made.todo):
                for leased in todo:
                    open_ = made.leases[leased.lease].open[party]
                    assert open_.overlap(leased.start, leased.stop) == leased.stop - leased.start
