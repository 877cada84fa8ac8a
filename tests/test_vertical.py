"""By-feature data: parties with columns of their own against one process with all of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import paramserver as ps
from paramserver.core.members import Role, State
from paramserver.errors import ConfigurationError, FencedError, MismatchError, UsageError
from tests.cluster import Cluster, cluster, in_threads

STEPS = 12
COLUMNS = (5, 0, 9)  # of each party; one has none
RULES: list[tuple[type[torch.optim.Optimizer], dict[str, Any]]] = [
    (torch.optim.SGD, {"lr": 0.3}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    (torch.optim.Adam, {"lr": 0.02}),
    (torch.optim.Adagrad, {"lr": 0.1}),
]
NAMES = ["sgd", "momentum", "adam", "adagrad"]


def data(size: int = 96, columns: Sequence[int] = COLUMNS) -> tuple[list[Tensor], Tensor]:
    """Columns of each party (float64) and labels 0.0 or 1.0, [size, 1]."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(size, sum(columns), generator=generator, dtype=torch.float64)
    y = (x.sum(1, keepdim=True) + torch.randn(size, 1, generator=generator) > 0).double()
    return list(x.split(list(columns), 1)), y


def first_weight(rows: int, columns: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64) / 3


def bottom(party: int, columns: int) -> nn.Module:
    """A private network below the shared layer; none for a party without columns."""
    if not columns:
        return nn.Identity()
    linear = nn.Linear(columns, 4, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(first_weight(4, columns, 10 + party))
        linear.bias.zero_()
    return nn.Sequential(linear, nn.Tanh())


def top(out: int) -> nn.Sequential:
    linear = nn.Linear(out, 1, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(first_weight(1, out, 20))
        linear.bias.zero_()
    return nn.Sequential(nn.Tanh(), linear)


class Central(nn.Module):
    """The whole model in one process."""

    def __init__(self, columns: Sequence[int], out: int, *, split: bool) -> None:
        super().__init__()
        self.bottoms = nn.ModuleList(
            bottom(p, n) if split else nn.Identity() for p, n in enumerate(columns)
        )
        widths = [4 if split and n else n for n in columns]
        self.weights = nn.ParameterList(first_weight(out, n, p) for p, n in enumerate(widths))
        self.bias = nn.Parameter(torch.zeros(out, dtype=torch.float64))
        self.top = top(out) if split else nn.Identity()

    def forward(self, parts: Sequence[Tensor]) -> Tensor:
        below = [net(x) for net, x in zip(self.bottoms, parts, strict=True)]
        z = sum(h @ w.T for h, w in zip(below, self.weights, strict=True)) + self.bias
        said: Tensor = self.top(z)
        return said


class Part(nn.Module):
    """What one party has of it."""

    def __init__(self, client: ps.Client, columns: Sequence[int], out: int, *, split: bool) -> None:
        super().__init__()
        party = client.party
        own = columns[party]
        self.bottom = bottom(party, own) if split else nn.Identity()
        width = 4 if split and own else own
        self.layer = ps.VerticalLinear(width, out, client=client, dtype=torch.float64)
        with torch.no_grad():
            self.layer.weight.copy_(first_weight(out, width, party))
            if self.layer.bias is not None:
                self.layer.bias.zero_()
        self.top = (top(out) if split else nn.Identity()) if party == 0 else None

    def backward(self, x: Tensor, y: Tensor) -> None:
        z = self.layer(self.bottom(x))
        loss = None
        if self.top is not None:
            loss = nn.functional.binary_cross_entropy_with_logits(self.top(z), y)
        self.layer.backward(z, loss)


def central(
    rule: type[torch.optim.Optimizer],
    options: Mapping[str, Any],
    batches: Sequence[Sequence[Sequence[int]]],
    *,
    split: bool,
    columns: Sequence[int] = COLUMNS,
) -> dict[str, Tensor]:
    """Plain PyTorch; ``batches[step]``: the rows of each replica."""
    xs, y = data(columns=columns)
    model = Central(columns, 3 if split else 1, split=split)
    optimizer = rule(model.parameters(), **options)
    for replicas in batches:
        optimizer.zero_grad()
        total = sum(len(rows) for rows in replicas)
        for rows in replicas:
            said = model([x[list(rows)] for x in xs])
            loss = nn.functional.binary_cross_entropy_with_logits(said, y[list(rows)])
            (loss * (len(rows) / total)).backward()
        optimizer.step()
    return model.state_dict()


def check(found: list[dict[str, Tensor]], wanted: Mapping[str, Tensor], split: bool) -> None:
    """Values of all parties, by party, against the whole model's."""
    for party, state in enumerate(found):
        close(state["layer.weight"], wanted[f"weights.{party}"])
        if split and "bottom.0.weight" in state:
            close(state["bottom.0.weight"], wanted[f"bottoms.{party}.0.weight"])
            close(state["bottom.0.bias"], wanted[f"bottoms.{party}.0.bias"])
    close(found[0]["layer.bias"], wanted["bias"])
    if split:
        close(found[0]["top.1.weight"], wanted["top.1.weight"])


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def rows_of(step: int) -> list[int]:
    """Uneven batches."""
    size = 3 + step * 5 % 7
    return [(step * 11 + i * 3) % 96 for i in range(size)]


@pytest.mark.parametrize(("servers", "split"), [(1, False), (2, True)])
@pytest.mark.parametrize(("rule", "options"), RULES, ids=NAMES)
def test_parties_equal_one_process(
    rule: type[torch.optim.Optimizer], options: dict[str, Any], servers: int, split: bool
) -> None:
    xs, y = data()

    def work(client: ps.Client) -> dict[str, Tensor]:
        model = Part(client, COLUMNS, 3 if split else 1, split=split)
        optimizer = client.optimizer(model, rule, **options)
        for step in range(STEPS):
            optimizer.zero_grad()
            rows = rows_of(step)
            model.backward(xs[client.party][rows], y[rows])
            optimizer.step(weight=len(rows))
        return client.state_dict()

    with cluster(servers, 3, parties=3) as c:
        found = c.workers(work)
    wanted = central(rule, options, [[rows_of(s)] for s in range(STEPS)], split=split)
    check(found, wanted, split)


@pytest.mark.parametrize("assign", ["round-robin", "dynamic"])
def test_a_grid_equals_one_process(assign: str) -> None:
    """Two replicas of two parties over two epochs; the replicas get uneven shares."""
    columns = (6, 8)
    xs, y = data(columns=columns)

    def work(client: ps.Client) -> tuple[dict[str, Tensor], list[list[int]]]:
        model = Part(client, columns, 3, split=True)
        optimizer = client.optimizer(model, torch.optim.Adam, lr=0.02)
        dataset = TensorDataset(torch.arange(96), xs[client.party])
        loader = client.loader(dataset, 10, seed=5, shard_size=20)
        had = []
        for _ in client.epochs(2):
            for numbers, x in loader:
                optimizer.zero_grad()
                model.backward(x, y[numbers])
                optimizer.step()
                had.append(numbers.tolist())
        return client.state_dict(), had

    with cluster(2, 4, parties=2, assign=assign) as c:
        found = c.workers(work)
    batches = [had for _, had in found]
    assert batches[0] == batches[1]
    assert batches[2] == batches[3]
    assert sorted(i for had in batches[0] + batches[2] for i in had) == sorted([*range(96)] * 2)
    states = [state for state, _ in found]
    if assign == "round-robin":  # 3 and 2 shards: one replica is idle while the other goes on
        steps = []
        per_epoch = [len(b) // 2 for b in (batches[0], batches[2])]
        assert len(set(per_epoch)) == 2
        for epoch in range(2):
            pairs = zip((batches[0], batches[2]), per_epoch, strict=True)
            share = [had[epoch * n : (epoch + 1) * n] for had, n in pairs]
            steps += [[s[i] for s in share if i < len(s)] for i in range(max(per_epoch))]
        wanted = central(torch.optim.Adam, {"lr": 0.02}, steps, split=True, columns=columns)
        check(states[:2], wanted, split=True)
    for left, right in zip(states[:2], states[2:], strict=True):
        for name in left:
            assert torch.equal(left[name], right[name])


def test_evaluation_without_gradients_and_a_single_party() -> None:
    xs, _ = data()

    def work(client: ps.Client) -> Tensor:
        layer = ps.VerticalLinear(
            COLUMNS[client.party], 2, client=client, dtype=torch.float64, bias=client.parties == 3
        )
        with torch.no_grad():
            layer.weight.fill_(1.0)
            if layer.bias is not None:
                layer.bias.fill_(1.0)
            z: Tensor = layer(xs[client.party])
        assert not z.requires_grad
        with pytest.raises(UsageError, match="not have run under"):
            layer.backward(z, z.sum() if client.party == 0 else None)
        return z

    with cluster(1, 3, parties=3) as c:
        for z in c.workers(work):
            close(z, torch.cat(xs, 1).sum(1, keepdim=True).expand(-1, 2) + 1)
    with cluster(1, 1) as c:
        close(c.workers(work)[0], xs[0].sum(1, keepdim=True).expand(-1, 2))


def test_gradients_add_up_over_several_passes_before_a_step() -> None:
    xs, y = data()

    def work(client: ps.Client) -> Tensor:
        model = Part(client, COLUMNS, 1, split=False)
        for rows in ([0, 1, 2], [3, 4]):
            model.backward(xs[client.party][rows], y[rows])
        gradient = model.layer.weight.grad
        assert isinstance(gradient, Tensor)
        return gradient

    with cluster(1, 3, parties=3) as c:
        found = c.workers(work)
    whole = Central(COLUMNS, 1, split=False)
    for rows in ([0, 1, 2], [3, 4]):
        said = whole([x[rows] for x in xs])
        nn.functional.binary_cross_entropy_with_logits(said, y[rows]).backward()
    for gradient, weight in zip(found, whole.weights, strict=True):
        close(gradient, weight.grad if weight.numel() else gradient)


def test_mistakes_are_told_before_anything_is_sent() -> None:
    def work(client: ps.Client) -> None:
        with pytest.raises(ConfigurationError, match="out=0: must be >= 1"):
            ps.VerticalLinear(3, 0, client=client)
        layer = ps.VerticalLinear(3, 1, client=client)
        assert "features=3, out=1" in repr(layer)
        with pytest.raises(UsageError, match=f"x has 4 columns: .* of party {client.party} has 3"):
            layer(torch.zeros(2, 4))
        z = layer(torch.zeros(2, 3))
        with pytest.raises(UsageError, match="the z that forward returned"):
            layer.backward(z.flatten(), z.sum() if client.party == 0 else None)
        wrong = None if client.party == 0 else z.sum()
        with pytest.raises(UsageError, match="the label party"):
            layer.backward(z, wrong)

    with cluster(1, 2, parties=2) as c:
        c.workers(work)


def test_batches_of_different_sizes_are_told() -> None:
    def work(client: ps.Client) -> None:
        layer = ps.VerticalLinear(3, 1, client=client)
        with pytest.raises(MismatchError, match=r"gave shape \[\d, 1\]"):
            layer(torch.zeros(2 + client.party, 3))
        client.barrier("both were told")

    with cluster(2, 2, parties=2) as c:
        c.workers(work)


def test_training_over_broken_streams_equals_one_process() -> None:
    xs, y = data()

    def work(client: ps.Client) -> dict[str, Tensor]:
        model = Part(client, COLUMNS, 3, split=True)
        optimizer = client.optimizer(model, torch.optim.Adam, lr=0.02)
        for step in range(STEPS):
            optimizer.zero_grad()
            rows = rows_of(step)
            model.backward(xs[client.party][rows], y[rows])
            optimizer.step(weight=len(rows))
        return client.state_dict()

    with cluster(2, 3, parties=3, proxies=True) as c:
        assert c.proxies is not None
        for proxy in c.proxies:
            proxy.cut_after = (300, 20_000)
        found = c.workers(work)
        assert sum(proxy.cuts for proxy in c.proxies) >= 2
    wanted = central(
        torch.optim.Adam, {"lr": 0.02}, [[rows_of(s)] for s in range(STEPS)], split=True
    )
    check(found, wanted, split=True)


def test_a_replica_without_one_of_its_parties_leaves_its_samples_to_others() -> None:
    """Party 1 of replica 0 falls silent in mid-epoch; replica 1 trains on all the rest."""
    xs, y = data(columns=(6, 8))
    done: list[list[int]] = [[], []]  # by replica, what the label party stepped on

    def work(client: ps.Client) -> None:
        model = Part(client, (6, 8), 1, split=False)
        optimizer = client.optimizer(model, torch.optim.SGD, lr=0.1)
        dataset = TensorDataset(torch.arange(96), xs[client.party])
        for step, (numbers, x) in enumerate(client.loader(dataset, 4, shuffle=False)):
            if client.rank == 1 and step == 3:
                client._session.stop()
                raise InterruptedError
            optimizer.zero_grad()
            model.backward(x, y[numbers])
            optimizer.step()
            if client.party == 0:
                done[client.replica] += numbers.tolist()

    def one(c: Cluster, rank: int) -> type[BaseException] | None:
        client = c.connect(f"worker-{rank}")
        try:
            work(client)
            client.finish()
        except (FencedError, InterruptedError) as error:
            client.fail("left behind")
            return type(error)
        return None

    with cluster(2, 4, parties=2, lease_s=1.0, assign="dynamic") as c:
        found = in_threads([lambda r=r: one(c, r) for r in range(4)])  # type: ignore[misc]
        queue = c.scheduler.state.data.get("train")
        assert queue.drained
        queue.check_invariants()
    assert found == [FencedError, InterruptedError, None, None]
    assert len(done[0]) == 12
    assert sorted(done[0] + done[1]) == list(range(96))


def test_parties_that_join_one_after_the_other_begin_at_one_clock() -> None:
    """A replica joins; before its second party does, the others close one more clock there."""
    columns = (6, 8)
    xs, y = data(columns=columns)
    here = [threading.Event() for _ in range(4)]
    first_is_active, second_may_come = threading.Event(), threading.Event()

    def work(client: ps.Client) -> list[int]:
        loader = client.loader(TensorDataset(torch.arange(96), xs[client.party]), 1, shuffle=False)
        model = Part(client, columns, 1, split=False)
        optimizer = client.optimizer(model, torch.optim.SGD, lr=0.1)
        if client.rank == 3:
            assert second_may_come.wait(30)
        clocks = []
        for numbers, x in loader:
            optimizer.zero_grad()
            model.backward(x, y[numbers])
            optimizer.step()
            assert optimizer.last is not None
            clocks.append(optimizer.last.clock)
            here[client.rank].set()
            if not client.replica and len(clocks) == 3:
                assert first_is_active.wait(30)
        return clocks

    def one(c: Cluster, rank: int) -> list[int]:
        if rank > 1:  # the job is under way; ranks are given in the order of coming
            assert here[rank - 1].wait(30)
        with c.connect(f"worker-{rank}") as client:
            if rank > 1:
                here[rank].set()
            return work(client)

    def conduct(c: Cluster) -> list[int]:
        assert here[3].wait(30)
        lead = [c.servers[0].leads._leads[f"model/party-{p}"].clock for p in range(2)]
        until(lambda: c.scheduler.state.members.live(Role.WORKER)[2].state is State.ACTIVE)
        first_is_active.set()
        until(lambda: lead[1].next_clock > lead[0].next_clock)
        second_may_come.set()
        return []

    with cluster(1, 2, parties=2, assign="dynamic") as c:
        calls = [lambda r=r: one(c, r) for r in range(4)]
        found = in_threads([*calls, lambda: conduct(c)])
    assert found[0] == found[1]
    assert found[2] == found[3]
    assert found[2][0] > 0
    assert len(found[0]) + len(found[2]) == 96


def until(condition: Callable[[], bool]) -> None:
    """Returns when it holds, within half a minute."""
    for _ in range(3000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it never held")
