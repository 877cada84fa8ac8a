"""gRPC channels for clients, which block, and for roles, which await."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import Message

from paramserver import rpc_chaos
from paramserver.errors import AuthenticationError, ConnectionLostError
from paramserver.trust import OPEN, Trust
from paramserver.wire import faults
from paramserver.wire.credentials import Watched, call_metadata, channel_credentials
from paramserver.wire.diagnose import check_reachable
from paramserver.wire.methods import METHODS
from paramserver.wire.options import CLIENT_OPTIONS, tune_allocator
from paramserver.wire.seal import sealed, unsealed
from paramserver.wire.status import from_rpc_error
from paramserver.wire.targets import call_target
from paramserver.wire.transport import Channel, FrameStream

RETIRED = 2  # connections with older certificates that are kept for the streams on them
LINGER_S = 2.0  # that closing waits for gRPC's threads
FIRST_PAUSE_S, LAST_PAUSE_S = 0.05, 1.0  # between tries of a call


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


class _Connection:
    """One channel of gRPC with one set of certificates."""

    def __init__(self, address: str, certificates: Watched | None) -> None:
        if certificates is None:
            self.channel = grpc.insecure_channel(address, options=CLIENT_OPTIONS)
        else:
            credentials = channel_credentials(certificates.pems)
            self.channel = grpc.secure_channel(address, credentials, options=CLIENT_OPTIONS)
        self.calls = {
            name: self.channel.unary_unary(m.path, request_serializer=sealed)
            for name, m in METHODS.items()
            if not m.client_streams and not m.server_streams
        }
        self.exchange = self.channel.stream_stream(METHODS["Exchange"].path)


class GrpcChannel:
    """A connection to one peer, kept open; thread-safe.

    Args:
        address: HOST:PORT, or HOST:PORT/NAME of one of several servers that a process hosts.

    Raises:
        ConfigurationError: the certificates cannot be used, or a token would travel in clear.
    """

    def __init__(self, address: str, peer: str = "", trust: Trust = OPEN) -> None:
        self._address = call_target(address)[0]
        self._name = peer or "peer"
        self._peer = f"{self._name} at {address}"
        self._trust = trust
        self._metadata = call_metadata(trust, address)
        self._certificates = None if trust.tls is None else Watched(trust.tls)
        self._connection = _Connection(self._address, self._certificates)
        self._retired: list[_Connection] = []
        self._met = False  # the peer has answered once
        self._threads: list[threading.Thread] = []  # those that gRPC started for our streams

    def _newest(self) -> _Connection:
        """The connection, made anew when the certificates have changed."""
        if self._certificates is not None and self._certificates.changed():
            self._retired.append(self._connection)
            self._connection = _Connection(self._address, self._certificates)
            while len(self._retired) > RETIRED:  # servers end connections that grow old
                self._retired.pop(0).channel.close()
        return self._connection

    def call(self, method: str, request: Message, *, timeout: float = 30.0) -> Any:
        """The reply of a unary rpc; tried again until ``timeout`` while the peer is away."""
        deadline = time.monotonic() + timeout
        pause = FIRST_PAUSE_S
        while True:
            left = deadline - time.monotonic()
            try:
                data = unsealed(self._once(method, request, max(left, 0.001)))
                self._met = True
                return METHODS[method].reply.FromString(data)
            except (grpc.RpcError, ConnectionLostError) as error:
                cause = self._cause(error)
                if not isinstance(cause, ConnectionLostError):
                    raise cause from None
                if left <= pause:
                    self._explain()
                    raise cause from None
            time.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE_S)

    def _cause(self, error: grpc.RpcError | ConnectionLostError) -> Exception:
        if isinstance(error, ConnectionLostError):
            return error
        return from_rpc_error(error, self._peer)

    def _once(self, method: str, request: Message, timeout: float) -> Any:
        call, metadata = self._newest().calls[method], self._metadata
        if rpc_chaos.armed is not None:
            return faults.call(rpc_chaos.armed, method, call, request, timeout, metadata)
        return call(request, timeout=timeout, wait_for_ready=True, metadata=metadata)

    def exchange(self, outgoing: Iterator[bytes]) -> FrameStream:
        """Opens ``Exchange``; fails at once when the peer is not there."""
        before = set(threading.enumerate())
        newest = partial(self._newest().exchange, metadata=self._metadata)
        if rpc_chaos.armed is not None:
            call: Any = faults.exchange(rpc_chaos.armed, newest, outgoing)
        else:
            call = newest(outgoing)
        stream = _GrpcStream(call, self._peer)
        self._threads = [t for t in self._threads if t.is_alive()]
        self._threads += [t for t in threading.enumerate() if t not in before and _is_grpc(t)]
        return stream

    def _explain(self) -> None:
        if not self._met:
            check_reachable(self._address, self._trust, self._name)

    def close(self) -> None:
        """Closes the connection; calls under way end with ConnectionLostError.

        Returns when gRPC's threads have ended: an interpreter that ends under them aborts.
        """
        for connection in (*self._retired, self._connection):
            connection.channel.close()
        deadline = time.monotonic() + LINGER_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))


def _is_grpc(thread: threading.Thread) -> bool:
    return thread.daemon and thread.name.endswith("(_run)")


def scheduler_channel(address: str, trust: Trust) -> Channel:
    """A channel to the scheduler at HOST:PORT."""
    return GrpcChannel(address, "scheduler", trust)


class GrpcTransport:
    """Reaches a cluster whose scheduler is at HOST:PORT; one channel per server.

    Raises:
        AuthenticationError: a scheduler is there, but TLS with it cannot work.
        ConfigurationError: the certificates cannot be used, or a token would travel in clear.
    """

    def __init__(self, address: str, trust: Trust) -> None:
        tune_allocator()
        self._trust = trust
        self._lock = threading.Lock()
        self._scheduler = scheduler_channel(address, trust)
        self._servers: dict[str, Channel] = {}
        check_reachable(address, trust, "scheduler")

    def scheduler(self) -> Channel:
        """The channel to the scheduler."""
        return self._scheduler

    def server(self, address: str) -> Channel:
        """The channel to the server at HOST:PORT.

        Raises:
            AuthenticationError: a server is there, but TLS with it cannot work.
        """
        with self._lock:
            if address not in self._servers:
                if self._trust.tls is not None:
                    check_reachable(address, self._trust, "server")
                self._servers[address] = GrpcChannel(address, "server", self._trust)
            return self._servers[address]

    def close(self) -> None:
        """Closes all channels."""
        self._scheduler.close()
        with self._lock:
            for channel in self._servers.values():
                channel.close()
            self._servers.clear()


class AsyncGrpcChannel:
    """A connection to one peer for a role; used on the role's event loop only.

    Raises:
        ConfigurationError: the certificates cannot be used, or a token would travel in clear.
    """

    def __init__(self, address: str, peer: str = "peer", trust: Trust = OPEN) -> None:
        self._address = call_target(address)[0]
        self._name = peer
        self._peer = f"{peer} at {address}"
        self._trust = trust
        self._metadata = call_metadata(trust, address)
        self._certificates = None if trust.tls is None else Watched(trust.tls)
        self._channel = self._open()
        self._retired: list[Any] = []
        self._met = False  # the peer has answered once

    def _open(self) -> Any:
        if self._certificates is None:
            return grpc.aio.insecure_channel(self._address, options=CLIENT_OPTIONS)
        credentials = channel_credentials(self._certificates.pems)
        return grpc.aio.secure_channel(self._address, credentials, options=CLIENT_OPTIONS)

    async def _newest(self) -> Any:
        """The channel, made anew when the certificates have changed."""
        if self._certificates is not None and self._certificates.changed():
            self._retired.append(self._channel)
            self._channel = self._open()
            while len(self._retired) > RETIRED:
                await self._retired.pop(0).close()
        return self._channel

    async def _cause(self, error: grpc.RpcError | ConnectionLostError) -> Exception:
        """The error to raise; the reason that gRPC does not tell, if the peer never answered."""
        if isinstance(error, ConnectionLostError):
            return error
        cause = from_rpc_error(error, self._peer)
        if isinstance(cause, ConnectionLostError) and not self._met:
            try:
                await asyncio.to_thread(check_reachable, self._address, self._trust, self._name)
            except AuthenticationError as found:
                return found
        return cause

    async def call(self, method: str, request: Message, *, timeout: float = 30.0) -> Any:
        """The reply of a unary rpc; tried again until ``timeout`` while the peer is away."""
        m = METHODS[method]
        deadline = time.monotonic() + timeout
        pause = FIRST_PAUSE_S
        while True:
            left = deadline - time.monotonic()
            call = (await self._newest()).unary_unary(m.path, sealed)
            call = partial(call, metadata=self._metadata)
            try:
                data = unsealed(await _once(method, call, request, max(left, 0.001)))
                self._met = True
                return m.reply.FromString(data)
            except (grpc.RpcError, ConnectionLostError) as error:
                lost = isinstance(error, ConnectionLostError)
                cause = error if lost else from_rpc_error(error, self._peer)
                if not isinstance(cause, ConnectionLostError) or left <= pause:
                    raise await self._cause(error) from None
            await asyncio.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE_S)

    async def stream(self, method: str, request: Message) -> AsyncIterator[Any]:
        """The replies of a server-streaming rpc."""
        m = METHODS[method]
        call = (await self._newest()).unary_stream(m.path, sealed)
        try:
            async for data in _read(method, call(request, metadata=self._metadata)):
                yield m.reply.FromString(unsealed(data))
        except grpc.RpcError as error:
            raise await self._cause(error) from None

    async def duplex(self, method: str, requests: AsyncIterator[Message]) -> AsyncIterator[Any]:
        """The replies of a bidirectional rpc. Ends with what ``requests`` raises, too."""
        m = METHODS[method]
        call = (await self._newest()).stream_stream(
            m.path, m.request.SerializeToString, m.reply.FromString
        )
        opened = call(metadata=self._metadata)
        writer = asyncio.create_task(_write(opened, requests))
        try:
            async for reply in _read(method, opened):
                yield reply
        except grpc.RpcError as error:
            raise await self._cause(error) from None
        except asyncio.CancelledError:
            if writer.done() and not writer.cancelled():
                writer.result()
            raise
        finally:
            writer.cancel()
            await asyncio.wait({writer})
            opened.cancel()

    async def close(self) -> None:
        """Closes the connection."""
        for channel in (*self._retired, self._channel):
            await channel.close()


async def _once(method: str, call: Any, request: Message, timeout: float) -> Any:
    def invoke() -> Any:
        return call(request, timeout=timeout, wait_for_ready=True)

    if rpc_chaos.armed is not None:
        return await faults.acall(rpc_chaos.armed, method, invoke)
    return await invoke()


def _read(method: str, stream: Any) -> Any:
    return stream if rpc_chaos.armed is None else faults.astream(rpc_chaos.armed, method, stream)


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
