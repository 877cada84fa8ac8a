"""A bound that follows waiting and loss: the rule, the scheduler's windows, the servers' gates."""

from __future__ import annotations

import itertools
import threading
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from torch.utils.data import TensorDataset

import paramserver as ps
from paramserver.cli.state import consistency_text
from paramserver.core.adaptive import WAITING, Change, Controller, Window, percentile
from paramserver.core.clock import GroupClock, may_read
from paramserver.errors import ConfigurationError
from paramserver.scheduler.adaptation import WINDOW_HEARTBEATS, Adaptation
from paramserver.scheduler.journal import Journal
from paramserver.types import Adaptive, Stale, WorkerId
from paramserver.wire.convert import consistency_to_proto
from tests.cluster import cluster

BUSY, WAITING_MUCH = Window(0.01), Window(0.5)

# -- the rule


def test_waiting_raises_the_bound_one_by_one_up_to_its_maximum() -> None:
    controller = Controller(3)
    assert controller.bound == 1
    changes = [controller.observe(WAITING_MUCH, 4) for _ in range(4)]
    assert [c and c.bound for c in changes] == [2, 3, None, None]
    assert changes[0] == Change(2, "50% of the time was waiting")
    assert controller.observe(Window(WAITING), 4) is None


def test_a_loss_that_rises_clearly_halves_the_bound() -> None:
    controller = Controller(10)
    for _ in range(8):
        controller.observe(Window(0.5, [1.0, 1.1, 0.9]), 4)
    assert controller.bound == 9
    change = controller.observe(Window(0.5, [2.0, 2.1, 1.9]), 4)
    assert change is not None
    assert change.bound == 5
    assert "the loss rose by" in change.reason
    bounds = []
    for loss in itertools.count(4, 2):
        controller.observe(Window(0.5, [loss, loss + 0.1, loss - 0.1]), 4)
        bounds.append(controller.bound)
        if not controller.bound:
            break
    assert bounds == [3, 2, 1, 0]


def test_a_loss_that_rose_a_little_only_keeps_the_bound_from_rising() -> None:
    controller = Controller(10)
    controller.observe(Window(0.0, [1.0, 1.2, 0.8]), 4)
    assert controller.observe(Window(0.5, [1.2, 1.4, 1.0]), 4) is None
    assert controller.observe(Window(0.5, [1.1, 1.3, 0.9]), 4) is not None


def test_gradients_that_are_far_too_old_halve_the_bound() -> None:
    controller = Controller(10)
    for _ in range(3):
        controller.observe(WAITING_MUCH, 2)
    assert controller.observe(Window(0.5, staleness=[1.0] * 15 + [16.0]), 2) is not None
    change = controller.observe(Window(0.5, staleness=[1.0] * 15 + [17.0]), 2)
    assert change == Change(3, "staleness p95 17 is over 16 versions")


def test_without_losses_or_with_a_single_one_waiting_decides() -> None:
    controller = Controller(10)
    assert controller.observe(Window(0.5, [100.0]), 1) is not None
    assert controller.observe(Window(0.5, [1e9]), 1) is not None
    assert controller.observe(Window(0.5, [1.0, 1.0]), 1) is not None
    assert controller.observe(Window(0.0, [2.0, 2.0]), 1) == Change(2, "the loss rose by inf sigma")


@given(st.lists(st.floats(0, 1e3)), st.sampled_from([0.5, 0.95, 1.0]))
def test_a_percentile_is_a_value_that_enough_do_not_exceed(
    values: list[float], share: float
) -> None:
    found = percentile(values, share)
    if values:
        assert found in values
        assert sum(v <= found for v in values) >= share * len(values) - 1e-9


def test_the_maximum_must_leave_room() -> None:
    with pytest.raises(ConfigurationError, match=r"must be >= 1 \(Sync\(\) is the bound of 0\)"):
        ps.Adaptive(0)


# -- I20: the bound stays in its range, and no granted start is taken back


class StartMachine(RuleBasedStateMachine):
    """Three workers under a bound that moves: a start is granted by the bound of its moment."""

    @initialize(max_bound=st.integers(1, 6))
    def begin(self, max_bound: int) -> None:
        self.controller = Controller(max_bound)
        self.clock = GroupClock(Adaptive(max_bound), ["ps-0"])
        self.workers = [WorkerId(rank, 1) for rank in range(3)]
        self.clock.observe(started=True, active=self.workers, lost=[])
        self.at = dict.fromkeys(self.workers, 0)
        self.started = dict.fromkeys(self.workers, False)
        self.bound_moved()

    def bound_moved(self) -> None:
        self.clock.consistency = Stale(self.controller.bound)

    def may(self, worker: WorkerId) -> bool:
        return may_read(self.clock.consistency, self.at[worker], self.clock.min_clock)

    @rule(rank=st.integers(0, 2))
    def start(self, rank: int) -> None:
        worker = self.workers[rank]
        if not self.started[worker] and self.may(worker):
            ahead = self.at[worker] - min(self.at.values())
            assert ahead <= self.controller.bound
            self.started[worker] = True

    @rule(rank=st.integers(0, 2))
    def push(self, rank: int) -> None:
        worker = self.workers[rank]
        if self.started[worker]:  # granted: it goes through whatever the bound is by now
            self.clock.staged("ps-0", worker, self.at[worker], 1.0)
            self.at[worker] += 1
            self.started[worker] = False

    @rule(
        waited=st.floats(0, 1),
        losses=st.lists(st.floats(0, 10), max_size=4),
        staleness=st.lists(st.floats(0, 60), max_size=4),
    )
    def window(self, waited: float, losses: list[float], staleness: list[float]) -> None:
        before = self.controller.bound
        granted = {w for w in self.workers if not self.started[w] and self.may(w)}
        change = self.controller.observe(Window(waited, losses, staleness), 3)
        self.bound_moved()
        assert (change is not None) == (self.controller.bound != before)
        if self.controller.bound >= before:
            assert all(self.may(w) for w in granted), "raising holds nobody back"

    @invariant()
    def in_range(self) -> None:
        if hasattr(self, "controller"):
            assert 0 <= self.controller.bound <= self.controller.max_bound
            self.clock.check_invariants()
            slowest = min(self.workers, key=lambda w: self.at[w])
            assert self.started[slowest] or self.may(slowest), "the slowest may always start"


TestStarts = StartMachine.TestCase


# -- windows


def window(adaptation: Adaptation, now: float, waited: float, steps: int) -> None:
    for name in ("a", "b"):
        adaptation.heartbeat(name, {"steps": steps, "waited_s": waited, "staleness": 1.0}, now)


def change(adaptation: Adaptation, now: float) -> bool:
    """What ``SchedulerState.tick`` does with it."""
    changes = adaptation.tick(now)
    for group, made in changes.items():
        adaptation.adopt(group, made, now)
    return bool(changes)


def test_a_window_is_five_heartbeats_of_all_workers_and_every_change_is_told() -> None:
    journal = Journal(0.0)
    adaptation = Adaptation(journal, heartbeat_s=1.0)
    assert not adaptation.tick(100.0)
    adaptation.open("model", 4, now=0.0)
    assert adaptation.bounds == {"model": 1}
    for second in range(WINDOW_HEARTBEATS):
        window(adaptation, float(second), waited=0.5 * second, steps=10 * second)
        assert not adaptation.tick(float(second))
    window(adaptation, 5.0, waited=2.5, steps=50)
    assert change(adaptation, 5.0)
    assert adaptation.bounds == {"model": 2}
    assert journal.events() == [
        "5.0 s: staleness bound of group model: 1 -> 2: 50% of the time was waiting"
    ]
    for second in range(6, 11):
        window(adaptation, float(second), waited=2.5, steps=10 * second)
        adaptation.log({"loss": 1.0, "accuracy": 0.5})
    assert not adaptation.tick(10.0), "nobody waited"


def test_a_long_wait_counts_once_it_is_over_and_a_silent_window_decides_nothing() -> None:
    adaptation = Adaptation(Journal(0.0), heartbeat_s=1.0)
    adaptation.open("model", 4, now=0.0)
    window(adaptation, 0.0, waited=0.0, steps=1)
    for second in range(1, 9):
        window(adaptation, float(second), waited=0.0, steps=1)
        assert not adaptation.tick(float(second))
    window(adaptation, 9.0, waited=8.0, steps=2)
    assert change(adaptation, 9.0)
    assert adaptation.bounds == {"model": 2}


def test_status_shows_the_bound_of_the_moment() -> None:
    text = consistency_to_proto(Adaptive(8))
    assert consistency_text(text, 3) == "Adaptive(8), bound 3 now"
    assert consistency_text(text) == "Adaptive(8)"


# -- on a cluster


@pytest.mark.parametrize("servers", [1, 2])
def test_the_bound_moves_on_every_server_while_workers_wait(servers: int) -> None:
    held = threading.Event()
    ahead: list[int] = []

    def set_bound(made: Any, bound: int) -> None:
        async def change() -> None:
            scheduler = made.scheduler
            scheduler.state.lapse({}, False, {"g": Change(bound, "told to")}, scheduler._now())
            scheduler._after()

        made.run(change())

    with cluster(servers, 2) as made:

        def work(client: ps.Client) -> None:
            values = {"x": torch.zeros(3, 5), "y": torch.zeros(4)}
            group = client.register("g", values, torch.optim.SGD, lr=0.1, consistency=Adaptive(6))
            client.barrier("ready")
            if client.rank == 0:
                assert group.clock == 0
                held.wait(30)
                group.push({})
                client.barrier("done")
                return
            for _ in range(6):
                ones = {name: torch.ones_like(v) for name, v in values.items()}
                group.push_pull(ones)
                ahead.append(group.clock)
            client.barrier("done")

        def steer() -> None:
            waits_at(1)
            set_bound(made, 3)
            waits_at(3)
            set_bound(made, 2)
            set_bound(made, 4)
            waits_at(4)
            set_bound(made, 6)
            wait_until(lambda: len(ahead) == 6)
            held.set()

        def waits_at(bound: int) -> None:
            """Its step ``bound`` is under way: one more than it may be ahead."""
            wait_until(lambda: len(ahead) == bound and parked() > 0)

        def parked() -> int:
            async def count() -> int:
                groups = [await s._groups["g"] for s in made.servers]
                return min(len(g.frontier) for g in groups)

            return int(made.run(count()))

        def wait_until(true: Any) -> None:
            tick = threading.Event()
            for _ in range(2000):
                if true():
                    return
                tick.wait(0.01)
            raise AssertionError(f"still ahead by {len(ahead)}")

        steering = threading.Thread(target=steer)
        steering.start()
        try:
            made.workers(work)
        finally:
            held.set()
            steering.join(30)
    assert ahead == [1, 2, 3, 4, 5, 6]


def test_jitter_raises_the_bound(monkeypatch: Any) -> None:
    monkeypatch.setenv("PARAMSERVER_EMULATE", "sample=0.001,jitter=0.3:8")

    def work(client: ps.Client) -> list[int]:
        model = torch.nn.Linear(1, 1)
        optimizer = client.optimizer(model, torch.optim.SGD, lr=0.0, consistency=ps.Adaptive(3))
        loader = client.loader(TensorDataset(torch.ones(1600, 1)), 4)
        for (x,) in loader:
            optimizer.zero_grad()
            loss = model(x).mean()
            loss.backward()
            optimizer.step()
            client.log(loss=1.0)
        return [optimizer.group.clock]

    with cluster(1, 3, lease_s=0.8) as made:
        made.workers(work)
        events = made.scheduler.state.journal.events()
    moves = [e for e in events if "staleness bound of group model" in e]
    assert any("1 -> 2" in move and "waiting" in move for move in moves), events
