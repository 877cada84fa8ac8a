"""A cluster inside this process: the same scheduler and server, reached without gRPC or a port."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as NotYet
from typing import Any, TypeVar

from google.protobuf.message import Message

from paramserver.config import SchedulerConfig, ServerConfig
from paramserver.errors import ConnectionLostError
from paramserver.ps.role import ServerRole
from paramserver.scheduler.service import SchedulerService
from paramserver.wire.serve import as_refusal
from paramserver.wire.transport import Channel, FrameStream

T = TypeVar("T")

ADDRESS = "embedded"
FRAMES_AHEAD = 4


class _Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self.loop.run_forever, name="paramserver embedded", daemon=True
        )
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """The result of work on the loop.

        Raises:
            ConnectionLostError: none within ``timeout`` seconds, or the loop was closed meanwhile.
        """
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result(timeout)
        except NotYet:
            if future.done():
                raise
            future.cancel()
            raise ConnectionLostError(
                f"the embedded cluster did not answer in {timeout} s"
            ) from None
        except CancelledError:
            raise ConnectionLostError("the embedded cluster was closed") from None

    def close(self) -> None:
        """Ends all work under way."""
        self.run(_cancel_all(), 5.0)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(5.0)
        self.loop.close()


async def _cancel_all() -> None:
    tasks = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class _DirectChannel:
    """Calls a servicer on its own loop; what roles use among themselves."""

    def __init__(self, servicer: Any) -> None:
        self._servicer = servicer

    async def call(self, method: str, request: Message, *, timeout: float = 30.0) -> Any:
        return await asyncio.wait_for(getattr(self._servicer, method)(request), timeout)

    def stream(self, method: str, request: Message) -> AsyncIterator[Any]:
        replies: AsyncIterator[Any] = getattr(self._servicer, method)(request)
        return replies

    def duplex(self, method: str, requests: AsyncIterator[Message]) -> AsyncIterator[Any]:
        replies: AsyncIterator[Any] = getattr(self._servicer, method)(requests)
        return replies

    async def close(self) -> None:
        """Nothing to close."""


class _Stream:
    """An Exchange with a servicer of this process, seen from a client's threads."""

    def __init__(self, loop: _Loop, servicer: Any, outgoing: Iterator[bytes]) -> None:
        self._received: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._loop = loop
        self._frames: asyncio.Queue[bytes | None] = asyncio.Queue(FRAMES_AHEAD)
        self._task = asyncio.run_coroutine_threadsafe(self._exchange(servicer), loop.loop)
        self._sender = threading.Thread(target=self._send, args=(outgoing,), daemon=True)
        self._sender.start()

    async def _exchange(self, servicer: Any) -> None:
        try:
            await servicer.Exchange(self._incoming(), self._put)
        finally:
            self._received.put(None)

    async def _put(self, frame: bytes) -> None:
        self._received.put(frame)

    async def _incoming(self) -> AsyncIterator[bytes]:
        while (frame := await self._frames.get()) is not None:
            yield frame

    def _send(self, outgoing: Iterator[bytes]) -> None:
        for frame in outgoing:
            if self._task.done():
                return
            asyncio.run_coroutine_threadsafe(self._frames.put(frame), self._loop.loop).result()

    def __iter__(self) -> Iterator[bytes]:
        while (frame := self._received.get()) is not None:
            yield frame
        if not self._task.cancelled() and (error := self._task.exception()) is not None:
            raise as_refusal(error) if isinstance(error, Exception) else error
        raise ConnectionLostError("the embedded cluster was closed")

    def cancel(self) -> None:
        self._task.cancel()


class _EmbeddedChannel:
    """To a servicer on the cluster's loop, from any other thread."""

    def __init__(self, loop: _Loop, servicer: Any) -> None:
        self._loop = loop
        self._servicer = servicer

    def call(self, method: str, request: Message, *, timeout: float = 30.0) -> Any:
        try:
            return self._loop.run(getattr(self._servicer, method)(request), timeout)
        except ConnectionLostError:
            raise
        except Exception as error:
            raise as_refusal(error) from error

    def exchange(self, outgoing: Iterator[bytes]) -> FrameStream:
        return _Stream(self._loop, self._servicer, outgoing)

    def close(self) -> None:
        """Nothing to close."""


class EmbeddedTransport:
    """A scheduler and one server in this process, for one worker."""

    def __init__(self) -> None:
        self._loop = _Loop()
        self._tasks: list[asyncio.Task[None]] = []
        self._scheduler, self._role = self._loop.run(self._start())

    async def _start(self) -> tuple[SchedulerService, ServerRole]:
        servers: dict[str, Any] = {}
        scheduler = SchedulerService(
            SchedulerConfig(), connect=lambda address: _DirectChannel(servers[address])
        )
        role = ServerRole(
            ServerConfig(scheduler=ADDRESS),
            _DirectChannel(scheduler),
            lambda address: _DirectChannel(servers[address]),
        )
        servers[ADDRESS] = role.service
        self._tasks.append(asyncio.create_task(scheduler.run()))
        await role.register(ADDRESS)
        self._tasks.append(asyncio.create_task(role.run()))
        return scheduler, role

    def scheduler(self) -> Channel:
        """The channel to the scheduler."""
        return _EmbeddedChannel(self._loop, self._scheduler)

    def server(self, address: str) -> Channel:
        """The channel to the only server."""
        return _EmbeddedChannel(self._loop, self._role.service)

    def close(self) -> None:
        """Ends the cluster."""
        self._loop.close()
        self._role.service.close()
