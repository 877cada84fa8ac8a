"""A server's membership: registered, heard every second, told every view."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import uuid
from collections.abc import Callable

from paramserver.config import ServerConfig
from paramserver.errors import (
    AuthenticationError,
    ConnectionLostError,
    ParameterServerError,
    RefusedError,
)
from paramserver.ps.hosting import Host
from paramserver.ps.lasting import Lasting
from paramserver.ps.service import ServerService
from paramserver.types import PROTOCOL_VERSION
from paramserver.v1 import common_pb2, scheduler_pb2
from paramserver.wire.transport import AsyncChannel

log = logging.getLogger("paramserver")

FIRST_PAUSE, LAST_PAUSE = 0.1, 1.0  # seconds between looks for a scheduler that is away
_ENDED = (scheduler_pb2.JOB_DONE, scheduler_pb2.JOB_FAILED)


class ServerRole:
    """Keeps a process with its servers a member of the cluster.

    Attributes:
        host: its servers.
        ended: set when the job is over and the server was started for one job, or when it is not
            needed any more.
    """

    def __init__(
        self,
        config: ServerConfig,
        scheduler: AsyncChannel,
        connect: Callable[[str], AsyncChannel],
    ) -> None:
        self._config = config
        self._scheduler = scheduler
        self._identity = common_pb2.Identity()
        self._heartbeat_s = 1.0
        self._address = ""
        self._leaves = False
        self.host = Host(config, scheduler, connect)
        self.ended = asyncio.Event()
        self.failure: ParameterServerError | None = None
        self._lasting = Lasting(config, self.service)

    async def recover(self) -> int:
        """Reads the journal of an earlier life, if there is one; the port it listened on, or 0.

        To be called before anybody can reach this server.

        Raises:
            ConfigurationError: the folder is in use or cannot be written.
            SnapshotError: the journal is damaged.
        """
        return await self._lasting.recover()

    @property
    def service(self) -> ServerService:
        """The server of the process's own name."""
        return self.host.own

    async def register(self, address: str) -> str:
        """Joins the cluster as the server at ``address``; its name.

        Raises:
            ConfigurationError: the job wants what this server was not given.
        """
        self._address = address
        request = scheduler_pb2.RegisterRequest(
            protocol=PROTOCOL_VERSION,
            role=scheduler_pb2.ROLE_SERVER,
            name=self._config.name or self._lasting.name,
            address=address,
            host=socket.gethostname(),
            pid=os.getpid(),
            resumes=self._lasting.resumes,
            attempt=uuid.uuid4().hex,
        )
        reply = await self._until_there("Register", request)
        self._identity = reply.identity
        self._heartbeat_s = reply.heartbeat_s
        self.service.name = reply.identity.name
        self.host.identity = reply.identity
        view = await self._scheduler.call("GetView", scheduler_pb2.GetViewRequest())
        await self._lasting.begin(reply, view, address)
        await self.host.take(view)
        return self.service.name

    async def _until_there(
        self, method: str, request: scheduler_pb2.RegisterRequest
    ) -> scheduler_pb2.RegisterReply:
        while True:
            try:
                reply: scheduler_pb2.RegisterReply
                reply = await self._scheduler.call(method, request, timeout=5.0)
                return reply
            except ConnectionLostError as error:
                log.warning("waiting for the scheduler: %s", error)

    async def run(self) -> None:
        """Heartbeats and views until cancelled."""
        watch = asyncio.create_task(self._watch())
        kept = asyncio.create_task(self._keep())
        try:
            while not self._leaves:
                await self._beat()
                await asyncio.sleep(self._heartbeat_s)
        finally:
            watch.cancel()
            kept.cancel()

    async def _keep(self) -> None:
        """Keeps the journal short; a journal that cannot be kept ends this server."""
        self.failure = await self._lasting.keep()
        log.error("%s ends: %s", self.service.name, self.failure)
        self.ended.set()

    def close(self) -> None:
        """Ends the service; what it was told to keep is kept."""
        self.host.close()
        self._lasting.close()

    async def _beat(self) -> None:
        request = scheduler_pb2.HeartbeatRequest(member=self._identity)
        try:
            reply = await self._scheduler.call("Heartbeat", request, timeout=self._heartbeat_s * 2)
            self.service.views.away = False
            if reply.leave:
                log.info("%s holds no slices any more and may leave", self._identity.name)
                self._leaves = True
                await self.service.reshape.leave()
                await asyncio.sleep(self._heartbeat_s)  # who waits here hears where to go
                self.ended.set()
        except ConnectionLostError as error:
            self.service.views.away = True
            log.debug("the scheduler is away: %s", error)
        except AuthenticationError as error:
            log.error("the scheduler does not know this server any more: %s", error)
        except RefusedError as error:  # it gave this server up, or is a new one
            log.warning("registering anew: %s", error)
            await self.host.reset(keep=bool(self._lasting.resumes))
            await self.register(self._address)

    async def _watch(self) -> None:
        pause = FIRST_PAUSE
        while True:
            try:
                request = scheduler_pb2.WatchRequest(member=self._identity)
                async for view in self._scheduler.stream("Watch", request):
                    pause = FIRST_PAUSE
                    await self._take(view)
            except ParameterServerError as error:
                if pause == FIRST_PAUSE and not self._leaves:
                    log.warning("no views from the scheduler, trying again: %s", error)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE)

    async def _take(self, view: scheduler_pb2.View) -> None:
        await self.host.take(view)
        if self._config.once and view.state in _ENDED:
            self.ended.set()
