"""Servicers bound to an asyncio gRPC server: errors become statuses, garbage a refusal."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Protocol, runtime_checkable

import grpc
from google.protobuf.message import DecodeError, Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

from paramserver.errors import ConfigurationError, InternalError, InvalidRequestError
from paramserver.errors import ParameterServerError as Refusal
from paramserver.trust import OPEN, Trust
from paramserver.wire.credentials import server_credentials
from paramserver.wire.guard import SPEAKER, Guard, TokenInterceptor
from paramserver.wire.methods import Method
from paramserver.wire.options import server_options, tune_allocator
from paramserver.wire.permissions import check_request
from paramserver.wire.seal import sealed, unsealed
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
        ConnectionLostError: they were damaged on the way.
    """
    try:
        parsed: Message = method.request.FromString(unsealed(message))
    except DecodeError as error:
        raise InvalidRequestError(f"{method.path}: not a {method.request.__name__}") from error
    return parsed


class _Door:
    """One rpc's way in: who calls is known, and may, before the body is parsed."""

    def __init__(self, method: Method, guard: Guard) -> None:
        self.method = method
        self._guard = None if guard.is_open else guard

    def open(self, context: Any) -> Callable[[bytes], Message]:
        """What parses the messages of this call, and checks that the caller is whom they say.

        Raises:
            PermissionDeniedError: the caller may not call this rpc.
        """
        guard, method = self._guard, self.method
        if guard is None:
            return lambda message: parse(method, message)
        caller = guard.admit(method.path, context)
        SPEAKER.set(caller)  # frames are not parsed here, nor is it known who a name is

        def checked(message: bytes) -> Message:
            request = parse(method, message)
            try:
                check_request(caller.role, caller.name, request)
            except Refusal as error:
                guard.tell(context.peer(), method.path, error)
                raise
            return request

        return checked


def _unary(door: _Door, find: Find) -> Any:
    async def handle(message: bytes, context: Any) -> bytes:
        try:
            request = door.open(context)(message)
            return sealed(await find(context)(request))
        except Exception as error:
            await context.abort_with_status(to_status(as_refusal(error)))
            raise AssertionError("abort raises") from None

    return grpc.unary_unary_rpc_method_handler(handle)


def _stream(door: _Door, find: Find) -> Any:
    async def handle(message: bytes, context: Any) -> None:
        try:
            request = door.open(context)(message)
            async for reply in find(context)(request):
                await context.write(sealed(reply))
        except Exception as error:
            await context.abort_with_status(to_status(as_refusal(error)))

    return grpc.unary_stream_rpc_method_handler(handle)


def _duplex(door: _Door, find: Find) -> Any:
    async def handle(messages: AsyncIterator[bytes], context: Any) -> None:
        try:
            read = door.open(context)
            requests = (read(message) async for message in messages)
            async for reply in find(context)(requests):
                await context.write(reply.SerializeToString())
        except Exception as error:
            await context.abort_with_status(to_status(as_refusal(error)))

    return grpc.stream_stream_rpc_method_handler(handle)


def _frames(door: _Door, find: Find) -> Any:
    async def handle(messages: AsyncIterator[bytes], context: Any) -> None:
        try:
            door.open(context)
            await find(context)(messages, context.write)
        except Exception as error:
            if context.cancelled():  # the client has left; its next stream tells all of it again
                log.debug("a stream broke: %s", error)
                return
            await context.abort_with_status(to_status(as_refusal(error)))

    return grpc.stream_stream_rpc_method_handler(handle)


def _handler(name: str, method: Method, servicer: object, guard: Guard) -> Any:
    own, door = getattr(servicer, name, None), _Door(method, guard)

    def find(context: Any) -> Any:
        """The function that a call is for: the process's, or of one of the servers it hosts."""
        if own is not None or not isinstance(servicer, Hosts):
            return own
        return getattr(servicer.hosted(called_server(context.invocation_metadata())), name)

    if name == "Exchange":
        return _frames(door, find)
    if method.client_streams:
        return _duplex(door, find)
    return _stream(door, find) if method.server_streams else _unary(door, find)


class RoleServer:
    """A gRPC server of one role, with health; lets in whom ``trust`` says.

    Args:
        servicer: has a method for each rpc; being ``Hosts``, servicers by name for the others.
    """

    def __init__(
        self,
        service: str,
        methods: dict[str, Method],
        servicer: object,
        trust: Trust = OPEN,
    ) -> None:
        self._service = service
        self._trust = trust
        guard = Guard(trust)
        self._server = grpc.aio.server(
            options=server_options(encrypted=trust.tls is not None),
            interceptors=[TokenInterceptor(guard)] if trust.token else None,
        )
        handlers = {name: _handler(name, m, servicer, guard) for name, m in methods.items()}
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, handlers),)
        )
        self.health = HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)

    async def start(self, bind: str) -> int:
        """Listens on HOST:PORT; the port, chosen by the system for port 0.

        Raises:
            ConfigurationError: the address cannot be bound, or the certificates cannot be used.
        """
        tls = self._trust.tls
        credentials = None if tls is None else server_credentials(tls)
        try:
            port: int
            if credentials is None:
                port = self._server.add_insecure_port(bind)
            else:
                port = self._server.add_secure_port(bind, credentials)
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


async def run_until_ended(work: Coroutine[Any, Any, None], ended: asyncio.Event) -> bool:
    """Runs ``work`` until it returns, ``ended`` is set, or SIGTERM or SIGINT comes.

    A second signal ends the process at once.

    Returns:
        Whether a signal ended it.
    """
    tune_allocator()
    loop = asyncio.get_running_loop()
    signalled = asyncio.Event()

    def hear(number: int) -> None:
        if signalled.is_set():
            os._exit(128 + number)
        signalled.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, hear, number)
    tasks = [asyncio.ensure_future(t) for t in (work, ended.wait(), signalled.wait())]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
    return signalled.is_set()
