"""The servers that one process hosts: its own, those it took over, and backups of others."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from paramserver.config import ServerConfig
from paramserver.errors import FencedError, MovedError, WaitTimeoutError
from paramserver.ps.dump import dump
from paramserver.ps.journal import Journal
from paramserver.ps.peer import Peer
from paramserver.ps.service import ServerService
from paramserver.ps.shadow import Shadow
from paramserver.ps.views import VIEW_PATIENCE
from paramserver.v1 import common_pb2, scheduler_pb2
from paramserver.v1 import server_pb2 as pb
from paramserver.wire.transport import AsyncChannel

log = logging.getLogger("paramserver")

T = TypeVar("T")

WIND_UP_S = 5.0  # for calls to end, once a server is served elsewhere


class Served:
    """A server that this process serves, under one epoch after the other.

    Calls end with MovedError once another process serves it: clients look where it is.
    """

    def __init__(self, service: ServerService) -> None:
        self.service = service
        self.epoch = 0
        self._peer: Peer | None = None
        self._retired = False
        self._end: asyncio.Task[None] | None = None
        self._calls: set[asyncio.Future[Any]] = set()

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

    async def Shrink(self, request: pb.ShrinkRequest) -> pb.ShrinkReply:
        """As ``ServerService.Shrink``."""
        return await self._until_retired(self.service.Shrink(request))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.service, name)

    async def _until_retired(self, call: Awaitable[T]) -> T:
        work = asyncio.ensure_future(call)
        self._calls.add(work)
        try:
            await asyncio.wait({work})
            if self._retired:
                raise MovedError(f"{self.service.name} is served elsewhere; look where it is")
            return work.result()
        finally:
            self._calls.discard(work)
            work.cancel()

    def settle(self, epoch: int, peer: Callable[[Journal], Peer] | None) -> None:
        """Under this epoch entries go to that backup; the one before can take over no more."""
        journal = self.service.journal
        assert journal is not None
        if self._peer is not None:
            self._peer.close()
        journal.attach(None)
        self.epoch, self._peer = epoch, peer(journal) if peer is not None else None

    def retire(self) -> None:
        """Acknowledges nothing more."""
        self._retired = True
        if self._peer is not None:
            self._peer.close()
        self._end = asyncio.create_task(self._wind_up())

    async def _wind_up(self) -> None:
        calls = list(self._calls)
        for call in calls:
            call.cancel()
        if calls:
            await asyncio.wait(calls, timeout=WIND_UP_S)
        self.service.close()


class Host:
    """What the views of the scheduler say that this process serves, and whose backups it keeps.

    Without places it serves the server of its own name.

    Attributes:
        own: the server of its own name.
        identity: of this process.
    """

    def __init__(
        self,
        config: ServerConfig,
        scheduler: AsyncChannel,
        connect: Callable[[str], AsyncChannel],
    ) -> None:
        self._config, self._scheduler, self._connect = config, scheduler, connect
        self.identity = common_pb2.Identity()
        self.own = self._service(config.name or "")
        self._view = scheduler_pb2.View()
        self._served: dict[str, Served] = {}
        self._shadows: dict[str, Shadow] = {}
        self._epochs: dict[str, int] = {}  # the largest seen of each server
        self._changed = asyncio.Event()
        self._turn = asyncio.Lock()

    def _service(self, name: str) -> ServerService:
        return ServerService(self._config, name, self._scheduler, self._connect)

    @property
    def services(self) -> list[ServerService]:
        """Those that are served here."""
        served = [s.service for s in self._served.values()]
        return served if self._view.places else [self.own]

    def hosted(self, name: str) -> object:
        """The server of that name; empty: of this process's own.

        Raises:
            MovedError: another process serves it, or nobody has told yet that this one does.
        """
        wanted = name or self.own.name
        if not self._view.number:
            raise MovedError(f"{wanted} is not served here: this process has to register first")
        if not self._view.places and wanted == self.own.name:
            return self.own
        if wanted not in self._served:
            raise MovedError(f"{wanted} is not served here; look where it is, and call again")
        return self._served[wanted]

    async def take(self, view: scheduler_pb2.View) -> None:
        """Does what a view says; one after the other."""
        async with self._turn:
            if view.number <= self._view.number:
                return
            if view.job != self._view.job:
                self._begin()
            self._view = view
            if self.own.name not in self._served:
                self.own.on_view(view)
            for place in view.places:
                self._epochs[place.server] = max(place.epoch, self._epochs.get(place.server, 0))
                await self._arrange(place)
            for served in self._served.values():
                served.service.on_view(view)
            self._changed.set()

    def _begin(self) -> None:
        """A job begins empty."""
        for served in self._served.values():  # what is not acknowledged yet never will be
            served.retire()
        if self._served:
            self.own = self._service(self.own.name)
        for shadow in self._shadows.values():
            shadow.close()
        for held in (self._served, self._shadows, self._epochs):
            held.clear()

    async def _arrange(self, place: scheduler_pb2.Place) -> None:
        server = place.server
        if not self._is(place.primary, place.primary_incarnation):
            if server in self._served:
                self._retire(server)
            if not self._is(place.backup, place.backup_incarnation) and server in self._shadows:
                self._shadows.pop(server).close()
            return
        if server not in self._served:
            service = await self._serve(place)
            if service is None:
                return
            self._served[server] = Served(service)
        served = self._served[server]
        if served.epoch != place.epoch:
            served.settle(place.epoch, self._peer(served, place) if place.backup else None)

    def _is(self, name: str, incarnation: int) -> bool:
        return (name, incarnation) == (self.identity.name, self.identity.incarnation)

    async def _serve(self, place: scheduler_pb2.Place) -> ServerService | None:
        """Begins to serve: the server of its own name with a job, any other from its backup."""
        shadow = self._shadows.pop(place.server, None)
        if shadow is not None:
            service = await shadow.end()
            service.use(Journal(shadow.position))
            await service.resume()
            log.warning("serving %s from its backup, epoch %d", place.server, place.epoch)
            if place.server == self.own.name:
                self.own.close()
                self.own = service
            return service
        if place.server == self.own.name:
            self.own.use(Journal())
            return self.own
        reason = f"{place.server} is to be served by {self.own.name}, which has no backup of it"
        log.error("%s", reason)
        request = scheduler_pb2.FailRequest(member=self.identity, reason=reason, fatal=True)
        await self._scheduler.call("Fail", request)
        return None

    def _retire(self, server: str) -> None:
        """Another process serves it now: this one was thought lost."""
        log.warning("%s is served elsewhere now", server)
        served = self._served.pop(server)
        served.retire()
        if served.service is self.own:
            self.own = self._service(server)
            self.own.on_view(self._view)

    # The primary's side

    def _peer(self, served: Served, place: scheduler_pb2.Place) -> Callable[[Journal], Peer]:
        return lambda journal: Peer(
            journal,
            place,
            self._view.job,
            connect=lambda: self._connect(place.backup_address),
            dump=lambda: dump(served.service),
            complete=self._complete,
        )

    async def _complete(self, place: scheduler_pb2.Place) -> None:
        request = scheduler_pb2.BackupReadyRequest(
            member=self.identity, server=place.server, epoch=place.epoch
        )
        await self._scheduler.call("BackupReady", request, timeout=5.0)

    # The backup's side

    async def Replicate(
        self, requests: AsyncIterator[pb.ReplicateRequest]
    ) -> AsyncIterator[pb.ReplicateReply]:
        """Keeps the backup of a server whose primary calls.

        Raises:
            FencedError: for an epoch that is over.
            WaitTimeoutError: no view has told of this epoch.
        """
        async for hello in requests:
            shadow = await self._shadow(hello)
            async for reply in shadow.follow(requests):
                yield reply

    async def _shadow(self, hello: pb.ReplicateRequest) -> Shadow:
        try:
            await asyncio.wait_for(self._heard_of(hello), VIEW_PATIENCE)
        except asyncio.TimeoutError:
            raise WaitTimeoutError(
                f"the view in which {hello.server} has epoch {hello.epoch} has not come here"
            ) from None
        async with self._turn:
            known = self._epochs.get(hello.server, 0)
            if (hello.job, hello.epoch) != (self._view.job, known) or hello.server in self._served:
                raise FencedError(
                    f"server {hello.server}, job {hello.job}, epoch {hello.epoch}: this is job "
                    f"{self._view.job}, epoch {known}; stop serving it"
                )
            shadow = self._shadows.get(hello.server)
            if shadow is None or shadow.epoch != hello.epoch:
                if shadow is not None:
                    shadow.close()
                shadow = Shadow(hello.server, hello.epoch, lambda: self._service(hello.server))
                self._shadows[hello.server] = shadow
            return shadow

    async def _heard_of(self, hello: pb.ReplicateRequest) -> None:
        while (self._view.job, self._epochs.get(hello.server, 0)) < (hello.job, hello.epoch):
            self._changed.clear()
            await self._changed.wait()

    # The end

    async def reset(self, *, keep: bool) -> None:
        """The scheduler gave this process up, or is another one: it begins empty.

        Args:
            keep: its own server stays as it is; a journal tells the scheduler so.
        """
        async with self._turn:
            if not keep:
                self._begin()
                self.own.reset()
            self._view = scheduler_pb2.View()
            self.own.views.forget()

    def close(self) -> None:
        """Ends threads and streams."""
        for served in self._served.values():
            served.retire()
        for shadow in self._shadows.values():
            shadow.close()
        self.own.close()
