"""The servers that one process hosts: its own, those it took over, and backups of others."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from paramserver.config import ServerConfig
from paramserver.errors import FencedError, InternalError, MovedError, ParameterServerError
from paramserver.ps.journal import Journal
from paramserver.ps.peer import Peer
from paramserver.ps.replay import Replay, dump
from paramserver.ps.service import ServerService
from paramserver.ps.shadow import Shadow
from paramserver.ps.views import VIEW_PATIENCE
from paramserver.v1 import common_pb2, scheduler_pb2
from paramserver.v1 import server_pb2 as pb
from paramserver.wire.transport import AsyncChannel

log = logging.getLogger("paramserver")

T = TypeVar("T")


class Served:
    """A server that this process serves under one or more epochs.

    Its calls end with MovedError when another process serves it: clients look where it is.
    """

    def __init__(self, service: ServerService) -> None:
        self.service = service
        self.place = scheduler_pb2.Place()
        self.peer: Peer | None = None
        self._retired = asyncio.Event()

    async def Exchange(
        self, frames: AsyncIterator[bytes], send: Callable[[bytes], Awaitable[None]]
    ) -> None:
        """As ``ServerService.Exchange``."""
        await self._until_retired(self.service.Exchange(frames, send))

    async def Activate(self, request: pb.ActivateRequest) -> pb.ActivateReply:
        """As ``ServerService.Activate``."""
        return await self._until_retired(self.service.Activate(request))

    async def Vectors(self, request: pb.VectorsRequest) -> pb.VectorsReply:
        """As ``ServerService.Vectors``."""
        return await self._until_retired(self.service.Vectors(request))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.service, name)

    async def _until_retired(self, call: Awaitable[T]) -> T:
        work = asyncio.ensure_future(call)
        end = asyncio.ensure_future(self._retired.wait())
        try:
            await asyncio.wait({work, end}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            raise MovedError(f"{self.service.name} is served elsewhere; look where it is")
        finally:
            end.cancel()
            work.cancel()

    def settle(self, peer: Peer | None) -> None:
        """Entries go to this backup from now on."""
        journal = self.service.journal
        assert journal is not None
        if self.peer is not None:
            self.peer.close()
        journal.attach(None)  # the backup before can take over no more
        self.peer = peer

    def retire(self) -> None:
        """Acknowledges nothing more."""
        self._retired.set()
        if self.peer is not None:
            self.peer.close()
        self.service.close()


class Host:
    """What the views of the scheduler say that this process serves, and whose backups it keeps.

    Without places it serves the server of its own name.

    Attributes:
        own: the server of its own name, while it serves that.
    """

    def __init__(
        self,
        config: ServerConfig,
        scheduler: AsyncChannel,
        connect: Callable[[str], AsyncChannel],
        own: ServerService,
    ) -> None:
        self._config, self._scheduler, self._connect = config, scheduler, connect
        self.own = own
        self.identity = common_pb2.Identity()
        self._view = scheduler_pb2.View()
        self._served: dict[str, Served] = {}
        self._shadows: dict[str, Shadow[Replay]] = {}
        self._epochs: dict[str, int] = {}  # the largest seen of each server
        self._changed = asyncio.Event()
        self._turn = asyncio.Lock()

    def hosted(self, name: str) -> object:
        """The server of that name; empty: of this process's own.

        Raises:
            MovedError: another process serves it.
        """
        wanted = name or self.own.name
        if not self._view.places and wanted == self.own.name:
            return self.own
        if wanted not in self._served:
            raise MovedError(f"{wanted} is not served here; look where it is, and call again")
        return self._served[wanted]

    async def take(self, view: scheduler_pb2.View) -> None:
        """Does what a view says, one after the other."""
        async with self._turn:
            if view.number <= self._view.number:
                return
            if view.job != self._view.job:
                await self._begin()
            self._view = view
            for place in view.places:
                self._epochs[place.server] = max(place.epoch, self._epochs.get(place.server, 0))
                await self._arrange(place)
            for served in self._served.values():
                served.service.on_view(view)
            if self.own.name not in self._served:
                self.own.on_view(view)
            self._changed.set()

    async def _begin(self) -> None:
        """A new job begins empty."""
        for served in self._served.values():
            served.settle(None)
            if served.service is not self.own:
                served.retire()
        for shadow in self._shadows.values():
            await shadow.end()
        self._served.clear()
        self._shadows.clear()
        self._epochs.clear()

    async def _arrange(self, place: scheduler_pb2.Place) -> None:
        served = self._served.get(place.server)
        if not self._is(place.primary, place.primary_incarnation):
            if served is not None:
                self._retire(place.server)
            if not self._is(place.backup, place.backup_incarnation):
                shadow = self._shadows.pop(place.server, None)
                if shadow is not None:
                    await shadow.end()
            return
        if served is None:
            served = await self._serve(place)
        if served.place.epoch != place.epoch:
            served.settle(self._peer(served.service, place) if place.backup else None)
        served.place = place

    def _is(self, name: str, incarnation: int) -> bool:
        return (name, incarnation) == (self.identity.name, self.identity.incarnation)

    async def _serve(self, place: scheduler_pb2.Place) -> Served:
        """Begins to serve: the server of its own name with a job, another one from its backup."""
        shadow = self._shadows.pop(place.server, None)
        if shadow is not None:
            await shadow.end(self._promote)
            log.warning("serving %s from its backup, epoch %d", place.server, place.epoch)
        elif place.server == self.own.name:
            self.own.journal = Journal()
        else:
            raise InternalError(f"{place.server} is to be served here, but no backup of it is")
        served = self._served[place.server] = Served(self._promoted or self.own)
        self._promoted = None
        return served

    def _retire(self, server: str) -> None:
        """Another process serves it now: this one was thought lost."""
        log.warning("%s is served elsewhere now", server)
        served = self._served.pop(server)
        served.retire()
        if served.service is self.own:
            self.own = self._service(server)

    def _service(self, name: str) -> ServerService:
        return ServerService(self._config, name, self._scheduler, self._connect)
