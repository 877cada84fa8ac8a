"""The data sets of one job, and the workers that are idle until a shard returns."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from paramserver.config import SchedulerConfig
from paramserver.core.backups import BackupQueue
from paramserver.core.balance import Balance
from paramserver.core.dataset import DatasetSpec, Drained, Empty, Leased, complete, disagreement
from paramserver.core.members import Member, Role, State, worker_id
from paramserver.core.membership import Membership
from paramserver.core.parties import ReplicaQueue
from paramserver.core.placement import check_name
from paramserver.core.progress import Progress, continued
from paramserver.core.resume import ResumableQueue
from paramserver.core.shards import ShardQueue
from paramserver.errors import InvalidRequestError, NotFoundError, ResourceError
from paramserver.scheduler.journal import Journal
from paramserver.scheduler.topics import data_topic
from paramserver.scheduler.words import NAMED, words
from paramserver.types import Span, WorkerId

Queue = ShardQueue | ReplicaQueue
Resumable = (ResumableQueue, ReplicaQueue)

_log = logging.getLogger(__name__)
SHOWN = 16  # batch sizes in one event


class Datasets:
    """Shard queues by name.

    Args:
        members: whose workers become active with a shard, and idle without.
        leases: numbers for leases; never repeated.
        wake: told the topic whose parked callers may be answered.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        members: Membership,
        journal: Journal,
        leases: Iterator[int],
        wake: Callable[[str], None],
    ) -> None:
        self._config, self._members, self._journal = config, members, journal
        self._leases, self._wake = leases, wake
        self._queues: dict[str, Queue] = {}
        self._waiting: dict[str, set[str]] = {}  # data set: names of idle workers
        self._joining: dict[str, dict[int, bool]] = {}  # data set: leases of the open epoch
        self._names: dict[WorkerId, str] = {}
        self._balances: dict[str, Balance] = {}
        self._resumed: dict[str, Progress] = {}  # of a snapshot, not opened yet

    def __iter__(self) -> Iterator[Queue]:
        return iter(self._queues.values())

    def get(self, name: str) -> Queue:
        """Raises NotFoundError for a name that nobody opened."""
        if name not in self._queues:
            raise NotFoundError(f"data set {name!r} is not open; call client.loader first")
        return self._queues[name]

    def open(self, member: Member, spec: DatasetSpec, now: float) -> Queue:
        """Opens a data set, or joins it.

        Raises:
            InvalidRequestError: a value that cannot work, or workers disagree.
            ResourceError: too many data sets.
        """
        check_name(spec.name, "data set", self._config.limits)
        queue, saved = self._queues.get(spec.name), self._resumed.get(spec.name)
        if saved is not None and not spec.backups:
            spec = continued(saved.spec, spec)
        wanted = complete(spec, self._config.workers // self._config.parties)
        if queue is None:
            queue = self._new(wanted, now)
        elif differs := disagreement(queue.spec, wanted):
            raise InvalidRequestError(
                f"data set {spec.name!r} was opened otherwise: {differs}; "
                "all workers must agree, or use another name"
            )
        queue.use(worker_id(member))
        return queue

    def _new(self, spec: DatasetSpec, now: float) -> Queue:
        if len(self._queues) >= self._config.limits.groups:
            raise ResourceError(f"data set {spec.name!r}: a job has at most {len(self._queues)}")
        parties = self._config.parties
        if spec.backups and parties > 1:
            raise InvalidRequestError(
                f"data set {spec.name!r}: backup copies with {parties} parties: each party would "
                "count another copy; run it without --parties"
            )
        if spec.balance and parties > 1:
            raise InvalidRequestError(
                f"data set {spec.name!r}: balance with {parties} parties: the parties of a replica "
                "work on the same samples; leave balance out"
            )
        queue: Queue
        if spec.backups:
            queue = BackupQueue(spec, self._leases)
        else:
            plain = ResumableQueue(spec, self._leases)
            queue = ReplicaQueue(plain, parties) if parties > 1 else plain
        self._queues[spec.name] = queue
        for member in self._members.live(Role.WORKER):
            queue.join(worker_id(member))
        self._go_on(queue, now)
        self._waiting[spec.name] = set()
        self._joining[spec.name] = {}
        if spec.balance:
            self._balances[spec.name] = Balance(spec.batch_size)
        self._journal.say(
            f"data set {spec.name} opened: {spec.size} samples, {queue.shards} shards, "
            f"{spec.assign}",
            now,
        )
        return queue

    def _go_on(self, queue: Queue, now: float) -> None:
        saved = self._resumed.get(queue.spec.name)
        if saved is not None and isinstance(queue, Resumable):
            queue.resume(saved)
            self._journal.say(
                f"data set {queue.spec.name} goes on in epoch {max(saved.epoch, 0)}: "
                f"{saved.samples_done} of {saved.spec.size} samples are done",
                now,
            )

    # -- snapshots

    def resume(self, saved: Iterable[Progress]) -> None:
        """Data sets of a snapshot: each goes on from there when a worker opens it."""
        self._resumed = {progress.spec.name: progress for progress in saved}

    def begin_snapshot(self) -> dict[str, Progress]:
        """How far each data set is, by name; those of L-BFGS have no progress to keep."""
        queues = self._queues.items()
        return {n: q.begin_snapshot() for n, q in queues if isinstance(q, Resumable)}

    def end_snapshot(
        self, before: Mapping[str, Progress], applied: Iterable[Span]
    ) -> list[Progress]:
        """How far each was when servers had applied these spans.

        Args:
            before: of ``begin_snapshot``.
        """
        spans = list(applied)
        found = {name: p for name, p in self._resumed.items() if name not in self._queues}
        for name, queue in self._queues.items():
            if name in before and isinstance(queue, Resumable):
                found[name] = queue.end_snapshot(before[name], spans)
        return list(found.values())

    # -- asking

    def next(
        self,
        member: Member,
        name: str,
        epoch: int,
        sequence: int,
        waits: bool,
        now: float,
        clock: int,
        speeds: Mapping[int, float],
    ) -> Leased | Drained | Empty:
        """Leases the next shard; with ``waits``, a worker that gets none is idle until it does.

        Args:
            clock: of the step that a balanced batch is for.
            speeds: for a balanced batch: samples per second by rank, 0.0 where it is not known.

        Raises:
            InvalidRequestError: as ``ShardQueue.next``.
            NotFoundError: an unknown data set.
        """
        queue = self.get(name)
        try:
            want = self._want(member, queue, clock, speeds, now)
            found = queue.next(worker_id(member), epoch, sequence, want)
        except InvalidRequestError:
            self._end_wait(member, name)
            raise
        if isinstance(found, Leased):
            self._note_joining(member, name, found)
            self.withdraw(member.name)  # for whichever data set it waited
            if member.state is not State.ACTIVE:
                self._members.move([member.name], State.ACTIVE)
            if self._config.parties > 1:  # the other parties of its replica get the same shard
                self._wake(data_topic(name))
        elif isinstance(found, Drained):
            self._end_wait(member, name)
            if waits and member.state is State.JOINED:  # released with the others, batch or none
                self._members.move([member.name], State.ACTIVE)
        else:
            if waits:
                self._begin_wait(member, name, epoch)
            return Empty(f"{found.reason}{self._holders(queue, now)}")
        return found

    def unfinished(self, name: str, epoch: int, now: float) -> str:
        """What an epoch waits for until it is drained, in words; empty: it is.

        Raises:
            NotFoundError: an unknown data set.
        """
        queue = self.get(name)
        if queue.epoch > epoch or (queue.epoch == epoch and queue.drained):
            return ""
        begun = f"{queue.counts().samples_done} of {queue.spec.size} samples are done"
        return (
            f"epoch {epoch} of data set {name!r}: "
            f"{begun if queue.epoch == epoch else 'no worker has begun it'}"
            f"{self._holders(queue, now)}"
        )

    def _note_joining(self, member: Member, name: str, leased: Leased) -> None:
        """Remembers whether the replica was active when it was leased the shard."""
        parties, known = self._config.parties, self._joining[name]
        if parties > 1 and leased.lease not in known:
            mates = self._members.live(Role.WORKER)
            replica = member.rank // parties
            states = {m.state for m in mates if m.rank // parties == replica}
            known[leased.lease] = states != {State.ACTIVE}

    def joins(self, name: str, lease: int) -> bool:
        """Whether a replica was leased a shard while one of its parties was not active."""
        return self._joining[name].get(lease, False)

    def balanced(self, name: str) -> bool:
        """Whether batch sizes of a data set follow measured speed."""
        return name in self._balances

    def _want(
        self, member: Member, queue: Queue, clock: int, speeds: Mapping[int, float], now: float
    ) -> int:
        """Samples of a balanced batch; 0: the data set is not balanced."""
        balance = self._balances.get(queue.spec.name)
        if balance is None or isinstance(queue, ReplicaQueue):
            return 0
        changed = balance.observe({w.rank: speeds.get(w.rank, 0.0) for w in queue.users()})
        if changed is not None:
            sizes = ", ".join(f"rank {r} {n}" for r, n in sorted(changed.of.items())[:SHOWN])
            more = ", ..." if len(changed.of) > SHOWN else ""
            self._journal.say(
                f"batch sizes of {queue.spec.name} from clock {changed.clock}: {sizes}{more}", now
            )
        return balance.size(member.rank, clock)

    def recalls(self, member: Member) -> list[tuple[str, Span]]:
        """What a worker is to give back, by data set: others are idle and would be done sooner."""
        plain = [(n, q) for n, q in self._queues.items() if isinstance(q, ShardQueue)]
        return [(name, span) for name, q in plain for span in q.recalled(worker_id(member))]

    def wanting(self) -> list[str]:
        """Data sets of which idle workers may take a part that others hold."""
        return [
            name
            for name, queue in self._queues.items()
            # Parties draw the same shards, each to its end.
            if isinstance(queue, ShardQueue)
            and self._waiting[name]
            and name not in self._balances
            and not queue.spec.backups
        ]

    def steal(
        self, name: str, speeds: Mapping[int, float], patience: float, now: float
    ) -> tuple[WorkerId, int] | None:
        """As ``ShardQueue.recall``, for those that wait for the data set; speeds by rank."""
        queue = self._queues[name]
        assert isinstance(queue, ShardQueue)
        waiting = [m for n in self._waiting[name] if (m := self._members.find(n)) is not None]
        thieves = sorted(worker_id(m) for m in waiting)
        asked = queue.recall(thieves, lambda w: speeds.get(w.rank, 0.0), patience)
        if asked is not None:
            holder, samples = asked
            self._journal.say(
                f"asked {self._names.get(holder)} for {samples} samples of {name}: "
                f"{len(waiting)} idle",
                now,
            )
        return asked

    def _begin_wait(self, member: Member, name: str, epoch: int) -> None:
        self.withdraw(member.name)
        self._waiting[name].add(member.name)
        reason = f"waits for epoch {epoch} of data set {name!r}"
        self._members.move([member.name], State.IDLE, reason)

    def _end_wait(self, member: Member, name: str) -> None:
        if member.name in self._waiting[name]:
            self._waiting[name].discard(member.name)
            self._members.move([member.name], State.ACTIVE)

    def _holders(self, queue: Queue, now: float) -> str:
        held = [self._members.find(self._names.get(who, "")) for who in queue.holders(NAMED)]
        members = [m for m in held if m is not None]
        if not members:
            return ""
        return f"; held by {words(self._members, members, now, queue.holding)}"

    def report(
        self,
        member: Member,
        name: str,
        done: Sequence[Span],
        returned: Sequence[Span],
        unpushed: int,
        now: float,
    ) -> tuple[int, ...]:
        """Spans that are done or go back; returns the leases that are not the caller's.

        Raises:
            InvalidRequestError: a span outside its lease; nothing of the report counts then.
            NotFoundError: an unknown data set.
        """
        said = self.get(name).report(worker_id(member), done, returned, unpushed)
        self._progress(name, said.drained, said.returned, now)
        return said.lost

    def recover(self, member: Member, applied: Iterable[Span], failed: bool, now: float) -> None:
        """As ``ShardQueue.recover``, for all data sets."""
        spans = list(applied)
        who = worker_id(member)
        for name, queue in self._queues.items():
            if queue.outstanding(who):
                before = queue.aside.total
                back = queue.recover(who, spans, failed)
                self._journal.say(f"{back} samples of {member.name} returned to {name}", now)
                if queue.aside.total > before:
                    self._journal.say(f"epoch {queue.epoch} of {name}: {queue.aside.words}", now)
                self._progress(name, queue.drained, back > 0, now)

    def _progress(self, name: str, drained: bool, returned: bool, now: float) -> None:
        if drained:
            _log.debug("epoch %d of %s is drained", self._queues[name].epoch, name)
            self._joining[name].clear()
            names, self._waiting[name] = self._waiting[name], set()
            self._members.move(names, State.ACTIVE)
        if drained or returned:
            self._wake(data_topic(name))

    def incomplete(self) -> str:
        """What was set aside, in words; empty: nothing."""
        what = "were set aside, as workers were lost over them"
        short = [(q.aside.total, q.spec.name) for q in self if q.aside.total]
        return ", ".join(f"{count} samples of data set {name!r} {what}" for count, name in short)

    # -- members

    def join(self, member: Member) -> None:
        """A worker is there."""
        self._names[worker_id(member)] = member.name
        for queue in self._queues.values():
            queue.join(worker_id(member))

    def leave(self, member: Member, heir: Member | None) -> None:
        """A worker is gone; a newer incarnation of it takes over what it was dealt."""
        self.withdraw(member.name)
        for queue in self._queues.values():
            if heir is None or self._config.parties > 1:
                queue.leave(worker_id(member))

    def withdraw(self, name: str) -> None:
        """A worker waits no more."""
        for names in self._waiting.values():
            names.discard(name)

    def outstanding(self, member: Member) -> bool:
        """Whether a worker holds leases."""
        return any(queue.outstanding(worker_id(member)) for queue in self._queues.values())

    def epoch(self, told: int = 0) -> int:
        """The open epoch of the first data set but L-BFGS's; ``told`` if none of it is left."""
        known = {n: (p.epoch, p.samples_done < p.spec.size) for n, p in self._resumed.items()}
        queues = {n: q for n, q in self._queues.items() if not q.spec.backups}
        known |= {n: (q.epoch, not q.drained) for n, q in queues.items()}
        epoch, left = next(iter(known.values()), (0, False))
        return max(epoch, 0 if left and epoch >= 0 else told)

    def check_invariants(self) -> None:
        """Raises AssertionError when the parts disagree."""
        for queue in self._queues.values():
            queue.check_invariants()
        for names in self._waiting.values():
            found = [self._members.find(name) for name in names]
            assert all(m is not None and m.state is State.IDLE for m in found)
