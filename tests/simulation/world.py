"""A job in virtual time: the real scheduler state, clocks, ledgers and shard queues, and one shell
around them that is as thin as can be."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

from paramserver.config import SchedulerConfig
from paramserver.core.clock import Advance, Close, Decision, Drop, GroupClock
from paramserver.core.dataset import DatasetSpec, Drained, Empty, Leased
from paramserver.core.ledger import Ledger, Receipt
from paramserver.core.members import Caller, JobState, Role, State, View
from paramserver.core.placement import GroupSpec
from paramserver.core.slices import TensorSpec
from paramserver.core.spans import common
from paramserver.errors import FencedError, ParameterServerError
from paramserver.scheduler.facts import Loss
from paramserver.scheduler.state import SchedulerState
from paramserver.types import Async, Consistency, Span, Stale, Sync, WorkerId, canonical
from tests.simulation.kernel import (
    Agent,
    Call,
    Kernel,
    Network,
    Process,
    Reply,
    Script,
    Weather,
    guarded,
)

LEASE_S = 4.0
BEAT_S = 0.5
DEADLINE_S = 400.0
Push = tuple[WorkerId, int]


@dataclass(frozen=True, slots=True)
class Bugs:
    """Mistakes that a simulation has to find.

    Attributes:
        no_incarnation: servers know workers by rank alone.
        ledger_lost: a server that starts again has its values, but not what it applied.
        no_fence: servers do not ask whether a worker is still a member.
        early_done: samples are done when they were pushed, not when they were applied.
        staged_lost: a server that starts again has forgotten pushes that it told the lead of.
        unheard_heir: a lead drops the older incarnation of a worker only once the newer is active.
    """

    no_incarnation: bool = False
    ledger_lost: bool = False
    no_fence: bool = False
    early_done: bool = False
    staged_lost: bool = False
    unheard_heir: bool = False


NO_BUGS = Bugs()


class Broken(AssertionError):
    """A promise that this schedule broke."""


class Scheduler(Agent):
    """The scheduler's state machine, and what its shell does with what that decides."""

    def __init__(self, world: World) -> None:
        super().__init__(world.kernel, "scheduler", world.network)
        self.world = world
        self.state = SchedulerState(world.config, 0.0)
        self.outcome = (JobState.WAITING, "")  # of the first job
        self._told = -1
        self._moves: dict[Caller, int] = {}
        self._tick()

    @property
    def _now(self) -> float:
        return self.kernel.now

    def _tick(self) -> None:
        self.state.tick(self._now)
        self.settled()
        self.after(BEAT_S / 2, self._tick)

    def settled(self) -> None:
        """Does what the state asks for after an event."""
        for loss in self.state.take_losses():
            self.spawn(self._recover(loss))
        self.state.take_wakes()
        if self.state.members.job == 1:
            self.outcome = (self.state.members.state, self.state.members.message)
        view = self.state.members.view()
        if view.number != self._told:
            self._told = view.number
            for server in self.world.servers:
                self.network.send(self, server, lambda s=server: s.take_view(view))  # type: ignore[misc]

    def _recover(self, loss: Loss) -> Script:
        sync = isinstance(canonical(self.world.consistency), Sync)
        witnesses = [self.world.lead] if sync else self.world.servers
        told = []
        for server in witnesses:
            told.append((yield Call(server, server.applied_spans, (loss,))))
        self.state.recover(loss, reduce(common, told), self._now)
        self.settled()

    # rpcs

    def register(self, reply: Reply, role: Role, name: str) -> None:
        done = self.state.register(role, name, self._now, address=f"{name}:1", host="", pid=0)
        self.settled()
        reply((done.member, self.state.members.job))

    def view(self, reply: Reply) -> None:
        reply(self.state.members.view())

    def set_active(self, reply: Reply, number: int, caller: Caller, active: bool) -> None:
        """As a retry that is late would be: older ones count no more."""
        if number > self._moves.get(caller, 0):
            self._moves[caller] = number
            self.event(reply, "set_active", caller, active)
        elif number == self._moves[caller]:
            reply((None, self.state.members.number))

    def event(self, reply: Reply, method: str, *arguments: Any) -> None:
        """Any event of the state that is answered at once."""
        try:
            answer = getattr(self.state, method)(*arguments, self._now)
        finally:
            self.settled()
        members = self.state.members
        reply((answer, members.number, members.state, members.started))


@dataclass(slots=True)
class Attempt:
    """One stream's sending of a push."""

    number: int
    taken: set[int] = field(default_factory=set)


class Server(Agent):
    """A ledger, a clock if it leads, and lists of what was applied to each slice.

    Its disk is ideal: what was applied, what was told to the lead, and the ledger are there after
    a crash.
    """

    def __init__(self, world: World, index: int) -> None:
        super().__init__(world.kernel, f"ps-{index}", world.network)
        self.world = world
        self.caller = Caller("", 0, 0)
        self.slices: list[int] = []
        self.applied: dict[int, list[Push]] = {}
        self.ledger = Ledger()
        self.clock: GroupClock | None = None
        self.frontier = 0
        self._reports: list[tuple[WorkerId, int, float]] = []
        self._stream = 0
        self._forget()

    def _forget(self) -> None:
        self.seen: View | None = None
        self._states: dict[WorkerId, State] = {}
        self._parked: list[Callable[[], None]] = []
        self._owners: dict[Push, Attempt] = {}
        self._staged: dict[Push, float] = {}
        self._spans: dict[Push, Sequence[Span]] = {}
        self._waiting: dict[Push, list[Reply]] = {}
        self._followers: dict[str, int] = {}

    def begin(self) -> None:
        """A life begins: it is heard, and asks for views."""
        self.spawn(self._live())
        self._beat()
        if not self.leads:
            self._hello()

    def restart(self) -> None:
        """Starts again after a crash, with what its disk has."""
        staged, torn = self._staged, list(self._owners)
        self._forget()
        self.start()
        if self.world.bugs.staged_lost:
            torn += staged
        else:
            self._staged = staged
        if self.world.bugs.ledger_lost:
            self.ledger = Ledger()
        elif self.sync:
            for worker, clock in torn:
                self.ledger.abandon(self._key(worker), clock)
        if self.clock is not None:
            self.clock = recovered(self.clock, self.world.names)
            for (worker, clock), weight in list(self._staged.items()):
                self._decide(self.clock.staged(self.name, worker, clock, weight))
        self.begin()

    @property
    def leads(self) -> bool:
        return self is self.world.lead

    @property
    def sync(self) -> bool:
        return isinstance(canonical(self.world.consistency), Sync)

    def _key(self, worker: WorkerId) -> WorkerId:
        return WorkerId(worker.rank, 0) if self.world.bugs.no_incarnation else worker

    def _live(self) -> Script:
        while True:
            self.take_view((yield Call(self.world.scheduler, self.world.scheduler.view)))
            yield BEAT_S

    def _beat(self) -> None:
        scheduler = self.world.scheduler
        if self.caller.name:
            arguments: tuple[Any, ...] = ("heartbeat", self.caller, {}, {})
            self.network.send(
                self,
                scheduler,
                lambda: guarded(scheduler.event, lambda _: None, *arguments),
            )
        self.after(BEAT_S, self._beat)

    # views

    def take_view(self, view: View) -> None:
        """Takes a newer view, and looks again at what waited for one."""
        if self.seen is not None and view.number <= self.seen.number:
            return
        self.seen = view
        workers = [m for m in view.members if m.role is Role.WORKER]
        self._states = {WorkerId(m.rank, m.incarnation): m.state for m in workers}
        if self.clock is not None:
            self._observe(view)
        parked, self._parked = self._parked, []
        for look in parked:
            look()

    def _observe(self, view: View) -> None:
        assert self.clock is not None
        first = self.clock.min_clock == 0
        active = {
            WorkerId(m.rank, m.incarnation)
            for m in view.members
            if m.groups and (m.state is State.ACTIVE or (first and m.preparing))
        }
        self._decide(
            self.clock.observe(
                started=view.started,
                active=active,
                lost=self._lost(),
                present=() if self.world.bugs.unheard_heir else self._states,
            )
        )

    def _lost(self) -> set[WorkerId]:
        return {w for w, s in self._states.items() if s is State.LOST}

    def _reach(self, view: int, reply: Reply, then: Callable[[], None]) -> None:
        """Parks until a view is here."""
        if self.seen is not None and self.seen.number >= view:
            guarded(lambda _: then(), reply)
        else:
            self._parked.append(lambda: self._reach(view, reply, then))

    def _admit(self, worker: WorkerId) -> None:
        if self.world.bugs.no_fence:
            return
        if self._states.get(worker, State.LOST) is State.LOST:
            raise FencedError(f"{worker} is not a member")

    # pushes

    def push(
        self,
        reply: Reply,
        worker: WorkerId,
        view: int,
        clock: int,
        attempt: int,
        activated: bool,
        piece: int,
        spans: Sequence[Span],
    ) -> None:
        """One slice of a push; each carries what opens it, as a resumed stream would."""

        def take() -> None:
            self._admit(worker)
            self._take((worker, clock), attempt, activated, piece, spans, reply)

        self._reach(view, reply, take)

    def _take(
        self,
        push: Push,
        number: int,
        activated: bool,
        piece: int,
        spans: Sequence[Span],
        reply: Reply,
    ) -> None:
        worker, clock = self._key(push[0]), push[1]
        owner = self._owners.get(push)
        if owner is not None and owner.number > number:
            return
        if owner is not None and owner.number < number:
            self._release(push)
        if activated and self.ledger.receipt(worker, clock) is None:
            self.ledger.expect(worker, clock)
        receipt = self.ledger.receipt(worker, clock)
        if receipt is None and self.sync and clock < self.frontier:
            self.ledger.abandon(worker, clock)
            self.ledger.expect(worker, self.frontier)
            reply((False, self.frontier))
            return
        receipt = self.ledger.open(worker, clock, self.slices)
        if receipt is not None:
            self._answer(push, receipt, reply)
            return
        self._owners.setdefault(push, Attempt(number))
        if self.ledger.take(worker, clock, piece, clock) and not self.sync:
            self.apply(piece, push)
        if not self.ledger.missing(worker, clock):
            self._complete(push, spans, reply)

    def _complete(self, push: Push, spans: Sequence[Span], reply: Reply) -> None:
        worker, clock = self._key(push[0]), push[1]
        del self._owners[push]
        receipt = Receipt(clock, 0, 0.0, applied=not self.sync)
        self.ledger.complete(worker, clock, receipt, spans)
        if self.sync:
            self._staged[push] = 1.0
        self.report(push[0], clock)
        self._answer(push, self.ledger.receipt(worker, clock) or receipt, reply)

    def _answer(self, push: Push, receipt: Receipt, reply: Reply) -> None:
        if receipt.settled:
            reply((receipt.applied, self.frontier))
        else:
            self._waiting.setdefault(push, []).append(reply)

    def _release(self, push: Push) -> None:
        del self._owners[push]
        if self.sync:
            self.ledger.abandon(self._key(push[0]), push[1])

    def apply(self, piece: int, push: Push) -> None:
        """A slice takes a push; the disk has it at once."""
        self.applied[piece].append(push)

    # clocks

    def report(self, worker: WorkerId, clock: int) -> None:
        """Tells the lead that a push is complete here."""
        if self.clock is not None:
            self._decide(self.clock.staged(self.name, worker, clock, 1.0))
            return
        self._reports.append((worker, clock, 1.0))
        lead, stream = self.world.lead, self._stream
        self.network.stream(
            self, lead, stream, lambda: lead.hear(self, stream, worker, clock), lambda: None
        )

    def _hello(self) -> None:
        """A stream to the lead, made again now and then: reports kept are told again."""
        self._stream = next(self.world.streams)
        lead, stream, frontier = self.world.lead, self._stream, self.frontier
        kept = [r for r in self._reports if not self.sync or r[1] >= frontier]
        self.network.send(self, lead, lambda: lead.follow(self, stream, frontier, kept))
        self.after(2.0 + self.kernel.random.random(), self._hello)

    def hear(self, server: Server, stream: int, worker: WorkerId, clock: int) -> None:
        """The lead hears of a push."""
        if self.clock is not None and self._followers.get(server.name) == stream:
            self._decide(self.clock.staged(server.name, worker, clock, 1.0))

    def follow(
        self,
        server: Server,
        stream: int,
        frontier: int,
        kept: Sequence[tuple[WorkerId, int, float]],
    ) -> None:
        """A server follows from a clock on."""
        if self.clock is None or self._followers.get(server.name, -1) >= stream:
            return
        self._followers[server.name] = stream
        decisions: list[Decision] = (
            list(self.clock.closes_from(frontier)) if self.sync else [Advance(self.clock.min_clock)]
        )
        for decision in decisions:
            self._tell(server, decision)
        for worker, clock, weight in kept:
            self._decide(self.clock.staged(server.name, worker, clock, weight))

    def _tell(self, server: Server, decision: Decision) -> None:
        stream = self._followers[server.name]
        self.network.stream(
            self,
            server,
            stream,
            lambda: server.obey(stream, decision),
            lambda: server.stream_broke(stream),
        )

    def _decide(self, decisions: Sequence[Decision]) -> None:
        for decision in decisions:
            for server in self.world.servers:
                if server.name in self._followers:
                    self._tell(server, decision)
            self.carry_out(decision)

    def obey(self, stream: int, decision: Decision) -> None:
        """A follower does what the lead decided, in order."""
        if stream == self._stream:
            self.carry_out(decision)

    def stream_broke(self, stream: int) -> None:
        """What the lead said got lost: nothing later of that stream may count."""
        if stream == self._stream:
            self._stream = -1

    def carry_out(self, decision: Decision) -> None:
        """What every server does with a decision."""
        if isinstance(decision, Advance):
            self.frontier = max(self.frontier, decision.min_clock)
        elif isinstance(decision, Close):
            self._close(decision)
        elif isinstance(decision, Drop):
            for push in [p for p in self._staged if p[0] == decision.worker]:
                del self._staged[push]

    def _close(self, close: Close) -> None:
        clock = close.clock
        if clock < self.frontier:
            return
        listed = [(c.worker, clock) for c in close.contributors]
        missing = [p for p in listed if p not in self._staged]
        if missing:
            # After a crash what was staged comes again; a close waits for it.
            self._stream = -1
            return
        for push in listed:
            for piece in self.slices:
                self.apply(piece, push)
            receipt = Receipt(clock, clock + 1, 0.0, applied=True)
            self.ledger.amend(self._key(push[0]), clock, receipt)
            del self._staged[push]
        for push in [p for p in self._staged if p[1] <= clock]:
            del self._staged[push]
            dropped = Receipt(push[1], clock + 1, 0.0, applied=False, dropped=True)
            self.ledger.amend(self._key(push[0]), push[1], dropped)
        self.frontier = clock + 1
        for push in [p for p in self._waiting if p[1] <= clock]:
            settled = self.ledger.receipt(self._key(push[0]), push[1])
            for reply in self._waiting.pop(push):
                reply((bool(settled and settled.applied), self.frontier))

    # other rpcs

    def activate(self, reply: Reply, worker: WorkerId, view: int) -> None:
        """The clock of a worker that has become active."""

        def answer() -> None:
            self._admit(worker)
            assert self.clock is not None
            clock = self.clock.activate(worker)
            self.ledger.expect(self._key(worker), clock)
            reply(clock)

        self._reach(view, reply, answer)

    def applied_spans(self, reply: Reply, loss: Loss) -> None:
        """Which samples of a lost worker were applied."""
        worker = WorkerId(loss.member.rank, loss.member.incarnation)

        def answer() -> None:
            for push in [p for p in self._owners if p[0] == worker]:
                self._release(push)
            reply(self.ledger.applied_spans(self._key(worker)))

        self._reach(loss.view, reply, answer)


def recovered(clock: GroupClock, servers: Sequence[str]) -> GroupClock:
    """The clock of a lead that started again: what was decided is known, what was staged is not."""
    again = GroupClock(clock.consistency, servers)
    again.next_clock, again._min = clock.next_clock, clock._min
    again._closes, again._fence = clock._closes, dict(clock._fence)
    again._started = clock._started
    if not isinstance(again.consistency, Sync):
        for worker, known in clock._workers.items():
            again._raise_to(worker, known.clock)
    return again


class Worker(Agent):
    """Trains its share of every epoch; started again, as a new incarnation, when it was lost."""

    def __init__(self, world: World, index: int) -> None:
        super().__init__(world.kernel, f"worker-{index}", world.network)
        self.world = world
        self.finished = False
        self.caller = Caller("", 0, 0)
        self.me = WorkerId(0, 0)
        self._attempts = itertools.count()

    def begin(self) -> None:
        """A life begins."""
        self.spawn(self._main())

    def again(self, delay: float) -> None:
        """Its launcher starts it again."""
        if self.finished:
            return
        self.crash()
        self.kernel.at(delay, self._reborn)

    def _reborn(self) -> None:
        if self.world.scheduler.state.members.ended():  # as its launcher sees to it
            self.finished = True
            self.world.left.add(self.name)
        elif not self.alive and not self.finished:
            self.start()
            self.begin()

    def _main(self) -> Script:
        try:
            yield from self._train()
        except FencedError:
            self.again(0.3)

    def _event(self, method: str, *arguments: Any) -> Call:
        scheduler = self.world.scheduler
        return Call(scheduler, scheduler.event, (method, *arguments))

    def _beat(self) -> None:
        if self.finished:
            return

        def answered(answer: Any) -> None:
            if isinstance(answer, FencedError):
                self.again(0.3)

        self.ask(self._event("heartbeat", self.caller, {}, {}), answered)
        self.after(BEAT_S, self._beat)

    def _train(self) -> Script:
        world, scheduler = self.world, self.world.scheduler
        member, job = yield Call(scheduler, scheduler.register, (Role.WORKER, self.name))
        if job != 1:  # it came just after the end, and would begin a job of its own
            self.finished = True
            world.left.add(self.name)
            return
        self.caller = Caller(member.name, member.incarnation, job)
        self.me = WorkerId(member.rank, member.incarnation)
        self._beat()
        while (yield self._event("heartbeat", self.caller, {}, {}))[2] is not JobState.RUNNING:
            yield 0.1
        yield self._event("register_group", self.caller, world.group)
        while not (found := (yield self._event("await_group", self.caller, "g"))[0]).stored:
            if found.initialize:
                yield self._event("group_stored", self.caller, "g")
            else:
                yield 0.1
        view = (yield Call(scheduler, scheduler.set_active, (1, self.caller, True)))[1]
        clock = yield Call(world.lead, world.lead.activate, (self.me, view))
        yield self._event("open_dataset", self.caller, world.data)
        view = (yield Call(scheduler, scheduler.set_active, (2, self.caller, False)))[1]
        epoch, sequence, waited, activated = 0, 0, True, True
        while epoch < world.epochs:
            sequence += 1
            while True:
                answer = yield self._event("next_shard", self.caller, "d", epoch, sequence, True)
                if not isinstance(answer[0], Empty):
                    break
                waited = True
                yield 0.1
            if isinstance(answer[0], Drained):
                epoch, waited = epoch + 1, True
                continue
            if waited:
                view = answer[1]
                begun = yield Call(world.lead, world.lead.activate, (self.me, view))
                clock, activated, waited = max(clock, begun), True, False
            clock, activated = yield from self._shard(answer[0], view, clock, activated)
        self.finished = True
        yield self._event("finish", self.caller)
        world.left.add(self.name)

    def _shard(self, leased: Leased, view: int, clock: int, activated: bool) -> Script:
        for start in range(leased.start, leased.stop, self.world.data.batch_size):
            stop = min(start + self.world.data.batch_size, leased.stop)
            span = Span(leased.lease, start, stop)
            self.world.issued[self.me, clock] = (leased.epoch, start, stop)
            yield self.kernel.random.uniform(0.0, 0.1)  # computing
            if self.world.bugs.early_done:
                yield self._event("report", self.caller, "d", [span], [], 0)
            counted, clock_now = yield from self._push(view, clock, activated, span)
            if counted:
                self.world.acknowledged.add((self.me, clock))
            clock, activated = max(clock + 1, clock_now if not counted else 0), not counted
            if not self.world.bugs.early_done:
                done, back = ([span], []) if counted else ([], [span])
                yield self._event("report", self.caller, "d", done, back, 0)
            if not counted:
                rest = Span(leased.lease, stop, leased.stop)
                yield self._event("report", self.caller, "d", [], [rest], 0)
                break
        return clock, activated

    def _push(self, view: int, clock: int, activated: bool, span: Span) -> Script:
        """Sends a push until all servers are done; whether it counted, and the next clock."""
        answers: dict[str, Any] = {}
        while len(answers) < len(self.world.servers):
            attempt = next(self._attempts)
            for server in self.world.servers:
                if server.name not in answers:
                    self._send(server, attempt, (view, clock, activated), span, answers)
            until = self.kernel.now + 1.5
            while len(answers) < len(self.world.servers) and self.kernel.now < until:
                yield 0.02
            for answer in answers.values():
                if isinstance(answer, ParameterServerError):
                    raise answer
        counted = all(applied for applied, _ in answers.values())
        if len({applied for applied, _ in answers.values()}) > 1:
            raise Broken(f"{self.me} at clock {clock}: servers disagree on whether it counts")
        return counted, max(next_clock for _, next_clock in answers.values())

    def _send(
        self,
        server: Server,
        attempt: int,
        what: tuple[int, int, bool],
        span: Span,
        answers: dict[str, Any],
    ) -> None:
        view, clock, activated = what
        life, me = self.life, self.me

        def back(value: Any) -> None:
            self.network.send(
                server,
                self,
                lambda: self.deliver(life, lambda: answers.setdefault(server.name, value)),
            )

        for piece in server.slices:
            arguments = (me, view, clock, attempt, activated, piece, [span])
            self.network.stream(
                self,
                server,
                (life << 32) + attempt,
                lambda a=arguments: guarded(server.push, back, *a),  # type: ignore[misc]
                lambda: None,
            )


class World:
    """One schedule: a job, and what befalls it.

    Args:
        seed: of everything.
        bugs: mistakes that are to be found.

    Attributes:
        story: what befell it, in words.
    """

    def __init__(self, seed: int, bugs: Bugs = NO_BUGS) -> None:
        self.seed = seed
        self.bugs = bugs
        self.kernel = kernel = Kernel(seed)
        draw = kernel.random
        self.weather = Weather(
            loss=draw.choice((0.0, 0.02, 0.1)),
            repeat=draw.choice((0.0, 0.05, 0.2)),
            delay=draw.choice(((0.001, 0.01), (0.001, 0.2), (0.05, 0.5))),
        )
        self.network = Network(kernel, self.weather)
        self.consistency: Consistency = draw.choice((Sync(), Sync(), Stale(1), Async("none")))
        self.epochs = draw.choice((1, 2))
        self.streams = itertools.count(1)
        count, workers = draw.choice((1, 2)), draw.choice((2, 2, 3))
        self.config = SchedulerConfig(
            workers=workers,
            servers=count,
            assign=draw.choice(("dynamic", "round-robin", "random")),
            lease_s=LEASE_S,
            heartbeat_s=BEAT_S,
        )
        tensors = tuple(TensorSpec(f"w{i}", (4,), "float32", "add") for i in range(2 * count))
        self.group = GroupSpec("g", tensors, "", (), self.consistency)
        size = draw.choice((8, 12, 20))
        self.data = DatasetSpec("d", size, 2, 4, seed, True, self.config.assign)
        self.issued: dict[Push, tuple[int, int, int]] = {}
        self.acknowledged: set[Push] = set()
        self.left: set[str] = set()
        self.servers: list[Server] = []
        self.story: list[str] = []
        self.scheduler = Scheduler(self)
        self.servers = [Server(self, i) for i in range(count)]
        self.names = [s.name for s in self.servers]
        self.lead = self.servers[0]
        self.workers = [Worker(self, i) for i in range(workers)]
        self._deal()
        self._plan_faults()

    def __str__(self) -> str:
        return (
            f"{self.consistency}, {len(self.servers)} servers, {len(self.workers)} workers, "
            f"{self.data.assign}, {self.weather}"
        )

    def _deal(self) -> None:
        for server in self.servers:
            member = self.scheduler.state.register(
                Role.SERVER, server.name, 0.0, address=f"{server.name}:1", host="", pid=0
            ).member
            server.caller = Caller(member.name, member.incarnation, 1)
        for number in range(len(self.group.tensors)):
            server = self.servers[number % len(self.servers)]
            server.slices.append(number)
            server.applied[number] = []
        self.lead.clock = GroupClock(self.consistency, self.names)
        for server in self.servers:
            server.begin()
        for worker in self.workers:
            worker.begin()

    # faults

    def _plan_faults(self) -> None:
        draw = self.kernel.random
        for _ in range(draw.choice((0, 1, 2, 4))):
            kind = draw.choice(
                (self._kill_worker, self._freeze_worker, self._part, self._kill_server)
            )
            self.kernel.at(draw.uniform(0.2, 8.0), kind)

    def _say(self, text: str) -> None:
        self.story.append(f"{self.kernel.now:.2f} s: {text}")

    def _kill_worker(self) -> None:
        worker = self.kernel.random.choice(self.workers)
        if worker.alive and not worker.finished:
            self._say(f"{worker.name} is killed")
            worker.again(self.kernel.random.uniform(0.2, 6.0))

    def _freeze_worker(self) -> None:
        worker, life = (w := self.kernel.random.choice(self.workers)), w.life
        if not worker.alive or worker.finished or worker.stopped:
            return
        seconds = self.kernel.random.choice((1.0, LEASE_S + 1.0, 3 * LEASE_S))
        self._say(f"{worker.name} stands still for {seconds:g} s")
        worker.stop()

        def thaw() -> None:
            if worker.life == life and worker.alive:
                worker.resume()

        self.kernel.at(seconds, thaw)

    def _kill_server(self) -> None:
        server = self.kernel.random.choice(self.servers)
        if server.alive:
            self._say(f"{server.name} is killed")
            server.crash()
            self.kernel.at(self.kernel.random.uniform(0.1, 1.5), server.restart)

    def _part(self) -> None:
        everybody: list[Process] = [self.scheduler, *self.servers, *self.workers]
        one, other = self.kernel.random.sample(everybody, 2)
        hard = {one, other} <= {self.scheduler, *self.servers}
        seconds = self.kernel.random.uniform(0.5, 1.5 if hard else 2 * LEASE_S)
        until = self.kernel.now + seconds
        self._say(f"{one.name} cannot reach {other.name} for {seconds:.1f} s")
        self.network.cut[one.name, other.name] = until
        if self.kernel.random.random() < 0.5:
            self.network.cut[other.name, one.name] = until

    # running

    def run(self) -> None:
        """To the end of the job.

        Raises:
            Broken: a promise does not hold.
        """
        everyone = len(self.workers)
        if not self.kernel.run(lambda: len(self.left) == everyone, DEADLINE_S):
            missing = sorted({w.name for w in self.workers} - self.left)
            raise Broken(f"not over after {DEADLINE_S:g} s: {', '.join(missing)} still at work")
        self.check()

    def check(self) -> None:
        """Raises Broken when a promise does not hold."""
        state = self.scheduler.state
        state.check_invariants()
        outcome, message = self.scheduler.outcome
        if outcome is not JobState.DONE:
            raise Broken(f"the job is {outcome.value}: {message}")
        self._check_pushes()
        self._check_samples()

    def _check_pushes(self) -> None:
        for server in self.servers:
            server.ledger.check_invariants()
            for piece, pushes in server.applied.items():
                twice = [p for p, n in Counter(pushes).items() if n > 1]
                if twice:
                    raise Broken(f"slice {piece} took {twice[0]} twice")
                lost = self.acknowledged - set(pushes)
                if lost:
                    raise Broken(f"slice {piece} never took {min(lost)}, which was acknowledged")
        logs = [log for server in self.servers for log in server.applied.values()]
        if isinstance(canonical(self.consistency), Sync):
            if any(log != logs[0] for log in logs):
                raise Broken("slices have seen other pushes, or another order")
            clocks = [clock for _, clock in logs[0]]
            if clocks != sorted(clocks):
                raise Broken("clocks were applied out of order")

    def _check_samples(self) -> None:
        logs = [set(log) for server in self.servers for log in server.applied.values()]
        counts: Counter[tuple[int, int]] = Counter()
        for push in set.intersection(*logs):
            epoch, start, stop = self.issued[push]
            counts.update((epoch, sample) for sample in range(start, stop))
        for epoch in range(self.epochs):
            for sample in range(self.data.size):
                if counts[epoch, sample] != 1:
                    times = counts[epoch, sample]
                    raise Broken(f"sample {sample} of epoch {epoch} was trained {times} times")
