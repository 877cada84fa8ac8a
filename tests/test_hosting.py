"""Durability "replica": a server that is lost goes on elsewhere, with all that was acknowledged."""

from __future__ import annotations

import queue
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

import grpc
import numpy as np
import pytest
import torch
from torch import Tensor

import paramserver as ps
from paramserver.config import SchedulerConfig
from paramserver.core.replication import Place
from paramserver.errors import ConfigurationError, FencedError, MovedError
from paramserver.scheduler.report import status
from paramserver.types import Consistency
from paramserver.v1 import server_pb2
from paramserver.wire.client import GrpcChannel
from tests.cluster import Cluster, cluster, until
from tests.stock import StockWorker

STEPS = 12
LEASE_S = 1.5


class Plan:
    """Things that happen once each, when the first worker has come to a step."""

    def __init__(self, *events: tuple[int, Callable[[], None]]) -> None:
        self._events = list(events)
        self._lock = threading.Lock()

    def at(self, step: int) -> None:
        """A worker has come to this step; it waits for what happens here."""
        with self._lock:
            while self._events and step >= self._events[0][0]:
                self._events.pop(0)[1]()


def first() -> dict[str, Tensor]:
    return {"a": torch.ones(300, 7), "b": torch.zeros(64)}


def gradient(rank: int, step: int) -> dict[str, Tensor]:
    made = torch.Generator().manual_seed(1000 * rank + step)
    return {name: torch.randn(t.shape, generator=made) for name, t in first().items()}


def train(made: Cluster, plan: Plan) -> list[dict[str, Tensor]]:
    """Sync with Adam: what every worker has at the end."""

    def work(client: ps.Client) -> dict[str, Tensor]:
        group = client.register("m", first(), torch.optim.Adam, lr=0.1)
        for step in range(STEPS):
            plan.at(step)
            group.push_pull(gradient(client.rank, step), weight=1 + client.rank)
        client.barrier("end")
        return group.read()

    return made.workers(work)


def same(left: Sequence[Mapping[str, Tensor]], right: Sequence[Mapping[str, Tensor]]) -> None:
    for one, other in zip(left, right, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def places(made: Cluster) -> dict[str, Place]:
    return {p.server: p for p in made.scheduler.state.places.all}


def complete(made: Cluster) -> bool:
    return all(p.ready for p in places(made).values())


@pytest.fixture(scope="module")
def plain() -> list[dict[str, Tensor]]:
    """What a run without faults comes to, on any number of servers."""
    with cluster(2, 2) as made:
        return train(made, Plan())


@pytest.mark.parametrize("victim", ["ps-0", "ps-1"])
def test_a_lost_server_costs_nothing_under_sync(
    victim: str, plain: list[dict[str, Tensor]]
) -> None:
    with cluster(2, 2, durability="replica", lease_s=LEASE_S) as made:
        same(train(made, Plan((5, lambda: made.kill(int(victim[3:]))))), plain)
        other = {"ps-0": "ps-1", "ps-1": "ps-0"}[victim]
        assert [p.primary.name for p in places(made).values()] == [other, other]


@pytest.mark.parametrize("victim", ["ps-0", "ps-1", "ps-2"])
def test_one_of_three_may_be_lost_and_then_another(
    victim: str, plain: list[dict[str, Tensor]]
) -> None:
    second = {"ps-0": "ps-1", "ps-1": "ps-2", "ps-2": "ps-0"}[victim]  # it has two by then

    def lose_second() -> None:
        until(lambda: len({p.primary.name for p in places(made).values()}) == 2)
        until(lambda: complete(made))
        made.kill(int(second[3:]))

    with cluster(3, 2, durability="replica", lease_s=LEASE_S) as made:
        plan = Plan((4, lambda: made.kill(int(victim[3:]))), (8, lose_second))
        same(train(made, plan), plain)
        assert len({p.primary.name for p in places(made).values()}) == 1


def test_a_server_that_returns_keeps_the_backups_again(plain: list[dict[str, Tensor]]) -> None:
    def return_and_lose_other() -> None:
        made.restart(0)
        until(lambda: complete(made))
        made.kill(1)

    with cluster(2, 2, durability="replica", lease_s=LEASE_S) as made:
        plan = Plan((3, lambda: made.kill(0)), (7, return_and_lose_other))
        same(train(made, plan), plain)
        told = status(made.scheduler.state, 0.0).view.places  # what `paramserver status` asks
        assert [p.address.partition("/")[2] for p in told] == ["", "ps-1"]
        assert [p.primary.name for p in places(made).values()] == ["ps-0", "ps-0"]


@pytest.mark.parametrize("consistency", [ps.Stale(2), ps.Async()], ids=["stale", "async"])
def test_every_push_is_added_once_on_arrival(consistency: Consistency) -> None:
    def return_and_lose_other() -> None:
        made.restart(0)
        until(lambda: complete(made))
        made.kill(1)

    plan = Plan((5, lambda: made.kill(0)), (15, return_and_lose_other))

    def work(client: ps.Client) -> dict[str, Tensor]:
        zeros = {name: torch.zeros_like(t) for name, t in first().items()}
        group = client.register("m", zeros, consistency=consistency)
        for step in range(30):
            plan.at(step)
            group.push({name: torch.full_like(t, 1 + client.rank) for name, t in zeros.items()})
        client.barrier("end")
        return group.read()

    with cluster(2, 2, durability="replica", lease_s=LEASE_S) as made:
        for found in made.workers(work):
            for value in found.values():
                assert torch.equal(value, torch.full_like(value, 30.0 * 3))


@pytest.mark.parametrize(
    ("consistency", "value"),
    [(ps.Sync(), -7.0), (ps.Async(scale_lr="none"), -14.0)],
    ids=["sync", "async"],
)
def test_rows_of_a_table_survive(consistency: Consistency, value: float) -> None:
    def return_and_lose_other() -> None:
        made.restart(0)
        until(lambda: complete(made))
        made.kill(1)

    plan = Plan((4, lambda: made.kill(0)), (9, return_and_lose_other))

    def work(client: ps.Client) -> Tensor:
        table = client.table(
            "t",
            dim=4,
            init=ps.Zeros(),
            optimizer=torch.optim.SGD,
            lr=1.0,
            consistency=consistency,
        )
        ids = torch.arange(0, 200, 2) + client.rank
        for step in range(14):
            plan.at(step)
            table.push(ids, torch.ones(100, 4))
        client.barrier("end")
        return table.pull(torch.arange(200))

    with cluster(2, 2, durability="replica", lease_s=LEASE_S) as made:
        for found in made.workers(work):
            assert torch.equal(found, torch.full((200, 4), value))


@pytest.mark.parametrize("consistency", [ps.Sync(), ps.Async()], ids=["sync", "async"])
def test_a_backup_is_filled_while_pushes_go_on(consistency: Consistency) -> None:
    at, end = [0, 0], [1 << 30]

    def steps(count: int) -> None:
        wanted = min(at) + count
        until(lambda: min(at) >= wanted)

    def faults() -> None:
        steps(3)
        made.kill(0)
        steps(3)
        made.restart(0)
        until(lambda: complete(made))
        steps(3)
        made.kill(1)
        steps(3)
        end[0] = max(at) + 5

    def work(client: ps.Client) -> dict[str, Tensor]:
        zeros = {"large": torch.zeros(30_000, 3), "small": torch.zeros(7)}
        group = client.register("m", zeros, consistency=consistency)
        table = client.table("t", 4, optimizer=None, init=ps.Zeros(), consistency=consistency)
        client.barrier("start")
        ids, step = torch.arange(100), 0
        while step < end[0]:
            table.push(ids, torch.ones(100, 4))
            group.push_pull({name: torch.ones_like(t) for name, t in zeros.items()})
            step += 1
            at[client.rank] = step
        client.barrier("end")
        return {**group.read(), "rows": table.pull(ids), "steps": torch.tensor(float(step))}

    with cluster(2, 2, durability="replica", lease_s=LEASE_S) as made:
        thread = threading.Thread(target=faults)
        thread.start()
        found = made.workers(work)
        thread.join()
    wanted = found[0].pop("steps") + found[1].pop("steps")
    for values in found:
        for value in values.values():
            assert torch.equal(value, torch.full_like(value, float(wanted)))


def test_a_tensor_is_reduced_over_a_server_that_is_lost_meanwhile() -> None:
    plan = Plan((3, lambda: made.kill(1)))

    def work(client: ps.Client) -> list[float]:
        found = []
        for step in range(6):
            plan.at(step)
            found.append(float(client.all_reduce(torch.full((3,), 1.0 + client.rank), "mean")[0]))
        return found

    with cluster(2, 2, durability="replica", lease_s=LEASE_S) as made:
        assert made.workers(work) == [[1.5] * 6] * 2


def test_a_server_is_called_by_its_name_at_an_address_that_others_share() -> None:
    with cluster(2, 1, durability="replica", lease_s=LEASE_S) as made, made.connect() as client:
        client.register("m", {"w": torch.zeros(300_000)})
        until(lambda: complete(made))
        made.kill(0)
        until(lambda: places(made)["ps-0"].primary.name == "ps-1")
        shared = places(made)["ps-0"].address
        assert shared == places(made)["ps-1"].address + "/ps-0"
        for address in (shared, shared.partition("/")[0]):
            channel = GrpcChannel(address)
            until(lambda c=channel: answers(c))  # type: ignore[misc]
            described = channel.call("Describe", server_pb2.DescribeRequest())
            assert [g.lead for g in described.groups] == [address == shared]
            channel.close()
        stranger = GrpcChannel(f"{shared.partition('/')[0]}/ps-7")
        with pytest.raises(MovedError, match="ps-7 is not served here"):
            stranger.call("Describe", server_pb2.DescribeRequest())
        stranger.close()


def answers(channel: GrpcChannel) -> bool:
    """Whether the server behind a channel is served by now."""
    try:
        return bool(channel.call("Describe", server_pb2.DescribeRequest()).groups)
    except MovedError:
        return False


def test_a_primary_that_was_given_up_acknowledges_nothing() -> None:
    """It hears nothing of that: cut off from the scheduler, but not from its backup."""
    with cluster(2, 1, durability="replica", lease_s=600, chaos="rate=0") as made:
        worker = StockWorker(made.address, 8)
        until(lambda: complete(made))
        ones = np.ones(8, np.float32)
        assert worker.add(worker.clock, ones)[0].accepted.durability == "replica"

        async def give_up() -> None:
            made._roles[0].beats.cancel()
            scheduler = made.scheduler
            scheduler.state.lapse({"ps-0": "cut off"}, False, {}, scheduler._now())
            scheduler.tick()

        made.run(give_up())
        host = made._roles[1].role.host
        until(lambda: {"ps-0", "ps-1"} == {service.name for service in host.services})
        push = server_pb2.Record(request=7, push=worker.push(worker.clock + 1))
        header = server_pb2.Header(records=[push, *worker.data(7, ones)])
        frames: queue.SimpleQueue[server_pb2.Frame] = queue.SimpleQueue()  # stays open
        frames.put(server_pb2.Frame(header=header, payload=ones.tobytes()))
        with pytest.raises(grpc.RpcError) as error:
            next(worker.server.Exchange(iter(frames.get, None), timeout=2))
        assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        worker.close()


@pytest.mark.parametrize(("job", "epoch"), [(0, -1), (-1, 0)])
def test_what_speaks_of_an_older_epoch_or_job_is_refused(job: int, epoch: int) -> None:
    with cluster(2, 1, durability="replica", lease_s=600) as made:
        made.workers(lambda client: client.register("m", first()).read())
        until(lambda: complete(made))
        now, host = places(made)["ps-0"], made._roles[1].role.host
        hello = server_pb2.ReplicateRequest(server="ps-0", epoch=now.epoch + epoch)
        hello.job = host._view.job + job

        async def requests() -> AsyncIterator[server_pb2.ReplicateRequest]:
            yield hello

        async def call() -> None:
            async for _ in host.Replicate(requests()):
                pass

        with pytest.raises(FencedError, match="stop serving it"):
            made.run(call())


def test_a_backup_needs_another_server() -> None:
    with pytest.raises(ConfigurationError, match="at least 2 servers"):
        SchedulerConfig(durability="replica", servers=1)
