"""Batch sizes by speed, and idle workers that take over the rest of a running shard."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

import paramserver as ps
from paramserver.core.balance import GAIN, SETTLE, SLOWEST, Balance, batch_sizes, step_time
from paramserver.core.dataset import DatasetSpec, complete, disagreement
from paramserver.core.leases import shares
from paramserver.core.shards import ShardQueue
from paramserver.errors import ConfigurationError, InvalidRequestError
from paramserver.types import Span, WorkerId
from tests.cluster import Cluster, cluster

A, B, C = (WorkerId(rank, 1) for rank in range(3))
SPEEDS = st.dictionaries(st.integers(0, 40), st.floats(0.0, 1e6), min_size=1, max_size=12)

# -- sizes


@example(speeds={0: 5e-324}, batch=1)
@given(SPEEDS, st.integers(1, 64))
def test_sizes_add_up_and_leave_nobody_out(speeds: dict[int, float], batch: int) -> None:
    total = batch * len(speeds)
    sizes = batch_sizes(speeds, total)
    assert sum(sizes.values()) == total
    assert min(sizes.values()) >= 1
    for a, b in itertools.combinations(sizes, 2):
        if speeds[a] > speeds[b] > SLOWEST:
            assert sizes[a] >= sizes[b]


def test_sizes_follow_speed() -> None:
    assert batch_sizes({0: 5.0, 1: 5.0, 2: 5.0, 3: 1.0}, 128) == {0: 40, 1: 40, 2: 40, 3: 8}
    assert batch_sizes({0: 900.0, 1: 1.0, 2: 99.0}, 30) == {0: 26, 1: 1, 2: 3}
    assert batch_sizes({0: 0.0, 1: 0.0}, 9) == {0: 5, 1: 4}
    assert batch_sizes({0: 3.0, 1: 0.0, 2: 3.0}, 30) == {0: 10, 1: 10, 2: 10}


class BalanceModel:
    """Workers of true speeds that step together, a little noise in what they measure."""

    def __init__(self, speeds: dict[int, float], batch: int, noise: float = 0.0) -> None:
        self.balance = Balance(batch)
        self.speeds, self.batch, self.noise = speeds, batch, noise
        self.changes = 0

    def _wobble(self, clock: int, rank: int) -> float:
        return 1 + self.noise * ((clock * 7 + rank * 3) % 5 - 2) / 2

    def run(self, clocks: range, told: Callable[[int, float], float] = lambda _, v: v) -> list[int]:
        sums = []
        for clock in clocks:
            total = 0
            for rank in self.speeds:
                measured = {r: told(r, v * self._wobble(clock, r)) for r, v in self.speeds.items()}
                self.changes += self.balance.observe(measured) is not None
                total += self.balance.size(rank, clock)
            sums.append(total)
        return sums


def test_the_sum_of_each_clock_is_constant_through_every_change() -> None:
    model = BalanceModel({0: 5.0, 1: 5.0, 2: 5.0, 3: 1.0}, 32)
    assert set(model.run(range(3), told=lambda r, v: 0.0)) == {128}
    assert set(model.run(range(3, 20))) == {128}
    assert [model.balance.size(rank, 19) for rank in range(4)] == [40, 40, 40, 8]
    model.speeds = {0: 1.0, 1: 5.0, 2: 5.0, 3: 5.0}
    assert set(model.run(range(20, 50))) == {128}
    assert model.balance.size(0, 49) == 8
    assert model.changes == 3, "equal, measured, changed"


def test_noise_changes_nothing() -> None:
    model = BalanceModel({0: 5.0, 1: 5.0, 2: 2.5}, 30, noise=0.05)
    model.run(range(200))
    assert model.changes <= 2


def test_who_is_behind_still_gets_the_sizes_of_its_clock() -> None:
    balance = Balance(10)
    balance.observe({0: 0.0, 1: 0.0})
    assert balance.size(0, 7) == 10
    balance.observe({0: 3.0, 1: 1.0})
    assert balance.size(1, 7) == 10
    assert (balance.size(0, 8), balance.size(1, 8)) == (15, 5)


def test_a_worker_that_comes_or_goes_changes_the_sum_at_once() -> None:
    balance = Balance(10)
    balance.observe({0: 2.0, 1: 2.0})
    balance.size(0, 0)
    assert balance.observe({0: 2.0, 1: 2.0, 2: 0.0}) is not None
    assert [balance.size(rank, 1) for rank in range(3)] == [10, 10, 10]
    assert balance.observe({1: 2.0, 2: 2.0}) is not None
    assert [balance.size(rank, 2) for rank in (1, 2)] == [10, 10]


def test_sizes_stay_until_a_step_gets_so_much_shorter() -> None:
    balance = Balance(100)
    balance.observe({0: 1.0, 1: 1.0})
    speeds = {0: 1.0, 1: 0.9}
    assert step_time({0: 100, 1: 100}, speeds) < GAIN * step_time({0: 105, 1: 95}, speeds)
    for clock in range(3 * SETTLE):
        balance.size(0, clock)
        assert balance.observe(speeds) is None


# -- what cannot be


def test_balance_needs_dynamic_assignment() -> None:
    with pytest.raises(InvalidRequestError, match="use assign='dynamic'"):
        complete(DatasetSpec("d", 10, 2, assign="random", balance="speed"), 1)
    with pytest.raises(InvalidRequestError, match="balance='luck': must be one of speed"):
        complete(DatasetSpec("d", 10, 2, balance="luck"), 1)
    one = complete(DatasetSpec("d", 100, 2, 8, balance="speed"), 1)
    other = complete(DatasetSpec("d", 100, 4, 8, balance="speed"), 1)
    assert disagreement(one, other) == "batch_size is 2, not 4"
    assert "balance" in str(disagreement(one, complete(DatasetSpec("d", 100, 2, 8), 1)))


@pytest.mark.parametrize(
    ("how", "rule"),
    [
        ({"assign": "round-robin"}, "use assign='dynamic' or leave it out"),
        ({"shard_size": 8}, "leave shard_size out"),
        ({"drop_last": True}, "leave drop_last out"),
        ({"balance": "fair"}, "must be None or speed"),
    ],
)
def test_options_that_contradict_balance(how: dict[str, Any], rule: str) -> None:
    refused = pytest.raises(ConfigurationError, match=rule)
    with cluster(1, 1) as made, made.connect() as client, refused:
        client.sampler(100, 4, **{"balance": "speed", **how})


# -- the queue: leases of any size, and recalls


def queue(size: int = 100, shard: int = 8, workers: tuple[WorkerId, ...] = (A, B)) -> ShardQueue:
    made = ShardQueue(complete(DatasetSpec("train", size, 4, shard), 2), itertools.count(1))
    for who in workers:
        made.join(who)
        made.use(who)
    return made


def test_a_lease_of_any_size_crosses_shards() -> None:
    made = queue(size=20)
    spans = [made.next(A, 0, n, want=7) for n in range(3)]
    assert [(s.start, s.stop) for s in spans] == [(0, 7), (7, 14), (14, 20)]  # type: ignore[union-attr]
    made.check_invariants()
    for s in spans:
        made.report(A, [Span(s.lease, s.start, s.stop)])  # type: ignore[union-attr]
    assert made.drained
    assert made.counts().done == 3


def test_a_gap_ends_a_lease_early() -> None:
    made = queue(size=32)
    first = made.next(A, 0, 0, want=8)
    made.next(A, 0, 1, want=4)
    made.report(A, returned=[Span(first.lease, 0, 8)])  # type: ignore[union-attr]
    found = made.next(B, 0, 0, want=20)
    assert (found.start, found.stop) == (0, 8)  # type: ignore[union-attr]
    found = made.next(B, 0, 1, want=20)
    assert (found.start, found.stop) == (12, 32)  # type: ignore[union-attr]
    made.check_invariants()


def speeds_of(**by_rank: float) -> Callable[[WorkerId], float]:
    return lambda who: by_rank.get(f"r{who.rank}", 0.0)


def test_an_idle_worker_gets_its_share_of_the_slowest_lease() -> None:
    made = queue(size=88, shard=40, workers=(A, B, C))
    leases = [made.next(who, 0, 0) for who in (A, B, C)]
    speed = speeds_of(r0=1.0, r1=10.0, r2=10.0)
    assert made.recall([], speed, 2.0) is None, "nobody waits"
    made.report(C, [Span(leases[2].lease, 80, 88)])  # type: ignore[union-attr]
    made.report(A, [Span(leases[0].lease, 0, 7)])  # type: ignore[union-attr]
    assert made.recall([C], speed, 100.0) is None, "it ends soon"
    # 33 samples are left: the thief is ten times as fast and takes floor(32 * 10/11) of them.
    assert made.recall([C], speed, 2.0) == (A, 29)
    assert made.recalled(A) == [Span(leases[0].lease, 11, 40)]  # type: ignore[union-attr]
    assert made.recall([C], speed, 2.0) is None, "one recall for one that waits"
    made.report(A, returned=[Span(leases[0].lease, 12, 40)])  # type: ignore[union-attr]
    assert made.recalled(A) == []
    found = made.next(C, 0, 1)
    assert (found.start, found.stop) == (12, 40)  # type: ignore[union-attr]
    made.check_invariants()


def test_nothing_is_recalled_of_a_holder_whose_speed_nobody_knows() -> None:
    made = queue(size=40, shard=40)
    made.next(A, 0, 0)
    assert made.recall([B], speeds_of(r1=5.0), 0.1) is None
    assert made.recall([B], speeds_of(r0=5.0), 0.1) == (A, 19), "the thief counts as fast as it"


def test_several_thieves_share_what_comes_back() -> None:
    made = queue(size=64, shard=64, workers=(A, B, C))
    lease = made.next(A, 0, 0)
    assert made.recall([B, C], speeds_of(r0=1.0, r1=1.0, r2=1.0), 1.0) == (A, 42)
    made.report(A, returned=[Span(lease.lease, 24, 64)])  # type: ignore[union-attr]
    parts = [made.next(who, 0, 0) for who in (B, C)]
    assert [(p.start, p.stop) for p in parts] == [(24, 44), (44, 64)]  # type: ignore[union-attr]


@given(st.integers(0, 50), st.integers(1, 90), st.integers(1, 9), st.integers(1, 8))
def test_shares_are_whole_batches(start: int, length: int, count: int, batch: int) -> None:
    found = shares((start, start + length), count, batch)
    assert [p for a, b in found for p in range(a, b)] == list(range(start, start + length))
    assert len(found) <= count
    assert all((b - a) % batch == 0 for a, b in found[:-1])
    sizes = [-(-(b - a) // batch) for a, b in found]
    assert max(sizes) - min(sizes) <= 1 or len(found) < count


# -- on a cluster


def ones(count: int) -> TensorDataset:
    return TensorDataset(torch.arange(count, dtype=torch.float64))


def test_balanced_steps_equal_one_process_on_the_global_batch(monkeypatch: Any) -> None:
    """Whatever the sizes become, a clock is the mean over the global batch of a permutation."""
    monkeypatch.setenv("PARAMSERVER_EMULATE", "sample=0.0005,slow=2:4")
    size, batch, workers = 240, 8, 3

    def work(client: ps.Client) -> tuple[list[list[tuple[int, list[float]]]], Any]:
        model = torch.nn.Linear(1, 1, dtype=torch.float64)
        torch.nn.init.zeros_(model.weight)
        torch.nn.init.zeros_(model.bias)
        optimizer = client.optimizer(model, torch.optim.Adam, lr=0.1)
        loader = client.loader(ones(size), batch, balance="speed")
        drawn: list[list[tuple[int, list[float]]]] = []
        for _ in client.epochs(3):
            drawn.append([])
            for (x,) in loader:
                drawn[-1].append((optimizer.group.clock, x.tolist()))
                optimizer.zero_grad()
                ((model(x[:, None] / size) - 1) ** 2).mean().backward()
                optimizer.step()
        return drawn, client.state_dict()

    with cluster(2, workers) as made:
        results = made.workers(work)
        events = made.scheduler.state.journal.events()
        assert made.scheduler.state.data.get("train").counts().unpushed == 0
    assert any("batch sizes of train from clock" in event for event in events)
    by_clock: dict[int, list[float]] = {}
    for drawn, _ in results:
        for epoch in drawn:
            for clock, samples in epoch:
                by_clock.setdefault(clock, []).extend(samples)
    slow = [len(s) for epoch in results[2][0] for _, s in epoch]
    assert min(slow) < batch, "the slow one got less"
    full = [clock for clock in sorted(by_clock) if len(by_clock[clock]) == batch * workers]
    assert len(full) >= size * 3 // (batch * workers) - 3, "only the ends of passes are smaller"
    for number in range(3):
        seen = sorted(x for drawn, _ in results for _, s in drawn[number] for x in s)
        assert seen == list(range(size))

    model = torch.nn.Linear(1, 1, dtype=torch.float64)
    torch.nn.init.zeros_(model.weight)
    torch.nn.init.zeros_(model.bias)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for clock in sorted(by_clock):
        x = torch.tensor(by_clock[clock], dtype=torch.float64)
        optimizer.zero_grad()
        ((model(x[:, None] / size) - 1) ** 2).mean().backward()
        optimizer.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(results[0][1][name], value, atol=1e-12, rtol=0)


def test_a_sampler_can_be_balanced() -> None:
    with cluster(1, 1) as made, made.connect() as client:
        model = torch.nn.Linear(1, 1)
        optimizer = client.optimizer(model, torch.optim.SGD, lr=0.1)
        sampler = client.sampler(40, 8, balance="speed")
        seen = []
        for (x,) in DataLoader(ones(40), batch_sampler=sampler):
            seen += x.tolist()
            model(x.float()[:, None]).sum().backward()
            optimizer.step()
        assert sorted(seen) == list(range(40))


def steal(made: Cluster, workers: int, size: int, **options: Any) -> list[list[int]]:
    """What each worker worked on in one epoch of one shard for each."""

    def work(client: ps.Client) -> list[int]:
        model = torch.nn.Linear(1, 1)
        optimizer = client.optimizer(model, torch.optim.SGD, lr=0.0, consistency=ps.Async())
        seen: list[int] = []
        shard = -(-size // workers)
        for (x,) in client.loader(ones(size), 4, shard_size=shard, assign="dynamic", **options):
            seen += x.int().tolist()
            model(x.float()[:, None]).mean().backward()
            optimizer.step()
        return seen

    return made.workers(work)


@pytest.mark.parametrize(
    ("options", "most"),
    # Two threads that fork at once inherit each other's pipes, and torch waits 5 s for one's end.
    [({}, 72), ({"num_workers": 1, "multiprocessing_context": "fork"}, 96)],
)
def test_idle_workers_take_the_rest_of_a_slow_ones_shard(
    options: dict[str, Any], most: int, monkeypatch: Any
) -> None:
    # Alone, the slow one needs 8 s for its shard, twenty heartbeats.
    monkeypatch.setenv("PARAMSERVER_EMULATE", "sample=0.002,slow=1:40")
    with cluster(1, 2, lease_s=1.6) as made:
        results = steal(made, 2, 200, **options)
        counts = made.scheduler.state.data.get("train").counts()
        events = made.scheduler.state.journal.events()
    assert sorted([*results[0], *results[1]]) == list(range(200)), "each sample once"
    assert any("asked worker-1 for" in event for event in events), events
    assert len(results[1]) <= most
    assert counts.requeued >= 1
    assert (counts.samples_done, counts.unpushed) == (200, 0)


def test_a_shard_that_ends_soon_is_left_alone(monkeypatch: Any) -> None:
    monkeypatch.setenv("PARAMSERVER_EMULATE", "sample=0.001,slow=1:5")
    with cluster(1, 2, lease_s=40.0) as made:
        results = steal(made, 2, 80)
        assert not any("asked" in event for event in made.scheduler.state.journal.events())
    assert [len(r) for r in results] == [40, 40]
