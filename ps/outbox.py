"""Answers of one stream on their way out: small ones share a frame, slow readers are bounded."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from paramserver.config import Limits
from paramserver.errors import ConnectionLostError
from paramserver.failpoints import failpoint
from paramserver.ps.journal import Journal
from paramserver.v1 import server_pb2 as pb
from paramserver.wire.frames import Piece, encode


class Outbox:
    """A bounded queue in front of a writer; used on one event loop.

    Args:
        send: sends one frame.
        sent: told of the bytes of each.
        journal: nothing is sent before what it may depend on is kept.
    """

    def __init__(
        self,
        send: Callable[[bytes], Awaitable[None]],
        limits: Limits,
        sent: Callable[[int], None] = lambda size: None,
        journal: Journal | None = None,
    ) -> None:
        self._send = send
        self._limits = limits
        self._records: list[pb.Record] = []
        self._pieces: list[Piece] = []
        self._journal = journal
        self._frames: deque[tuple[bytes, int]] = deque()  # with their places in the journal
        self._queued = 0
        self._closed = False
        self._small = 0
        self._filled = asyncio.Event()
        self._sending = asyncio.Lock()  # a stream takes one message at a time
        self._room = asyncio.Event()
        self._room.set()
        self._sent = sent
        self._hurried: asyncio.Future[None] | None = None
        self._since: float | None = None  # when the send under way began

    def put(self, record: pb.Record, pieces: Sequence[Piece] = ()) -> None:
        """Queues a record; its pieces must not change any more."""
        self._records.append(record)
        if pieces:
            self._pieces.extend(pieces)
            self._small += sum(len(p) for p in pieces)
            if self._small >= self._limits.frame_bytes:
                self._flush()
        self._filled.set()

    def put_frame(self, frame: bytes) -> None:
        """Queues an encoded frame behind what was put before."""
        self._flush()
        self._enqueue(frame)
        self._filled.set()

    async def while_taken(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs ``work`` to its end, unless the reader takes nothing for too long.

        Raises:
            ConnectionLostError: it did not; ``work`` is cancelled. A client of ours asks again.
        """
        reading = asyncio.create_task(work)
        watch = asyncio.create_task(self._stalled())
        try:
            await asyncio.wait({reading, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                raise ConnectionLostError(
                    f"the reader took nothing for {self._limits.stall_s:g} s while {self._queued} "
                    "bytes waited for it; the stream is closed"
                )
            reading.result()
        finally:
            for task in (reading, watch):
                task.cancel()
            await asyncio.gather(reading, watch, return_exceptions=True)

    async def _stalled(self) -> None:
        """Returns when one frame has waited for the reader for too long."""
        loop = asyncio.get_running_loop()
        left = self._limits.stall_s
        while left > 0:
            await asyncio.sleep(left)
            since = self._since
            left = self._limits.stall_s - (0.0 if since is None else loop.time() - since)

    def close(self) -> None:
        """Nobody waits for room any more: the stream is over."""
        self._closed = True
        self._room.set()

    async def may_begin(self, request: int) -> None:
        """Returns when what begins now can be kept; tells the client if that may take a while.

        Raises:
            ResourceError: the disk was full for too long.
            InternalError: nothing will be kept any more.
        """
        if self._journal is None:
            return
        if self._journal.blocked:
            waiting = pb.Waiting(reason=self._journal.blocked)
            self.put_first(pb.Record(request=request, waiting=waiting))
        await self._journal.room()

    async def room(self) -> None:
        """Waits until a slow reader has taken what is queued for it."""
        await self._room.wait()

    async def write(self) -> None:
        """Sends what is queued, until cancelled."""
        while True:
            await self._filled.wait()
            await self.send()

    def put_first(self, record: pb.Record) -> None:
        """Sends a record that depends on nothing in the journal, ahead of all that waits for it."""
        self._queued += len(frame := encode([record], ()))
        self._frames.appendleft((frame, 0))
        self._hurried = asyncio.ensure_future(self._send_kept())

    async def send(self) -> None:
        """Sends what is queued; the caller need not wait for the writer's turn."""
        while True:
            await self._send_kept()
            if not self._frames or self._journal is None:
                return
            await self._journal.durable(self._frames[0][1])

    async def _send_kept(self) -> None:
        """Sends what depends on nothing that is not kept yet."""
        async with self._sending:
            self._filled.clear()
            self._flush()
            now = asyncio.get_running_loop().time
            while self._frames and self._is_kept(self._frames[0][1]):
                frame, _ = self._frames.popleft()
                if self._journal is not None:
                    failpoint("ps.before_reply")
                self._since = now()
                await self._send(frame)
                self._since = None
                self._sent(len(frame))
                self._queued -= len(frame)
                if self._queued <= self._limits.outbox_bytes:
                    self._room.set()

    def _is_kept(self, position: int) -> bool:
        return self._journal is None or self._journal.has(position)

    def _flush(self) -> None:
        if self._records:
            self._enqueue(encode(self._records, self._pieces))
            self._records, self._pieces, self._small = [], [], 0

    def _enqueue(self, frame: bytes) -> None:
        self._frames.append((frame, self._journal.position if self._journal else 0))
        self._queued += len(frame)
        if self._queued > self._limits.outbox_bytes and not self._closed:
            self._room.clear()
