"""Clients of a real cluster, each worker in a thread."""

from __future__ import annotations

import threading
import warnings
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import paramserver as ps
from paramserver.errors import (
    JobFailedError,
    MismatchError,
    NonFiniteError,
    NotFoundError,
    UnsupportedError,
    UsageError,
    WaitTimeoutError,
)
from paramserver.v1 import scheduler_pb2
from tests.cluster import Cluster, cluster, in_threads

X = torch.randn(96, 6, generator=torch.Generator().manual_seed(0))
Y = (X.sum(1) > 0).long()
DATA = TensorDataset(X, Y)


def network(norm: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)]
    return nn.Sequential(*([*layers[:1], nn.BatchNorm1d(8), *layers[1:]] if norm else layers))


def train(client: ps.Client, epochs: int = 2, **how: Any) -> dict[str, Any]:
    """What a training script does; the values that this worker ends with."""
    model = network(how.pop("norm", True))
    options = how.pop("loader", {})
    optimizer = client.optimizer(model, torch.optim.Adam, lr=1e-2, **how)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    loader = client.loader(DATA, 8, **options)
    for _ in client.epochs(epochs, schedule):
        for x, y in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            client.log(loss=loss)
        schedule.step()
    client.barrier("trained")
    values: dict[str, Any] = {k: v.clone() for k, v in model.state_dict().items()}
    return values


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    """Whether two state dicts are equal bit for bit."""
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def status(c: Cluster) -> Any:
    with c.connect("reader", reader=True) as reader:
        return reader._session.scheduler.call("Status", scheduler_pb2.StatusRequest())


@pytest.mark.parametrize("consistency", [ps.Sync(), ps.Stale(2), ps.Async()], ids=str)
def test_a_script_trains_and_all_workers_end_alike(consistency: Any) -> None:
    with cluster(servers=2, workers=3) as c:
        first, *rest = c.workers(lambda client: train(client, consistency=consistency))
        assert all(same(first, other) for other in rest)
        found = status(c)
    (data,) = found.datasets
    assert (data.epoch, data.samples_done, data.unpushed) == (1, 96, 0)
    assert "loss" in found.scalars


def test_overlap_and_loader_processes_change_nothing() -> None:
    results = []
    for how in ({}, {"overlap": True}, {"loader": {"num_workers": 2, "persistent_workers": True}}):
        with cluster(workers=1) as c:
            torch.manual_seed(0)
            results += c.workers(lambda client, how=how: train(client, **how))  # type: ignore[misc]
    assert same(results[0], results[1])
    assert same(results[0], results[2])


def test_the_chiefs_values_win() -> None:
    start = {0: 1.0, 1: 2.0, 2: 3.0}

    def work(client: ps.Client) -> tuple[float, float]:
        model = nn.Linear(2, 1)
        nn.init.constant_(model.weight, start[client.rank])
        client.optimizer(model, torch.optim.SGD, lr=0.1)
        group = client.register("extra", {"x": torch.full((2,), start[client.rank])})
        return float(model.weight.detach()[0, 0]), float(group.pull()["x"][0])

    with cluster(servers=2, workers=3) as c:
        assert c.workers(work) == [(1.0, 1.0)] * 3


def test_values_are_read_in_inference_mode_too() -> None:
    def work(client: ps.Client) -> None:
        group = client.register("g", {"w": torch.ones(3)})
        with torch.inference_mode():
            assert torch.equal(group.pull()["w"], torch.ones(3))
            assert torch.equal(client.state_dict("g")["w"], torch.ones(3))

    with cluster(1, 1) as c:
        c.workers(work)


def test_state_dict_is_plain_pytorch() -> None:
    with cluster(servers=2) as c, c.connect() as client:
        model = network()
        optimizer = client.optimizer(model, torch.optim.SGD, lr=0.1, wire_dtype="bf16")
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()
        state = client.state_dict()
        assert list(state) == list(model.state_dict())
        other = network()
        other.load_state_dict(state, strict=True)
        # Steps travel as bf16, state_dict does not.
        weight = cast(Tensor, other[0].weight).detach()
        assert not torch.equal(weight, weight.bfloat16().float())
        with pytest.raises(NotFoundError, match="nothing"):
            client.state_dict("nothing")


def test_a_reader_reads_and_is_never_awaited() -> None:
    with cluster() as c, c.connect() as client:
        group = client.register("g", {"x": torch.zeros(3)})
        group.push({"x": torch.ones(3)})
        group.pull()
        with c.connect(reader=True) as reader:
            assert (reader.rank, reader.is_chief, reader.num_workers) == (-1, False, 1)
            assert torch.equal(reader.state_dict("g")["x"], torch.ones(3))
            for use in (
                lambda: reader.register("h", {"x": torch.zeros(1)}),
                lambda: reader.loader(DATA, 4),
                lambda: reader.barrier("b"),
                lambda: reader.epochs(1),
            ):
                with pytest.raises(UsageError, match="reader"):
                    use()
        client.barrier("alone")


def test_collectives() -> None:
    def work(client: ps.Client) -> list[Tensor]:
        mine = torch.tensor([float(client.rank), 4.0 * client.rank])
        return [client.all_reduce(mine, "x", op) for op in ("mean", "sum", "max", "min")]

    with cluster(servers=2, workers=3) as c:
        for mean, total, most, least in c.workers(work):
            assert mean.tolist() == [1.0, 4.0]
            assert total.tolist() == [3.0, 12.0]
            assert most.tolist() == [2.0, 8.0]
            assert least.tolist() == [0.0, 0.0]


def test_an_overflow_on_one_worker_hangs_nobody() -> None:
    def work(client: ps.Client) -> tuple[int, float]:
        model = nn.Linear(2, 1)
        optimizer = client.optimizer(model, torch.optim.SGD, lr=1.0)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
        before = model.bias.detach().clone()
        for step in range(2):
            optimizer.zero_grad()
            bad = step == 0 and client.rank == 0
            loss = model(torch.ones(4, 2)).mean() * (float("inf") if bad else 1.0)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        return optimizer.group.clock, float(before - model.bias.detach())

    with cluster(workers=2) as c:
        for clock, moved in c.workers(work):
            assert clock == 2
            assert moved == pytest.approx(2.0)  # rank 1 alone, then both


def test_a_gradient_that_is_not_finite_stops_before_anything_is_sent() -> None:
    with cluster() as c, c.connect() as client:
        model = nn.Linear(2, 1)
        optimizer = client.optimizer(model, torch.optim.SGD, lr=1.0)
        model.weight.grad = torch.tensor([[float("nan"), 0.0]])
        with pytest.raises(NonFiniteError, match="'weight'"):
            optimizer.step()
        assert optimizer.group.clock == 0
        model.weight.grad = torch.ones(1, 2)
        optimizer.step()
        assert optimizer.group.clock == 1


def test_unequal_shares_of_an_epoch_hang_nobody() -> None:
    def work(client: ps.Client) -> int:
        model = nn.Linear(6, 2)
        optimizer = client.optimizer(model, torch.optim.SGD, lr=0.1)
        loader = client.loader(TensorDataset(X[:40], Y[:40]), 8, shard_size=8)
        steps = 0
        for _ in client.epochs(2):
            for x, y in loader:
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
                steps += 1
        return steps

    with cluster(workers=2) as c:
        assert sorted(c.workers(work)) == [4, 6]  # five shards an epoch over two


def test_clocks_wait_for_a_worker_from_its_first_batch_on() -> None:
    joined, active = scheduler_pb2.MEMBER_JOINED, scheduler_pb2.MEMBER_ACTIVE
    with cluster() as c, c.connect() as client:

        def state() -> Any:
            (worker,) = (m for m in status(c).view.members if m.name == client.name)
            return worker.state

        client.register("early", {"x": torch.zeros(1)})
        assert state() == active
        loader = client.loader(DATA, 8)
        assert state() == joined
        client.register("late", {"x": torch.zeros(1)})
        assert state() == joined
        for _ in loader:
            assert state() == active
            break
        client.loader(DATA, 8, name="other")
        client.register("later", {"x": torch.zeros(1)})
        assert state() == joined  # nothing was pushed yet


def test_a_late_worker_joins_the_epoch_that_is_on() -> None:
    arrived, go = threading.Event(), threading.Event()

    def first(c: Cluster) -> None:
        with c.connect("worker-0") as client:
            model = nn.Linear(6, 2)
            optimizer = client.optimizer(model, torch.optim.SGD, lr=1.0)
            schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
            loader = client.loader(DATA, 8, shard_size=8)
            for epoch in client.epochs(3, schedule):
                for x, y in loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
                    if epoch == 1:
                        arrived.set()
                        assert go.wait(20)
                schedule.step()

    def second(c: Cluster) -> tuple[list[int], float, int]:
        assert arrived.wait(20)
        with c.connect("worker-1") as client:
            model = nn.Linear(6, 2)
            optimizer = client.optimizer(model, torch.optim.SGD, lr=1.0)
            schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
            loader = client.loader(DATA, 8, shard_size=8)
            epochs, rate = [], 0.0
            for epoch in client.epochs(3, schedule):
                rate = rate or optimizer.param_groups[0]["lr"]
                go.set()
                epochs.append(epoch)
                for x, y in loader:
                    optimizer.zero_grad()
                    F.cross_entropy(model(x), y).backward()
                    optimizer.step()
                schedule.step()
            return epochs, rate, optimizer.group.clock

    with cluster(workers=1) as c:
        _, (epochs, rate, clock) = in_threads(
            [lambda: cast(Any, first(c)), lambda: cast(Any, second(c))]
        )
    assert (epochs, rate) == ([1, 2], 0.5)
    assert clock > 12  # it did not start from the first clock


def test_workers_must_register_the_same() -> None:
    def work(client: ps.Client) -> str:
        lr = 0.1 if client.rank == 0 else 0.2
        try:
            client.register("g", {"x": torch.zeros(2)}, torch.optim.SGD, lr=lr)
        except MismatchError as error:
            return str(error)
        return ""

    with cluster(workers=2) as c:
        said = "".join(c.workers(work))
    assert "lr of param group 0" in said


def test_a_missing_worker_is_named() -> None:
    with cluster(workers=2) as c, pytest.raises(WaitTimeoutError, match="1 of 2 workers"):
        c.connect(timeout=0.3)


def test_who_does_not_come_to_a_barrier_is_named() -> None:
    late = threading.Event()

    def come(c: Cluster) -> None:
        try:
            with c.connect("here", wait_timeout=0.5) as client:
                client.barrier("go")
        finally:
            late.set()

    def stay_away(c: Cluster) -> None:
        with c.connect("elsewhere"):
            assert late.wait(20)

    with cluster(workers=2) as c, pytest.raises(WaitTimeoutError, match="elsewhere"):
        in_threads([lambda: come(c), lambda: stay_away(c)])


def test_a_failure_in_a_with_block_is_reported_and_its_data_returns() -> None:
    with cluster() as c:

        def work(client: ps.Client) -> None:
            client.optimizer(network(), torch.optim.SGD, lr=0.1)
            for _ in client.loader(DATA, 8, shard_size=8):
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            c.workers(work)
        found = status(c)
    (data,) = found.datasets
    assert (data.leased, data.samples_done) == (0, 0)


def test_finish_ends_the_client() -> None:
    with cluster() as c:
        client = c.connect()
        client.finish()
        client.close()
        with pytest.raises(UsageError, match="has finished"):
            client.barrier("b")


def test_two_optimizers_two_groups_one_loader() -> None:
    def work(client: ps.Client) -> tuple[int, int]:
        a, b = nn.Linear(6, 2), nn.Linear(6, 2)
        first = client.optimizer(a, torch.optim.SGD, lr=0.1, group="a")
        second = client.optimizer(b, torch.optim.Adam, lr=0.1, group="b", consistency=ps.Stale(1))
        for x, y in client.loader(DATA, 8):
            for model, optimizer in ((a, first), (b, second)):
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
        return first.group.clock, second.group.clock

    with cluster(servers=2, workers=2) as c:
        assert c.workers(work) == [(6, 6), (6, 6)]
        (data,) = status(c).datasets
        assert (data.samples_done, data.unpushed) == (96, 0)


def test_shards_by_hand() -> None:
    def work(client: ps.Client) -> list[int]:
        group = client.register("sum", {"x": torch.zeros(())}, consistency=ps.Stale(2))
        seen: list[int] = []
        for _ in client.epochs(2):
            for shard in client.shards(20, shard_size=3, shuffle=True):
                group.pull()
                group.push({"x": torch.tensor(float(sum(shard.indices)))})
                seen += shard.indices
        client.barrier("done")
        assert float(group.pull()["x"]) == 2 * sum(range(20))
        return seen

    with cluster(workers=2) as c:
        found = c.workers(work)
    assert sorted(i for seen in found for i in seen) == sorted([*range(20), *range(20)])


def test_refusals_leave_no_group_behind() -> None:
    with cluster() as c, c.connect() as client:
        for model, cls in ((network(), torch.optim.LBFGS), (nn.Linear(1, 1), None)):
            with pytest.raises((UnsupportedError, AttributeError)):
                client.optimizer(model, cast(Any, cls))
        client.optimizer(network(), torch.optim.SGD, lr=0.1)
        with pytest.raises(UsageError, match="already"):
            client.optimizer(network(), torch.optim.SGD, lr=0.1)


def test_a_failed_job_is_an_error_everywhere() -> None:
    with cluster(workers=2) as c:
        ready = threading.Barrier(2)

        def fails() -> None:
            client = c.connect("worker-0")
            ready.wait(20)
            client.fail("Traceback: the disk is full", fatal=True)

        def waits() -> None:
            client = c.connect("worker-1")
            ready.wait(20)
            try:
                client.barrier("b")
            finally:
                client.close()

        with pytest.raises(JobFailedError, match="the disk is full"):
            in_threads([fails, waits])


def test_log_takes_tensors_that_need_gradients() -> None:
    with cluster() as c, c.connect() as client, warnings.catch_warnings():
        warnings.simplefilter("error")
        client.log(loss=torch.ones(1, requires_grad=True) * 2, rate=0.5)


def test_no_thread_of_grpc_outlives_a_client() -> None:
    """An interpreter that ends under one of them aborts."""

    def theirs() -> set[threading.Thread]:
        return {t for t in threading.enumerate() if t.daemon and t.name.endswith("(_run)")}

    with cluster(2) as c:
        before = theirs()
        client = c.connect()
        group = client.register("g", {"w": torch.zeros(100_000)}, consistency=ps.Async())
        for _ in range(5):
            group.push_async({"w": torch.ones(100_000)})
        assert theirs() - before, "gRPC names its threads otherwise now: see GrpcChannel.exchange"
        client.finish()
        assert not theirs() - before
