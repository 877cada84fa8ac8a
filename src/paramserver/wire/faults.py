"""Calls that go wrong as ``paramserver.rpc_chaos`` draws; used only while it is armed."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

import grpc

from paramserver.rpc_chaos import Chaos, Fate

T = TypeVar("T")
KEPT_STREAMS = 4  # of those that their client gave up, but whose server goes on


class Lost(grpc.RpcError):  # type: ignore[misc]  # grpc has no types
    """What gRPC would raise, had the network lost the call."""

    def __init__(self, fate: Fate) -> None:
        super().__init__(fate.value)
        self._fate = fate

    def code(self) -> grpc.StatusCode:
        """As of a call that could not be finished."""
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        """Which fault it was."""
        return f"rpc chaos: {self._fate.value}"

    def trailing_metadata(self) -> None:
        """The peer said nothing."""


_running: set[Any] = set()  # calls that fail here and go on there
_abandoned: deque[Any] = deque()
_lock = threading.Lock()


def call(
    chaos: Chaos, method: str, invoke: Any, request: Any, timeout: float, metadata: Any
) -> Any:
    """The reply of a blocking unary call, if all goes well."""
    fate = chaos.fate(method)
    if fate is Fate.REQUEST_LOST:
        raise Lost(fate)
    options = {"timeout": timeout, "wait_for_ready": True, "metadata": metadata}
    if fate is Fate.STILL_RUNNING:
        future = invoke.future(request, **options)
        _running.add(future)
        future.add_done_callback(_running.discard)
        raise Lost(fate)
    reply = invoke(request, **options)
    if fate is Fate.REPLY_LOST:
        raise Lost(fate)
    return reply


def exchange(chaos: Chaos, open_stream: Callable[[Iterator[bytes]], Any], out: Any) -> Stream:
    """A stream whose messages draw, on the way there and back."""
    return Stream(chaos, open_stream, out)


class Stream:
    """The client's end of a blocking stream; has what the stream layer asks of a gRPC call."""

    def __init__(
        self, chaos: Chaos, open_stream: Callable[[Iterator[bytes]], Any], out: Iterator[bytes]
    ) -> None:
        self._chaos = chaos
        self._lost: Fate | None = None
        self._opened = threading.Event()
        self._call = open_stream(self._outgoing(out))
        self._opened.set()

    def _outgoing(self, out: Iterator[bytes]) -> Iterator[bytes]:
        for frame in out:
            fate = self._chaos.fate("Exchange", message=True)
            if fate in (Fate.REQUEST_LOST, Fate.REPLY_LOST):
                self._lost = fate
                if fate is Fate.REPLY_LOST:
                    yield frame
                self._opened.wait()  # gRPC's thread may be here before the call is known there
                self._call.cancel()
                return
            yield frame

    def __iter__(self) -> Iterator[bytes]:
        try:
            for message in self._call:
                fate = self._chaos.fate("Exchange", message=True)
                if fate is Fate.STILL_RUNNING:
                    self._lost = fate
                    _abandon(self._call)
                    raise Lost(fate)
                if fate is not Fate.WELL:
                    self._lost = fate
                    self._call.cancel()
                    raise Lost(fate)
                yield message
        except grpc.RpcError:
            if self._lost is not None:
                raise Lost(self._lost) from None
            raise

    def cancel(self) -> None:
        """As of a gRPC call."""
        self._call.cancel()


def _abandon(stream: Any) -> None:
    """Its client reads it no more; its server learns that only when later ones are given up."""
    with _lock:
        _abandoned.append(stream)
        old = _abandoned.popleft() if len(_abandoned) > KEPT_STREAMS else None
    if old is not None:
        old.cancel()


async def acall(chaos: Chaos, method: str, invoke: Callable[[], Awaitable[T]]) -> T:
    """The reply of a unary call on an event loop, if all goes well."""
    fate = chaos.fate(method)
    if fate is Fate.REQUEST_LOST:
        raise Lost(fate)
    if fate is Fate.STILL_RUNNING:
        task = asyncio.ensure_future(_quiet(invoke()))
        _running.add(task)
        task.add_done_callback(_running.discard)
        raise Lost(fate)
    reply = await invoke()
    if fate is Fate.REPLY_LOST:
        raise Lost(fate)
    return reply


async def _quiet(work: Awaitable[object]) -> None:
    with suppress(grpc.RpcError):
        await work


async def astream(chaos: Chaos, method: str, stream: Any) -> AsyncIterator[Any]:
    """The messages of a stream on an event loop, until one is lost."""
    async for message in stream:
        fate = chaos.fate(method, message=True)
        if fate is not Fate.WELL:
            stream.cancel()
            raise Lost(fate)
        yield message
