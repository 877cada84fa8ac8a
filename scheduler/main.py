"""The scheduler role as a process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from paramserver.config import SchedulerConfig
from paramserver.core.members import JobState
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
        The exit code: 1 if the one job failed.
    """
    trust = config.trust
    service = SchedulerService(
        config, connect=lambda address: AsyncGrpcChannel(address, "server", trust)
    )
    server = RoleServer(SCHEDULER.full_name, SCHEDULER_METHODS, service, trust)
    port = await server.start(config.bind)
    await server.serving(True)
    ready("scheduler", f"{split_address(config.bind)[0]}:{port}")
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
    return 1 if service.state.members.state is JobState.FAILED else 0


async def _linger(service: SchedulerService, over: asyncio.Event) -> None:
    await service.ended.wait()
    await asyncio.sleep(LINGER_S)
    over.set()
