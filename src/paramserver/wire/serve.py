"""Servicers bound to an asyncio gRPC server: errors become statuses, garbage a refusal."""

from __future__ import annotations

import asyncio
import logging
import signal
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Protocol, runtime_checkable

import grpc
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from paramserver.config import LOOPBACK
from paramserver.errors import ConfigurationError, InternalError, InvalidRequestError
from paramserver.errors import ParameterServerError as Refusal
from paramserver.wire.methods import Method
from paramserver.wire.options import SERVER_OPTIONS, tune_allocator
from paramserver.wire.status import to_status
from paramserver.wire.targets import called_server

log = logging.getLogger("paramserver")


Find = Callable[[Any], Any]  # from the metadata of a call


@runtime_checkable
class Hosts(Protocol):
    """Several servicers behind one port."""

    def hosted(self, name: str) -> object:
        """The one that is called ``name``; empty: the process's own.

        Raises:
            MovedError: it is not here.
        """


def as_refusal(error: Exception) -> Refusal:
    """An error fit for a peer: ours as it is, any other as INTERNAL with an id for the log."""
    if isinstance(error, Refusal):
        return error
    mark = uuid.uuid4().hex[:8]
    log.error("internal error %s", mark, exc_info=error)
    return InternalError(f"internal error {mark}: {type(error).__name__}; see the log of this role")


def parse(method: Method, message: bytes) -> Message:
    """The request of a call.

    Raises:
        InvalidRequestError: the bytes are no such message.
    """
    try:
        parsed: Message = method.request.FromString(message)
    except DecodeError as error:
        raise InvalidRequestError(f"{method.path}: not a {method.request.__name__}") from error
    return parsed


def _unary(method: Method, find: Find) -> Any:
    async def handle(message: bytes, context: Any) -> bytes:
        try:
            function = find(context.invocation_metadata())
            reply: bytes = (await function(parse(method, message))).SerializeToString()
            return reply
        except Exception as error:
            await context.abort_with_status(to_status(as_refusal(error)))
            raise AssertionError("abort raises") from None

    return grpc.unary_unary_rpc_method_handler(handle)


def _stream(method: Method, find: Find) -> Any:
    async def handle(message: bytes, context: Any) -> None:
        try:
            function = find(context.invocation_metadata())
            async for reply in function(parse(method, message)):
                await context.write(reply.SerializeToString())
        except Exception as error:
            await context.abort_with_status(to_status(as_refusal(error)))

    return grpc.unary_stream_rpc_method_handler(handle)


def _duplex(method: Method, find: Find) -> Any:
    async def parsed(messages: AsyncIterator[bytes]) -> AsyncIterator[Message]:
        async for message in messages:
            yield parse(method, message)

    async def handle(messages: AsyncIterator[bytes], context: Any) -> None:
        try:
            function = find(context.invocation_metadata())
            async for reply in function(parsed(messages)):
                await context.write(reply.SerializeToString())
        except Exception as error:
            await context.abort_with_status(to_status(as_refusal(error)))

    return grpc.stream_stream_rpc_method_handler(handle)


def _frames(find: Find) -> Any:
    async def handle(messages: AsyncIterator[bytes], context: Any) -> None:
        try:
            await find(context.invocation_metadata())(messages, context.write)
        except Exception as error:
            await context.abort_with_status(to_status(as_refusal(error)))

    return grpc.stream_stream_rpc_method_handler(handle)


def _handler(name: str, method: Method, servicer: object) -> Any:
    own = getattr(servicer, name, None)

    def find(metadata: Any) -> Any:
        """The function that a call is for: the process's, or of one of the servers it hosts."""
        if own is not None or not isinstance(servicer, Hosts):
            return own
        return getattr(servicer.hosted(called_server(metadata)), name)

    if name == "Exchange":
        return _frames(find)
    if method.client_streams:
        return _duplex(method, find)
    return _stream(method, find) if method.server_streams else _unary(method, find)


class RoleServer:
    """A gRPC server of one role, with health.

    Args:
        servicer: has a method for each rpc; being ``Hosts``, servicers by name for the others.
    """

    def __init__(self, service: str, methods: dict[str, Method], servicer: object) -> None:
        self._service = service
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        handlers = {name: _handler(name, m, servicer) for name, m in methods.items()}
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, handlers),)
        )
        self.health = HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)

    async def start(self, bind: str) -> int:
        """Listens on HOST:PORT; the port, chosen by the system for port 0.

        Raises:
            ConfigurationError: the address cannot be bound.
        """
        try:
            port: int = self._server.add_insecure_port(bind)
        except RuntimeError as error:
            raise ConfigurationError(
                f"cannot listen on {bind}: in use, or not an address of this host; "
                "choose another port, or port 0"
            ) from error
        await self._server.start()
        return port

    async def serving(self, up: bool) -> None:
        """Sets what health checks answer."""
        state = health_pb2.HealthCheckResponse
        status = state.SERVING if up else state.NOT_SERVING
        await self.health.set("", status)
        await self.health.set(self._service, status)

    async def stop(self, grace: float) -> None:
        """Refuses new calls, ends parked ones after ``grace`` seconds."""
        await self.serving(False)
        await self._server.stop(grace)


def split_address(address: str) -> tuple[str, int]:
    """Host and port of HOST:PORT.

    Raises:
        ConfigurationError: not HOST:PORT with a port from 0 to 65535.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ConfigurationError(f"address {address!r}: must be HOST:PORT, the port 0 to 65535")
    return host, int(port)


def is_loopback(address: str) -> bool:
    """Whether HOST:PORT can be reached from this machine only."""
    return split_address(address)[0] in LOOPBACK


async def run_until_ended(work: Coroutine[Any, Any, None], ended: asyncio.Event) -> bool:
    """Runs ``work`` until it returns, ``ended`` is set, or SIGTERM or SIGINT comes.

    Returns:
        Whether a signal ended it.
    """
    tune_allocator()
    loop = asyncio.get_running_loop()
    signalled = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled.set)
    tasks = [asyncio.ensure_future(t) for t in (work, ended.wait(), signalled.wait())]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
    return signalled.is_set()
