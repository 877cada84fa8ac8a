"""The seam between a client and its peers: calls, and frames in and out.

gRPC is one implementation (``wire.client``), the cluster inside this process another
(``paramserver.embedded``).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any, Protocol

from google.protobuf.message import Message


class FrameStream(Protocol):
    """One ``Exchange`` under way: iterating yields the peer's frames until the stream ends.

    Raises ``ConnectionLostError`` from the iteration when the stream breaks.
    """

    def __iter__(self) -> Iterator[bytes]: ...

    def cancel(self) -> None: ...


class Channel(Protocol):
    """To one peer; blocking and thread-safe."""

    def call(self, method: str, request: Message, *, timeout: float = 30.0) -> Any:
        """The reply of a unary rpc.

        Raises:
            ConnectionLostError: no answer within ``timeout`` seconds; the outcome is unknown.
            ParameterServerError: what the peer raised.
        """

    def exchange(self, outgoing: Iterator[bytes]) -> FrameStream:
        """Opens ``Exchange``; ``outgoing`` is consumed by a thread of the transport."""

    def close(self) -> None: ...


class Transport(Protocol):
    """How a client reaches the roles of a cluster."""

    def scheduler(self) -> Channel: ...

    def server(self, address: str) -> Channel: ...

    def close(self) -> None: ...


class AsyncChannel(Protocol):
    """To one peer, for the roles, whose work runs on one event loop."""

    async def call(self, method: str, request: Message, *, timeout: float = 30.0) -> Any:
        """As ``Channel.call``."""

    def stream(self, method: str, request: Message) -> AsyncIterator[Any]:
        """The replies of a server-streaming rpc."""

    def duplex(self, method: str, requests: AsyncIterator[Message]) -> AsyncIterator[Any]:
        """The replies of a bidirectional rpc."""

    async def close(self) -> None: ...
