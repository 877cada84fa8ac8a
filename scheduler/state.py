"""All that the scheduler decides, as one state machine: events in, answers and wakes out.

No I/O: the service asks, answers, and does what ``take_wakes`` and ``take_losses`` say. Whatever
changes more than figures and leases' times is an ``event``: told again in the same order, events
lead to the same state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from paramserver.config import SchedulerConfig
from paramserver.core.adaptive import Change
from paramserver.core.leases import Numbers
from paramserver.core.members import (
    Caller,
    JobState,
    Member,
    Registered,
    Role,
    State,
    worker_id,
)
from paramserver.core.membership import Membership
from paramserver.core.placement import Groups, check_name
from paramserver.core.rounds import Rounds
from paramserver.errors import InvalidRequestError
from paramserver.scheduler.absences import Absences
from paramserver.scheduler.adaptation import Adaptation
from paramserver.scheduler.data_events import DataEvents
from paramserver.scheduler.datasets import Datasets
from paramserver.scheduler.events import event
from paramserver.scheduler.facts import Asked, Kept, Loss, Schedule
from paramserver.scheduler.figures import Figures
from paramserver.scheduler.group_events import GroupEvents
from paramserver.scheduler.journal import Journal
from paramserver.scheduler.keeping import Keeping
from paramserver.scheduler.measuring import Measuring
from paramserver.scheduler.offices import OfficeEvents, Offices
from paramserver.scheduler.places import Places
from paramserver.scheduler.replicas import ReplicaGroups
from paramserver.scheduler.round_events import RoundEvents
from paramserver.scheduler.shape import Shape
from paramserver.scheduler.shape_events import ShapeEvents
from paramserver.scheduler.snapshot_events import Draft, Resumed, SnapshotEvents
from paramserver.scheduler.topics import EVERYTHING
from paramserver.scheduler.warm_start import WarmStarts
from paramserver.scheduler.words import failed, where
from paramserver.types import Span, WorkerId


class SchedulerState(
    Keeping,
    Measuring,
    DataEvents,
    GroupEvents,
    OfficeEvents,
    RoundEvents,
    ShapeEvents,
    SnapshotEvents,
):
    """Membership, groups, data sets, rounds and schedules of one job at a time.

    Args:
        now: seconds on a monotonic clock; every event carries its own.
        first_incarnation: must exceed those that any earlier scheduler gave.
    """

    def __init__(self, config: SchedulerConfig, now: float, first_incarnation: int = 1) -> None:
        self.config = config
        self.members = Membership(config.workers, config.servers, config.lease_s, first_incarnation)
        self.members.mends = config.durability != "memory"
        self.journal = Journal(now)
        self.absences = Absences(self.members, self.journal, config.server_timeout_s)
        self.numbers = Numbers()
        self.holds = Numbers()  # of cuts and of other times when pushes wait
        self._first = first_incarnation
        self.map_version, self._rounds_begun = 0, 1
        self._job = self.members.job
        self._state = self.members.state
        self._wakes: set[str] = set()
        self._losses: list[Loss] = []  # workers that left with leases which wait for ``recover``
        self._taken = 0  # how many of them the shell knows of
        self.asked: dict[str, Asked] = {}
        self._reset()

    def _reset(self) -> None:
        self.groups = Groups(self.config.limits)
        self.absences.begin_job(self.groups)
        self.shape = Shape(
            self.members,
            self.groups,
            self.journal,
            version=self._next_map_version,
            servers=self._known_servers,
            unready=self._unready,
            hold=self.hold,
        )
        self.places = Places(self.members, self.groups, self.journal)
        self.replicas = ReplicaGroups(self.members, self.groups, self.journal)
        self.figures = Figures()
        self.data = Datasets(
            self.config,
            self.members,
            self.journal,
            self.numbers,
            self.wake,
        )
        self.rounds = Rounds(self._rounds_begun)
        self.adaptation = Adaptation(self.journal, self.config.heartbeat_s)
        self.schedule: Schedule | None = None
        self.warm = WarmStarts(self.members, self.data, self.journal, self.wake)
        self.offices = Offices(self.members, self.config.limits)
        self.draft: Draft | None = None
        self.resumed: Resumed | None = None
        self.newest: Kept | None = None
        self.lineage = f"{self._first}-{self.members.job}"
        self._names: dict[WorkerId, str] = {}
        self._losses.clear()
        self._taken = 0

    def wake(self, topic: str) -> None:
        """Callers parked on a topic look again."""
        self._wakes.add(topic)

    def come_back(self, config: SchedulerConfig, now: float) -> None:
        """This state was told from its events: its members could not be heard meanwhile."""
        self.config, self.members.lease_s = config, config.lease_s
        self.members.renew_all(now)
        self._taken = 0
        self._wakes.clear()

    def stamp(self) -> str:
        """Short, and different for almost any two states that should be the same."""
        members = self.members
        return f"{members.job}/{members.number}/{self.numbers.newest}/{self.map_version}"

    def _begin_anew(self) -> None:
        """What belongs to another job is void."""
        self._job = self.members.job
        self._rounds_begun = self.rounds.next_number
        lineage = self.lineage
        self._reset()
        if self.members.origin < self.members.job:  # it goes on with the one before
            self.lineage = lineage

    # -- instructions for the shell

    def take_wakes(self) -> set[str]:
        """Topics whose parked callers may be answered now; ``EVERYTHING`` for all."""
        wakes = set(self._wakes)
        self._wakes.clear()
        return wakes

    def take_losses(self) -> list[Loss]:
        """Workers whose leases wait for ``recover``, once other replicas have told of them."""
        new = self._losses[self._taken :]
        held = [x for x in new if self.replicas.untold(worker_id(x.member))]
        ready = [x for x in new if x not in held]
        self._losses[self._taken :] = [*ready, *held]
        self._taken += len(ready)
        return ready

    # -- coming and going

    @event
    def register(
        self,
        role: Role,
        name: str,
        now: float,
        *,
        address: str,
        host: str,
        pid: int,
        resumes: int = 0,
        attempt: str = "",
    ) -> Registered:
        """A process joins.

        Args:
            resumes: of a server, the incarnation whose state it has; 0: none.

        Raises:
            InvalidRequestError: a bad name or one of another role, or the only job has ended.
            ResourceError: too many members.
        """
        if name:
            check_name(name, "member", self.config.limits)
        if self.config.once and self.members.ended() and role is Role.WORKER:
            raise InvalidRequestError("the job has ended; this scheduler serves one job (once)")
        job = self.members.job
        done = self.members.register(
            role, name, now, address=address, host=host, pid=pid, attempt=attempt
        )
        if self.members.job != self._job:
            self._begin_anew()
        member = done.member
        if role is Role.SERVER and self.config.durability == "wal":
            done = replace(done, resumed=self.absences.come(member, resumes, now))
        where = f" on {member.host}" if member.host else ""
        rank = f" as rank {member.rank}" if role is Role.WORKER else ""
        old = done.replaced
        newer = f"; takes the place of incarnation {old.incarnation}" if old is not None else ""
        self.journal.say(f"{member.name} registered{rank}{where}{newer}", now)
        if old is not None and not done.new_job and job == self._job:
            self._gone(old, heir=member)
            self._lose_mates(old, now)
        self.places.come(member)
        if role is Role.WORKER:
            self._names[worker_id(member)] = member.name
            self.data.join(member)
        self._after(now, EVERYTHING)
        return done

    @event
    def finish(self, caller: Caller, now: float) -> None:
        """A member leaves of its own will. Idempotent."""
        if self.members.has_left(caller):
            return
        self.members.check(caller, finished=True, lost=True)
        left = self.members.finish(caller.name)
        if left is not None:
            self.journal.say(f"{left.name} finished", now)
            self._gone(left)
            self._after(now, EVERYTHING)

    @event
    def fail(self, caller: Caller, reason: str, fatal: bool, exit_code: int, now: float) -> None:
        """A worker failed; fatal: so does the job, with this cause. Idempotent.

        One that came later and never took part is only lost. Incarnation 0: a launcher speaks.
        """
        member = self.members.find(caller.name)
        if caller.incarnation or caller.job not in (0, self.members.job):
            member = self.members.check(caller, finished=True)
        who = caller.name if member is None else where(member)
        text = failed(who, exit_code, reason)
        stranger = member is not None and self.members.started and not member.been
        if fatal and not stranger and self.members.fail(text):
            self.journal.say(text, now)
        if member is not None:
            self._lose(member.name, text, now)
        self._after(now, EVERYTHING)

    def tick(self, now: float) -> None:
        """Looks at the time: leases lapse, bounds follow what was measured."""
        silent, bounds = self.members.silent(now), self.adaptation.tick(now)
        if silent or bounds or self.members.deserted(now) or self.absences.due(now):
            self.lapse(silent, self.members.deserted(now), bounds, now)

    @event
    def lapse(
        self, silent: Mapping[str, str], deserted: bool, bounds: Mapping[str, Change], now: float
    ) -> None:
        """Time has passed.

        Args:
            silent: members to be lost, and why.
            deserted: nobody came back to the job.
            bounds: of adaptive groups.
        """
        lost = [m for name in silent if (m := self.members.lose(name, silent[name], now))]
        for member in lost:
            self.journal.say(f"{member.name} lost: {silent[member.name]}", now)
        self._gone(*lost)
        for member in lost:
            self._lose_mates(member, now)
        if deserted:
            self.members.give_up()
        for group, change in bounds.items():
            self.adaptation.adopt(group, change, now)
            self.members.changed()
        self._after(now, *([EVERYTHING] if lost or deserted else []))

    def _lose(self, name: str, reason: str, now: float) -> None:
        left = self.members.lose(name, reason, now)
        if left is not None:
            self.journal.say(f"{name} lost: {reason}", now)
            self._gone(left)
            self._lose_mates(left, now)

    def _lose_mates(self, lost: Member, now: float) -> None:
        """The other parties of a replica can do nothing without the one that was lost, and what
        they still sent would count for samples that others are given."""
        parties = self.config.parties
        if parties == 1 or lost.role is not Role.WORKER or not lost.been:
            return
        for mate in self.members.live(Role.WORKER):
            if mate.rank // parties == lost.rank // parties and mate.been:
                reason = f"party {lost.rank % parties} of its replica, {lost.name}, was lost"
                self._lose(mate.name, reason, now)

    def _gone(self, *members: Member, heir: Member | None = None) -> None:
        if self.members.job != self._job:  # it was rolled back
            self._begin_anew()
            return
        workers = [m for m in members if m.role is Role.WORKER]
        for member in members:
            self.places.go(member)
            if self.members.find(member.name) is None:
                self.figures.forget(member.name)
        for member in workers:
            self._names.pop(worker_id(member), None)
            self.replicas.leave(worker_id(member))
            self.data.leave(member, heir)
        self.warm.look_again()
        for released in self.rounds.leave([worker_id(m) for m in workers]):
            self._release(released)
        self._losses += [
            Loss(m, self.members.number, self.members.job, self._was_lost(m, heir))
            for m in workers
            if self.data.outstanding(m)
        ]

    def _was_lost(self, member: Member, heir: Member | None) -> bool:
        now = self.members.find(member.name)
        return heir is not None or (now is not None and now.state is State.LOST)

    def _after(self, now: float, *topics: str) -> None:
        self._wakes.update(topics)
        self._look(now)
        self._place(now)
        if self.members.state is not self._state:
            self._state = self.members.state
            if self._state is JobState.RUNNING:
                self.shape.started(reduces=self.config.parties > 1)
            if self._state is JobState.DONE and (short := self.data.incomplete()):
                self.members.message = f"INCOMPLETE: {short}"
            cause = f": {self.members.message}" if self.members.message else ""
            self.journal.say(f"job {self.members.job} is {self._state.value}{cause}", now)
            self._wakes.add(EVERYTHING)

    def worker(self, caller: Caller) -> Member:
        """The live worker that speaks, in a job that has not failed.

        Raises:
            FencedError, InvalidRequestError: as ``Membership.check``; a server or reader.
            JobFailedError: with the root cause.
        """
        member = self.members.check(caller)
        self.members.require_job()
        if member.role is not Role.WORKER:
            raise InvalidRequestError(f"{member.name} is a {member.role.value}: only workers may")
        return member

    @event
    def set_active(self, caller: Caller, active: bool, now: float) -> int:
        """Makes a worker active, or not; it leaves any wait. Returns the view number."""
        member = self.worker(caller)
        if member.state is State.IDLE:
            self.rounds.withdraw(worker_id(member))
            self.data.withdraw(member.name)
        self.members.move([member.name], State.ACTIVE if active else State.JOINED)
        self._after(now)
        return self.members.number

    # -- data

    @event
    def recover(self, loss: Loss, applied: Iterable[Span], now: float) -> None:
        """The leases of a worker that left: what was applied is done, the rest is free again."""
        if loss in self._losses:
            self._taken -= self._losses.index(loss) < self._taken
            self._losses.remove(loss)
            self.replicas.forget(worker_id(loss.member))
            self.data.recover(loss.member, applied, loss.failed, now)

    def start_reason(self) -> str:
        """Whom the start waits for, in words; empty: the job has started."""
        return self.places.missing()

    def check_invariants(self) -> None:
        """Raises AssertionError when the parts disagree."""
        self.members.check_invariants()
        self.rounds.check_invariants()
        self.data.check_invariants()
        self.replicas.check_invariants()
        live = {worker_id(m): m.name for m in self.members.live(Role.WORKER)}
        assert self._names == live
