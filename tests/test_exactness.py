"""What must equal what: a cluster against one process, to the bit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import paramserver as ps
from tests.cluster import cluster

STEPS = 6
ONE_AT_A_TIME = threading.Lock()
RULES: list[tuple[type[torch.optim.Optimizer], dict[str, Any]]] = [
    (torch.optim.SGD, {"lr": 0.1}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    (torch.optim.Adagrad, {"lr": 0.1}),
    (torch.optim.Adam, {"lr": 0.01}),
    (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
    (torch.optim.RMSprop, {"lr": 0.01}),
    (torch.optim.Adadelta, {"lr": 1.0}),
]
NAMES = ["sgd", "momentum", "nesterov-wd", "adagrad", "adam", "adamw", "rmsprop", "adadelta"]


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Odd sizes, so that slices end anywhere."""
    with ONE_AT_A_TIME:  # workers are threads here, and torch has one generator
        torch.manual_seed(7)
        return nn.Sequential(nn.Linear(33, 61), nn.Tanh(), nn.Linear(61, 7)).to(dtype)


def batch(rank: int, step: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Uneven: 3 to 9 samples by rank and step."""
    generator = torch.Generator().manual_seed(1000 * rank + step)
    size = 3 + (rank * 5 + step * 3) % 7
    x = torch.randn(size, 33, generator=generator).to(dtype)
    return x, torch.randint(0, 7, (size,), generator=generator)


def mean_gradients(parts: list[tuple[float, dict[str, Tensor]]]) -> dict[str, Tensor]:
    """The weighted mean in rank order, by the formula of the documentation."""
    first, gradients = parts[0]
    total = {n: g.clone() for n, g in gradients.items()}
    for weight, others in parts[1:]:
        for name, gradient in others.items():
            total[name].add_(gradient, alpha=weight / first)
    share = sum(weight / first for weight, _ in parts)
    return {n: g / share for n, g in total.items()} if len(parts) > 1 else total


def gradients_of(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def one_process(
    rule: type[torch.optim.Optimizer],
    options: Mapping[str, Any],
    steps: list[int],
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Plain PyTorch; ``steps[rank]``: how many batches each worker has."""
    model = network(dtype)
    optimizer = rule(model.parameters(), **options)
    for step in range(max(steps)):
        parts = []
        for rank, count in enumerate(steps):
            if step < count:
                x, y = batch(rank, step, dtype)
                parts.append((float(len(x)), gradients_of(model, x, y)))
        for name, gradient in mean_gradients(parts).items():
            model.get_parameter(name).grad = gradient
        optimizer.step()
    return model.state_dict()


def train(
    rule: type[torch.optim.Optimizer],
    options: Mapping[str, Any],
    consistency: ps.Sync | ps.Stale | ps.Async | ps.AllReduce,
    steps: list[int],
    dtype: torch.dtype = torch.float32,
    before: Callable[[int, int], None] = lambda rank, step: None,
) -> Callable[[ps.Client], dict[str, Tensor]]:
    def work(client: ps.Client) -> dict[str, Tensor]:
        model = network(dtype)
        optimizer = client.optimizer(model, rule, consistency=consistency, **options)
        for step in range(steps[client.rank]):
            x, y = batch(client.rank, step, dtype)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            before(client.rank, step)
            optimizer.step(weight=len(x))
        client.barrier("trained")
        return client.state_dict()

    return work


def assert_bit_equal(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert torch.equal(found[name], wanted[name]), name


@pytest.mark.parametrize("servers", [1, 2, 3])
def test_sync_equals_one_process(servers: int) -> None:
    with cluster(servers, 3) as c:
        results = c.workers(train(torch.optim.SGD, {"lr": 0.1}, ps.Sync(), [STEPS] * 3))
    wanted = one_process(torch.optim.SGD, {"lr": 0.1}, [STEPS] * 3)
    for found in results:
        assert_bit_equal(found, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize(("rule", "options"), RULES, ids=NAMES)
def test_sync_equals_one_process_for_every_rule(
    rule: type[torch.optim.Optimizer], options: dict[str, Any], dtype: torch.dtype
) -> None:
    with cluster(2, 2) as c:
        results = c.workers(train(rule, options, ps.Sync(), [STEPS] * 2, dtype))
    wanted = one_process(rule, options, [STEPS] * 2, dtype)
    assert_bit_equal(results[0], wanted)


@pytest.mark.parametrize("servers", [1, 2])
def test_sync_over_many_buckets_and_all_types(servers: int) -> None:
    """Tensors of several megabytes, of every floating type, without dimensions, and empty."""
    shapes = {"big": (900, 700), "wide": (3, 200_001), "scalar": (), "empty": (0, 5)}
    dtypes = [torch.float32, torch.float64, torch.bfloat16, torch.float16]

    def values(rank: int, step: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(100 * rank + step)
        return {
            f"{name}.{dtype}".replace("torch.", ""): torch.randn(shape, generator=generator).to(
                dtype
            )
            for name, shape in shapes.items()
            for dtype in dtypes
        }

    def work(client: ps.Client) -> dict[str, Tensor]:
        group = client.register("g", values(9, 9), torch.optim.SGD, lr=0.5, momentum=0.5)
        for step in range(3):
            group.push_pull(values(client.rank, step), weight=1 + client.rank)
        return group.pull()

    with cluster(servers, 2) as c:
        found = c.workers(work)
    wanted = values(9, 9)
    optimizer = torch.optim.SGD(list(wanted.values()), lr=0.5, momentum=0.5)
    for step in range(3):
        parts = [
            (
                1.0 + rank,
                {
                    n: v.float() if v.dtype.itemsize == 2 else v
                    for n, v in values(rank, step).items()
                },
            )
            for rank in range(2)
        ]
        for name, gradient in mean_gradients(parts).items():
            wanted[name].grad = gradient.to(wanted[name].dtype)
        optimizer.step()
    for name in wanted:
        assert torch.equal(found[0][name], wanted[name].detach()), name
        assert torch.equal(found[1][name], wanted[name].detach()), name


def test_one_worker_is_plain_pytorch() -> None:
    rule, options = torch.optim.Adam, {"lr": 0.01}
    with cluster(2, 1) as c:
        (found,) = c.workers(train(rule, options, ps.Sync(), [STEPS]))
    model = network()
    optimizer = rule(model.parameters(), lr=0.01)
    for step in range(STEPS):
        optimizer.zero_grad()
        x, y = batch(0, step)
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert_bit_equal(found, model.state_dict())


def test_unequal_batch_counts_neither_hang_nor_differ() -> None:
    counts = [STEPS, 2, 4]
    with cluster(2, 3) as c:
        results = c.workers(train(torch.optim.Adam, {"lr": 0.01}, ps.Sync(), counts))
    wanted = one_process(torch.optim.Adam, {"lr": 0.01}, counts)
    assert_bit_equal(results[0], wanted)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)], ids=str)
def test_stale_0_is_sync_in_any_order_of_arrival(order: tuple[int, ...]) -> None:
    turns = {(rank, step): threading.Event() for rank in range(3) for step in range(STEPS)}

    def before(rank: int, step: int) -> None:
        """Pushes start one after the other in the given order."""
        place = order.index(rank)
        if place:
            assert turns[order[place - 1], step].wait(30)
        turns[rank, step].set()

    options = {"lr": 0.1, "momentum": 0.9}
    with cluster(2, 3) as c:
        work = train(torch.optim.SGD, options, ps.Stale(0), [STEPS] * 3, before=before)
        results = c.workers(work)
    wanted = one_process(torch.optim.SGD, options, [STEPS] * 3)
    assert_bit_equal(results[2], wanted)


@pytest.mark.parametrize("scale", ["inverse", "sqrt", "none"])
def test_async_with_one_worker_is_sequential(scale: Any) -> None:
    options = {"lr": 0.1, "momentum": 0.9}
    with cluster(2, 1) as c:
        (found,) = c.workers(train(torch.optim.SGD, options, ps.Async(scale), [STEPS]))
    assert_bit_equal(found, one_process(torch.optim.SGD, options, [STEPS]))


def test_a_changed_learning_rate_travels_with_the_push() -> None:
    def work(client: ps.Client) -> dict[str, Tensor]:
        model = network()
        optimizer = client.optimizer(model, torch.optim.SGD, lr=0.1)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
        for step in range(STEPS):
            x, y = batch(0, step)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            schedule.step()
        return client.state_dict()

    with cluster(1, 1) as c:
        (found,) = c.workers(work)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
    for step in range(STEPS):
        x, y = batch(0, step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        schedule.step()
    assert_bit_equal(found, model.state_dict())


def test_two_groups_of_one_job_differ_in_consistency() -> None:
    def work(client: ps.Client) -> tuple[Tensor, Tensor]:
        zero = {"w": torch.zeros(5)}
        sync = client.register("sync", zero, torch.optim.SGD, lr=1.0)
        free = client.register("free", zero, consistency=ps.Async())
        for _ in range(STEPS):
            free.push({"w": torch.ones(5)})
            sync.push_pull({"w": torch.full((5,), float(client.rank))})
        client.barrier("end")
        return sync.read()["w"], free.read()["w"]

    with cluster(2, 2) as c:
        for stepped, added in c.workers(work):
            assert torch.equal(stepped, torch.full((5,), -0.5 * STEPS))
            assert torch.equal(added, torch.full((5,), 2.0 * STEPS))
