"""The whole scheduler under any sequence of events: refused by name, or all parts agree."""

from __future__ import annotations

import itertools
import json

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from paramserver.config import SchedulerConfig
from paramserver.core.dataset import DatasetSpec, Leased
from paramserver.core.members import Caller, JobState, Role, State
from paramserver.core.placement import GroupSpec
from paramserver.core.slices import TensorSpec
from paramserver.errors import ParameterServerError
from paramserver.scheduler.facts import Loss, Source
from paramserver.scheduler.image import Image
from paramserver.scheduler.state import SchedulerState
from paramserver.types import ASSIGNMENTS, Span, Sync

SOURCE = Source("s", "/snapshots", {"m": [("s/ps-0.safetensors", (0,))]})
GROUP = GroupSpec("m", (TensorSpec("w", (4,), "float32", "add"),), "", (), Sync())


class SchedulerMachine(RuleBasedStateMachine):
    """Workers come, go, wait, work and lie about who they are."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.state = SchedulerState(SchedulerConfig(workers=2), 0.0)
        self.seen: list[Caller] = []
        self.held: list[tuple[Caller, Leased]] = []
        self.losses: list[Loss] = []
        self.sequence = itertools.count()
        self.number = 0
        self.image: Image | None = None

    callers = st.integers(0, 30)

    @initialize(begun=st.booleans())
    def begin(self, begun: bool) -> None:
        """Half of the time, a job that runs already, and can go back to a snapshot."""
        if begun:
            self.register(Role.SERVER, "")
            self.come("")
            self.come("")
            self.state.register_group(self.seen[-1], GROUP, self.now)
            self.state.group_stored(self.seen[-1], "m", self.now)
            self.snapshot(True, 3)

    def caller(self, index: int) -> Caller:
        # The newest half of the time: the older ones are fenced.
        return self.seen[-1 - index % len(self.seen)]

    def register(self, role: Role, name: str) -> None:
        done = self.state.register(role, name, self.now, address="h:1", host="", pid=0)
        member = done.member
        self.seen.append(Caller(member.name, member.incarnation, self.state.members.job))

    @rule(name=st.sampled_from(["", "", "worker-0", "worker-1"]))
    def come(self, name: str) -> None:
        self.register(Role.WORKER, name)

    @rule(role=st.sampled_from([Role.SERVER, Role.READER]))
    def come_others(self, role: Role) -> None:
        self.register(role, "")

    @rule(seconds=st.floats(0.0, 6.0), silent=callers)
    def pass_time(self, seconds: float, silent: int) -> None:
        self.now += seconds
        for number, who in enumerate(self.seen):
            if number % 31 != silent:
                self.refusable(lambda who=who: self.state.heartbeat(who, {}, {}, self.now))
        self.state.tick(self.now)

    def refusable(self, event: object) -> None:
        before = self.state.members.number
        try:
            assert callable(event)
            event()
        except ParameterServerError:
            # Giving up a wait is all that a refused request may change.
            assert self.state.members.number <= before + 1

    @rule(who=callers, active=st.booleans())
    def set_active(self, who: int, active: bool) -> None:
        if self.seen:
            self.refusable(lambda: self.state.set_active(self.caller(who), active, self.now))

    @rule(who=callers)
    def group(self, who: int) -> None:
        if self.seen:
            self.refusable(lambda: self.state.register_group(self.caller(who), GROUP, self.now))
            self.refusable(lambda: self.state.await_group(self.caller(who), "m", self.now))

    @rule(who=callers, name=st.sampled_from(ASSIGNMENTS))
    def open(self, who: int, name: str) -> None:
        if self.seen:
            spec = DatasetSpec(name, 24, 4, 4, 0, True, name)
            self.refusable(lambda: self.state.open_dataset(self.caller(who), spec, self.now))

    @rule(
        who=callers, name=st.sampled_from(ASSIGNMENTS), waits=st.booleans(), epoch=st.integers(0, 1)
    )
    def ask(self, who: int, name: str, waits: bool, epoch: int) -> None:
        def event() -> None:
            caller = self.caller(who)
            found = self.state.next_shard(caller, name, epoch, next(self.sequence), waits, self.now)
            member = self.state.members.find(caller.name)
            assert member is not None
            if isinstance(found, Leased):
                assert member.state is State.ACTIVE
                self.held.append((caller, found))

        if self.seen:
            self.refusable(event)

    @rule(which=callers, back=st.booleans(), name=st.sampled_from(ASSIGNMENTS))
    def report(self, which: int, back: bool, name: str) -> None:
        if not self.held:
            return
        caller, held = self.held[which % len(self.held)]
        spans = [Span(held.lease, held.start, held.stop)]
        done, returned = ([], spans) if back else (spans, [])
        self.refusable(lambda: self.state.report(caller, name, done, returned, 0, self.now))

    @rule(who=callers, name=st.sampled_from(["x", "y"]))
    def barrier(self, who: int, name: str) -> None:
        if self.seen:
            self.refusable(
                lambda: self.state.join_round(self.caller(who), name, next(self.sequence), self.now)
            )

    @rule(who=callers, over=st.booleans())
    def warm_start(self, who: int, over: bool) -> None:
        def event() -> None:
            member = self.state.worker(self.caller(who))
            found = self.state.warm.ask(member, "m", over, self.now)
            assert bool(found.pending) + found.over + found.chief == 1
            assert found.over or not over

        if self.seen:
            self.refusable(event)

    @rule(who=callers, how=st.sampled_from(["finish", "fail", "fatal"]), rare=st.integers(0, 4))
    def leave(self, who: int, how: str, rare: int) -> None:
        if not self.seen or (how == "fatal" and (rare or self.image is not None)):
            return
        caller = self.caller(who)
        if how == "finish":
            self.refusable(lambda: self.state.finish(caller, self.now))
        else:
            self.refusable(lambda: self.state.fail(caller, "oops", how == "fatal", 1, self.now))

    @rule(which=callers, applied=st.booleans())
    def recover(self, which: int, applied: bool) -> None:
        self.losses += self.state.take_losses()
        if self.losses:
            loss = self.losses.pop(which % len(self.losses))
            spans = [Span(h.lease, h.start, h.stop) for _, h in self.held[:3]] if applied else []
            self.state.recover(loss, spans, self.now)

    @rule(who=callers)
    def store(self, who: int) -> None:
        if self.seen:
            self.refusable(lambda: self.state.group_stored(self.caller(who), "m", self.now))

    @rule(kept=st.booleans(), clock=st.integers(0, 9))
    def snapshot(self, kept: bool, clock: int) -> None:
        """One is taken, or fails half-way."""

        def event() -> None:
            self.state.begin_snapshot()
            self.state.want_schedule(clock)
            if not kept:
                self.state.drop_snapshot("s", "disk full", self.now)
                return
            spans = [Span(h.lease, h.start, h.stop) for _, h in self.held[:3]]
            image = self.state.end_snapshot({"m": (clock, clock)}, spans, self.now)
            self.state.keep_snapshot("s", image.job, "", self.now)
            self.image = Image.from_json(json.loads(json.dumps(image.to_json())))
            assert self.image == image

        self.refusable(event)

    @rule()
    def lose_server(self) -> None:
        """The job fails, or goes back to a snapshot that was kept."""
        job, can = self.state.members.job, self.state.members.can_roll_back
        running = self.state.members.state is JobState.RUNNING
        holds = self.state.groups.find("m") is not None
        for member in self.state.members.live(Role.SERVER)[:1]:
            self.register(Role.SERVER, member.name)
            if running and holds:
                assert self.state.wants_snapshot == can
                assert self.state.members.job == job + can
                assert (self.state.members.state is JobState.FAILED) == (not can)

    @rule(good=st.booleans())
    def answer(self, good: bool) -> None:
        """What the job goes back to was read, or nothing was found."""
        if not self.state.wants_snapshot or self.image is None:
            return
        if not good:
            self.state.give_up_restore("all are damaged", self.now)
            assert self.state.members.state is JobState.FAILED
            return
        self.state.resume(self.image, SOURCE, [], self.now)
        assert not self.state.wants_snapshot
        assert self.state.lineage == self.image.lineage

    @rule(force=st.booleans())
    def restore(self, force: bool) -> None:
        def event() -> None:
            assert self.image is not None
            self.state.restore(force, self.now)
            self.state.resume(self.image, SOURCE, ["one was damaged"], self.now)
            assert not self.state.members.live(Role.WORKER)

        if self.image is not None:
            self.refusable(event)

    @invariant()
    def parts_agree(self) -> None:
        self.state.check_invariants()
        resumed = self.state.resumed
        if resumed is not None and self.state.members.state is JobState.RUNNING:
            assert self.state.groups.get("m").stored
            assert self.state.restored("m") is not None
        assert self.state.members.number >= self.number
        self.number = self.state.members.number
        self.state.take_wakes()

    @invariant()
    def every_lease_has_a_way_back(self) -> None:
        """Leases are held by live workers, or by lost ones that ``recover`` will be called for."""
        self.losses += self.state.take_losses()
        live = {m.name: m.incarnation for m in self.state.members.live(Role.WORKER)}
        lost = {(x.member.rank, x.member.incarnation) for x in self.losses}
        for queue in self.state.data:
            for holder in queue.holders(99):
                assert holder.incarnation in live.values() or (
                    (holder.rank, holder.incarnation) in lost
                )


SchedulerMachine.TestCase.settings = settings(
    max_examples=80, stateful_step_count=50, deadline=None
)
TestScheduler = SchedulerMachine.TestCase
