"""Downpour SGD: sums of gradients, rare pulls, every sample once, a chief that starts alone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import paramserver as ps
from paramserver.errors import ConfigurationError, NonFiniteError, UnsupportedError
from paramserver.v1 import scheduler_pb2
from tests.cluster import Cluster, cluster, in_threads, until
from tests.test_exactness import batch, gradients_of, network

STEPS = 13
SIZE = 48


def train(client: ps.Client, scheme: ps.Downpour, rule: Any, **options: Any) -> dict[str, Tensor]:
    """Steps on the batches of rank 0 with a falling learning rate; the servers' values."""
    model = network()
    optimizer = client.optimizer(model, rule, consistency=scheme, **options)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = options["lr"] / (1 + step)
        optimizer.zero_grad()
        x, y = batch(0, step)
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    client.barrier("end")
    return client.state_dict()


def simulate(scheme: ps.Downpour, rule: Any, **options: Any) -> dict[str, Tensor]:
    """The same by the words of the paper, in plain PyTorch: servers' values and a local copy."""
    servers, local = network(), network()
    optimizer = rule(servers.parameters(), **options)
    sums: dict[str, Tensor] = {}
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = rate = options["lr"] / (1 + step)
        gradients = gradients_of(local, *batch(0, step))
        sums = {n: sums[n] + g if n in sums else g for n, g in gradients.items()}
        with torch.no_grad():
            for name, parameter in local.named_parameters():
                parameter.sub_(rate * gradients[name])
        if (step + 1) % scheme.n_push == 0 or step + 1 == STEPS:
            for name, parameter in servers.named_parameters():
                parameter.grad = sums[name]
            optimizer.step()
            sums = {}
        if (step + 1) % scheme.n_fetch == 0:
            local.load_state_dict(servers.state_dict())
    return servers.state_dict()


RULES: list[tuple[Any, dict[str, Any]]] = [
    (torch.optim.Adagrad, {"lr": 0.05}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
]


@pytest.mark.parametrize(("rule", "options"), RULES, ids=["adagrad", "momentum"])
@pytest.mark.parametrize("servers", [1, 2])
def test_one_worker_that_pushes_each_step_is_plain_pytorch(
    rule: Any, options: dict[str, Any], servers: int
) -> None:
    model = network()
    optimizer = rule(model.parameters(), **options)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = options["lr"] / (1 + step)
        for name, gradient in gradients_of(model, *batch(0, step)).items():
            model.get_parameter(name).grad = gradient
        optimizer.step()
    with cluster(servers) as c:
        (found,) = c.workers(lambda client: train(client, ps.Downpour(), rule, **options))
    for name, value in model.state_dict().items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("every", [(3, 3), (4, 1), (1, 4), (4, 2), (2, 5)], ids=str)
@pytest.mark.parametrize(("rule", "options"), RULES, ids=["adagrad", "momentum"])
def test_sums_and_local_steps_are_those_of_the_paper(
    rule: Any, options: dict[str, Any], every: tuple[int, int]
) -> None:
    scheme = ps.Downpour(*every)
    wanted = simulate(scheme, rule, **options)
    with cluster(2) as c:
        (found,) = c.workers(lambda client: train(client, scheme, rule, **options))
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)


def test_workers_sum_up_by_themselves() -> None:
    """Two workers with constant gradients: nothing is lost, whoever pushes when."""

    def work(client: ps.Client) -> float:
        model = [("w", nn.Parameter(torch.zeros(5)))]
        optimizer = client.optimizer(
            model, torch.optim.SGD, lr=1.0, consistency=ps.Downpour(3, 2, scale_lr="none")
        )
        for _ in range(10 + client.rank):
            model[0][1].grad = torch.full((5,), 1.0 + client.rank)
            optimizer.step()
        client.barrier("end")
        return float(client.state_dict()["w"][0])

    with cluster(2, 2) as c:
        assert c.workers(work) == [-(10 * 1.0 + 11 * 2.0)] * 2


def test_steps_tell_what_they_did() -> None:
    with cluster() as c, c.connect() as client:
        model = [("w", nn.Parameter(torch.zeros(5)))]
        optimizer = client.optimizer(
            model, torch.optim.SGD, lr=0.1, consistency=ps.Downpour(3, 2), wire_dtype="int4"
        )
        seen = []
        for _ in range(6):
            model[0][1].grad = torch.ones(5)
            optimizer.step()
            last = optimizer.last
            assert last is not None
            seen.append((last.clock, last.version, last.sent_bytes, last.received_bytes))
        # Blocks of five int4 are 3 + 4 bytes; the 4th step finds the values of the 3rd's push.
        assert seen == [
            (0, None, 0, 0),
            (0, None, 0, 20),
            (0, 1, 7, 0),
            (1, None, 0, 20),
            (1, None, 0, 0),
            (1, 2, 7, 20),
        ]


# Samples


def one_hot() -> TensorDataset:
    """Sample i moves weight i alone, by one."""
    return TensorDataset(torch.arange(SIZE))


class Counting:
    """A worker whose weights count, negatively, how often each sample was learnt."""

    def __init__(self, client: ps.Client, n_push: int) -> None:
        self.weight = nn.Parameter(torch.zeros(SIZE))
        self.optimizer = client.optimizer(
            [("w", self.weight)],
            torch.optim.SGD,
            lr=1.0,
            consistency=ps.Downpour(n_push, 4, scale_lr="none"),
        )

    def step(self, indices: Tensor) -> None:
        self.weight.grad = torch.zeros(SIZE)
        self.weight.grad[indices] = 1.0
        self.optimizer.step()


def unpushed(c: Cluster) -> int:
    """Samples that the scheduler heard no push for."""
    status = c.run(c.scheduler.Status(scheduler_pb2.StatusRequest()))
    return sum(int(data.unpushed) for data in status.datasets)


@pytest.mark.parametrize("assign", ["round-robin", "dynamic"])
@pytest.mark.parametrize("n_push", [1, 3, 100])
def test_every_sample_is_pushed_once_in_its_pass(n_push: int, assign: str) -> None:
    def work(client: ps.Client) -> Tensor:
        counting = Counting(client, n_push)
        loader = client.loader(one_hot(), 5, shard_size=5, assign=assign)
        for _ in client.epochs(2):
            for (indices,) in loader:
                counting.step(indices)
        client.barrier("end")
        return counting.optimizer.newest()["w"]

    with cluster(2, 2) as c:
        for found in c.workers(work):
            assert torch.equal(found, torch.full((SIZE,), -2.0))
        assert unpushed(c) == 0


def test_a_batch_sampler_hands_out_one_batch_a_step() -> None:
    def work(client: ps.Client) -> Tensor:
        counting = Counting(client, 3)
        loader = DataLoader(one_hot(), batch_sampler=client.sampler(one_hot(), 5))
        for _ in range(2):
            for (indices,) in loader:
                counting.step(indices)
        return counting.optimizer.newest()["w"]

    with cluster() as c:
        assert len(c.workers(work)) == 1
        with c.connect(reader=True) as reader:
            assert torch.equal(reader.state_dict()["w"], torch.full((SIZE,), -2.0))
        assert unpushed(c) == 0


def test_what_a_broken_pass_returns_is_learnt_once() -> None:
    """Ten batches, pushes of four: the two steps before the break are forgotten, then repeated."""

    def work(client: ps.Client) -> Tensor:
        counting = Counting(client, 4)
        loader = client.loader(one_hot(), 5, shard_size=5)
        for taken, (indices,) in enumerate(loader):
            counting.step(indices)
            if taken == 5:
                break
        for (indices,) in loader:
            counting.step(indices)
        client.barrier("end")
        return counting.optimizer.newest()["w"]

    with cluster() as c:
        assert torch.equal(c.workers(work)[0], torch.full((SIZE,), -1.0))
        assert unpushed(c) == 0


def test_steps_without_a_loader_are_pushed_at_the_end() -> None:
    def work(client: ps.Client) -> None:
        Counting(client, 10).step(torch.arange(SIZE))

    with cluster() as c:
        c.workers(work)
        with c.connect(reader=True) as reader:
            assert torch.equal(reader.state_dict()["w"], torch.full((SIZE,), -1.0))


def _doomed(address: str, steps: Any) -> None:
    """A worker that steps slower and slower, until it is killed."""
    client = ps.connect(address, name="worker-1")
    counting = Counting(client, 3)
    for (indices,) in client.loader(one_hot(), 2, shard_size=6, assign="dynamic"):
        counting.step(indices)
        steps.put(1)
        threading.Event().wait(0.05 if steps.qsize() < 4 else 30)


@pytest.mark.slow
def test_what_a_killed_worker_had_not_pushed_is_learnt_by_others() -> None:
    context = multiprocessing.get_context("spawn")
    steps = context.Queue()
    with cluster(2, 2, lease_s=2.0) as c:
        doomed = context.Process(target=_doomed, args=(c.address, steps), daemon=True)
        doomed.start()
        with c.connect("worker-0", timeout=60.0) as client:
            counting = Counting(client, 3)
            until(lambda: steps.qsize() >= 4, 60)
            assert doomed.pid is not None
            os.kill(doomed.pid, signal.SIGKILL)
            for (indices,) in client.loader(one_hot(), 2, shard_size=6, assign="dynamic"):
                counting.step(indices)
            found = client.state_dict()["w"]
        doomed.join()
        assert unpushed(c) == 0
    assert torch.equal(found, torch.full((SIZE,), -1.0))


# Warm start


class Warm:
    """A group that the chief trains alone for ``steps`` steps."""

    def __init__(self, client: ps.Client, steps: int, n_push: int = 2) -> None:
        self.weight = nn.Parameter(torch.zeros(1))
        self.optimizer = client.optimizer(
            [("w", self.weight)],
            torch.optim.SGD,
            lr=1.0,
            consistency=ps.Downpour(n_push, warm_start=steps, scale_lr="none"),
        )

    @property
    def learnt(self) -> float:
        """Steps of whomever in the local copy."""
        return -self.weight.item()

    def step(self) -> None:
        self.weight.grad = torch.ones(1)
        self.optimizer.step()


def reasons(c: Cluster) -> list[str]:
    """Why workers are idle."""
    members = c.run(c.scheduler.GetView(scheduler_pb2.GetViewRequest())).members
    return [m.reason for m in members if m.reason]


def test_the_others_wait_for_the_first_steps_of_the_chief() -> None:
    steps = 5
    begun: list[int] = []

    def work(client: ps.Client) -> float:
        warm = Warm(client, steps)
        if client.is_chief:
            until(lambda: len(reasons(c)) == 2)
            assert set(reasons(c)) == {"waits for the warm start of 'model'"}
            for number in range(steps):
                assert not begun, number
                warm.step()
        start = warm.learnt
        begun.append(client.rank)
        warm.step()
        client.barrier("end")
        return start

    with cluster(2, 3) as c:
        starts = c.workers(work)
        assert not reasons(c)
    # The others find all five steps, though two at a time are pushed.
    assert min(starts[1:]) >= steps


def test_a_late_joiner_does_not_wait_for_a_warm_start_that_is_over() -> None:
    with cluster(1, 1) as c, c.connect("worker-0") as client:
        warm = Warm(client, 1)
        warm.step()
        with c.connect("worker-1") as late:
            assert Warm(late, 1).learnt == 1


@pytest.mark.parametrize("how", ["barrier", "pass", "finish"])
def test_a_chief_that_waits_for_others_lets_them_go(how: str) -> None:
    def work(client: ps.Client) -> float:
        warm = Warm(client, 1000)
        if client.is_chief:
            loader = client.loader(one_hot(), 8, assign="round-robin")
            if how == "barrier":
                warm.step()
            for _ in loader if how == "pass" else ():
                warm.step()
        else:
            loader = client.loader(one_hot(), 8, assign="round-robin")
        if how == "pass" and not client.is_chief:
            for _ in loader:
                warm.step()
        if how == "barrier":
            client.barrier("end")
        return warm.learnt

    with cluster(1, 2) as c:
        assert c.workers(work)[1] >= (0 if how == "finish" else 1)


def test_a_lost_chief_is_followed_by_the_next() -> None:
    steps = 3
    alone, over = threading.Event(), threading.Event()

    def chief(c: Cluster) -> None:
        client = c.connect("worker-0")
        warm = Warm(client, 100)
        until(lambda: len(reasons(c)) == 2)
        warm.step()
        client.fail("gone before its time")

    def second(c: Cluster) -> None:
        with c.connect("worker-1") as client:
            warm = Warm(client, steps)
            assert client.is_chief
            assert not over.is_set()
            alone.set()
            for _ in range(steps):
                assert "waits for the warm start of 'model'" in reasons(c)
                warm.step()
            assert over.wait(20)

    def third(c: Cluster) -> None:
        with c.connect("worker-2") as client:
            warm = Warm(client, steps)
            over.set()
            assert alone.is_set()
            assert warm.learnt >= steps

    with cluster(1, 3) as c:
        in_threads([lambda: chief(c), lambda: second(c), lambda: third(c)])


# As a torch optimizer


@pytest.fixture
def client() -> Iterator[ps.Client]:
    with cluster() as c, c.connect() as made:
        yield made


def test_statistics_of_batch_norm_add_up(client: ps.Client) -> None:
    model, plain = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
    optimizer = client.optimizer(model, torch.optim.SGD, lr=0.0, consistency=ps.Downpour(2, 3))
    generator = torch.Generator().manual_seed(3)
    for _ in range(9):
        x = torch.randn(6, 4, generator=generator)
        plain(x)
        model(x).sum().backward()
        optimizer.step()
    client.barrier("end")
    state = client.state_dict()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(state[name], value, msg=name)
        torch.testing.assert_close(model.state_dict()[name], value, msg=name)


def test_infinity_that_a_scaler_finds_is_left_out(client: ps.Client) -> None:
    weight = nn.Parameter(torch.zeros(1))
    optimizer: Any = client.optimizer(
        [("w", weight)], torch.optim.SGD, lr=1.0, consistency=ps.Downpour(3, 3)
    )
    for found_inf in (0.0, 1.0, 0.0):
        weight.grad = torch.full((1,), float("inf") if found_inf else 8.0)
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(4.0), torch.tensor(found_inf)
        optimizer.step()
    assert weight.item() == -4.0


def test_a_gradient_that_is_not_finite_is_not_summed_up(client: ps.Client) -> None:
    weight = nn.Parameter(torch.zeros(1))
    optimizer = client.optimizer(
        [("w", weight)], torch.optim.SGD, lr=1.0, consistency=ps.Downpour(3, 3)
    )
    for value in (1.0, float("nan"), 2.0, 4.0):
        weight.grad = torch.full((1,), value)
        if value == value:
            optimizer.step()
        else:
            with pytest.raises(NonFiniteError, match="'w', 1 steps after the last push"):
                optimizer.step()
    assert weight.item() == -7.0


def test_a_rule_that_maximizes_moves_up_locally(client: ps.Client) -> None:
    weight = nn.Parameter(torch.zeros(1))
    optimizer = client.optimizer(
        [("w", weight)], torch.optim.SGD, lr=0.5, maximize=True, consistency=ps.Downpour(2, 2)
    )
    weight.grad = torch.ones(1)
    optimizer.step()
    assert weight.item() == 0.5


def test_half_precision_is_summed_up_in_float32(client: ps.Client) -> None:
    """256 + 1 is no bfloat16: a sum in it would stay at 256."""
    weight = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    optimizer = client.optimizer(
        [("w", weight)], torch.optim.SGD, lr=1.0, consistency=ps.Downpour(5, 5)
    )
    for value in (256.0, 1.0, 1.0, 1.0, 1.0):
        weight.grad = torch.full((1,), value, dtype=torch.bfloat16)
        optimizer.step()
    assert weight.item() == -260.0


def test_what_cannot_work_is_refused(client: ps.Client) -> None:
    with pytest.raises(UnsupportedError, match="overlap=True with Downpour"):
        client.optimizer(
            nn.Linear(1, 1), torch.optim.SGD, lr=1.0, consistency=ps.Downpour(), overlap=True
        )
    for wrong in ((0, 1, 0), (1, 0, 0), (1, 1, -1)):
        with pytest.raises(ConfigurationError, match="must be >= "):
            ps.Downpour(*wrong)


def test_a_warm_start_ends_before_the_chief_waits_for_other_replicas() -> None:
    """The others would wait for its steps, and it for them."""

    def work(client: ps.Client) -> int:
        body, head = network(), network()
        scheme = ps.Downpour(2, warm_start=100)
        client.optimizer(body, torch.optim.SGD, lr=0.1, consistency=scheme, group="body")
        all_reduce = ps.AllReduce()
        client.optimizer(head, torch.optim.SGD, lr=0.1, consistency=all_reduce, group="head")
        return client.rank

    with cluster(1, 2) as c:
        assert c.workers(work) == [0, 1]
