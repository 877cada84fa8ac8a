"""Full replicas: the same result as one process, whoever comes, goes or waits."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import paramserver as ps
from paramserver.worker.job_optimizer import JobOptimizer
from paramserver.worker.replicas import Replicas
from paramserver.worker.schemes.allreduce import AllReduceOptimizer
from tests.cluster import Cluster, cluster, in_threads, until
from tests.test_exactness import (
    ONE_AT_A_TIME,
    STEPS,
    assert_bit_equal,
    batch,
    network,
    one_process,
    train,
)

SIZE = 96
RULES: list[tuple[type[torch.optim.Optimizer], dict[str, Any]]] = [
    (torch.optim.SGD, {"lr": 0.1}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    (torch.optim.Adam, {"lr": 0.01}),
]


@pytest.fixture(autouse=True)
def _one_thread_each() -> Iterator[None]:
    """Replicas are threads here: more of OpenMP's only stand in one another's way."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def assert_close(found: dict[str, Tensor], wanted: dict[str, Tensor], bound: float) -> None:
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert float((found[name] - wanted[name]).abs().max()) <= bound, name


@pytest.mark.parametrize(("rule", "options"), RULES, ids=["sgd", "momentum", "adam"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_replicas_equal_one_process(
    rule: type[torch.optim.Optimizer], options: dict[str, Any], dtype: torch.dtype, bound: float
) -> None:
    """Uneven batches, and uneven numbers of them: who has none left answers with weight 0."""
    steps = [STEPS, STEPS - 2, STEPS]
    with cluster(1, 3) as c:
        results = c.workers(train(rule, options, ps.AllReduce(), steps, dtype))
    for found in results:
        assert_close(found, one_process(rule, options, steps, dtype), bound)
        assert_bit_equal(found, results[0])


def test_one_replica_is_plain_torch() -> None:
    with cluster(1, 1) as c:
        (found,) = c.workers(train(torch.optim.Adam, {"lr": 0.01}, ps.AllReduce(), [STEPS]))
    assert_bit_equal(found, one_process(torch.optim.Adam, {"lr": 0.01}, [STEPS]))


def replicas(optimizer: JobOptimizer) -> Replicas:
    assert isinstance(optimizer, AllReduceOptimizer)
    return optimizer.replicas


def data(size: int = SIZE) -> TensorDataset:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(size, 5, generator=generator, dtype=torch.float64)
    return TensorDataset(x, x @ torch.arange(1.0, 6.0, dtype=torch.float64)[:, None])


def linear() -> nn.Linear:
    with ONE_AT_A_TIME:  # torch has one generator for all threads
        torch.manual_seed(0)
        return nn.Linear(5, 1, dtype=torch.float64)


def fit(client: ps.Client, optimizer: Any, model: nn.Module, epochs: int = 3) -> int:
    """The samples that this worker trained on."""
    loader = client.loader(data(), batch_size=8, shard_size=8)
    seen = 0
    for _ in client.epochs(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            F.mse_loss(model(x), y).backward()
            optimizer.step()
            seen += len(x)
    return seen


@pytest.mark.parametrize("assign", ["round-robin", "dynamic"])
def test_leased_data_is_trained_on_once_and_status_shows_it(assign: str) -> None:
    def work(client: ps.Client) -> tuple[int, int, dict[str, Any]]:
        model = linear()
        optimizer = client.optimizer(model, torch.optim.SGD, lr=0.05, consistency=ps.AllReduce())
        seen = fit(client, optimizer, model)
        client.barrier("trained")
        return seen, replicas(optimizer).clock, client.state_dict()

    with cluster(2, 3, assign=assign) as c:
        results = c.workers(work)
        (queue,) = list(c.scheduler.state.data)
        counts, groups = queue.counts(), list(c.scheduler.state.groups)
    assert sum(seen for seen, _, _ in results) == 3 * SIZE
    assert (counts.samples_done, counts.unpushed) == (SIZE, 0)
    assert len({clock for _, clock, _ in results}) == 1
    assert groups[0].stored
    for _, _, state in results:
        assert_bit_equal(state, results[0][2])


def test_one_group_is_replicated_and_another_on_servers() -> None:
    """Both orders of steps; who becomes active falls in at the same step of both."""

    def work(client: ps.Client) -> tuple[dict[str, Any], dict[str, Any]]:
        torch.manual_seed(0)
        models = nn.Linear(5, 4, dtype=torch.float64), nn.Linear(4, 1, dtype=torch.float64)
        body = client.optimizer(
            models[0], torch.optim.Adam, lr=0.01, consistency=ps.AllReduce(), group="body"
        )
        head = client.optimizer(models[1], torch.optim.SGD, lr=0.01, group="head")
        loader = client.loader(data(), batch_size=8, shard_size=8)
        for epoch in client.epochs(6):
            for x, y in loader:
                body.zero_grad()
                head.zero_grad()
                F.mse_loss(models[1](models[0](x)), y).backward()
                for optimizer in (body, head) if epoch % 2 else (head, body):
                    optimizer.step()
            client.barrier("between")
        return client.state_dict("body"), client.state_dict("head")

    with cluster(2, 3, assign="dynamic") as c:
        results = c.workers(work)
    for body, head in results:
        assert_bit_equal(body, results[0][0])
        assert_bit_equal(head, results[0][1])


def test_batch_norm_has_the_mean_of_all() -> None:
    def work(client: ps.Client) -> dict[str, Any]:
        model = nn.BatchNorm1d(4)
        optimizer = client.optimizer(model, torch.optim.SGD, lr=0.1, consistency=ps.AllReduce())
        for step in range(2):
            model(torch.full((3, 4), float(client.rank + step)) + torch.eye(3, 4)).sum().backward()
            optimizer.step(weight=1 + 2 * client.rank)
            optimizer.zero_grad()
        client.barrier("trained")
        return client.state_dict()

    with cluster(1, 2) as c:
        results = c.workers(work)
    assert_bit_equal(results[0], results[1])
    mean = torch.zeros(4)
    for step in range(2):
        ranks = [torch.full((3, 4), float(r + step)) + torch.eye(3, 4) for r in range(2)]
        means = [0.9 * mean + 0.1 * x.mean(0) for x in ranks]
        mean = (means[0] + 3 * means[1]) / 4
    assert torch.allclose(results[0]["running_mean"], mean)
    assert int(results[0]["num_batches_tracked"]) == 2


@pytest.mark.parametrize("buffers", ["first", "local"])
def test_buffers_of_the_first_rank_or_of_each(buffers: Any) -> None:
    def work(client: ps.Client) -> Tensor:
        model = nn.BatchNorm1d(2)
        optimizer = client.optimizer(
            model, torch.optim.SGD, lr=0.1, consistency=ps.AllReduce(), buffers=buffers
        )
        model(torch.full((3, 2), 10.0 * (1 + client.rank))).sum().backward()
        optimizer.step()
        assert model.running_mean is not None
        return model.running_mean.clone()

    with cluster(1, 2) as c:
        first, second = c.workers(work)
    assert float(first[0]) == pytest.approx(1.0)
    assert float(second[0]) == pytest.approx(1.0 if buffers == "first" else 2.0)


def test_the_learning_rate_of_the_lowest_rank_holds() -> None:
    """A schedule that only the chief runs reaches all; the optimizer's state is here."""

    def work(client: ps.Client) -> tuple[Tensor, dict[str, Any]]:
        model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(model.weight)
        optimizer = client.optimizer(
            model, torch.optim.SGD, lr=1.0, momentum=0.5, consistency=ps.AllReduce()
        )
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        for _ in range(3):
            model.weight.grad = torch.ones(1, 1)
            optimizer.step()
            if client.is_chief:
                schedule.step()
        return model.weight.detach().clone(), optimizer.state_dict()

    with cluster(1, 2) as c:
        (first, state), (second, _) = c.workers(work)
    assert torch.equal(first, second)
    assert float(first) == pytest.approx(-(1 + 0.5 * 1.5 + 0.25 * 1.75))
    assert float(state["state"][0]["momentum_buffer"]) == pytest.approx(1.75)


def test_parameters_without_a_gradient_anywhere_are_not_stepped() -> None:
    def work(client: ps.Client) -> dict[str, Tensor]:
        tensors = {n: nn.Parameter(torch.ones(2)) for n in ("both", "one", "none")}
        optimizer = client.optimizer(
            list(tensors.items()), torch.optim.SGD, lr=1.0, consistency=ps.AllReduce(),
            weight_decay=0.5,
        )  # fmt: skip
        tensors["both"].grad = torch.ones(2)
        if client.rank == 1:
            tensors["one"].grad = torch.ones(2)
        optimizer.step()
        return client.state_dict()

    with cluster(1, 2) as c:
        results = c.workers(work)
    assert_bit_equal(results[0], results[1])
    wanted = {"both": -0.5, "one": 0.0, "none": 1.0}
    for name, value in wanted.items():
        assert torch.equal(results[0][name], torch.full((2,), value)), name


def test_a_step_of_weight_0_everywhere_changes_nothing_but_the_clock() -> None:
    def work(client: ps.Client) -> tuple[Tensor, int]:
        model = linear()
        optimizer = client.optimizer(model, torch.optim.SGD, lr=1.0, consistency=ps.AllReduce())
        model(torch.ones(1, 5, dtype=torch.float64)).sum().backward()
        optimizer.step(weight=0)
        assert optimizer.last is not None
        return model.weight.detach().clone(), optimizer.last.clock

    with cluster(1, 2) as c:
        for weight, clock in c.workers(work):
            assert torch.equal(weight, linear().weight)
            assert clock == 0


def test_grad_scaler() -> None:
    """A scaler that overflows on one rank: the other's gradient counts alone."""

    def work(client: ps.Client) -> Tensor:
        model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(model.weight)
        optimizer = client.optimizer(model, torch.optim.SGD, lr=1.0, consistency=ps.AllReduce())
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        for step in range(2):
            optimizer.zero_grad()
            scaler.scale(model(torch.ones(1, 1)).sum()).backward()
            if step and client.rank:
                assert model.weight.grad is not None
                model.weight.grad.fill_(torch.inf)
            scaler.step(optimizer)
            scaler.update()
        return model.weight.detach().clone()

    with cluster(1, 2) as c:
        for weight in c.workers(work):
            assert float(weight) == -2.0


def test_half_precision_is_reduced_in_float32() -> None:
    def work(client: ps.Client) -> Tensor:
        weight = nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
        optimizer = client.optimizer(
            [("w", weight)], torch.optim.SGD, lr=1.0, consistency=ps.AllReduce()
        )
        weight.grad = torch.full((3,), 1.0 + client.rank / 128, dtype=torch.bfloat16)
        optimizer.step()
        return weight.detach().clone()

    with cluster(1, 4) as c:
        results = c.workers(work)
    wanted = -torch.tensor(sum(1 + r / 128 for r in range(4)) / 4, dtype=torch.bfloat16)
    for found in results:
        assert torch.equal(found, wanted.expand(3))


def test_workers_that_wait_answer_others() -> None:
    """One steps while two are idle: one in a barrier, one in a reduction of ours."""

    def work(client: ps.Client) -> tuple[float, dict[str, Any]]:
        model = network()
        optimizer = client.optimizer(model, torch.optim.SGD, lr=0.1, consistency=ps.AllReduce())
        if client.rank == 0:
            for step in range(STEPS):
                x, y = batch(0, step)
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
        total = client.all_reduce(torch.ones(1), "one", op="sum")
        client.barrier("end")
        return float(total), client.state_dict()

    with cluster(1, 3) as c:
        results = c.workers(work)
    wanted = one_process(torch.optim.SGD, {"lr": 0.1}, [STEPS])
    for total, found in results:
        assert total == 3
        assert_bit_equal(found, wanted)


def test_a_worker_that_finishes_is_not_waited_for() -> None:
    def work(client: ps.Client) -> int:
        model = linear()
        optimizer = client.optimizer(model, torch.optim.SGD, lr=0.1, consistency=ps.AllReduce())
        for _ in range(2 if client.rank == 0 else 6):
            optimizer.zero_grad()
            model(torch.ones(1, 5, dtype=torch.float64)).sum().backward()
            optimizer.step()
        return replicas(optimizer).clock

    with cluster(1, 3) as c:
        assert c.workers(work) == [2, 6, 6]


def test_a_late_joiner_takes_values_state_and_clock() -> None:
    ready = threading.Event()

    def steps(model: nn.Module, optimizer: Any, rank: int, numbers: range) -> None:
        for step in numbers:
            x, y = batch(rank, step)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step(weight=len(x))

    def worker(c: Cluster, rank: int) -> dict[str, Any]:
        if rank:
            assert ready.wait(20)
        with c.connect(f"worker-{rank}") as client:
            model = network()
            optimizer = client.optimizer(
                model, torch.optim.Adam, lr=0.01, consistency=ps.AllReduce()
            )
            if rank == 0:
                steps(model, optimizer, 0, range(3))
                ready.set()
                # Both form anew at the step before which this worker sees the other in a view.
                until(replicas(optimizer)._moved)
            assert replicas(optimizer).clock == 3
            steps(model, optimizer, rank, range(3, STEPS))
            client.barrier("end")
            return client.state_dict()

    with cluster(1, 1) as c:
        found = in_threads([lambda: worker(c, 0), lambda: worker(c, 1)])
    assert_bit_equal(found[0], found[1])
    assert_close(found[0], late(3), 1e-5)


def late(alone: int) -> dict[str, Tensor]:
    """One process: rank 0 alone at first, then the mean of both."""
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(STEPS):
        optimizer.zero_grad()
        batches = [batch(r, step) for r in range(1 if step < alone else 2)]
        total = sum(len(x) for x, _ in batches)
        for x, y in batches:
            (F.cross_entropy(model(x), y) * len(x) / total).backward()
        optimizer.step()
    return model.state_dict()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"overlap": True}, "overlap"),
        ({"wire_dtype": "bf16"}, "wire_dtype"),
        ({"optimizer_class": torch.optim.LBFGS}, "several times"),
    ],
)
def test_what_is_refused(options: dict[str, Any], says: str) -> None:
    def work(client: ps.Client) -> None:
        arguments = {"optimizer_class": torch.optim.SGD, "lr": 0.1, **options}
        with pytest.raises(ps.errors.UnsupportedError, match=says):
            client.optimizer(linear(), consistency=ps.AllReduce(), **arguments)

    with cluster(1, 1) as c:
        c.workers(work)


def test_only_one_backend() -> None:
    with pytest.raises(ps.errors.ConfigurationError, match="must be 'gloo'"):
        ps.AllReduce("nccl")


def test_nan_is_refused_and_the_step_can_be_taken_again() -> None:
    def work(client: ps.Client) -> Tensor:
        weight = nn.Parameter(torch.zeros(3))
        optimizer = client.optimizer(
            [("w", weight)], torch.optim.SGD, lr=1.0, consistency=ps.AllReduce()
        )
        if client.rank == 1:
            weight.grad = torch.tensor([1.0, torch.nan, 1.0])
            with pytest.raises(ps.errors.NonFiniteError, match="'w'"):
                optimizer.step()
            assert replicas(optimizer).clock == 0
        weight.grad = torch.ones(3)
        optimizer.step()
        with pytest.raises(ps.errors.UnsupportedError, match="add_param_group"):
            optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
        return weight.detach().clone()

    with cluster(1, 2) as c:
        for found in c.workers(work):
            assert torch.equal(found, -torch.ones(3))


def test_workers_that_differ_and_readers_are_told() -> None:
    first = threading.Event()

    def worker(c: Cluster, rank: int) -> None:
        with c.connect(f"worker-{rank}") as client:
            if rank:
                assert first.wait(20)
                with pytest.raises(ps.errors.MismatchError, match="optimizer is SGD, not Adam"):
                    client.optimizer(linear(), torch.optim.Adam, lr=0.1, consistency=ps.AllReduce())
            else:
                until_registered(c, first)
            client.optimizer(linear(), torch.optim.SGD, lr=0.1, consistency=ps.AllReduce())
            with (
                c.connect(reader=True) as reader,
                pytest.raises(ps.errors.UnsupportedError, match="servers hold nothing of it"),
            ):
                reader.state_dict()
            client.barrier("end")

    def until_registered(c: Cluster, event: threading.Event) -> None:
        def watch() -> None:
            until(lambda: c.scheduler.state.groups.find("model") is not None)
            event.set()

        threading.Thread(target=watch, daemon=True).start()

    with cluster(1, 2) as c:
        in_threads([lambda: worker(c, 0), lambda: worker(c, 1)])


def test_a_wait_says_for_whom() -> None:
    over = threading.Event()

    def worker(c: Cluster, rank: int) -> str:
        client = c.connect(f"worker-{rank}", wait_timeout=1.0 if rank == 0 else 20.0)
        model = linear()
        optimizer = client.optimizer(model, torch.optim.SGD, lr=0.1, consistency=ps.AllReduce())
        said = ""
        if rank == 0:
            model(torch.ones(1, 5, dtype=torch.float64)).sum().backward()
            with pytest.raises(ps.errors.WaitTimeoutError) as caught:
                optimizer.step()
            said = str(caught.value)
            over.set()
        assert over.wait(20)
        client.fail("end of the test")
        return said

    with cluster(1, 2) as c:
        said, _ = in_threads([lambda: worker(c, 0), lambda: worker(c, 1)])
    assert "step 0" in said
    assert "worker-1" in said
