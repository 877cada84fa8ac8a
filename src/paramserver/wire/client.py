"""gRPC channels for clients, which block, and for roles, which await."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
from google.protobuf.message import Message

from paramserver.errors import ConnectionLostError
from paramserver.wire.methods import METHODS
from paramserver.wire.options import CLIENT_OPTIONS, tune_allocator
from paramserver.wire.status import from_rpc_error
from paramserver.wire.targets import call_target
from paramserver.wire.transport import Channel, FrameStream

LINGER_S = 2.0  # that closing waits for gRPC's threads


class _GrpcStream:
    def __init__(self, call: Any, peer: str) -> None:
        self._call = call
        self._peer = peer

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._call
        except grpc.RpcError as error:
            raise from_rpc_error(error, self._peer) from None

    def cancel(self) -> None:
        self._call.cancel()


class GrpcChannel:
    """A connection to one peer, kept open; thread-safe.

    Args:
        address: HOST:PORT, or HOST:PORT/NAME of one of several servers that a process hosts.
    """

    def __init__(self, address: str, peer: str = "") -> None:
        self._peer = f"{peer or 'peer'} at {address}"
        target, self._metadata = call_target(address)
        self._channel = grpc.insecure_channel(target, options=CLIENT_OPTIONS)
        self._calls = {
            name: self._channel.unary_unary(
                m.path,
                request_serializer=m.request.SerializeToString,
                response_deserializer=m.reply.FromString,
            )
            for name, m in METHODS.items()
            if not m.client_streams and not m.server_streams
        }
        self._exchange = self._channel.stream_stream(METHODS["Exchange"].path)
        self._threads: list[threading.Thread] = []  # those that gRPC started for our streams

    def call(self, method: str, request: Message, *, timeout: float = 30.0) -> Any:
        """The reply of a unary rpc; tried again until ``timeout`` while the peer is away."""
        deadline = time.monotonic() + timeout
        pause = 0.05
        while True:
            left = deadline - time.monotonic()
            try:
                return self._calls[method](
                    request,
                    timeout=max(left, 0.001),
                    wait_for_ready=True,
                    metadata=self._metadata,
                )
            except grpc.RpcError as error:
                cause = from_rpc_error(error, self._peer)
                if not isinstance(cause, ConnectionLostError) or left <= pause:
                    raise cause from None
            time.sleep(pause)
            pause = min(2 * pause, 1.0)

    def exchange(self, outgoing: Iterator[bytes]) -> FrameStream:
        """Opens ``Exchange``; fails at once when the peer is not there."""
        before = set(threading.enumerate())
        stream = _GrpcStream(self._exchange(outgoing, metadata=self._metadata), self._peer)
        self._threads = [t for t in self._threads if t.is_alive()]
        self._threads += [t for t in threading.enumerate() if t not in before and _is_grpc(t)]
        return stream

    def close(self) -> None:
        """Closes the connection; calls under way end with ConnectionLostError.

        Returns when gRPC's threads have ended: an interpreter that ends under them aborts.
        """
        self._channel.close()
        deadline = time.monotonic() + LINGER_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))


def _is_grpc(thread: threading.Thread) -> bool:
    return thread.daemon and thread.name.endswith("(_run)")


def scheduler_channel(address: str) -> Channel:
    """A channel to the scheduler at HOST:PORT."""
    return GrpcChannel(address, "scheduler")


class GrpcTransport:
    """Reaches a cluster whose scheduler is at HOST:PORT; one channel per server."""

    def __init__(self, address: str) -> None:
        tune_allocator()
        self._lock = threading.Lock()
        self._scheduler = scheduler_channel(address)
        self._servers: dict[str, Channel] = {}

    def scheduler(self) -> Channel:
        """The channel to the scheduler."""
        return self._scheduler

    def server(self, address: str) -> Channel:
        """The channel to the server at HOST:PORT."""
        with self._lock:
            if address not in self._servers:
                self._servers[address] = GrpcChannel(address, "server")
            return self._servers[address]

    def close(self) -> None:
        """Closes all channels."""
        self._scheduler.close()
        with self._lock:
            for channel in self._servers.values():
                channel.close()
            self._servers.clear()


class AsyncGrpcChannel:
    """A connection to one peer for a role; used on the role's event loop only."""

    def __init__(self, address: str, peer: str = "peer") -> None:
        self._peer = f"{peer} at {address}"
        target, self._metadata = call_target(address)
        self._channel = grpc.aio.insecure_channel(target, options=CLIENT_OPTIONS)

    async def call(self, method: str, request: Message, *, timeout: float = 30.0) -> Any:
        """The reply of a unary rpc; waits for the peer to be there, but tries once."""
        m = METHODS[method]
        call = self._channel.unary_unary(m.path, m.request.SerializeToString, m.reply.FromString)
        try:
            return await call(
                request, timeout=timeout, wait_for_ready=True, metadata=self._metadata
            )
        except grpc.RpcError as error:
            raise from_rpc_error(error, self._peer) from None

    async def stream(self, method: str, request: Message) -> AsyncIterator[Any]:
        """The replies of a server-streaming rpc."""
        m = METHODS[method]
        call = self._channel.unary_stream(m.path, m.request.SerializeToString, m.reply.FromString)
        try:
            async for reply in call(request, metadata=self._metadata):
                yield reply
        except grpc.RpcError as error:
            raise from_rpc_error(error, self._peer) from None

    async def duplex(self, method: str, requests: AsyncIterator[Message]) -> AsyncIterator[Any]:
        """The replies of a bidirectional rpc. Ends with what ``requests`` raises, too."""
        m = METHODS[method]
        open_ = self._channel.stream_stream(m.path, m.request.SerializeToString, m.reply.FromString)
        call = open_(metadata=self._metadata)
        writer = asyncio.create_task(_write(call, requests))
        try:
            async for reply in call:
                yield reply
        except grpc.RpcError as error:
            raise from_rpc_error(error, self._peer) from None
        except asyncio.CancelledError:
            if writer.done() and not writer.cancelled():
                writer.result()
            raise
        finally:
            writer.cancel()
            await asyncio.wait({writer})
            call.cancel()

    async def close(self) -> None:
        """Closes the connection."""
        await self._channel.close()


async def _write(call: Any, requests: AsyncIterator[Message]) -> None:
    """Sends requests until the call ends; who reads it hears why."""
    try:
        async for request in requests:
            await call.write(request)
        await call.done_writing()
    except (grpc.RpcError, asyncio.InvalidStateError):
        return
    except Exception:
        call.cancel()
        raise
