"""A whole cluster over real gRPC in this process, and workers in threads: quick to start."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import paramserver as ps
from paramserver import rpc_chaos
from paramserver.config import Limits, SchedulerConfig, ServerConfig, SnapshotConfig
from paramserver.ps.role import ServerRole
from paramserver.scheduler.service import SchedulerService
from paramserver.trust import OPEN, Trust
from paramserver.types import Durability
from paramserver.v1 import scheduler_pb2
from paramserver.wire.client import AsyncGrpcChannel
from paramserver.wire.methods import SCHEDULER, SCHEDULER_METHODS, SERVER, SERVER_METHODS
from paramserver.wire.serve import RoleServer
from tests.canonical import Witness
from tests.proxy import Proxy

log = logging.getLogger("tests")
T = TypeVar("T")

# All tests on a cluster run with calls that get lost now and then; "rate=0" turns that off. Those
# of the start are left alone: a worker held up between two groups is not awaited in the second yet,
# and tests that compare bits want all of them in the first clock.
_METHODS = (
    *("Exchange", "Follow", "Watch", "AppliedSpans", "Vectors", "Shrink", "Explain"),
    *("Heartbeat", "GetView", "NextShard", "ReportSamples", "Join", "Finish", "SaveSchedule"),
)
CHAOS = os.environ.get("TEST_CHAOS", f"rate=0.01,seed=1,methods={'|'.join(_METHODS)}")


@dataclass
class _Running:
    """A server and what it runs on."""

    role: ServerRole
    shell: RoleServer
    beats: asyncio.Task[None]
    channel: AsyncGrpcChannel
    over: bool = False

    async def stop(self) -> None:
        if self.over:
            return
        self.over = True
        self.beats.cancel()
        await self.shell.stop(0)
        self.role.close()
        await self.channel.close()

    async def crash(self) -> None:
        wal = self.role._lasting._wal
        if wal is not None:
            with wal._wanted:  # nothing is kept any more, so nothing is told to anybody
                wal._waiting.clear()
                wal.put = lambda position, data: None  # type: ignore[method-assign]
        await self.stop()


class Cluster:
    """Scheduler and servers on the event loop of one thread; clients wherever tests want them.

    Attributes:
        address: of the scheduler.
        scheduler: its service.
        servers: the server services.
        shells: gRPC servers, the scheduler's first.
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
        state: Path | None = None,
        journal_bytes: int = 256 << 20,
        trust: Mapping[str, Trust] | None = None,
        limits: Limits | None = None,
        snapshots: SnapshotConfig | None = None,
    ) -> None:
        self._state = state
        self._journal_bytes = journal_bytes
        self._roles: list[_Running] = []
        self.limits = limits or Limits()
        self.trust = dict.fromkeys(("scheduler", "server", "worker"), OPEN) | dict(trust or {})
        self.config = SchedulerConfig(
            durability=durability if state is None else "wal",
            workers=workers,
            servers=servers,
            parties=parties,
            assign=assign,
            lease_s=lease_s,
            heartbeat_s=min(1.0, lease_s / 4),
            trust=self.trust["scheduler"],
            limits=self.limits,
            snapshots=snapshots or SnapshotConfig(),
        )
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self._stops: list[Callable[[], Any]] = []
        self.shells: list[RoleServer] = []
        self.servers: list[Any] = []
        self.proxies: list[Proxy] | None = [] if proxies else None
        self.run(self._start(servers))

    def run(self, work: Any) -> Any:
        """The result of a coroutine on the cluster's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    async def _start(self, servers: int) -> None:
        trust = self.trust["scheduler"]
        self.scheduler = SchedulerService(
            self.config, connect=lambda address: AsyncGrpcChannel(address, "server", trust)
        )
        self.witness = Witness(self.scheduler.state)
        await self.scheduler.snapshots.begin()
        shell = RoleServer(SCHEDULER.full_name, SCHEDULER_METHODS, self.scheduler, trust)
        self.shells.append(shell)
        self.address = f"127.0.0.1:{await shell.start('127.0.0.1:0')}"
        ticks = asyncio.create_task(self.scheduler.run())
        self._stops += [ticks.cancel, lambda: shell.stop(0)]
        for number in range(servers):
            await self._start_server(number)

    def start_server(self) -> None:
        """One more server."""
        self.run(self._start_server(len(self.servers)))

    def stop_server(self, number: int) -> None:
        """A server is gone, without a word to the scheduler."""
        self.run(self._roles[number].stop())

    def restart_server(self, number: int) -> None:
        """A server that is gone, and an empty one of its name."""
        name = self.servers[number].name
        self.stop_server(number)
        self.run(self._start_server(number, name))

    async def _start_server(self, number: int, name: str | None = None) -> None:
        trust = self.trust["server"]
        config = ServerConfig(
            scheduler=self.address,
            name=name,
            state_dir=None if self._state is None else str(self._state / f"ps-{number}"),
            journal_bytes=self._journal_bytes,
            trust=trust,
            limits=self.limits,
        )
        channel = AsyncGrpcChannel(self.address, "scheduler", trust)
        role = ServerRole(
            config, channel, lambda address: AsyncGrpcChannel(address, "server", trust)
        )
        shell = RoleServer(SERVER.full_name, SERVER_METHODS, role.host, trust)
        self.shells.append(shell)
        address = f"127.0.0.1:{await shell.start(f'127.0.0.1:{await role.recover()}')}"
        if self.proxies is not None:
            if number == len(self.proxies):
                self.proxies.append(Proxy(number))
                self._stops.append(self.proxies[number].stop)
                await self.proxies[number].start()
            proxy = self.proxies[number]
            proxy.forward_to(address)
            address = proxy.address
        await role.register(address)
        running = _Running(role, shell, asyncio.create_task(role.run()), channel)
        self.servers[number:] = [role.service, *self.servers[number + 1 :]]
        self._roles[number:] = [running, *self._roles[number + 1 :]]
        self._stops.append(running.stop)

    def kill(self, number: int) -> None:
        """Ends a server as a crash does: what it had not written is gone."""
        self.run(self._roles[number].crash())

    def restart(self, number: int) -> None:
        """Starts it again, on its state directory if it has one."""
        self.run(self._start_server(number, f"ps-{number}"))

    def snapshot(self, name: str, delta: bool = False) -> Any:
        """Takes a snapshot, from any thread; what the scheduler answers."""
        request = scheduler_pb2.TakeSnapshotRequest(name=name, key=name, wait_s=10.0, delta=delta)
        return self.run(self.scheduler.TakeSnapshot(request))

    def check_invariants(self) -> None:
        """The invariants of every group of every server."""

        async def check() -> None:
            self.witness.check()
            running = [r.role.host for r in self._roles if not r.over]
            for service in [service for host in running for service in host.services]:
                for task in service._groups.values():
                    (await task).check_invariants()
                for lead in service.leads._leads.values():
                    lead.clock.check_invariants()

        self.run(check())

    async def _stop(self) -> None:
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
        mine = self.trust["worker"]
        known = {"tls": mine.tls, "token": mine.token or None}
        options = {"timeout": 15.0, "wait_timeout": 20.0, **known, **options}
        return ps.connect(self.address, name=name, **options)

    def workers(self, work: Callable[[ps.Client], T], count: int | None = None) -> list[T]:
        """``work(client)`` in one thread per worker; results in rank order."""
        count = count or self.config.workers

        def one(rank: int) -> T:
            with self.connect(f"worker-{rank}") as client:
                return work(client)

        return in_threads([lambda r=r: one(r) for r in range(count)])  # type: ignore[misc]


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Polls: what is waited for lies in another process, or another thread."""
    deadline, pause = time.monotonic() + seconds, threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"the condition did not come true in {seconds} s"
        pause.wait(0.01)


def in_threads(calls: Sequence[Callable[[], T]]) -> list[T]:
    """The results of calls made side by side; the first error is raised, all are logged.

    One that waits for another that has failed is often the first.
    """

    def logged(call: Callable[[], T]) -> T:
        try:
            return call()
        except BaseException:
            log.exception("one of %d calls failed", len(calls))
            raise

    with ThreadPoolExecutor(len(calls)) as pool:
        return [f.result(60) for f in [pool.submit(logged, call) for call in calls]]


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
    state: Path | None = None,
    journal_bytes: int = 256 << 20,
    chaos: str = CHAOS,
    trust: Mapping[str, Trust] | None = None,
    limits: Limits | None = None,
    snapshots: SnapshotConfig | None = None,
) -> Iterator[Cluster]:
    """A cluster that is checked for its invariants and ended.

    Args:
        state: where the servers keep journals; None: durability "memory".
        chaos: which calls get lost, as of ``paramserver.rpc_chaos``.
        proxies: put a breakable proxy in front of every server.
        parties: of each replica.
        trust: of each role, by its name; open for those that are not there.
        limits: of the scheduler and the servers.
        snapshots: where, and when.
    """
    made = Cluster(
        servers,
        workers,
        lease_s=lease_s,
        assign=assign,
        proxies=proxies,
        parties=parties,
        durability=durability,
        state=state,
        journal_bytes=journal_bytes,
        trust=trust,
        limits=limits,
        snapshots=snapshots,
    )
    try:
        rpc_chaos.arm(rpc_chaos.parse_chaos(chaos))
        yield made
        made.check_invariants()
    finally:
        rpc_chaos.arm(None)
        made.close()
