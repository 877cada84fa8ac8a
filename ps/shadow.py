"""The backup of a server: what its primary's journal tells, applied as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Generic, Protocol, TypeVar

from paramserver.errors import FencedError, InvalidRequestError
from paramserver.v1 import server_pb2 as pb


class Copy(Protocol):
    """What a shadow fills."""

    async def apply(self, data: bytes) -> None:
        """One entry; raises InvalidRequestError for bytes that are none."""

    def close(self) -> None: ...


T = TypeVar("T", bound=Copy)


class Shadow(Generic[T]):
    """One server's backup, under one epoch.

    Args:
        make: an empty copy of the server.

    Attributes:
        copy: what was applied so far.
        applied: number of the newest entry applied.
    """

    def __init__(self, server: str, epoch: int, make: Callable[[], T]) -> None:
        self.server, self.epoch = server, epoch
        self.copy = make()
        self.applied = 0
        self._make = make
        self._part = b""
        self._stream = 0  # the newest; older ones change nothing
        self._lock = asyncio.Lock()
        self._over = False

    async def follow(
        self, requests: AsyncIterator[pb.ReplicateRequest]
    ) -> AsyncIterator[pb.ReplicateReply]:
        """Applies what comes, and says how far.

        Raises:
            FencedError: this epoch is over, or the primary has opened a newer stream.
            InvalidRequestError: entries are missing in between.
        """
        self._stream += 1
        stream, self._part = self._stream, b""
        yield pb.ReplicateReply(applied=self.applied)
        async for request in requests:
            async with self._lock:
                if self._over or stream != self._stream:
                    raise FencedError(f"server {self.server}: epoch {self.epoch} is over")
                await self._take(request)
            yield pb.ReplicateReply(applied=self.applied)

    async def _take(self, request: pb.ReplicateRequest) -> None:
        if request.fill:
            self.copy.close()
            self.copy, self.applied = self._make(), 0
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
            await self.copy.apply(data)
            self.applied = number

    async def end(self, finish: Callable[[T], Awaitable[None]] | None = None) -> None:
        """Applies nothing more; ``finish`` takes the copy, else it is freed."""
        async with self._lock:
            self._over = True
            if finish is not None:
                await finish(self.copy)
            else:
                self.copy.close()
