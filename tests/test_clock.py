"""Clocks of one group: closing, staleness, membership; then a whole cluster on a bad network."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from paramserver.core.clock import (
    KEPT_CLOSES,
    Advance,
    Close,
    Contribution,
    Cut,
    Decision,
    Drop,
    GroupClock,
    may_read,
)
from paramserver.core.ledger import Ledger, Receipt
from paramserver.errors import (
    ClockError,
    ConfigurationError,
    FencedError,
    InvalidRequestError,
)
from paramserver.types import Async, Consistency, Stale, Sync, WorkerId

A, B, C = WorkerId(0, 1), WorkerId(1, 1), WorkerId(2, 1)
NAMES = {A: "worker-0", B: "worker-1", C: "worker-2"}


def group(
    consistency: Consistency | None = None, active: Collection[WorkerId] = (A, B), servers: int = 1
) -> GroupClock:
    clock = GroupClock(consistency or Sync(), [f"ps-{k}" for k in range(servers)])
    view(clock, active)
    return clock


def view(
    clock: GroupClock, active: Collection[WorkerId], lost: Collection[WorkerId] = ()
) -> list[Decision]:
    decisions = clock.observe(started=True, active=active, lost=lost)
    clock.check_invariants()
    return decisions


def staged(
    clock: GroupClock, worker: WorkerId, at: int, weight: float = 1.0, server: int = 0
) -> list[Decision]:
    decisions = clock.staged(f"ps-{server}", worker, at, weight)
    clock.check_invariants()
    return decisions


def closed(at: int, *workers: WorkerId, weight: float = 1.0) -> Close:
    return Close(at, tuple(Contribution(w, weight) for w in workers))


@pytest.mark.parametrize(
    ("consistency", "clock", "frontier", "may"),
    [
        (Sync(), 0, 0, True),
        (Sync(), 3, 2, False),
        (Sync(), 3, 3, True),
        (Stale(0), 3, 2, False),
        (Stale(2), 5, 3, True),
        (Stale(2), 5, 2, False),
        (Async(), 99, 0, True),
    ],
)
def test_may_read(consistency: Consistency, clock: int, frontier: int, may: bool) -> None:
    assert may_read(consistency, clock, frontier) is may


def test_a_clock_closes_when_all_are_staged_on_every_server() -> None:
    clock = group(servers=2)
    assert staged(clock, B, 0, 2.0) == []
    assert staged(clock, A, 0, 2.0) == []
    assert staged(clock, A, 0, 2.0, server=1) == []
    assert clock.worker_clock(A) == 1
    assert staged(clock, B, 0, 2.0, server=1) == [closed(0, A, B, weight=2.0)]
    assert clock.next_clock == clock.min_clock == 1


def test_identities_count_not_messages() -> None:
    clock = group()
    for _ in range(3):
        assert staged(clock, A, 0) == []
    assert staged(clock, B, 0) == [closed(0, A, B)]
    assert staged(clock, A, 0) == staged(clock, B, 0) == []
    assert clock.next_clock == 1


def test_the_first_clock_waits_for_the_start() -> None:
    clock = GroupClock(Sync(), ["ps-0"])
    assert clock.observe(started=False, active=[A], lost=[]) == []
    assert staged(clock, A, 0) == []
    assert "all expected workers" in clock.waiting_for(NAMES)
    assert view(clock, [A, B]) == []
    assert staged(clock, B, 0) == [closed(0, A, B)]
    assert clock.observe(started=False, active=[A], lost=[]) == [], "a job starts once"
    assert staged(clock, A, 1) == [closed(1, A)]


def test_pushes_ahead_are_kept() -> None:
    clock = group()
    for at in range(3):
        assert staged(clock, A, at) == []
    assert clock.worker_clock(A) == 3
    assert staged(clock, B, 1) == []
    assert clock.worker_clock(B) == 0
    assert staged(clock, B, 0) == [closed(0, A, B), closed(1, A, B)]
    assert view(clock, [A]) == [closed(2, A)]


def test_idle_and_finished_workers_contribute_but_are_not_awaited() -> None:
    clock = group(active=[A, B, C])
    staged(clock, C, 0)
    staged(clock, A, 0)
    assert view(clock, [A]) == [closed(0, A, C)]
    staged(clock, B, 1)
    assert view(clock, []) == [closed(1, B)]


def test_a_joiner_holds_the_clock_until_it_pushes() -> None:
    clock = group(active=[A])
    for at in range(4):
        staged(clock, A, at)
    assert view(clock, [A, B]) == []
    assert clock.activate(B) == clock.activate(A) == 4
    assert staged(clock, A, 4) == []
    assert clock.waiting_for(NAMES) == "clock 4 waits for worker-1 (at clock 4, nothing pushed)"
    assert staged(clock, B, 4) == [closed(4, A, B)]


def test_activation_keeps_the_clock_of_one_that_has_pushed() -> None:
    clock = group()
    staged(clock, A, 0)
    view(clock, [B])
    view(clock, [A, B])
    assert clock.activate(A) == 1
    assert clock.activate(B) == 0


def test_activation_never_sets_a_clock_back() -> None:
    clock = group(Stale(3))
    for at in range(3):
        staged(clock, A, at)
    staged(clock, B, 0)
    view(clock, [B])
    view(clock, [A, B])
    assert clock.min_clock == 1
    assert clock.activate(A) == 3


def test_only_active_workers_are_activated() -> None:
    clock = group(active=[A])
    with pytest.raises(ClockError, match="rank 1 is not active"):
        clock.activate(B)
    view(clock, [A], lost=[B])
    with pytest.raises(FencedError, match="rank 1, incarnation 1: lost"):
        clock.activate(B)


def test_a_lost_worker_is_dropped_once_and_frees_the_clock() -> None:
    clock = group(active=[A, B, C], servers=2)
    for server in range(2):
        staged(clock, A, 0, server=server)
        staged(clock, B, 0, server=server)
        staged(clock, B, 1, server=server)
    staged(clock, C, 0)
    assert view(clock, [A], lost=[C, B]) == [Drop(B), Drop(C), closed(0, A)]
    assert view(clock, [A], lost=[C, B]) == []
    assert staged(clock, B, 1) == []
    assert clock.workers == {A: 1}


def test_a_newer_incarnation_drops_the_older() -> None:
    clock = group()
    newer = WorkerId(1, 2)
    staged(clock, B, 0)
    assert view(clock, [A, newer]) == [Drop(B)]
    assert staged(clock, B, 0) == []
    assert clock.activate(newer) == 0
    staged(clock, newer, 0)
    assert staged(clock, A, 0) == [closed(0, A, newer)]
    assert view(clock, [A], lost=[B, newer]) == [Drop(newer)]


def test_a_newer_incarnation_drops_the_older_before_it_is_active() -> None:
    """What the older one staged has gone back to the queue: it must be in no clock."""
    clock = group(active=(A, B))
    staged(clock, B, 0)
    heir = WorkerId(B.rank, B.incarnation + 1)
    decisions = clock.observe(started=True, active=(A,), lost=(), present=(A, heir))
    assert decisions == [Drop(B)]
    assert staged(clock, A, 0) == [closed(0, A)]
    clock.check_invariants()


def test_backup_workers_are_left_behind() -> None:
    clock = group(Sync(backup=1), [A, B, C], servers=2)
    staged(clock, A, 0)
    staged(clock, A, 0, server=1)
    staged(clock, C, 0)
    assert clock.waiting_for(NAMES) == (
        "clock 0 waits for 1 of worker-1 (at clock 0, nothing pushed), "
        "worker-2 (staged on 1 of 2 servers)"
    )
    assert staged(clock, B, 0) == []
    assert staged(clock, B, 0, server=1) == [closed(0, A, B)]
    assert staged(clock, C, 0, server=1) == [], "a late push changes nothing"
    assert clock.worker_clock(C) == clock.activate(C) == 1
    staged(clock, C, 1)
    assert staged(clock, C, 1, server=1) == []


def test_backup_for_all_still_needs_a_push() -> None:
    clock = group(Sync(backup=5), [A, B])
    assert view(clock, [A, B]) == []
    assert staged(clock, B, 0) == [closed(0, B)]


def test_closes_are_kept_for_a_server_that_returns() -> None:
    clock = group(active=[A])
    for at in range(KEPT_CLOSES + 2):
        staged(clock, A, at)
    assert clock.closes_from(KEPT_CLOSES) == [closed(KEPT_CLOSES, A), closed(KEPT_CLOSES + 1, A)]
    assert clock.closes_from(KEPT_CLOSES + 2) == []
    assert len(clock.closes_from(2)) == KEPT_CLOSES
    with pytest.raises(ClockError, match="the oldest kept is 2"):
        clock.closes_from(1)


def test_min_clock_follows_the_slowest_active_worker() -> None:
    clock = group(Stale(2), [A, B], servers=2)
    assert staged(clock, A, 0) == staged(clock, B, 0) == staged(clock, A, 0, server=1) == []
    assert staged(clock, B, 0, server=1) == [Advance(1)]
    for server in range(2):
        staged(clock, A, 1, server=server)
        staged(clock, A, 2, server=server)
    assert clock.waiting_for(NAMES) == ""
    staged(clock, A, 3)
    staged(clock, B, 1)
    assert staged(clock, A, 3, server=1) == []
    assert clock.waiting_for(NAMES) == "clock 1 waits for worker-1 (applied on 1 of 2 servers)"
    assert view(clock, [A]) == [Advance(4)]
    assert view(clock, []) == []
    assert view(clock, [A, B]) == []
    assert clock.activate(B) == clock.min_clock == 4
    assert view(clock, [A, B], lost=[B]) == [Drop(B)]


def test_clocks_complete_in_order_whatever_the_order_of_arrival() -> None:
    clock = group(Async(), [A], servers=2)
    for server, at in [(0, 0), (0, 1), (1, 1)]:
        assert staged(clock, A, at, server=server) == []
    assert staged(clock, A, 0, server=1) == [Advance(2)]
    assert staged(clock, A, 0) == []
    assert clock.waiting_for(NAMES) == ""


def test_stale_zero_is_sync() -> None:
    clock = group(Stale(0))
    staged(clock, B, 0)
    assert staged(clock, A, 0) == [closed(0, A, B)]


def test_strange_servers_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match=r"'ps-9' holds no slice.*ps-0"):
        group().staged("ps-9", A, 0, 1.0)
    for servers in ([], ["a", "a"]):
        with pytest.raises(ConfigurationError, match="each named once"):
            GroupClock(Sync(), servers)


SLICES = {0: (0, 1), 1: (2,), 2: (3, 4)}  # server: the slices it holds


@dataclass(frozen=True)
class Message:
    """One slice of a push; the value is a number that tells pushes apart."""

    worker: WorkerId
    clock: int
    server: int
    slice_: int | None

    @property
    def value(self) -> int:
        return 1 + self.clock + 100 * self.worker.rank + 7 * self.worker.incarnation


@dataclass
class Server:
    """One server as the service builds it: a ledger, staged pushes, and what its lead told it."""

    index: int
    sync: bool
    ledger: Ledger = field(default_factory=Ledger)
    values: dict[int, int] = field(default_factory=dict)
    staged: dict[tuple[WorkerId, int], dict[int, int]] = field(default_factory=dict)
    frontier: int = 0
    fenced: set[WorkerId] = field(default_factory=set)
    applied: set[tuple[WorkerId, int, int]] = field(default_factory=set)
    completed: list[tuple[WorkerId, int]] = field(default_factory=list)
    closes: list[Close] = field(default_factory=list)
    cuts: dict[int, list[Close]] = field(default_factory=dict)

    def push(self, message: Message) -> list[tuple[WorkerId, int]]:
        """Returns the pushes to report; raises what the ledger raises."""
        worker, clock = message.worker, message.clock
        if worker in self.fenced:
            raise FencedError("lost")
        if self.sync and clock < self.frontier:
            return []
        expected = self.ledger.expected(worker)
        if expected is not None and expected < clock <= self.frontier:
            self.ledger.expect(worker, clock)
        if self.ledger.open(worker, clock, SLICES[self.index]) is not None:
            return []
        slice_ = message.slice_
        assert slice_ is not None
        if self.ledger.take(worker, clock, slice_, message.value):
            if self.sync:
                self.staged.setdefault((worker, clock), {})[slice_] = message.value
            else:
                self.apply(worker, clock, slice_, message.value)
        if self.ledger.missing(worker, clock):
            return []
        self.ledger.complete(worker, clock, Receipt(clock, 0, 0.0, applied=not self.sync), [])
        self.completed.append((worker, clock))
        return [(worker, clock)]

    def apply(self, worker: WorkerId, clock: int, slice_: int, value: int) -> None:
        assert (worker, clock, slice_) not in self.applied, "I6: applied twice"
        self.applied.add((worker, clock, slice_))
        self.values[slice_] = self.values.get(slice_, 0) + value

    def obey(self, decision: Decision) -> None:
        if isinstance(decision, Drop):
            self.fenced.add(decision.worker)
            for worker, clock in [key for key in self.staged if key[0] == decision.worker]:
                del self.staged[worker, clock]
                self.ledger.abandon(worker, clock)
        elif isinstance(decision, Advance):
            assert decision.min_clock >= self.frontier, "I2: min_clock fell"
            self.frontier = decision.min_clock
        elif isinstance(decision, Cut):
            self.cut(decision)
        elif decision.clock >= self.frontier:
            self.close(decision)

    def cut(self, cut: Cut) -> None:
        if cut.id not in self.cuts:
            assert cut.clock == self.frontier, "a cut between other clocks than it says"
            self.cuts[cut.id] = list(self.closes)

    def close(self, close: Close) -> None:
        assert close.clock == self.frontier, "I11: a clock was left out"
        for contribution in close.contributors:
            worker = contribution.worker
            push = self.staged.pop((worker, close.clock))
            assert push.keys() == set(SLICES[self.index]), "I11: closed before it was staged"
            for slice_, value in push.items():
                self.apply(worker, close.clock, slice_, value)
            self.ledger.amend(worker, close.clock, Receipt(close.clock, 0, 0.0, applied=True))
        for worker, clock in [key for key in self.staged if key[1] <= close.clock]:
            del self.staged[worker, clock]
            late = Receipt(clock, 0, 0.0, applied=False, dropped=True)
            self.ledger.amend(worker, clock, late)
        self.closes.append(close)
        self.frontier += 1


@dataclass
class Worker:
    """A client: its clock, and what it has sent but not seen acknowledged."""

    clock: int
    start: int
    active: bool = True
    out: set[Message] = field(default_factory=set)


class ClusterMachine(RuleBasedStateMachine):
    """K servers, a lead and N workers; messages are lost, repeated and reordered."""

    consistency: Consistency = Sync()

    def __init__(self) -> None:
        super().__init__()
        self.sync = isinstance(self.consistency, Sync)
        self.workers: dict[WorkerId, Worker] = {}
        self.gone: dict[WorkerId, Worker] = {}
        self.network: list[Message] = []
        self.min_seen = 0

    @initialize(servers=st.integers(1, 3), workers=st.integers(1, 3))
    def begin(self, servers: int, workers: int) -> None:
        self.servers = [Server(k, self.sync) for k in range(servers)]
        self.lead = GroupClock(self.consistency, [f"ps-{k}" for k in range(servers)])
        self.cuts, self.held = 0, False
        # Between the lead and each server: ordered, but it may break and be made anew.
        self.reports: list[list[tuple[WorkerId, int]]] = [[] for _ in range(servers)]
        self.notices: list[list[Decision]] = [[] for _ in range(servers)]
        for rank in range(workers):
            self.workers[WorkerId(rank, 1)] = Worker(0, 0, active=False)
        for worker in self.workers.values():
            worker.active = True
        self.see_view()

    def tell(self, decisions: list[Decision]) -> None:
        for queue in self.notices:
            queue.extend(decisions)

    def see_view(self) -> None:
        active = [w for w, state in self.workers.items() if state.active]
        self.tell(self.lead.observe(started=True, active=active, lost=self.gone))

    def true_clock(self, worker: WorkerId, start: int) -> int:
        """I3: from what servers applied, never from a clock of the product."""
        clock = start
        while all(
            (worker, clock, slice_) in server.applied
            for server in self.servers
            for slice_ in SLICES[server.index]
        ):
            clock += 1
        return clock

    def may_step(self, worker: WorkerId) -> bool:
        state = self.workers[worker]
        if not state.active:
            return False
        # Read-my-writes: one's own pushes have been acknowledged.
        return not state.out and all(
            may_read(self.consistency, state.clock, s.frontier) for s in self.servers
        )

    def check_read(self, worker: WorkerId) -> None:
        """I3, I4, I5: a step that starts has read all that its bound promises."""
        clock = self.workers[worker].clock
        if isinstance(self.consistency, Async):
            return
        if isinstance(self.consistency, Stale):
            floor = clock - self.consistency.bound
            for other, state in self.workers.items():
                if state.active:
                    assert self.true_clock(other, state.start) >= floor, "I3: too far ahead"
            return
        for server in self.servers:
            assert len(server.closes) >= clock, "I3: read before its clock"
            assert len(server.closes) <= clock, "I5: read of a later clock"

    @precondition(lambda self: any(map(self.may_step, self.workers)))
    @rule(data=st.data(), everyone=st.booleans(), ahead=st.sampled_from([0, 0, 0, 1, 2]))
    def step(self, data: st.DataObject, everyone: bool, ahead: int) -> None:
        """One pulls and pushes a clock, or more without waiting (push_async); or all do."""
        ready = sorted(w for w in self.workers if self.may_step(w))
        for worker in ready if everyone else [data.draw(st.sampled_from(ready))]:
            self.check_read(worker)
            for _ in range(1 + ahead):
                self.send(worker)

    def send(self, worker: WorkerId) -> None:
        state = self.workers[worker]
        pushed = [
            Message(worker, state.clock, server.index, slice_)
            for server in self.servers
            for slice_ in SLICES[server.index]
        ]
        state.clock += 1
        state.out.update(pushed)
        self.network.extend(pushed)

    @precondition(lambda self: self.network)
    @rule(data=st.data(), fate=st.sampled_from(["deliver", "lose", "repeat", "lose answer"]))
    def transmit(self, data: st.DataObject, fate: str) -> None:
        index = data.draw(st.integers(0, len(self.network) - 1))
        message = self.network[index] if fate == "repeat" else self.network.pop(index)
        if fate != "lose":
            self.deliver(message, answered=fate != "lose answer")

    @rule(seed=st.integers(0, 9999), count=st.integers(1, 30))
    def flow(self, seed: int, count: int) -> None:
        """Messages, reports and notices arrive in some order; nothing is lost."""
        chance = Random(seed)
        for _ in range(count):
            self.something(chance)

    def something(self, chance: Random) -> bool:
        """One thing under way arrives; False: nothing is."""
        reports = [k for k, queue in enumerate(self.reports) if queue]
        notices = [k for k, queue in enumerate(self.notices) if queue]
        for kind in chance.sample(["message", "report", "notice"], 3):
            if kind == "message" and self.network:
                self.deliver(self.network.pop(chance.randrange(len(self.network))))
                return True
            if kind == "report" and reports:
                self.report_one(chance.choice(reports))
                return True
            if kind == "notice" and notices:
                index = chance.choice(notices)
                self.servers[index].obey(self.notices[index].pop(0))
                return True
        return False

    def deliver(self, message: Message, answered: bool = True) -> None:
        server = self.servers[message.server]
        if self.overtakes(message):
            return
        try:
            self.reports[server.index].extend(server.push(message))
        except ClockError:
            return  # an earlier push was lost on the way; the client sends it again
        except FencedError:
            assert message.worker in self.gone, "I10: only a lost worker is refused"
            return
        if answered and message.worker in self.workers:
            self.workers[message.worker].out.discard(message)

    def overtakes(self, message: Message) -> bool:
        """Streams keep the order in which pushes begin, so that the first one comes first."""
        if self.servers[message.server].ledger.expected(message.worker) is not None:
            return False
        state = self.workers.get(message.worker) or self.gone[message.worker]
        return any(m.clock < message.clock and m.server == message.server for m in state.out)

    @precondition(lambda self: any(state.out for state in self.workers.values()))
    @rule(data=st.data())
    def send_again(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(sorted(w for w, s in self.workers.items() if s.out)))
        self.network.extend(sorted(self.workers[worker].out, key=lambda m: (m.clock, m.server)))

    def report_one(self, index: int) -> None:
        worker, clock = self.reports[index].pop(0)
        self.tell(self.lead.staged(f"ps-{index}", worker, clock, 1.0))

    @rule(data=st.data())
    def reconnect(self, data: st.DataObject) -> None:
        """A server follows anew: it tells all again, and hears all again. Drops come last."""
        server = data.draw(st.sampled_from(self.servers))
        self.reports[server.index] = list(server.completed)
        again: list[Decision] = []
        if self.sync:
            again += self.lead.closes_from(server.frontier)
        else:
            again.append(Advance(self.lead.min_clock))
        again += [Drop(worker) for worker in sorted(self.gone)]
        self.notices[server.index] = again

    @precondition(lambda self: self.sync and all(len(s.cuts) == self.cuts for s in self.servers))
    @rule(ahead=st.integers(0, 3))
    def cut(self, ahead: int) -> None:
        """A snapshot at a clock that has not closed."""
        self.cuts += 1
        self.held = False
        self.tell(self.lead.cut(self.cuts, self.lead.next_clock + ahead))

    @rule()
    def load(self) -> None:
        """Ledgers and the lead are dumped, and others go on in their place."""
        for server in self.servers:
            state = json.loads(json.dumps(server.ledger.dump()))
            server.ledger = Ledger()
            server.ledger.load(state)
            assert json.loads(json.dumps(server.ledger.dump())) == state
        state = json.loads(json.dumps(self.lead.dump()))
        lead = GroupClock(self.consistency, [f"ps-{k}" for k in range(len(self.servers))])
        lead.load(state)
        assert json.loads(json.dumps(lead.dump())) == state
        lead.cuts, self.lead = self.lead.cuts, lead

    @precondition(lambda self: self.sync)
    @rule(held=st.booleans())
    def hold(self, held: bool) -> None:
        """No clock closes; or they do again."""
        self.held = held
        if held:
            assert self.lead.hold() == self.lead.next_clock
        else:
            self.tell(self.lead.go_on())

    @rule(data=st.data(), what=st.sampled_from(["idle", "release", "lose", "return", "arrive"]))
    def change_members(self, data: st.DataObject, what: str) -> None:
        if what == "release":
            self.release()
        elif what == "arrive" and len(self.workers) < 4:
            ranks = [w.rank for w in self.workers.keys() | self.gone]
            self.join(WorkerId(1 + max(ranks, default=-1), 1))
        elif what == "idle" and (
            able := sorted(w for w, s in self.workers.items() if s.active and not s.out)
        ):
            self.workers[data.draw(st.sampled_from(able))].active = False
            self.see_view()
        elif what in ("lose", "return") and self.workers:
            lost = data.draw(st.sampled_from(sorted(self.workers)))
            self.lose(lost)
            if what == "return":
                self.join(WorkerId(lost.rank, lost.incarnation + 1))

    def release(self) -> None:
        """All who are idle become active in one view, at the clock that the lead gives."""
        released = [w for w, s in self.workers.items() if not s.active]
        for worker in released:
            self.workers[worker].active = True
        self.see_view()
        for worker in released:
            self.activate(worker)

    def activate(self, worker: WorkerId) -> None:
        state = self.workers[worker]
        clock = self.lead.activate(worker)
        assert clock >= self.lead.min_clock, "I10: activated below min_clock"
        state.clock = max(state.clock, clock)
        state.start = max(state.start, clock)

    def lose(self, worker: WorkerId) -> None:
        """A worker dies; its messages still travel."""
        self.gone[worker] = self.workers.pop(worker)
        self.see_view()

    def join(self, worker: WorkerId) -> None:
        self.workers[worker] = Worker(0, 0)
        self.see_view()
        self.activate(worker)
        self.workers[worker].start = self.workers[worker].clock

    @rule(seed=st.integers(0, 9999), now=st.sampled_from([False, False, True]))
    def quiet(self, seed: int, now: bool) -> None:
        if now:
            self.settle(Random(seed))

    def settle(self, chance: Random) -> None:
        """I7, I8: when all has been delivered nothing is missing, and the slowest may go on."""
        if self.sync:
            self.tell(self.lead.go_on())
            self.held = False
        for _ in range(20):
            for state in self.workers.values():
                self.network.extend(sorted(state.out, key=lambda m: (m.clock, m.server)))
            while self.something(chance):
                pass
        assert not any(state.out for state in self.workers.values()), "I7: a push is not accepted"
        self.check_settled()

    def check_settled(self) -> None:
        assert len({server.frontier for server in self.servers}) == 1
        if self.sync:
            self.tell(self.lead.cut_now(self.cuts))
            for server in self.servers:
                for decision in self.notices[server.index]:
                    server.obey(decision)
                self.notices[server.index].clear()
            assert all(len(server.cuts) == self.cuts for server in self.servers)
            assert all(server.cuts == self.servers[0].cuts for server in self.servers)
        active = [w for w, state in self.workers.items() if state.active]
        for worker in active:
            state = self.workers[worker]
            if isinstance(self.consistency, Sync) and self.consistency.backup:
                state.clock = max(state.clock, self.lead.min_clock)
        if active:
            slowest = min(active, key=lambda w: self.workers[w].clock)
            assert self.may_step(slowest), "I8: the slowest worker cannot go on"
        if not self.sync:
            for server in self.servers:
                for worker in self.workers:
                    for clock in {c for w, c in server.completed if w == worker}:
                        assert all(
                            (worker, clock, s) in server.applied for s in SLICES[server.index]
                        )

    @invariant()
    def holds(self) -> None:
        if not hasattr(self, "servers"):
            return
        self.lead.check_invariants()
        assert self.lead.min_clock >= self.min_seen, "I2: min_clock fell"
        assert not self.held or self.lead.min_clock == self.min_seen, "held, but a clock closed"
        self.min_seen = self.lead.min_clock
        lists: dict[int, Close] = {}
        for server in self.servers:
            server.ledger.check_invariants()
            values: dict[int, int] = {}
            for worker, clock, slice_ in server.applied:
                value = Message(worker, clock, server.index, slice_).value
                values[slice_] = values.get(slice_, 0) + value
            assert server.values == values, "I6: a value is not the sum of distinct pushes"
            for close in server.closes:
                assert lists.setdefault(close.clock, close) == close, "I11: two lists"

    def teardown(self) -> None:
        if hasattr(self, "servers"):
            self.settle(Random(0))


class BackupMachine(ClusterMachine):
    consistency = Sync(backup=1)

    def check_read(self, worker: WorkerId) -> None:
        """A worker left behind reads at the newest closed clock."""


class StaleMachine(ClusterMachine):
    consistency = Stale(2)


class AsyncMachine(ClusterMachine):
    consistency = Async()


BUDGET = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestSyncCluster = ClusterMachine.TestCase
TestSyncCluster.settings = BUDGET
TestBackupCluster = BackupMachine.TestCase
TestBackupCluster.settings = BUDGET
TestStaleCluster = StaleMachine.TestCase
TestStaleCluster.settings = BUDGET
TestAsyncCluster = AsyncMachine.TestCase
TestAsyncCluster.settings = BUDGET
