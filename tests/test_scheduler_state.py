"""The whole scheduler under any sequence of events: refused by name, or all parts agree."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from paramserver.config import SchedulerConfig
from paramserver.core.dataset import DatasetSpec, Leased
from paramserver.core.members import Caller, JobState, Role, State
from paramserver.core.placement import GroupSpec
from paramserver.core.replicas import Offer
from paramserver.core.slices import TensorSpec
from paramserver.errors import ParameterServerError
from paramserver.scheduler.events import is_event
from paramserver.scheduler.facts import Kept, Loss, Schedule, Source
from paramserver.scheduler.image import Image
from paramserver.scheduler.plain import from_text, to_text
from paramserver.scheduler.state import SchedulerState
from paramserver.types import ASSIGNMENTS, Adaptive, AllReduce, Span, Sync
from tests.canonical import canonical, same

CONFIG = SchedulerConfig(workers=2)
SOURCE = Source("s", "/snapshots", {"m": [("s/ps-0.safetensors", (0,))]})
GROUP = GroupSpec("m", (TensorSpec("w", (4,), "float32", "add"),), "", (), Sync())


ADAPTIVE = GroupSpec("a", GROUP.tensors, "", (), Adaptive(4))
REDUCED = GroupSpec("r", GROUP.tensors, "", (), AllReduce())
DATASETS = {
    **{name: DatasetSpec(name, 24, 4, 4, 0, True, name) for name in ASSIGNMENTS},
    "backups": DatasetSpec("backups", 24, 4, 8, backups=True),
    "balanced": DatasetSpec("balanced", 24, 4, 4, balance="speed"),
    "stolen": DatasetSpec("stolen", 48, 2, 24),
}


class SchedulerMachine(RuleBasedStateMachine):
    """Workers come, go, wait, work and lie about who they are."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.state = SchedulerState(CONFIG, 0.0)
        self.state.recorder = self.record
        self.told: list[tuple[str, str]] = []
        self.counted, self.known = 0, canonical(self.state)
        self.seen: list[Caller] = []
        self.held: list[tuple[Caller, Leased]] = []
        self.losses: list[Loss] = []
        self.sequence = itertools.count()
        self.number = 0
        self.image: Image | None = None

    callers = st.integers(0, 30)

    def record(self, name: str, arguments: Sequence[Any], named: Mapping[str, Any]) -> None:
        assert is_event(self.state, name)
        self.told.append((name, to_text([arguments, dict(named)])))

    @invariant()
    def only_events_change_the_state(self) -> None:
        now = canonical(self.state)
        assert len(self.told) > self.counted or now == self.known
        self.counted, self.known = len(self.told), now

    @rule()
    def write_down_and_read(self) -> None:
        read = from_text(to_text(self.state), CONFIG)
        same(read, self.state)
        read.recorder = self.record
        self.state = read

    def teardown(self) -> None:
        """The same events lead to the same state."""
        told = SchedulerState(CONFIG, 0.0)
        for name, text in self.told:
            arguments, named = from_text(text, CONFIG)
            with suppress(ParameterServerError):
                getattr(told, name)(*arguments, **named)
        same(told, self.state)

    def caller(self, index: int) -> Caller:
        # The newest half of the time: the older ones are fenced.
        return self.seen[-1 - index % len(self.seen)]

    def register(self, role: Role, name: str) -> None:
        done = self.state.register(role, name, self.now, address="h:1", host="", pid=0)
        member = done.member
        self.seen.append(Caller(member.name, member.incarnation, self.state.members.job))

    @initialize(work=st.booleans(), kept=st.booleans())
    def begin(self, work: bool, kept: bool) -> None:
        """Half of the time a job is under way: few sequences come that far.

        Half of them can go back to a snapshot.
        """
        if not work:
            return
        self.register(Role.SERVER, "")
        for _ in range(2):
            self.register(Role.WORKER, "")
        for who in range(2):
            self.group(who)
            for name in DATASETS:
                self.open(who, name)
        self.stored(0)
        if kept:
            self.snapshot(True, 3)

    @rule(name=st.sampled_from(["", "", "worker-0", "worker-1"]))
    def come(self, name: str) -> None:
        self.register(Role.WORKER, name)

    @rule(role=st.sampled_from([Role.SERVER, Role.READER]))
    def come_others(self, role: Role) -> None:
        self.register(role, "")

    @rule(
        seconds=st.floats(0.0, 6.0) | st.just(12.0),
        silent=callers,
        speed=st.sampled_from([0.0, 0.5, 2.0]),
        waited=st.floats(0.0, 9.0),
    )
    def pass_time(self, seconds: float, silent: int, speed: float, waited: float) -> None:
        self.now += seconds
        for number, who in enumerate(self.seen):
            if number % 31 != silent:
                stats = {"speed": speed * number, "steps": self.now, "waited_s": waited}
                self.refusable(lambda who=who, s=stats: self.state.heartbeat(who, {}, s, self.now))
        self.state.tick(self.now)

    @rule(who=callers, loss=st.floats(0.0, 9.0))
    def log(self, who: int, loss: float) -> None:
        if self.seen:
            self.refusable(lambda: self.state.log(self.caller(who), {"loss": loss}))

    @rule(who=callers, number=st.integers(0, 3), text=st.sampled_from(["a", "b"]))
    def coordinate(self, who: int, number: int, text: str) -> None:
        if self.seen:
            caller = self.caller(who)
            self.refusable(lambda: self.state.coordinate(caller, "c", self.now))
            self.refusable(lambda: self.state.announce(caller, "c", number, text, self.now))

    @rule(who=callers, clock=st.integers(0, 3))
    def form(self, who: int, clock: int) -> None:
        def event() -> None:
            self.state.register_group(self.caller(who), REDUCED, self.now)
            offer = Offer(next(self.sequence), clock, "h:2", clock > 0)
            self.state.form_replicas(self.caller(who), "r", offer, self.now)

        if self.seen:
            self.refusable(event)

    @rule(who=callers, epoch=st.integers(0, 3))
    def schedule(self, who: int, epoch: int) -> None:
        if self.seen:
            kept = Schedule(epoch, 1, "{}")
            self.refusable(lambda: self.state.save_schedule(self.caller(who), kept, None, self.now))

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
            for spec in (GROUP, ADAPTIVE):
                self.refusable(
                    lambda spec=spec: self.state.register_group(self.caller(who), spec, self.now)
                )
            self.refusable(lambda: self.state.await_group(self.caller(who), "m", self.now))

    @rule(who=callers)
    def stored(self, who: int) -> None:
        if self.seen:
            self.refusable(lambda: self.state.group_stored(self.caller(who), "m", self.now))

    @rule(who=callers, name=st.sampled_from(sorted(DATASETS)))
    def open(self, who: int, name: str) -> None:
        if self.seen:
            spec = DATASETS[name]
            self.refusable(lambda: self.state.open_dataset(self.caller(who), spec, self.now))

    @rule(
        who=callers,
        name=st.sampled_from(sorted(DATASETS)),
        waits=st.booleans(),
        epoch=st.integers(0, 1),
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

    @rule(who=callers, epoch=st.integers(0, 1))
    def ask_for_all(self, who: int, epoch: int) -> None:
        for name in DATASETS:
            self.ask(who, name, True, epoch)

    @rule(which=callers, back=st.booleans(), name=st.sampled_from(sorted(DATASETS)))
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
            found = self.state.warm_start(self.caller(who), "m", over, self.now)
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
            self.state.chose_cut(clock)
            if not kept:
                self.state.drop_snapshot("s", "disk full", self.now)
                return
            spans = [Span(h.lease, h.start, h.stop) for _, h in self.held[:3]]
            image = self.state.end_snapshot({"m": (clock, clock)}, spans, self.now)
            self.state.keep_snapshot(Kept("s", clock, 1.0), image.job, "", self.now)
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
                assert (
                    holder.incarnation in live.values()
                    or (holder.rank, holder.incarnation) in lost
                    or self.state.replicas.untold(holder)  # it comes when the others have told
                )


SchedulerMachine.TestCase.settings = settings(
    max_examples=40, stateful_step_count=50, deadline=None
)
TestScheduler = SchedulerMachine.TestCase
