"""Tables over broken connections, and with workers that vanish: every push counts once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from typing import Any

import pytest
import torch
from torch import Tensor

import paramserver as ps
from tests.cluster import cluster, until

DIM = 32
ROWS = 4_000
STEPS = 12
LEASE = 2.0


def batch(rank: int, step: int) -> tuple[Tensor, Tensor]:
    """Ids with duplicates, and small whole numbers that floats sum exactly."""
    generator = torch.Generator().manual_seed(100 * rank + step)
    ids = torch.randint(0, ROWS, (ROWS,), generator=generator)
    return ids, torch.full((ROWS, DIM), float(1 + rank + step))


def summed(workers: int) -> Tensor:
    total = torch.zeros(ROWS, DIM)
    for rank in range(workers):
        for step in range(STEPS):
            total.index_add_(0, *batch(rank, step))
    return total


@pytest.mark.parametrize("consistency", [ps.Async("none"), ps.Sync(), ps.Stale(2)], ids=str)
def test_pushes_over_breaking_connections_are_applied_once(consistency: Any) -> None:
    def work(client: ps.Client) -> tuple[Tensor, int]:
        table = client.table("t", DIM, optimizer=None, init=ps.Zeros(), consistency=consistency)
        for step in range(STEPS):
            ids, grads = batch(client.rank, step)
            table.pull(ids)
            table.push(ids, grads)
        client.barrier("pushed")
        return table.pull(torch.arange(ROWS)), len(table)

    with cluster(2, 2, proxies=True) as c:
        assert c.proxies is not None
        for proxy in c.proxies:
            proxy.cut_after = (150_000, 1_500_000)
        results = c.workers(work)
        assert sum(proxy.cuts for proxy in c.proxies) >= 4
    wanted = summed(2)
    for found, count in results:
        assert torch.equal(found, wanted)
        assert count == int(wanted.any(dim=1).sum())


def test_pushes_in_flight_survive_a_cut() -> None:
    def work(client: ps.Client) -> Tensor:
        table = client.table("t", 3, optimizer=None, init=ps.Zeros(), consistency=ps.Async("none"))
        ids = torch.arange(20)
        pending = [table.push_async(ids, torch.ones(20, 3)) for _ in range(200)]
        for future in pending:
            assert future.result(20).version is not None
        return table.pull(ids)

    with cluster(2, 1, proxies=True) as c:
        assert c.proxies is not None
        for proxy in c.proxies:
            proxy.cut_after = (8_000, 60_000)
        (found,) = c.workers(work)
        assert sum(proxy.cuts for proxy in c.proxies)
    assert torch.equal(found, torch.full((20, 3), 200.0))


def _doomed(address: str, consistency: Any, clocks: Any) -> None:
    """A worker that pulls and pushes for ever, until it is killed."""
    client = ps.connect(address, name="worker-1")
    table, group = _both(client, consistency)
    for step in range(10_000):
        _step(table, group)
        clocks.put(step)


def _both(client: ps.Client, consistency: Any) -> tuple[ps.Table, ps.Group]:
    table = client.table("t", DIM, optimizer=None, init=ps.Zeros(), consistency=consistency)
    return table, client.register("g", {"w": torch.zeros(50)}, consistency=ps.Sync())


def _step(table: ps.Table, group: ps.Group) -> None:
    ids = torch.arange(ROWS)
    table.pull(ids)
    table.push(ids, torch.ones(ROWS, DIM))
    group.push_pull({"w": torch.ones(50)})


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda n: n.name)
@pytest.mark.parametrize("consistency", [ps.Async("none"), ps.Sync(), ps.Stale(1)], ids=str)
def test_a_worker_lost_between_pull_and_push_leaves_no_torn_step(
    consistency: Any, number: signal.Signals
) -> None:
    context = multiprocessing.get_context("spawn")
    clocks = context.Queue()
    with cluster(2, 2, lease_s=LEASE) as c:
        doomed = context.Process(target=_doomed, args=(c.address, consistency, clocks), daemon=True)
        doomed.start()
        with c.connect("worker-0") as client:
            table, group = _both(client, consistency)
            longest = 0.0
            for step in range(30):
                if step == 10:
                    assert clocks.get(timeout=60) >= 0
                    assert doomed.pid is not None
                    os.kill(doomed.pid, number)
                began = time.monotonic()
                _step(table, group)
                longest = max(longest, time.monotonic() - began)
            rows = table.pull(torch.arange(ROWS))
            count = len(table)
            until(lambda: client.num_workers == 1)
        os.kill(doomed.pid or 0, signal.SIGKILL)
        doomed.join()
    assert longest < 2 * LEASE + 3
    assert count == ROWS
    assert ((rows >= 30) & (rows <= 60)).all()
    if isinstance(consistency, ps.Sync):  # a clock is applied whole or not at all, on all servers
        assert torch.equal(rows, torch.full_like(rows, float(rows[0, 0])))
