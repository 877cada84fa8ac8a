"""The backup of a server: what its primary's journal tells, applied as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from paramserver.errors import FencedError, InvalidRequestError
from paramserver.failpoints import failpoint
from paramserver.ps.replay import Replay
from paramserver.ps.service import ServerService
from paramserver.v1 import server_pb2 as pb


class Shadow:
    """One server's backup, under one epoch.

    Args:
        make: an empty server of that name.

    Attributes:
        applied: number of the newest entry applied.
    """

    def __init__(self, server: str, epoch: int, make: Callable[[], ServerService]) -> None:
        self.server, self.epoch = server, epoch
        self.applied = 0
        self._make = make
        self._service = make()
        self._replay = Replay(self._service)
        self._part = b""
        self._stream = 0  # the newest; older ones change nothing
        self._lock = asyncio.Lock()
        self._over = False
        self._work: asyncio.Future[None] | None = None

    async def follow(
        self, requests: AsyncIterator[pb.ReplicateRequest]
    ) -> AsyncIterator[pb.ReplicateReply]:
        """Applies what comes, and says how far.

        Raises:
            FencedError: this epoch is over, or the primary has opened a newer stream.
            InvalidRequestError: entries are missing in between.
        """
        self._stream += 1
        stream = self._stream
        async with self._lock:
            self._part = b""
        yield pb.ReplicateReply(applied=self.applied)
        async for request in requests:
            # A stream that ends must not leave an entry half applied.
            self._work = asyncio.ensure_future(self._take(stream, request))
            await asyncio.shield(self._work)
            yield pb.ReplicateReply(applied=self.applied)

    async def _take(self, stream: int, request: pb.ReplicateRequest) -> None:
        async with self._lock:
            if self._over or stream != self._stream:
                raise FencedError(f"server {self.server}: epoch {self.epoch} is over")
            await self._apply(request)

    async def _apply(self, request: pb.ReplicateRequest) -> None:
        if request.fill:
            self._service.close()
            self._service = self._make()
            self._replay, self.applied = Replay(self._service), 0
        for number, record in enumerate(request.records, request.number):
            if number <= self.applied:
                continue  # sent again
            if number != self.applied + 1:
                raise InvalidRequestError(
                    f"server {self.server}: entry {number} after {self.applied}: some are missing"
                )
            self._part += record
            if request.more:  # the only one, then
                return
            data, self._part = self._part, b""
            position = request.position + (number - request.number)
            await self._replay.apply(position, data)
            failpoint("ps.after_shadow")
            self.applied = number

    @property
    def position(self) -> int:
        """In the journal, of the newest entry applied."""
        return self._replay.position

    async def end(self) -> ServerService:
        """Applies nothing more; the server as it is."""
        async with self._lock:
            self._over = True
            return self._service

    def close(self) -> None:
        """Frees it."""
        self._over = True
        self._service.close()
