"""Corners in which values, samples or whole jobs were once lost; each is a way back in."""

from __future__ import annotations

import asyncio
import random
import threading
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

import paramserver as ps
from paramserver.scheduler.service import SchedulerService
from paramserver.v1 import server_pb2 as pb
from paramserver.wire.client import AsyncGrpcChannel
from paramserver.wire.methods import SCHEDULER, SCHEDULER_METHODS
from paramserver.wire.serve import RoleServer
from tests.cluster import Cluster, cluster, in_threads
from tests.stock import StockWorker, Stream

LARGE = 600_000  # several buckets, on every server


def ones(size: int = 3) -> dict[str, Tensor]:
    return {"w": torch.ones(size)}


def zeros(size: int = 3) -> dict[str, Tensor]:
    return {"w": torch.zeros(size)}


def test_a_push_is_reported_dropped_exactly_when_it_was() -> None:
    """The values of a clock may be read before its pushes have their final receipts."""

    def work(client: ps.Client) -> tuple[int, float]:
        group = client.register("g", zeros(LARGE), consistency=ps.Sync(backup=1))
        rng = random.Random(client.rank)
        client.barrier("start")
        applied = 0
        for _ in range(15):
            threading.Event().wait(rng.random() / 100)
            group.push_pull(ones(LARGE))
            assert group.last is not None
            applied += not group.last.dropped
        client.barrier("end")
        return applied, float(group.read()["w"].min())

    with cluster(2, 3) as c:
        results = c.workers(work)
    assert {value for _, value in results} == {float(sum(applied for applied, _ in results))}


def test_pushes_in_flight_that_come_late_are_dropped_and_the_worker_goes_on() -> None:
    behind = threading.Event()

    def work(client: ps.Client) -> None:
        group = client.register("g", zeros(), consistency=ps.Sync(backup=1))
        client.barrier("start")
        if client.rank == 0:
            for _ in range(20):
                group.push_pull(ones())
            behind.set()
        else:
            assert behind.wait(20)
            late = [group.push_async(ones()).result(20) for _ in range(4)]
            assert late[0].dropped
            assert group.push(ones()).clock >= 20
        client.barrier("end")

    with cluster(2, 2) as c:
        c.workers(work)


def test_a_joiner_of_two_groups_falls_in_step() -> None:
    """The first worker is between the groups of a step when the second one comes."""
    between, joined = threading.Event(), threading.Event()

    def groups(client: ps.Client) -> list[ps.Group]:
        return [client.register(name, zeros()) for name in ("first", "second")]

    def one(c: Cluster) -> None:
        with c.connect("worker-0") as client:
            first, second = groups(client)
            first.push_pull(ones())
            second.push_pull(ones())
            first.push_pull(ones())
            between.set()
            assert joined.wait(20)
            second.push_pull(ones())
            for _ in range(3):
                first.push_pull(ones())
                second.push_pull(ones())

    def two(c: Cluster) -> None:
        assert between.wait(20)
        with c.connect("worker-1") as client:
            both = groups(client)
            assert [g.clock for g in both] == [2, 2]
            joined.set()
            for _ in range(3):
                for group in both:
                    group.push_pull(ones())

    with cluster(1, 1) as c:
        in_threads([lambda: one(c), lambda: two(c)])


def job(c: Cluster, name: str) -> float:
    with c.connect("worker-0") as client:
        group = client.register(name, zeros(LARGE))
        for _ in range(3):
            group.push_pull(ones(LARGE))
        return float(group.read()["w"].sum())


def test_servers_outlive_their_scheduler_between_jobs() -> None:
    with cluster(2, 1) as c:
        for name in ("a", "b", "c"):
            assert job(c, name) == 3.0 * LARGE

        async def replace() -> None:
            cancel, stop = c._stops[0], c._stops[1]
            cancel()
            await stop()
            c.scheduler = SchedulerService(c.config, connect=AsyncGrpcChannel)
            shell = RoleServer(SCHEDULER.full_name, SCHEDULER_METHODS, c.scheduler)
            await shell.start(c.address)
            c._stops[0] = asyncio.create_task(c.scheduler.run()).cancel
            c._stops[1] = lambda: shell.stop(0)

        c.run(replace())
        assert job(c, "d") == 3.0 * LARGE


def test_a_lead_that_hears_late_of_a_job_still_leads_it() -> None:
    with cluster(2, 1) as c:
        assert job(c, "a") == 3.0 * LARGE
        for server in c.servers:  # whichever leads
            hear = server.on_view
            server.on_view = lambda view, hear=hear: c.loop.call_later(0.3, hear, view)
        assert job(c, "b") == 3.0 * LARGE


def test_an_epoch_may_end_before_a_worker_got_a_batch() -> None:
    def work(client: ps.Client) -> int:
        group = client.register("g", zeros())
        loader = client.loader(TensorDataset(torch.arange(7)), batch_size=64)
        count = 0
        for _ in client.epochs(3):
            for _ in loader:
                group.push(ones())
                count += 1
        return count

    with cluster(1, 4, assign="dynamic") as c:
        assert sum(c.workers(work)) == 3


@pytest.mark.parametrize("kind", ["async", "sync"])
def test_bytes_beyond_the_records_change_nothing(kind: str) -> None:
    with cluster() as c:
        worker = StockWorker(c.address, 100, kind)
        values = torch.ones(100).numpy()
        stream = Stream(worker.server)
        push = pb.Record(request=7, push=worker.push(0))
        stream.send([push, *worker.data(7, values)], values.tobytes() + b"more")
        with pytest.raises(Exception, match="claim 400 bytes of payload, it has 404"):
            list(stream.answers)
        assert not worker.pull().any()
        worker.close()


def test_staleness_is_told_for_models_of_many_buckets() -> None:
    def work(client: ps.Client) -> float:
        group = client.register("g", zeros(LARGE), consistency=ps.Async())
        client.barrier("start")
        total = 0.0
        for _ in range(10):
            group.push_pull(ones(LARGE))
            assert group.last is not None
            total += group.last.staleness
        return total

    with cluster(1, 2) as c:
        results: list[Any] = c.workers(work)
    assert sum(results) > 0


def test_a_server_is_heard_on_its_newest_stream_only() -> None:
    """On an older one a process may speak that stood still, whose server has begun again."""

    async def play(servers: list[Any]) -> None:
        [lead] = [lead for s in servers if (lead := s.leads.of("g")) is not None]
        [other] = lead.clock.servers - {s.name for s in servers if s.leads.of("g") is lead}
        late: asyncio.Queue[pb.Notice | None] = asyncio.Queue()
        lead.hear(pb.Report(server=other, group="g", hello=True), (), late)
        while await asyncio.wait_for(late.get(), 20) is not None:
            pass  # the one it took the place of has said hello again
        staged = [pb.Staged(rank=1, incarnation=99, clock=0, weight=1.0)]
        lead.hear(pb.Report(server=other, group="g", staged=staged), (), late)
        assert all(worker.incarnation != 99 for worker in lead.clock.workers)

    def work(client: ps.Client) -> Tensor:
        group = client.register("g", zeros(LARGE), consistency=ps.Sync())
        if client.rank == 0:
            c.run(play(c.servers))
        return group.push_pull(ones(LARGE))["w"]

    with cluster(2, 2) as c:
        for found in c.workers(work):
            assert torch.equal(found, torch.full((LARGE,), 2.0))
