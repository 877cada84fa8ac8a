"""Ourselves: a local cluster of real processes, and workers that connect to it over TCP."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import torch

import paramserver as ps
from paramserver.bench.exchange import WINDOW, Exchanger, Rig
from paramserver.bench.processes import Agent, Fleet, environment, new_children
from paramserver.launch import child_environment


class ProductExchanger(Exchanger):
    """Additive groups of one tensor, asynchronous consistency; one group per size and copy."""

    def __init__(self, address: str) -> None:
        super().__init__()
        torch.set_num_threads(1)
        self._client = ps.connect(address)
        self._groups: dict[tuple[int, int], Any] = {}
        self._size = 0
        self._update: dict[str, torch.Tensor] = {}

    def setup(self, size: int, copies: int) -> None:
        self.copies = copies
        self._size = size
        self._update = {"x": torch.full((size // 4,), 0.5)}
        for copy in range(copies):
            if (size, copy) not in self._groups:
                start = {"x": torch.zeros(size // 4)}
                self._groups[size, copy] = self._client.register(
                    f"bench-{size}-{copy}", start, consistency=ps.Async()
                )

    def push(self, copy: int) -> None:
        self._groups[self._size, copy].push(self._update)

    def pull(self, copy: int) -> None:
        self._groups[self._size, copy].pull()

    def push_pull(self, copy: int) -> None:
        self._groups[self._size, copy].push_pull(self._update)

    def pipelined(self, calls: int) -> None:
        flying: deque[Future[Any]] = deque()
        for number in range(calls):
            if len(flying) == WINDOW:
                flying.popleft().result(timeout=60)
            group = self._groups[self._size, number % self.copies]
            flying.append(group.push_async(self._update))
        for future in flying:
            future.result(timeout=60)

    def close(self) -> None:
        self._client.finish()
        self._client.close()


def start_workers(agents: list[Agent]) -> Fleet:
    """Processes with the allocator settings that ``paramserver worker`` and ``run`` give."""
    with environment(child_environment({})):
        return Fleet(agents)


@contextlib.contextmanager
def open_product(name: str, servers: int, workers: int) -> Iterator[Rig]:
    """Start a local cluster and workers."""
    with contextlib.ExitStack() as stack:
        with new_children() as pids:
            cluster = stack.enter_context(ps.local_cluster(servers, workers=workers))
            agents = [Agent(ProductExchanger, (cluster.address,))] * workers
            fleet = stack.enter_context(start_workers(agents))
        yield Rig(name, fleet, range(workers), pids)
