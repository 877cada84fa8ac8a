"""Broken connections, lost workers, late joiners: what was promised holds all the same."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

import paramserver as ps
from tests.cluster import Cluster, cluster, in_threads, until

SIZE = 600_000  # three slices
LEASE = 2.0


@pytest.mark.parametrize("consistency", [ps.Async("none"), ps.Sync(), ps.Stale(2)], ids=str)
def test_pushes_over_breaking_connections_are_applied_once(consistency: Any) -> None:
    """Connections are cut in mid-push, many times; every push counts once."""
    steps = 12

    def work(client: ps.Client) -> Tensor:
        group = client.register("ledger", {"w": torch.zeros(SIZE)}, consistency=consistency)
        for step in range(steps):
            group.push_pull({"w": torch.full((SIZE,), float(1 + client.rank + step))})
        client.barrier("end")
        return group.read()["w"]

    with cluster(2, 2, proxies=True) as c:
        assert c.proxies is not None
        for proxy in c.proxies:
            proxy.cut_after = (400_000, 4_000_000)
        results = c.workers(work)
        assert sum(proxy.cuts for proxy in c.proxies) >= 4
    wanted = float(sum(1 + rank + step for rank in range(2) for step in range(steps)))
    for found in results:
        assert torch.equal(found, torch.full((SIZE,), wanted))


def test_pushes_in_flight_survive_a_cut() -> None:
    def work(client: ps.Client) -> Tensor:
        group = client.register("ledger", {"w": torch.zeros(5)}, consistency=ps.Async("none"))
        pending = []
        for _ in range(300):
            pending.append(group.push_async({"w": torch.ones(5)}))
        for future in pending:
            assert future.result(20).version is not None
        return group.read()["w"]

    with cluster(1, 1, proxies=True) as c:
        assert c.proxies is not None
        c.proxies[0].cut_after = (2_000, 20_000)
        (found,) = c.workers(work)
        assert c.proxies[0].cuts
    assert torch.equal(found, torch.full((5,), 300.0))


def test_a_late_joiner_starts_at_the_others_clock() -> None:
    joined, ready = threading.Event(), threading.Event()

    def first(c: Cluster) -> tuple[int, Tensor]:
        with c.connect("worker-0") as client:
            group = client.register("g", {"w": torch.zeros(3)})
            for _ in range(4):
                group.push_pull({"w": torch.ones(3)})
            ready.set()
            assert joined.wait(20)
            for _ in range(3):
                group.push_pull({"w": torch.ones(3)})
            client.barrier("end")
            return group.clock, group.read()["w"]

    def second(c: Cluster) -> tuple[int, Tensor]:
        assert ready.wait(20)
        with c.connect("worker-1") as client:
            group = client.register("g", {"w": torch.full((3,), 99.0)})
            clock, seen = group.clock, group.pull()["w"]
            joined.set()
            for _ in range(3):
                group.push_pull({"w": torch.ones(3)})
            client.barrier("end")
            return clock, seen

    with cluster(2, 1) as c:
        calls: list[Callable[[], tuple[int, Tensor]]] = [lambda: first(c), lambda: second(c)]
        (_, total), (clock, seen) = in_threads(calls)
    assert clock == 4
    assert torch.equal(seen, torch.full((3,), 4.0))
    assert torch.equal(total, torch.full((3,), 10.0))


def test_a_worker_that_finishes_early_is_not_waited_for() -> None:
    def work(client: ps.Client) -> int:
        group = client.register("g", {"w": torch.zeros(3)})
        for _ in range(2 if client.rank else 6):
            group.push_pull({"w": torch.ones(3)})
        return group.clock

    with cluster(2, 2) as c:
        assert c.workers(work) == [6, 2]


def test_a_wait_says_for_whom() -> None:
    def work(client: ps.Client) -> str:
        group = client.register("g", {"w": torch.zeros(3)})
        client.barrier("start")
        if client.name == "worker-1":
            time_is_up.wait(30)
            return ""
        with pytest.raises(ps.errors.WaitTimeoutError) as caught:
            group.push_pull({"w": torch.ones(3)})
        time_is_up.set()
        return str(caught.value)

    time_is_up = threading.Event()
    with cluster(1, 2) as c:

        def one(rank: int) -> str:
            client = c.connect(f"worker-{rank}", wait_timeout=1.0 if rank == 0 else 20.0)
            try:
                return work(client)
            finally:
                client.fail("end of the test")

        said, _ = in_threads([lambda: one(0), lambda: one(1)])
    assert "worker-1" in said
    assert "clock 0" in said


def _doomed(address: str, clocks: Any) -> None:
    """A worker that pushes for ever, until it is killed."""
    client = ps.connect(address, name="worker-1")
    group = client.register("g", {"w": torch.zeros(SIZE)})
    for step in range(10_000):
        group.push_pull({"w": torch.ones(SIZE)})
        clocks.put(step)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda n: n.name)
def test_a_worker_lost_in_mid_push_costs_one_lease(number: signal.Signals) -> None:
    context = multiprocessing.get_context("spawn")
    clocks = context.Queue()
    with cluster(2, 2, lease_s=LEASE) as c:
        doomed = context.Process(target=_doomed, args=(c.address, clocks), daemon=True)
        doomed.start()
        with c.connect("worker-0") as client:
            group = client.register("g", {"w": torch.zeros(SIZE)})
            longest = 0.0
            for step in range(40):
                if step == 10:
                    assert clocks.get(timeout=60) >= 0
                    assert doomed.pid is not None
                    os.kill(doomed.pid, number)
                began = time.monotonic()
                group.push_pull({"w": torch.ones(SIZE)})
                longest = max(longest, time.monotonic() - began)
            values = group.pull()["w"]
            until(lambda: client.num_workers == 1)
        os.kill(doomed.pid or 0, signal.SIGKILL)
        doomed.join()
    assert longest < 2 * LEASE + 3
    # All elements have seen the same pushes: no torn step on either server.
    assert torch.equal(values, torch.full((SIZE,), float(values[0])))
    assert 40 <= values[0] <= 80


def test_a_fenced_client_says_so() -> None:
    with cluster(1, 1) as c:
        old = c.connect("worker-0")
        group = old.register("g", {"w": torch.zeros(3)})
        group.push({"w": torch.ones(3)})
        with c.connect("worker-0") as new:
            mine = new.register("g", {"w": torch.zeros(3)})
            with pytest.raises(ps.errors.FencedError):
                group.push({"w": torch.ones(3)})
            mine.push_pull({"w": torch.ones(3)})
            assert torch.equal(mine.pull()["w"], torch.full((3,), 2.0))
        old.fail("fenced")


def test_the_first_clock_waits_for_a_worker_that_prepares_its_data() -> None:
    """It was active until it opened its data set: the others must not step without it."""
    opened, asked = threading.Event(), threading.Event()

    def work(client: ps.Client) -> int:
        group = client.register("g", {"w": torch.zeros(3)})
        client.barrier("registered")
        if client.rank == 0:
            assert opened.wait(20)
            pushed = group.push_async({"w": torch.ones(3)})
            asked.set()
            pushed.result(20)
            return int(group.pull()["w"][0])
        loader = client.loader(TensorDataset(torch.zeros(4)), 4, assign="dynamic")
        opened.set()
        assert asked.wait(20)
        for _ in loader:
            group.push_pull({"w": torch.ones(3)})
        return group.clock

    with cluster(2, 2) as c:
        assert c.workers(work) == [2, 1]
