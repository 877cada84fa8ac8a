"""Local steps: what must equal what, whose samples are whose, what is refused."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import paramserver as ps
from paramserver.cli.state import Source
from paramserver.errors import (
    ConfigurationError,
    MismatchError,
    NonFiniteError,
    UnsupportedError,
)
from paramserver.ps.delayed_nesterov import DelayedNesterov
from paramserver.v1 import scheduler_pb2
from paramserver.worker.schemes.local import fragments
from tests.cluster import Cluster, cluster, in_threads
from tests.test_exactness import (
    STEPS,
    assert_bit_equal,
    batch,
    gradients_of,
    network,
    one_process,
)

DATA = TensorDataset(torch.randn(90, 4, generator=torch.Generator().manual_seed(0)))
SGD = torch.optim.SGD
AVERAGE = functools.partial(SGD, lr=1.0)
NESTEROV = functools.partial(SGD, lr=1.0, momentum=0.9, nesterov=True)
CLOSE = {torch.float32: 1e-5, torch.float64: 1e-12}

Step = Callable[[nn.Module, ps.Client, int], None]


def assert_close(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], within: float) -> None:
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert (found[name] - wanted[name]).abs().max() <= within, name


def train(
    scheme: ps.Local,
    rule: type[torch.optim.Optimizer] = SGD,
    dtype: torch.dtype = torch.float32,
    steps: int = STEPS,
    seen: Callable[[ps.Client, Any, nn.Module], None] = lambda client, optimizer, model: None,
    **hyper: Any,
) -> Callable[[ps.Client], dict[str, Tensor]]:
    """Work of a worker: local steps on batches of uneven size; the values of the servers."""

    def work(client: ps.Client) -> dict[str, Tensor]:
        model = network(dtype)
        optimizer = client.optimizer(model, rule, consistency=scheme, **{"lr": 0.1, **hyper})
        for step in range(steps):
            x, y = batch(client.rank, step, dtype)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step(weight=len(x))
            seen(client, optimizer, model)
        client.barrier("trained")
        return client.state_dict()

    return work


def rounds(
    workers: int,
    steps: list[int],
    outer: Callable[..., torch.optim.Optimizer],
    inner: type[torch.optim.Optimizer] = SGD,
    count: int = 3,
    **hyper: Any,
) -> dict[str, Tensor]:
    """One process: DiLoCo over ``count`` rounds of ``steps[rank]`` steps, by its definition."""
    base = network()
    outer_optimizer = outer(base.parameters())
    models = [network() for _ in range(workers)]
    inners = [inner(m.parameters(), **{"lr": 0.1, **hyper}) for m in models]
    for number in range(count):
        samples = []
        for rank, (model, optimizer) in enumerate(zip(models, inners, strict=True)):
            model.load_state_dict(base.state_dict())
            total = 0
            for step in range(number * steps[rank], (number + 1) * steps[rank]):
                x, y = batch(rank, step)
                gradients_of(model, x, y)
                optimizer.step()
                total += len(x)
            samples.append(total)
        for name, parameter in base.named_parameters():
            parts = [
                n * (parameter.detach() - m.get_parameter(name).detach())
                for n, m in zip(samples, models, strict=True)
            ]
            parameter.grad = torch.stack(parts).sum(0) / sum(samples)
        outer_optimizer.step()
    return base.state_dict()


# What must equal what


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
def test_one_step_and_averaging_is_a_synchronous_step(dtype: torch.dtype) -> None:
    with cluster(2, 3) as c:
        found = c.workers(train(ps.Local(1, outer=AVERAGE), dtype=dtype))
    wanted = one_process(SGD, {"lr": 0.1}, [STEPS] * 3, dtype)
    for values in found:
        assert_close(values, wanted, CLOSE[dtype])


@pytest.mark.parametrize("rule", [SGD, torch.optim.AdamW, torch.optim.LBFGS])
@pytest.mark.parametrize("steps", [1, 4])
def test_one_worker_and_averaging_is_plain_training(
    rule: type[torch.optim.Optimizer], steps: int
) -> None:
    """Whatever torch optimizer steps inside; six steps end in the middle of a round of four."""

    def work(client: ps.Client) -> dict[str, Tensor]:
        model = network(torch.float64)
        optimizer = client.optimizer(
            model, rule, consistency=ps.Local(steps, outer=AVERAGE), lr=0.05
        )
        follow(model, optimizer)
        client.barrier("trained")
        return client.state_dict()

    def follow(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for step in range(STEPS):
            x, y = batch(0, step, torch.float64)

            def closure() -> float:
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(model(x), y)  # noqa: B023 - called at once
                loss.backward()
                return float(loss.detach())

            assert optimizer.step(closure) is not None

    with cluster(1, 1) as c:
        (found,) = c.workers(work)
    model = network(torch.float64)
    follow(model, rule(model.parameters(), lr=0.05))  # type: ignore[call-arg]
    assert_close(found, model.state_dict(), 1e-9)  # L-BFGS magnifies what rounding leaves


def test_one_step_and_outer_nesterov_is_synchronous_nesterov() -> None:
    options = {"lr": 0.1, "momentum": 0.9, "nesterov": True}
    with cluster(2, 3) as c:
        (found, *_) = c.workers(train(ps.Local(1, outer=NESTEROV)))
    assert_close(found, one_process(SGD, options, [STEPS] * 3), 1e-5)


@pytest.mark.parametrize("outer", [AVERAGE, None], ids=["average", "default"])
def test_diloco_is_its_definition(outer: Any) -> None:
    default = functools.partial(SGD, lr=0.7, momentum=0.9, nesterov=True)
    with cluster(2, 3) as c:
        found = c.workers(train(ps.Local(2, outer=outer), torch.optim.AdamW, lr=0.01))
    wanted = rounds(3, [2, 2, 2], outer or default, torch.optim.AdamW, lr=0.01)
    for values in found:
        assert_close(values, wanted, 1e-5)


def test_one_fragment_without_delay_is_diloco_to_the_bit() -> None:
    found = []
    for scheme in (ps.Local(3), ps.Local(3, fragments=1, delay=0, alpha=0.0)):
        with cluster(2, 2) as c:
            found.append(c.workers(train(scheme))[0])
    assert_bit_equal(*found)


def test_delayed_nesterov_on_every_push_is_nesterov_to_the_bit() -> None:
    delayed = ps.Local(2, base=ps.Async(), nesterov_every=1)
    with cluster(2, 1) as c:
        (found,) = c.workers(train(delayed))
    with cluster(2, 1) as c:
        (wanted,) = c.workers(train(ps.Local(2)))
    assert_bit_equal(found, wanted)


def test_packed_rounds_are_close_and_small() -> None:
    def seen(client: ps.Client, optimizer: Any, model: nn.Module) -> None:
        if client.rank == 0:
            sizes.append(optimizer.last.sent_bytes)

    sizes: list[int] = []
    with cluster(2, 2) as c:
        (wanted, _) = c.workers(train(ps.Local(3, outer=AVERAGE), seen=seen))
    with cluster(2, 2) as c:
        (found, _) = c.workers(train(ps.Local(3, outer=AVERAGE, compress="int8"), seen=seen))
    assert sizes[2] / sizes[8] > 3.5
    # A round moves a value by at most 0.1; half a step of int8 is 0.1 / 127 / 2, in two rounds.
    assert_close(found, wanted, 0.1 / 127)


def test_workers_meet_at_the_end_of_a_round_and_only_there() -> None:
    def seen(client: ps.Client, optimizer: Any, model: nn.Module) -> None:
        results.setdefault(client.rank, []).append(
            (optimizer.last, {n: p.detach().clone() for n, p in model.named_parameters()})
        )

    results: dict[int, list[Any]] = {}
    with cluster(1, 2) as c:
        c.workers(train(ps.Local(3), seen=seen))
    for step in range(STEPS):
        (mine, ours), (_, theirs) = (results[rank][step] for rank in (0, 1))
        meets = step % 3 == 2
        assert (mine.sent_bytes > 0) == meets
        assert (mine.version is not None) == meets
        assert all(torch.equal(ours[n], theirs[n]) for n in ours) == meets


# Fragments, delay, alpha


def streaming(workers: int, scheme: ps.Local, steps: int) -> dict[str, Tensor]:
    """One process: Streaming DiLoCo by its definition, equal weights, plain averaging."""
    base = dict(network().named_parameters())
    values = {n: p.detach().clone() for n, p in base.items()}
    models = [network() for _ in range(workers)]
    inners = [SGD(m.parameters(), lr=0.1) for m in models]
    parts = [list(part.names) for part in fragments(values, scheme.fragments)]
    every = scheme.steps // scheme.fragments
    under_way: list[str] = []
    for step in range(1, steps + 1):
        for rank, (model, optimizer) in enumerate(zip(models, inners, strict=True)):
            x, y = batch(rank, step - 1)
            gradients_of(model, x, y)
            optimizer.step()
        if under_way and step % every == scheme.delay:
            land(models, values, under_way, scheme.alpha)
            under_way = []
        if step % every == 0:
            part = parts[(step // every - 1) % scheme.fragments]
            for name in part:
                deltas = [values[name] - m.get_parameter(name).detach() for m in models]
                values[name] = values[name] - torch.stack(deltas).mean(0)
            under_way = part
            if not scheme.delay:
                land(models, values, part, scheme.alpha)
                under_way = []
    # A barrier ends all rounds: here the first fragment has seen steps that it did not push.
    land(models, values, under_way, scheme.alpha)
    for name in parts[0]:
        deltas = [values[name] - m.get_parameter(name).detach() for m in models]
        values[name] = values[name] - torch.stack(deltas).mean(0)
    return values


def land(
    models: list[nn.Sequential], values: Mapping[str, Tensor], names: list[str], alpha: float
) -> None:
    for model in models:
        for name in names:
            local = model.get_parameter(name).data
            local.copy_(alpha * local + (1 - alpha) * values[name])


@pytest.mark.parametrize(("delay", "alpha"), [(0, 0.0), (0, 0.5), (1, 0.5), (2, 0.0)])
def test_streaming_is_its_definition(delay: int, alpha: float) -> None:
    scheme = ps.Local(6, outer=AVERAGE, fragments=2, delay=delay, alpha=alpha)

    def work(client: ps.Client) -> dict[str, Tensor]:
        model = network()
        optimizer = client.optimizer(model, SGD, consistency=scheme, lr=0.1)
        for step in range(12):
            x, y = batch(client.rank, step)
            gradients_of(model, x, y)
            optimizer.step()  # without weights: all workers count the same
        client.barrier("trained")
        return client.state_dict()

    with cluster(2, 2) as c:
        (found, _) = c.workers(work)
    assert_close(found, streaming(2, scheme, 12), 1e-5)


def test_fragments_are_even_and_of_every_depth() -> None:
    layers = [nn.Linear(30, 30) for _ in range(8)]
    parts = fragments(dict(nn.Sequential(*layers).named_parameters()), 4)
    assert sorted(name for part in parts for name in part.names) == sorted(
        f"{layer}.{kind}" for layer in range(8) for kind in ("weight", "bias")
    )
    for part in parts:
        weights = [name for name in part.names if "weight" in name]
        assert len(weights) == 2
        assert {int(name[0]) // 4 for name in weights} == {0, 1}
    tiny = {"empty": torch.empty(0), "none": torch.empty(0, 3), "one": torch.ones(1)}
    assert all(len(part.names) == 1 for part in fragments(tiny, 3))


def test_a_fragment_travels_alone() -> None:
    def seen(client: ps.Client, optimizer: Any, model: nn.Module) -> None:
        sizes.append(optimizer.last.sent_bytes)

    sizes: list[int] = []
    with cluster(1, 1) as c:
        c.workers(train(ps.Local(4, fragments=4), steps=8, seen=seen))
    assert sizes == [4 * p.numel() for p in network().parameters()] * 2


def test_training_goes_on_while_a_round_is_under_way() -> None:
    """The slow worker's push has not come; the fast one has taken a step meanwhile."""

    def seen(client: ps.Client, optimizer: Any, model: nn.Module) -> None:
        if client.rank == 0:
            ahead.append(optimizer.last.version)

    ahead: list[int | None] = []
    with cluster(1, 2) as c:
        c.workers(train(ps.Local(3, outer=AVERAGE, delay=2, alpha=0.5), seen=seen))
    # Sent with step 3, used after step 5.
    assert ahead == [None, None, None, None, 1, None]


# Asynchronous rounds


def test_late_rounds_weigh_less() -> None:
    """Two workers, one push of 1 each on the same base: tau is 0, then 1."""

    def work(client: ps.Client) -> float:
        model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(model.weight)
        scheme = ps.Local(1, base=ps.Async("polynomial"), outer=AVERAGE)
        optimizer = client.optimizer(model, SGD, consistency=scheme, lr=1.0)
        client.barrier("start")
        if client.rank == 1:
            pulled.set()
            assert first.wait(20)
        assert pulled.wait(20)
        model.weight.grad = torch.full((1, 1), -1.0)
        optimizer.step()
        first.set()
        client.barrier("pushed")
        return float(client.state_dict()["weight"])

    first, pulled = threading.Event(), threading.Event()
    with cluster(1, 2) as c:
        for found in c.workers(work):
            assert found == pytest.approx(1 + 2**-0.5)


def test_an_asynchronous_round_counts_one_by_the_number_of_workers() -> None:
    def work(client: ps.Client) -> tuple[float, float]:
        model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(model.weight)
        scheme = ps.Local(2, base=ps.Async("none"))
        optimizer = client.optimizer(model, SGD, consistency=scheme, lr=1.0)
        client.barrier("ready")
        for _ in range(2):
            model.weight.grad = torch.full((1, 1), -1.0)
            optimizer.step()
        client.barrier("pushed")
        return float(client.state_dict()["weight"]), float(model.weight.detach())

    with cluster(1, 4) as c:
        assert c.workers(work) == [(2.0, 2.0)] * 4


def test_delayed_nesterov_is_its_definition() -> None:
    """Per push value -= lr * g / N; after every N-th, momentum acts on the mean of the N."""
    lr, beta, every = 0.7, 0.9, 3
    pushes = [torch.randn(5, generator=torch.Generator().manual_seed(i)) for i in range(8)]
    value = torch.zeros(5)
    value.grad = None
    optimizer = DelayedNesterov([value], lr=lr, momentum=beta, every=every)
    wanted, momentum = torch.zeros(5), torch.zeros(5)
    for number, push in enumerate(pushes, 1):
        wanted = wanted - lr * push / every
        if number % every == 0:
            momentum = beta * momentum + sum(pushes[number - every : number]) / every
            wanted = wanted - lr * beta * momentum
        value.grad = push.clone()
        optimizer.step()
        assert torch.allclose(value, wanted, atol=1e-6)


def test_asynchronous_momentum_is_warned_of() -> None:
    scheme = ps.Local(2, base=ps.Async(), outer=NESTEROV)
    with cluster() as c, c.connect() as client, pytest.warns(UserWarning, match="may diverge"):
        client.optimizer(network(), SGD, consistency=scheme, lr=0.1)


# Speeds


def test_a_slower_worker_takes_fewer_steps_and_counts_by_its_samples() -> None:
    paces = [1.0, 0.5]

    def work(client: ps.Client) -> dict[str, Tensor]:
        client._session.pace = lambda: paces[client.rank]  # type: ignore[method-assign]
        model = network()
        scheme = ps.Local(4, outer=AVERAGE, dylu=True)
        optimizer = client.optimizer(model, SGD, consistency=scheme, lr=0.1)
        for step in range(3 * int(4 * paces[client.rank])):
            x, y = batch(client.rank, step)
            gradients_of(model, x, y)
            optimizer.step(weight=len(x))
            assert optimizer.last is not None
            assert (optimizer.last.version is not None) == (
                (step + 1) % int(4 * paces[client.rank]) == 0
            )
        client.barrier("trained")
        return client.state_dict()

    with cluster(1, 2) as c:
        (found, _) = c.workers(work)
    assert_close(found, rounds(2, [4, 2], AVERAGE), 1e-5)


def test_with_dylu_a_straggler_does_not_hold_the_others_up() -> None:
    """Virtual time: a round takes as long as its slowest worker; one of four is 5 times slower."""

    def rate(dylu: bool) -> float:
        """Steps of all workers in a unit of time."""
        costs = [1.0, 1.0, 1.0, 5.0]
        took: dict[int, list[int]] = {rank: [] for rank in range(4)}

        def work(client: ps.Client) -> None:
            client._session.pace = lambda: 1 / costs[client.rank]  # type: ignore[method-assign]
            model = nn.Linear(2, 1)
            scheme = ps.Local(10, dylu=dylu)
            optimizer = client.optimizer(model, SGD, consistency=scheme, lr=0.1)
            for _ in range(3):
                steps = 0
                while not steps or optimizer.last is None or optimizer.last.version is None:
                    model(torch.ones(1, 2)).sum().backward()
                    optimizer.step()
                    steps += 1
                took[client.rank].append(steps)

        with cluster(1, 4) as c:
            c.workers(work)
        time = sum(max(took[r][i] * costs[r] for r in range(4)) for i in range(3))
        return sum(map(sum, took.values())) / time

    assert rate(dylu=True) / rate(dylu=False) == pytest.approx(4.0)


# Samples


def loop(
    client: ps.Client, scheme: ps.Local, epochs: int = 2, **options: Any
) -> tuple[Any, nn.Module]:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    optimizer = client.optimizer(model, torch.optim.Adam, consistency=scheme, lr=0.01)
    loader = client.loader(DATA, 4, **options)
    for _ in client.epochs(epochs):
        for (x,) in loader:
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    return optimizer, model


def datasets(c: Cluster) -> Any:
    with c.connect("reader", reader=True) as reader:
        return reader._session.scheduler.call("Status", scheduler_pb2.StatusRequest())


@pytest.mark.parametrize(
    "scheme",
    [
        ps.Local(5),
        ps.Local(100),
        ps.Local(6, fragments=3, delay=1, alpha=0.5),
        ps.Local(5, base=ps.Async("polynomial")),
        ps.Local(5, base=ps.Async(), nesterov_every=3),
        ps.Local(4, base=ps.Sync(backup=1)),
    ],
    ids=lambda s: s.text,
)
@pytest.mark.parametrize("assign", ["round-robin", "dynamic"])
def test_every_sample_of_an_epoch_is_pushed_once(scheme: ps.Local, assign: str) -> None:
    """Passes of uneven length, which end in the middle of rounds."""

    def work(client: ps.Client) -> dict[str, Any]:
        _, model = loop(client, scheme, assign=assign, shard_size=8)
        client.barrier("trained")
        servers = client.state_dict()
        assert all(torch.equal(v, servers[n]) for n, v in model.state_dict().items())
        return servers

    with cluster(2, 3) as c:
        first, *rest = c.workers(work)
        (data,) = datasets(c).datasets
    assert (data.epoch, data.samples_done, data.unpushed) == (1, len(DATA), 0)
    for values in rest:
        assert_bit_equal(values, first)


def test_a_round_that_a_loop_left_waits_for_its_push() -> None:
    """``break`` returns the batch that no step was taken on, and no other."""
    with cluster() as c, c.connect() as client:
        model = nn.Linear(4, 1)
        optimizer = client.optimizer(model, SGD, consistency=ps.Local(10, outer=AVERAGE), lr=0.1)
        loader = client.loader(DATA, 4, shard_size=len(DATA))
        seen = 0
        for number, (x,) in enumerate(loader):
            if number == 3:
                break
            model(x).square().mean().backward()
            optimizer.step()
            seen += len(x)
        for (x,) in loader:  # goes on with the rest of the epoch
            model(x).square().mean().backward()
            optimizer.step()
            seen += len(x)
        assert seen == len(DATA)
        (data,) = datasets(c).datasets
        assert (data.samples_done, data.unpushed) == (len(DATA), 0)


def test_a_sampler_hands_out_a_batch_per_step() -> None:
    with cluster() as c:
        with c.connect() as client:
            model = nn.Linear(4, 1)
            optimizer = client.optimizer(model, SGD, consistency=ps.Local(5), lr=0.1)
            weights = []
            group = optimizer.group
            start = group.start_exchange

            def noted(*args: Any, **options: Any) -> Any:
                weights.append(options["weight"])
                return start(*args, **options)

            group.start_exchange = noted  # type: ignore[method-assign]
            for _ in client.epochs(2):
                for (x,) in DataLoader(DATA, batch_sampler=client.sampler(DATA, 4)):
                    model(x).square().mean().backward()
                    optimizer.step()
        (data,) = datasets(c).datasets
    assert (data.epoch, data.samples_done, data.unpushed) == (1, len(DATA), 0)
    assert weights == [20.0] * 4 + [10.0] + [20.0] * 4 + [10.0]


def test_work_before_a_data_set_was_opened_is_kept() -> None:
    """Opening one makes the worker start again, with values that it pulls."""
    with cluster() as c, c.connect() as client:
        model, alone = network(), network()
        optimizer = client.optimizer(model, SGD, consistency=ps.Local(4, outer=AVERAGE), lr=0.1)
        plain = SGD(alone.parameters(), lr=0.1)
        loader = None
        for step in range(4):
            for net, stepper in ((model, optimizer), (alone, plain)):
                gradients_of(net, *batch(0, step))
                stepper.step()
            if step == 1:
                loader = iter(client.loader(DATA, 4, name="other"))
                next(loader)
        assert optimizer.last is not None
        assert optimizer.last.version == 1
        assert_close(client.state_dict(), alone.state_dict(), 1e-5)


# Joining, losing, saving


def test_a_late_joiner_starts_from_the_base() -> None:
    ready, joined = threading.Event(), threading.Event()

    def train_some(optimizer: Any, model: nn.Module, steps: int) -> None:
        for _ in range(steps):
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    def first(c: Cluster) -> dict[str, Any]:
        with c.connect("worker-0") as client:
            model = nn.Linear(2, 1)
            scheme = ps.Local(2, outer=AVERAGE)
            optimizer = client.optimizer(model, SGD, consistency=scheme, lr=0.1)
            train_some(optimizer, model, 5)  # in the middle of its third round
            seen.update(client.state_dict())
            ready.set()
            assert joined.wait(20)
            train_some(optimizer, model, 4)
            client.barrier("end")
            return client.state_dict()

    def second(c: Cluster) -> dict[str, Any]:
        assert ready.wait(20)
        with c.connect("worker-1") as client:
            model = nn.Linear(2, 1)
            scheme = ps.Local(2, outer=AVERAGE)
            optimizer = client.optimizer(model, SGD, consistency=scheme, lr=0.1)
            assert_bit_equal(model.state_dict(), seen)
            joined.set()
            train_some(optimizer, model, 4)
            client.barrier("end")
            return client.state_dict()

    seen: dict[str, Any] = {}
    with cluster(1, 1) as c:
        calls: list[Callable[[], dict[str, Any]]] = [lambda: first(c), lambda: second(c)]
        one, other = in_threads(calls)
    assert_bit_equal(one, other)


def test_breaking_connections_change_nothing() -> None:
    scheme = ps.Local(4, fragments=2, delay=1, alpha=0.5)
    with cluster(2, 2) as c:
        (wanted, _) = c.workers(train(scheme, steps=16))
    with cluster(2, 2, proxies=True) as c:
        assert c.proxies is not None
        for proxy in c.proxies:
            proxy.cut_after = (20_000, 60_000)
        (found, _) = c.workers(train(scheme, steps=16))
        assert sum(proxy.cuts for proxy in c.proxies)
    assert_bit_equal(found, wanted)


def test_a_lost_worker_costs_its_round_and_no_sample() -> None:
    """Silent in the middle of its second round: the samples of that round are learnt by another."""
    carried: list[int] = []

    def lost(c: Cluster) -> None:
        client = c.connect("worker-1")
        model = nn.Linear(4, 1)
        optimizer = client.optimizer(model, SGD, consistency=ps.Local(3), lr=0.01)
        for number, (x,) in enumerate(client.loader(DATA, 4, shard_size=24), 1):
            model(x).square().mean().backward()
            optimizer.step()
            if number == 4:
                break
        client._session.stop()  # its heartbeat ends, and nothing is said

    def stays(c: Cluster) -> None:
        with c.connect("worker-0") as client:
            model = nn.Linear(4, 1)
            optimizer = client.optimizer(model, SGD, consistency=ps.Local(3), lr=0.01)
            for (x,) in client.loader(DATA, 4, shard_size=24):
                model(x).square().mean().backward()
                optimizer.step()
                carried.append(len(x))

    with cluster(1, 2, lease_s=1.0) as c:
        in_threads([lambda: stays(c), lambda: lost(c)])
        (data,) = datasets(c).datasets
    assert (data.samples_done, data.unpushed) == (len(DATA), 0)
    assert sum(carried) == len(DATA) - 12


def test_state_of_the_inner_optimizer_is_saved_as_torch_does() -> None:
    with cluster() as c, c.connect() as client:
        model = network()
        optimizer = client.optimizer(
            model, torch.optim.AdamW, consistency=ps.Local(10), lr=0.01, group="first"
        )
        gradients_of(model, *batch(0, 0))
        optimizer.step()
        saved = optimizer.state_dict()
        assert saved["state"][0]["step"] == 1
        other = client.optimizer(
            network(), torch.optim.AdamW, consistency=ps.Local(10, base=ps.Async()), group="second"
        )
        other.load_state_dict(saved)
        assert other.param_groups[0]["lr"] == 0.01
        assert torch.equal(
            other.state[other.param_groups[0]["params"][0]]["exp_avg"],
            saved["state"][0]["exp_avg"],
        )
        with pytest.raises(UnsupportedError, match="add_param_group"):
            other.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})


def test_schedules_act_on_the_inner_optimizer() -> None:
    with cluster(1, 1) as c, c.connect() as client:
        model, alone = network(), network()
        scheme = ps.Local(2, outer=AVERAGE)
        optimizer = client.optimizer(model, SGD, consistency=scheme, lr=0.1)
        plain = SGD(alone.parameters(), lr=0.1)
        pairs = [(model, optimizer), (alone, plain)]
        for net, stepper in pairs:
            schedule = torch.optim.lr_scheduler.ExponentialLR(stepper, 0.5)
            for step in range(STEPS):
                gradients_of(net, *batch(0, step))
                stepper.step()
                schedule.step()
        assert_close(client.state_dict(), alone.state_dict(), 1e-5)


def test_a_grad_scaler_skips_overflows() -> None:
    with cluster(1, 1) as c, c.connect() as client:
        model = nn.Linear(2, 1)
        before = model.weight.detach().clone()
        optimizer = client.optimizer(model, SGD, consistency=ps.Local(1, outer=AVERAGE), lr=1.0)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        scaler.scale(model(torch.full((1, 2), float("inf"))).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert optimizer.last is None
        optimizer.zero_grad()
        scaler.scale(model(torch.ones(1, 2)).sum()).backward()
        scaler.step(optimizer)
        assert torch.allclose(client.state_dict()["weight"], before - 1)


# What status says, and what is refused


def test_status_names_the_scheme() -> None:
    with cluster() as c, c.connect() as client:
        scheme = ps.Local(50, fragments=2, base=ps.Async())
        client.optimizer(network(), SGD, consistency=scheme, lr=0.1)
        (group,) = datasets(c).groups
        assert group.scheme == "Local(50, fragments=2)"
        assert Source(c.address).gather()["groups"][0]["consistency"] == (
            "Local(50, fragments=2) over Async()"
        )


def test_workers_must_agree_on_the_scheme() -> None:
    def work(client: ps.Client) -> None:
        client.barrier("here")
        scheme = ps.Local(2 + client.rank)
        client.optimizer(network(), SGD, consistency=scheme, lr=0.1)

    with cluster(1, 2) as c, pytest.raises(MismatchError, match=r"Local\(\d\), not Local\(\d\)"):
        c.workers(work)


def test_a_round_with_nan_is_given_up() -> None:
    with cluster() as c, c.connect() as client:
        model = nn.Linear(2, 1)
        optimizer = client.optimizer(model, SGD, consistency=ps.Local(2), lr=0.1)
        before = client.state_dict()
        model.weight.grad = torch.ones(1, 2)
        optimizer.step()
        model.weight.grad = torch.full((1, 2), float("nan"))
        with pytest.raises(NonFiniteError, match="'weight'"):
            optimizer.step()
        assert_bit_equal(client.state_dict(), before)
        assert_bit_equal(model.state_dict(), before)
        model.weight.grad = torch.ones(1, 2)
        optimizer.step()
        client.barrier("goes on")
        assert not torch.equal(client.state_dict()["weight"], before["weight"])


def test_a_worker_that_cannot_end_its_last_round_fails() -> None:
    """Others do not wait for it."""

    def work(client: ps.Client) -> None:
        model = nn.Linear(2, 1)
        optimizer = client.optimizer(model, SGD, consistency=ps.Local(2), lr=0.1)
        bad = client.rank == 1
        model.weight.grad = torch.full((1, 2), float("nan") if bad else 1.0)
        optimizer.step()
        if bad:
            with pytest.raises(NonFiniteError):
                client.finish()
        else:
            client.barrier("the rest")

    with cluster(1, 2) as c:
        c.workers(work)


def test_a_second_group_that_waits_is_refused() -> None:
    with cluster() as c, c.connect() as client:
        client.register("free", {"w": torch.zeros(2)}, consistency=ps.Async())
        client.optimizer(network(), SGD, consistency=ps.Local(5), lr=0.1)
        client.register("free-too", {"w": torch.zeros(2)}, consistency=ps.Async())
        with pytest.raises(UnsupportedError, match="wait for one another"):
            client.register("sync", {"w": torch.zeros(2)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps=0"),
        ({"steps": 4, "fragments": 5}, "fragments=5"),
        ({"steps": 4, "fragments": 2, "delay": 2}, "delay=2"),
        ({"steps": 4, "alpha": 1.0}, "alpha=1.0"),
        ({"steps": 4, "base": ps.Stale(2)}, "base="),
        ({"steps": 4, "compress": "int2"}, "int8, int4"),
        ({"steps": 4, "nesterov_every": 2}, r"base=Async\(\)"),
    ],
)
def test_schemes_that_cannot_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ps.Local(**options)


@pytest.mark.parametrize(
    ("scheme", "options", "error", "message"),
    [
        (ps.Local(9, fragments=9), {}, ConfigurationError, "the group has 4 tensors"),
        (ps.Local(2), {"overlap": True}, UnsupportedError, "delay="),
        (ps.Local(2), {"momentum": -1.0}, ConfigurationError, "momentum"),
        (ps.Local(2, outer=torch.optim.LBFGS), {}, UnsupportedError, "LBFGS"),
        (ps.Local(2, outer="sgd"), {}, UnsupportedError, "torch.optim"),
        (ps.Local(2, outer=functools.partial(SGD, [])), {}, ConfigurationError, "name its"),
        (ps.Local(2, outer=functools.partial(SGD, lr=-1)), {}, ConfigurationError, "rate: -1"),
        (
            ps.Local(2, base=ps.Async(), outer=AVERAGE, nesterov_every=2),
            {},
            ConfigurationError,
            "SGD with momentum",
        ),
        (ps.Local(2, compress="int8"), {"wire_dtype": "bf16"}, ConfigurationError, "one of them"),
    ],
)
def test_optimizers_that_cannot_work(
    scheme: ps.Local, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with cluster() as c, c.connect() as client, pytest.raises(error, match=message):
        client.optimizer(network(), SGD, consistency=scheme, **{"lr": 0.1, **options})


@pytest.mark.parametrize("base", [ps.Sync(), ps.Async()])
def test_the_samples_of_a_round_with_nan_in_it_are_learnt_in_another(base: Any) -> None:
    """A loop that goes on after the error comes to the end of its pass."""

    def work(client: ps.Client) -> int:
        model = nn.Linear(1, 1)
        scheme = ps.Local(2, base=base)
        optimizer = client.optimizer(model, torch.optim.SGD, lr=0.1, consistency=scheme)
        steps = failed = 0
        for (x,) in client.loader(TensorDataset(torch.ones(16, 1)), 4):
            optimizer.zero_grad()
            (model(x).mean() * (float("nan") if steps == 2 else 1.0)).backward()
            steps += 1
            try:
                optimizer.step()
            except NonFiniteError:
                failed += 1
        assert failed == 1
        return steps

    with cluster(1, 1) as c:
        assert c.workers(work) == [6]  # four batches, of which two twice
