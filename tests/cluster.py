"""A whole cluster over real gRPC in this process, and workers in threads: quick to start."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import paramserver as ps
from paramserver.config import SchedulerConfig, ServerConfig
from paramserver.ps.role import ServerRole
from paramserver.scheduler.service import SchedulerService
from paramserver.types import Durability
from paramserver.wire.client import AsyncGrpcChannel
from paramserver.wire.methods import SCHEDULER, SCHEDULER_METHODS, SERVER, SERVER_METHODS
from paramserver.wire.serve import RoleServer
from tests.proxy import Proxy

T = TypeVar("T")


class Cluster:
    """Scheduler and servers on the event loop of one thread; clients wherever tests want them.

    Attributes:
        address: of the scheduler.
        scheduler: its service.
        servers: the server services.
        proxies: in front of the servers, if asked for.
    """

    def __init__(
        self,
        servers: int,
        workers: int,
        *,
        lease_s: float,
        assign: str,
        proxies: bool,
        parties: int = 1,
        durability: Durability = "memory",
    ) -> None:
        self.config = SchedulerConfig(
            durability=durability,
            workers=workers,
            servers=servers,
            parties=parties,
            assign=assign,
            lease_s=lease_s,
            heartbeat_s=min(1.0, lease_s / 4),
        )
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self._stops: list[Callable[[], Any]] = []
        self.roles: list[ServerRole] = []
        self._ends: dict[str, Callable[[], Any]] = {}
        self.proxies: list[Proxy] | None = [] if proxies else None
        self.run(self._start(servers))

    def run(self, work: Any) -> Any:
        """The result of a coroutine on the cluster's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    async def _start(self, servers: int) -> None:
        self.scheduler = SchedulerService(self.config, connect=AsyncGrpcChannel)
        shell = RoleServer(SCHEDULER.full_name, SCHEDULER_METHODS, self.scheduler)
        self.address = f"127.0.0.1:{await shell.start('127.0.0.1:0')}"
        ticks = asyncio.create_task(self.scheduler.run())
        self._stops += [ticks.cancel, lambda: shell.stop(0)]
        for _ in range(servers):
            await self._start_server()

    @property
    def servers(self) -> list[Any]:
        """The server of each process's own name."""
        return [role.service for role in self.roles]

    async def _start_server(self, name: str | None = None) -> None:
        config = ServerConfig(scheduler=self.address, name=name)
        channel = AsyncGrpcChannel(self.address)
        role = ServerRole(config, channel, AsyncGrpcChannel)
        shell = RoleServer(SERVER.full_name, SERVER_METHODS, role.host)
        address = f"127.0.0.1:{await shell.start('127.0.0.1:0')}"
        if self.proxies is not None:
            proxy = Proxy(len(self.proxies))
            self.proxies.append(proxy)
            proxy.forward_to(address)
            address = await proxy.start()
            self._stops.append(proxy.stop)
        await role.register(address)
        beats = asyncio.create_task(role.run())
        self.roles.append(role)

        async def end() -> None:
            beats.cancel()
            await shell.stop(0)
            role.host.close()
            await channel.close()

        self._ends[role.service.name] = end

    def kill(self, name: str) -> None:
        """Ends a server process; it says nothing to anybody."""
        self.roles = [r for r in self.roles if r.host.identity.name != name]
        self.run(self._ends.pop(name)())

    def start(self, name: str) -> None:
        """Starts a server process of this name."""
        self.run(self._start_server(name))

    def check_invariants(self) -> None:
        """The invariants of every group of every server."""

        async def check() -> None:
            for service in [s for role in self.roles for s in role.host.services]:
                for task in service._groups.values():
                    (await task).check_invariants()
                for lead in service._leads.values():
                    lead.clock.check_invariants()

        self.run(check())

    async def _stop(self) -> None:
        for end in self._ends.values():
            await end()
        for stop in reversed(self._stops):
            result = stop()
            if asyncio.iscoroutine(result):
                await result
        tasks = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def close(self) -> None:
        """Ends everything."""
        self.run(self._stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()

    def connect(self, name: str | None = None, **options: Any) -> ps.Client:
        """A client of its own."""
        options = {"timeout": 15.0, "wait_timeout": 20.0, **options}
        return ps.connect(self.address, name=name, **options)

    def workers(self, work: Callable[[ps.Client], T], count: int | None = None) -> list[T]:
        """``work(client)`` in one thread per worker; results in rank order."""
        count = count or self.config.workers

        def one(rank: int) -> T:
            with self.connect(f"worker-{rank}") as client:
                return work(client)

        return in_threads([lambda r=r: one(r) for r in range(count)])  # type: ignore[misc]


def in_threads(calls: Sequence[Callable[[], T]]) -> list[T]:
    """The results of calls made side by side; the first error is raised."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [f.result(60) for f in [pool.submit(call) for call in calls]]


@contextmanager
def cluster(
    servers: int = 1,
    workers: int = 1,
    *,
    lease_s: float = 10.0,
    assign: str = "round-robin",
    proxies: bool = False,
    parties: int = 1,
    durability: Durability = "memory",
) -> Iterator[Cluster]:
    """A cluster that is checked for its invariants and ended.

    Args:
        proxies: put a breakable proxy in front of every server.
        parties: of each replica.
    """
    made = Cluster(
        servers,
        workers,
        lease_s=lease_s,
        assign=assign,
        proxies=proxies,
        parties=parties,
        durability=durability,
    )
    try:
        yield made
        made.check_invariants()
    finally:
        made.close()
