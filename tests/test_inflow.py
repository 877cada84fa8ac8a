"""What a server holds for clients is bounded, and one that does not read is let go."""

from __future__ import annotations

import threading
from collections.abc import Coroutine
from typing import Any

import grpc
import numpy as np
import pytest
import torch

import paramserver as ps
from paramserver.config import Limits
from paramserver.errors import ResourceError
from paramserver.v1 import server_pb2 as pb
from tests.cluster import Cluster, cluster, until
from tests.stock import StockWorker, Stream

SIZE = 1000
BYTES = SIZE * 4


def values(amount: float = 1.0) -> dict[str, torch.Tensor]:
    return {"w": torch.full((SIZE,), amount)}


def test_a_worker_that_runs_ahead_is_refused_before_it_fills_the_server() -> None:
    """Its pushes wait for the other worker's; the one too many changes nothing."""
    full = threading.Event()

    def ahead(client: ps.Client) -> torch.Tensor:
        group = client.register("w", values(0.0))
        for _ in range(2):
            group.push(values())
        with pytest.raises(ResourceError, match=r"rank 0 has 12000 bytes .* at most 10000"):
            group.push(values())
        assert group.clock == 2, "a refused push does not tick"
        full.set()
        group.pull()  # the values of clock 2: the first two have closed
        group.push_pull(values())
        return group.read()["w"]

    def behind(client: ps.Client) -> torch.Tensor:
        group = client.register("w", values(0.0))
        assert full.wait(30)
        for _ in range(3):
            group.push_pull(values())
        return group.read()["w"]

    with cluster(1, 2, limits=Limits(peer_bytes=10_000)) as c:
        for found in c.workers(lambda client: (behind if client.rank else ahead)(client)):
            assert torch.equal(found, torch.full((SIZE,), 6.0))


def test_all_workers_together_have_a_bound_too() -> None:
    with cluster(1, 2, limits=Limits(staged_bytes=BYTES - 1)) as c:
        client = threading.Barrier(2)

        def work(worker: ps.Client) -> None:
            group = worker.register("w", values(0.0))
            client.wait(30)
            with pytest.raises(ResourceError, match=r"all workers have 4000 bytes .* 3999"):
                group.push(values())

        c.workers(work)
        until(lambda: not c.servers[0].sessions)


def test_rows_count_as_they_come() -> None:
    def work(client: ps.Client) -> None:
        table = client.table("rows", 8, optimizer=torch.optim.SGD, lr=1.0)
        keys = torch.arange(1000)
        with pytest.raises(ResourceError, match="rank 0 has"):
            table.push(keys, torch.ones(1000, 8))

    with cluster(1, 1, limits=Limits(peer_bytes=1000)) as c:
        c.workers(work)


def test_frames_wait_their_turn() -> None:
    """With room for one frame at a time all streams come through, one after the other."""

    def work(client: ps.Client) -> torch.Tensor:
        group = client.register("w", {"w": torch.zeros(2_000_000)}, consistency=ps.Async("none"))
        for _ in range(3):
            group.push_pull({"w": torch.ones(2_000_000)})
        client.barrier("end")
        return group.read()["w"]

    with cluster(1, 3, limits=Limits(work_bytes=1)) as c:
        inflow, at_work = c.servers[0].inflow, []
        start = inflow.start

        async def watched(size: int, work: Coroutine[Any, Any, None]) -> Any:
            task = await start(size, work)
            at_work.append(inflow._at_work - size)
            return task

        inflow.start = watched
        for found in c.workers(work):
            assert torch.equal(found, torch.full((2_000_000,), 9.0))
        assert len(at_work) > 9
        assert set(at_work) == {0}


@pytest.fixture
def impatient() -> Limits:
    return Limits(stall_s=0.5, outbox_bytes=1 << 20)


def test_a_reader_that_never_reads_is_dropped(impatient: Limits) -> None:
    """Row 60: its answers take bounded memory, and then its stream ends with the reason."""
    size = 4_000_000
    with cluster(limits=impatient) as c:
        worker = StockWorker(c.address, size)
        stream = Stream(worker.server)
        pull = pb.Pull(worker=worker.identity, group="g", map_version=worker.map.version)
        pull.latest = True
        stream.send([pb.Record(request=n, pull=pull) for n in range(1, 5)])
        wait_until_dropped(c)
        with pytest.raises(grpc.RpcError) as error:
            for _ in stream.answers:
                pass
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "the reader took nothing for 0.5 s" in error.value.details()
        stream.close()
        assert np.array_equal(worker.pull(), np.zeros(size, np.float32)), "others are served"
        worker.close()


def wait_until_dropped(c: Cluster) -> None:
    """Returns when the server has had a stream, and has none any more."""
    until(lambda: bool(c.servers[0].sessions))
    until(lambda: not c.servers[0].sessions)


def test_a_slow_reader_is_not(impatient: Limits) -> None:
    size = 4_000_000
    with cluster(limits=impatient) as c:
        worker = StockWorker(c.address, size)
        stream = Stream(worker.server)
        pull = pb.Pull(worker=worker.identity, group="g", map_version=worker.map.version)
        pull.latest = True
        stream.send([pb.Record(request=1, pull=pull)])
        frames = 0
        for _ in stream.until_done():
            frames += 1
            threading.Event().wait(0.05)
        assert frames > 15, "longer in all than it may stand still"
        stream.close()
        worker.close()
