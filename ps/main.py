"""The server role as a process."""

from __future__ import annotations

import asyncio
import gc
import socket
import time
from collections.abc import Callable

import torch

from paramserver.config import ServerConfig
from paramserver.errors import ConfigurationError
from paramserver.ps.role import ServerRole
from paramserver.wire.addresses import split_address
from paramserver.wire.client import AsyncGrpcChannel
from paramserver.wire.methods import SERVER, SERVER_METHODS
from paramserver.wire.serve import RoleServer, run_until_ended

STOP_GRACE = 0.5
PORT_S, PAUSE_S = 15.0, 0.1  # for the port of an earlier life to be free again


async def serve(config: ServerConfig, ready: Callable[[str, str], None]) -> int:
    """Runs a server until SIGTERM or SIGINT, or with ``config.once`` until the job ends.

    Args:
        ready: called with the name and HOST:PORT once the server is registered.

    Returns:
        The exit code.
    """
    gc.freeze()  # what imports made need not be looked at by every collection
    torch.set_num_threads(1)  # slices are worked on side by side; each by one thread
    trust = config.trust
    scheduler = AsyncGrpcChannel(config.scheduler, "scheduler", trust)
    role = ServerRole(config, scheduler, lambda address: AsyncGrpcChannel(address, "server", trust))
    server = RoleServer(SERVER.full_name, SERVER_METHODS, role.host, trust)
    port = await _listen(config, role, server)
    address = _reachable(config, port)

    async def work() -> None:
        name = await role.register(address)
        await server.serving(True)
        ready(name, address)
        await role.run()

    try:
        await run_until_ended(work(), role.ended)
    finally:
        await server.stop(STOP_GRACE)
        role.close()
        await scheduler.close()
    return 1 if role.failure is not None else 0


async def _listen(config: ServerConfig, role: ServerRole, server: RoleServer) -> int:
    """The port; without one of its own, that of an earlier life, which others still know.

    That one may be taken for a moment: by the process that ends, or by a client that looks for it.
    """
    host, port = split_address(config.bind)
    recovered = await role.recover()
    before = 0 if port or _advertises_port(config) else recovered
    deadline = time.monotonic() + PORT_S
    while True:
        try:
            return await server.start(f"{host}:{port or before}")
        except ConfigurationError:
            if not before or time.monotonic() > deadline:
                raise
        await asyncio.sleep(PAUSE_S)


def _advertises_port(config: ServerConfig) -> bool:
    """Whether others know a port that is not this process's: of a proxy, or one that is mapped."""
    return (config.advertise or "").rpartition(":")[2].isdigit()


def _reachable(config: ServerConfig, port: int) -> str:
    """Where others reach this server: as told, as bound, or as the scheduler sees it."""
    if config.advertise and _advertises_port(config):
        return config.advertise
    return f"{config.advertise or _reachable_host(config)}:{port}"


def _reachable_host(config: ServerConfig) -> str:
    bound, _ = split_address(config.bind)
    if bound not in ("0.0.0.0", "[::]", "::"):
        return bound
    host, port = split_address(config.scheduler)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, port or 1))  # no packet is sent; the system chooses the local address
        local: str = probe.getsockname()[0]
        return local
