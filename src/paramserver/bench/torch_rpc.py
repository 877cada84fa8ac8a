"""The peer: torch.distributed.rpc over TCP (the ``uv`` transport), as a plain user writes it."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import warnings
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch.distributed import rpc

from paramserver.bench.exchange import WINDOW, Exchanger, Rig
from paramserver.bench.processes import Agent, Fleet, new_children

RPC_TIMEOUT = 120.0
_values: dict[int, torch.Tensor] = {}
_lock = threading.Lock()


def join_rpc(name: str, rank: int, world: int, meeting: str) -> None:
    """Join the rpc world over TCP on loopback; ``meeting`` is a file all members share."""
    os.environ.setdefault("TP_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    options: Any = rpc.TensorPipeRpcBackendOptions(
        init_method=f"file://{meeting}",
        rpc_timeout=RPC_TIMEOUT,
        _transports=["uv"],
        _channels=["basic"],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own use of a deprecated call
        rpc.init_rpc(name, rank=rank, world_size=world, rpc_backend_options=options)


def reset(copy: int, elements: int) -> None:
    """On a server: a value of zeros."""
    _values[copy] = torch.zeros(elements)


def add(copy: int, update: torch.Tensor) -> None:
    """On a server: value += update."""
    with _lock:
        _values[copy] += update


def value(copy: int) -> torch.Tensor:
    """On a server: the value."""
    return _values[copy]


def add_and_value(copy: int, update: torch.Tensor) -> torch.Tensor:
    """On a server: value += update, and the value back."""
    add(copy, update)
    return _values[copy]


class RpcServer:
    """A member that only answers."""

    def __init__(self, rank: int, world: int, meeting: str) -> None:
        join_rpc(f"server{rank}", rank, world, meeting)

    def close(self) -> None:
        """Wait for the others, then leave."""
        rpc.shutdown()


class RpcExchanger(Exchanger):
    """Calls every server with an equal part of the payload."""

    def __init__(self, rank: int, servers: int, world: int, meeting: str) -> None:
        super().__init__()
        join_rpc(f"worker{rank}", rank, world, meeting)
        self._servers = [f"server{number}" for number in range(servers)]
        self._part = torch.zeros(0)

    def setup(self, size: int, copies: int) -> None:
        self.copies = copies
        self._part = torch.full((size // 4 // len(self._servers),), 0.5)
        for copy in range(copies):
            for server in self._servers:
                rpc.rpc_sync(server, reset, (copy, self._part.numel()))

    def push(self, copy: int) -> None:
        self._everywhere(add, (copy, self._part))

    def pull(self, copy: int) -> None:
        self._everywhere(value, (copy,))

    def push_pull(self, copy: int) -> None:
        self._everywhere(add_and_value, (copy, self._part))

    def pipelined(self, calls: int) -> None:
        flying: deque[Any] = deque()
        for number in range(calls):
            if len(flying) == WINDOW:
                flying.popleft().wait()
            server = self._servers[number % len(self._servers)]
            flying.append(rpc.rpc_async(server, add, (number % self.copies, self._part)))
        for future in flying:
            future.wait()

    def close(self) -> None:
        rpc.shutdown()

    def _everywhere(self, function: Any, args: tuple[Any, ...]) -> None:
        if len(self._servers) == 1:
            rpc.rpc_sync(self._servers[0], function, args)
            return
        for future in [rpc.rpc_async(server, function, args) for server in self._servers]:
            future.wait()


@contextlib.contextmanager
def open_rpc(name: str, servers: int, workers: int) -> Iterator[Rig]:
    """Start rpc servers and workers."""
    world = servers + workers
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        meeting = os.path.join(folder, "meeting")
        agents = [Agent(RpcServer, (rank, world, meeting)) for rank in range(servers)]
        agents += [
            Agent(RpcExchanger, (rank, servers, world, meeting)) for rank in range(servers, world)
        ]
        with new_children() as pids:
            fleet = stack.enter_context(Fleet(agents))
        yield Rig(name, fleet, range(servers, world), pids)
