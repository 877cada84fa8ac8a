"""Servers come and go while workers train: nothing is lost, nothing is counted twice."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import paramserver as ps
from paramserver.errors import ConfigurationError, ConnectionLostError, InvalidRequestError
from paramserver.ps import reshape
from paramserver.scheduler.reshaping import Reshaping
from paramserver.v1 import scheduler_pb2 as pb
from paramserver.v1 import server_pb2
from paramserver.worker.deferred import DeferredPush
from tests.cluster import Cluster, cluster, until


def scale(c: Cluster, servers: int) -> pb.ScaleReply:
    """Asks for so many servers, starts those that are missing, and waits until all is done."""
    c.run(c.scheduler.Scale(pb.ScaleRequest(servers=servers)))
    live = sum(m.role == pb.ROLE_SERVER for m in c.scheduler._current().members)
    for _ in range(servers - live):
        c.start_server()
    until(lambda: not asked(c).pending, 60)
    return asked(c)


def asked(c: Cluster) -> pb.ScaleReply:
    """How far it is."""
    reply: pb.ScaleReply = c.run(c.scheduler.Scale(pb.ScaleRequest()))
    return reply


def held(c: Cluster, group: str) -> dict[str, int]:
    """Slices of a group by server, as servers say."""
    found = {}
    for service in c.servers:
        state = service.held(group)
        if state is not None and state.slices:
            found[service.name] = len(state.slices)
    return found


def scaled_meanwhile(
    c: Cluster, work: Callable[[ps.Client, threading.Event], Any], *steps: int
) -> list[Any]:
    """Results of workers, beside whom the number of servers changes, step by step.

    Args:
        work: of one worker; the event is set once all is done, and before that it is not to end.
    """
    over = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        workers = pool.submit(c.workers, lambda client: work(client, over))
        try:
            state = c.scheduler.state
            until(lambda: workers.done() or state.members.state.value == "running")
            for servers in steps:
                scale(c, servers)
        finally:
            over.set()
            results = workers.result(90)  # an error of theirs is the cause of others
        return results


OVER = threading.Event()  # nothing changes
OVER.set()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(40, 300)
        self.b = nn.Linear(300, 40)
        generator = torch.Generator().manual_seed(1)  # of its own: workers are threads
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(0, 0.1, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(torch.relu(self.a(x)))
        return out


def train(
    client: ps.Client,
    over: threading.Event = OVER,
    *,
    steps: int,
    optimizer: Any,
    **options: Any,
) -> dict[str, Tensor]:
    model = Net()
    made = client.optimizer(model, optimizer, **options)
    for step in range(steps):
        generator = torch.Generator().manual_seed(1000 * client.rank + step)
        x = torch.randn(8, 40, generator=generator)
        made.zero_grad()
        (model(x) - x).square().mean().backward()
        made.step()
        over.wait(0.02)  # so that there are steps left for all that changes
    assert over.wait(60)
    client.barrier("end")
    return client.state_dict()


STEPS = 60


@pytest.mark.parametrize("overlap", [False, True])
def test_sync_training_is_the_same_to_the_bit(overlap: bool) -> None:
    work = partial(train, steps=STEPS, optimizer=torch.optim.Adam, lr=0.01, overlap=overlap)
    with cluster(2, 2) as c:
        wanted = c.workers(work)[0]
    with cluster(1, 2) as c:
        found = scaled_meanwhile(c, work, 3, 2)
        until(lambda: len(held(c, "model")) == 2)
        for got in found:
            assert all(torch.equal(got[name], wanted[name]) for name in wanted)


def test_a_commit_behind_a_refusal_for_a_move_is_not_sent() -> None:
    """The server has forgotten the deferred push by then: all of it goes where its slices went."""
    size = 1_000_000
    with cluster(1, 1) as c, c.connect() as client:
        group = client.register("g", {"w": torch.zeros(size)})
        push = DeferredPush(group)
        scale(c, 2)
        with group.moves.lock:  # nothing is sent again before the commit
            push.send("w", torch.ones(size))
            until(lambda: all(request.over for _, _, request in push._requests))
            push._send_commit(server_pb2.Commit(weight=1))
        found = {"w": torch.zeros(size)}
        push.commit(found)
        assert torch.equal(found["w"], torch.ones(size))


@pytest.mark.parametrize("consistency", [ps.Async(), ps.Stale(2), ps.Sync()], ids=str)
def test_every_push_is_added_once(consistency: Any) -> None:
    """An additive group is the ledger: its value is the number of pushes."""
    size = 200_000
    with cluster(2, 2) as c:
        pushed = [0, 0]

        def work(client: ps.Client, over: threading.Event) -> Tensor:
            group = client.register("g", {"w": torch.zeros(size)}, consistency=consistency)
            client.barrier("begin")
            while pushed[client.rank] < 40 or not over.is_set():
                group.push_async({"w": torch.ones(size)})
                if pushed[client.rank] % 3 == 0:
                    group.pull()
                pushed[client.rank] += 1
                if isinstance(consistency, ps.Sync) and pushed[client.rank] >= 400:
                    break
            group.settle()
            assert over.wait(60)
            client.barrier("end")
            return group.read()["w"]

        results = scaled_meanwhile(c, work, 4, 1, 3)
        total = float(sum(pushed))
        for value in results:
            assert torch.equal(value, torch.full((size,), total))


def rows(
    client: ps.Client,
    over: threading.Event = OVER,
    *,
    steps: int,
    consistency: Any,
    optimizer: Any,
) -> Tensor:
    options: dict[str, Any] = {} if optimizer is None else {"lr": 0.1}
    table = client.table(
        "t", 4, init=ps.Zeros(), optimizer=optimizer, consistency=consistency, **options
    )
    every = torch.arange(500)
    for step in range(steps):
        generator = torch.Generator().manual_seed(1000 * client.rank + step)
        ids = torch.randint(0, 500, (64,), generator=generator)
        table.push(ids, torch.ones(64, 4))
        if step % 4 == 0:
            table.pull(ids)
        over.wait(0.02)
    assert over.wait(60)
    client.barrier("end")
    return table.pull(every)


@pytest.mark.parametrize(
    ("consistency", "optimizer"),
    [(ps.Sync(), torch.optim.Adagrad), (ps.Sync(), None), (ps.Async(), None)],
    ids=["Sync-Adagrad", "Sync-add", "Async-add"],
)
def test_tables_move_too(consistency: Any, optimizer: Any) -> None:
    work = partial(rows, steps=60, consistency=consistency, optimizer=optimizer)
    with cluster(1, 2) as c:
        wanted = c.workers(work)[0]
    with cluster(1, 2) as c:
        found = scaled_meanwhile(c, work, 3, 2)
        until(lambda: held(c, "t") == {"ps-0": 32, "ps-1": 32})
    assert torch.equal(found[0], wanted)
    assert torch.equal(found[1], wanted)


def test_a_server_that_has_nothing_any_more_leaves_and_the_job_goes_on() -> None:
    def work(client: ps.Client) -> float:
        group = client.register("g", {"w": torch.zeros(50_000)}, torch.optim.SGD, lr=1.0)
        group.push({"w": torch.ones(50_000)})
        scale(c, 1)
        until(lambda: len(client._session.view().members) == 2)
        group.push({"w": torch.ones(50_000)})
        scale(c, 2)
        other = client.register("h", {"w": torch.zeros(50_000)})
        other.push({"w": torch.ones(50_000)})
        return float(group.push_pull({"w": torch.ones(50_000)})["w"].sum())

    with cluster(2, 1) as c:
        assert c.workers(work) == [-150_000.0]
        until(lambda: set(held(c, "g")) == {"ps-0", "ps-1"})
        until(lambda: set(held(c, "h")) == {"ps-0", "ps-1"})


def test_a_reader_follows() -> None:
    def work(client: ps.Client) -> None:
        group = client.register("g", {"w": torch.zeros(600_000)})
        with c.connect(reader=True) as reader:
            assert not reader.state_dict("g")["w"].any()
            scale(c, 3)
            until(lambda: len(held(c, "g")) == 3)
            group.push({"w": torch.ones(600_000)})
            assert reader.state_dict("g")["w"].all()

    with cluster(1, 1) as c:
        c.workers(work)


def test_what_cannot_be_is_refused() -> None:
    with cluster(1, 1) as c:
        with pytest.raises(ConfigurationError, match="no job is running"):
            c.run(c.scheduler.Scale(pb.ScaleRequest(servers=2)))
        with c.connect():
            with pytest.raises(InvalidRequestError, match="servers=5000: must be 1 to 1024"):
                c.run(c.scheduler.Scale(pb.ScaleRequest(servers=5000)))
            reply = c.run(c.scheduler.Scale(pb.ScaleRequest(servers=2)))
            assert reply.pending == "waiting for 1 of 2 servers to register"


# Moves that go wrong


class Flaky:
    """A channel to a server on which requests and replies get lost."""

    def __init__(self, channel: Any, chance: random.Random, lost: float) -> None:
        self._channel, self._chance, self._lost = channel, chance, lost

    async def call(self, method: str, request: Any, *, timeout: float = 30.0) -> Any:
        if self._chance.random() < self._lost:
            raise ConnectionLostError("request lost")
        reply = await self._channel.call(method, request, timeout=timeout)
        if self._chance.random() < self._lost:
            raise ConnectionLostError("reply lost")
        return reply


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("consistency", [ps.Async(), ps.Sync()], ids=str)
def test_steps_of_moves_that_get_lost(consistency: Any, seed: int) -> None:
    size = 100_000
    with cluster(2, 2) as c:
        chance = random.Random(seed)
        connect = c.scheduler.reshaping._connect
        c.scheduler.reshaping._connect = lambda a: Flaky(connect(a), chance, 0.06)
        pushed = [0, 0]

        def work(client: ps.Client, over: threading.Event) -> Tensor:
            group = client.register("g", {"w": torch.zeros(size)}, consistency=consistency)
            client.barrier("begin")
            while pushed[client.rank] < 10 or (not over.is_set() and pushed[client.rank] < 1000):
                group.push_pull({"w": torch.ones(size)})
                pushed[client.rank] += 1
            assert over.wait(60)
            client.barrier("end")
            return group.read()["w"]

        results = scaled_meanwhile(c, work, 3, 1, 2)
        for value in results:
            assert torch.equal(value, torch.full((size,), float(sum(pushed))))
        assert not c.run(c.scheduler.GetGroup(pb.GetGroupRequest(group="g"))).moving


@pytest.mark.parametrize("commits", [False, True])
def test_servers_find_out_how_a_move_ended(commits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheduler falls silent in the middle of a move: they ask it, and go on."""
    monkeypatch.setattr(reshape, "LIMIT_S", 0.3)
    monkeypatch.setattr(reshape, "ASK_EVERY_S", 0.1)
    silent = threading.Event()

    async def say_nothing(*_: Any) -> None:
        silent.set()
        await asyncio.sleep(3600)

    def work(client: ps.Client) -> float:
        group = client.register("g", {"w": torch.zeros(600_000)})
        group.push({"w": torch.ones(600_000)})
        reshaping = c.scheduler.reshaping
        if commits:  # only the lead is told
            told: list[str] = []
            insist = reshaping._insist

            async def once(moving: Any, name: str) -> None:
                told.append(name)
                await (say_nothing() if len(told) > 1 else insist(moving, name))

            monkeypatch.setattr(reshaping, "_insist", once)
        else:
            monkeypatch.setattr(reshaping, "_insist", say_nothing)
        c.run(c.scheduler.Scale(pb.ScaleRequest(servers=2)))
        c.start_server()
        assert silent.wait(20)
        if not commits:
            c.run(forget(c))
        for _ in range(3):
            values = group.push_pull({"w": torch.ones(600_000)})
        assert len(held(c, "g")) == (2 if commits else 1)
        return float(values["w"].mean())

    async def forget(c: Cluster) -> None:
        """As a scheduler that was started again: it knows of no move."""
        c.scheduler.state.groups.get("g").moving = 0

    with cluster(1, 1) as c:
        assert c.workers(work) == [4.0]
        c.run(stop(c))


@pytest.mark.parametrize("followed", [False, True])
def test_the_next_scheduler_ends_a_move(followed: bool) -> None:
    """One is killed before, or after the lead has followed: the next finds out, and goes on."""
    silent = threading.Event()

    def work(client: ps.Client) -> float:
        group = client.register("g", {"w": torch.zeros(600_000)})
        group.push({"w": torch.ones(600_000)})
        dead = c.scheduler.reshaping
        insist = dead._insist

        async def die(moving: Any, name: str) -> None:
            if followed:
                await insist(moving, name)
            silent.set()
            await asyncio.sleep(3600)

        dead._insist = die  # type: ignore[method-assign, assignment]
        c.run(c.scheduler.Scale(pb.ScaleRequest(servers=2)))
        c.start_server()
        assert silent.wait(20)
        c.run(replace(c))
        for _ in range(3):
            values = group.push_pull({"w": torch.ones(600_000)})
        until(lambda: not asked(c).pending, 30)
        values = group.push_pull({"w": torch.ones(600_000)})
        assert len(held(c, "g")) == 2
        c.run(stop_all(dead))
        return float(values["w"].mean())

    async def replace(c: Cluster) -> None:
        scheduler = c.scheduler
        connect = scheduler.reshaping._connect
        scheduler.reshaping = Reshaping(scheduler.state, scheduler._now, connect, scheduler._after)
        scheduler.reshaping.look()

    async def stop_all(dead: Reshaping) -> None:
        dead.stop()

    with cluster(1, 1) as c:
        assert c.workers(work) == [5.0]


async def stop(c: Cluster) -> None:
    c.scheduler.reshaping.stop()


def test_tensors_are_reduced_through_the_servers_of_the_beginning() -> None:
    def work(client: ps.Client) -> float:
        group = client.register("g", {"w": torch.zeros(600_000)})
        total = client.all_reduce(torch.ones(600_000), "before", "sum")
        if client.is_chief:
            scale(c, 4)
        total += client.all_reduce(torch.ones(600_000), "more", "sum")
        if client.is_chief:
            c.run(c.scheduler.Scale(pb.ScaleRequest(servers=1)))
            until(lambda: len(held(c, "g")) == 1)
        total += client.all_reduce(torch.ones(600_000), "fewer", "sum")
        group.push({"w": torch.ones(600_000)})
        client.barrier("end")
        return float(total.mean() + group.read()["w"].mean())

    with cluster(2, 2) as c:
        assert c.workers(work) == [8.0, 8.0]
        assert list(c.scheduler._current().reducers) == ["ps-0", "ps-1"]
