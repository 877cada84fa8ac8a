"""The scheduler role as a process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from paramserver.config import SchedulerConfig
from paramserver.core.members import JobState
from paramserver.scheduler.durable import Durable
from paramserver.scheduler.event_log import EventLog
from paramserver.scheduler.service import SchedulerService
from paramserver.wire.addresses import split_address
from paramserver.wire.client import AsyncGrpcChannel
from paramserver.wire.methods import SCHEDULER, SCHEDULER_METHODS
from paramserver.wire.serve import RoleServer, run_until_ended

STOP_GRACE = 0.5
LINGER_S = 1.0  # with once: the members hear of the end before the scheduler goes


async def serve(config: SchedulerConfig, ready: Callable[[str, str], None]) -> int:
    """Runs a scheduler until SIGTERM or SIGINT, or with ``config.once`` until the job ends.

    Args:
        ready: called with the name and HOST:PORT once it listens.

    Returns:
        The exit code: 1 if the one job failed, or is done but not complete.

    Raises:
        ConfigurationError: the address or the state directory is in use, or does not fit.
    """
    if config.state_dir is None:
        return await _serve(config, ready, None)
    log = EventLog(Path(config.state_dir))
    try:
        return await _serve(config, ready, log)
    finally:
        log.close()


async def _serve(
    config: SchedulerConfig, ready: Callable[[str, str], None], log: EventLog | None
) -> int:
    trust = config.trust
    service = SchedulerService(
        config, connect=lambda address: AsyncGrpcChannel(address, "server", trust), log=log
    )
    await service.snapshots.begin()
    servicer = service if log is None else Durable(service, log)
    server = RoleServer(SCHEDULER.full_name, SCHEDULER_METHODS, servicer, trust)
    address = await _listen(server, config.bind, log)
    await server.serving(True)
    ready("scheduler", address)
    over = asyncio.Event()
    if config.once:
        linger = asyncio.create_task(_linger(service, over))
    try:
        signalled = await run_until_ended(service.run(), over)
    finally:
        await server.stop(STOP_GRACE)
    if not config.once or signalled:
        return 0
    await linger
    members = service.state.members
    return 1 if members.state is JobState.FAILED or members.message else 0


async def _listen(server: RoleServer, bind: str, log: EventLog | None) -> str:
    """The address; without a port of its own, that of the scheduler before it."""
    host, port = split_address(bind)
    if log is not None and not port:
        host, port = split_address(log.fact(f"port of {host}", bind))
    address = f"{host}:{await server.start(f'{host}:{port}')}"
    if log is not None:
        log.note(f"port of {host}", address)
        await log.durable()
    return address


async def _linger(service: SchedulerService, over: asyncio.Event) -> None:
    await service.ended.wait()
    await asyncio.sleep(LINGER_S)
    over.set()
