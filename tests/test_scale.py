"""Servers come and go while workers train: nothing is lost, nothing is counted twice."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import paramserver as ps
from paramserver.v1 import scheduler_pb2 as pb
from tests.cluster import Cluster, cluster
from tests.test_faults import until


def scale(c: Cluster, servers: int) -> pb.ScaleReply:
    """Asks for so many servers, starts those that are missing, and waits until all is done."""
    c.run(c.scheduler.Scale(pb.ScaleRequest(servers=servers)))
    live = sum(m.role == pb.ROLE_SERVER for m in c.scheduler._current().members)
    for _ in range(servers - live):
        c.run(c._start_server())
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


@contextmanager
def changing(c: Cluster, *steps: int) -> Iterator[Callable[[], bool]]:
    """Changes the number of servers, step by step, beside what is inside; whether it still does."""
    over = threading.Event()
    errors: list[BaseException] = []

    def change() -> None:
        try:
            for servers in steps:
                scale(c, servers)
        except BaseException as error:
            errors.append(error)
        finally:
            over.set()

    thread = threading.Thread(target=change)
    thread.start()
    yield lambda: not over.is_set()
    thread.join(60)
    if errors:
        raise errors[0]
    assert over.is_set()


@contextmanager
def working(c: Cluster, work: Callable[[ps.Client], Any]) -> Iterator[list[Any]]:
    """Workers beside what is inside; their results."""
    results: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.extend(c.workers(work))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    until(lambda: c.scheduler.state.members.state.value == "running")
    try:
        yield results
    finally:
        thread.join(90)
        if errors:
            raise errors[0]
    assert results


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


def train(client: ps.Client, steps: int, optimizer: Any, **options: Any) -> dict[str, Tensor]:
    model = Net()
    made = client.optimizer(model, optimizer, **options)
    for step in range(steps):
        generator = torch.Generator().manual_seed(1000 * client.rank + step)
        x = torch.randn(8, 40, generator=generator)
        made.zero_grad()
        (model(x) - x).square().mean().backward()
        made.step()
    client.barrier("end")
    return client.state_dict()


STEPS = 60


@pytest.mark.parametrize("overlap", [False, True])
def test_sync_training_is_the_same_to_the_bit(overlap: bool) -> None:
    options = {"lr": 0.01, "overlap": overlap}
    with cluster(2, 2) as c:
        wanted = c.workers(lambda w: train(w, STEPS, torch.optim.Adam, **options))[0]
    with cluster(1, 2) as c:
        work = partial(train, steps=STEPS, optimizer=torch.optim.Adam, **options)
        with working(c, work) as found, changing(c, 3, 2):
            pass
        assert len(held(c, "model")) == 2
        for got in found:
            assert all(torch.equal(got[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("consistency", [ps.Async(), ps.Stale(2), ps.Sync()], ids=str)
def test_every_push_is_added_once(consistency: Any) -> None:
    """An additive group is the ledger: its value is the number of pushes."""
    size = 200_000
    with cluster(2, 2) as c:
        pushed = [0, 0]

        def work(client: ps.Client) -> Tensor:
            group = client.register("g", {"w": torch.zeros(size)}, consistency=consistency)
            client.barrier("begin")
            while pushed[client.rank] < 40 or going():
                group.push_async({"w": torch.ones(size)})
                if pushed[client.rank] % 3 == 0:
                    group.pull()
                pushed[client.rank] += 1
                if isinstance(consistency, ps.Sync) and pushed[client.rank] >= 400:
                    break
            group.settle()
            client.barrier("end")
            return group.read()["w"]

        with working(c, work) as results, changing(c, 4, 1, 3) as going:
            pass
        total = float(sum(pushed))
        for value in results:
            assert torch.equal(value, torch.full((size,), total))
