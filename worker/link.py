"""One stream to one server: requests out in order, answers in, all of it again after a break."""

from __future__ import annotations

import itertools
import logging
import random
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, TypeAlias

from paramserver.config import Limits
from paramserver.errors import ChecksumError, ConnectionLostError, ParameterServerError
from paramserver.v1 import server_pb2 as pb
from paramserver.wire.frames import Piece, decode, encode
from paramserver.wire.status import from_failure
from paramserver.wire.transport import FrameStream, Transport

log = logging.getLogger("paramserver")

Part: TypeAlias = Callable[[], Iterable[tuple[pb.Record, Sequence[Piece]]]]

RECORDS_PER_FRAME = 256
FIRST_PAUSE, LAST_PAUSE = 0.05, 2.0  # seconds between streams, doubling while nothing is heard
_numbers = itertools.count(1)


class Answers(Protocol):
    """Who hears the answers to a request; called in the link's thread, must not block."""

    def data(self, data: pb.Data, pieces: Sequence[Piece]) -> None: ...

    def accepted(self, accepted: pb.Accepted) -> None: ...

    def done(self, done: pb.Done) -> None: ...

    def waiting(self, reason: str) -> None: ...

    def failed(self, error: ParameterServerError) -> None: ...


class Request:
    """A request under way. Its parts can be produced again, for a new stream."""

    def __init__(self, answers: Answers) -> None:
        self.number = next(_numbers)
        self.answers = answers
        self.parts: list[Part] = []


class Link:
    """The stream to the server at ``address``; thread-safe. A thread of its own reads it.

    Args:
        transport: reaches the server.
        check: raises when this client must not go on.
    """

    def __init__(
        self, transport: Transport, address: str, check: Callable[[], None], limits: Limits
    ) -> None:
        self._transport = transport
        self._address = address
        self._check = check
        self._frame_bytes = limits.frame_bytes
        self._changed = threading.Condition()
        self._queue: deque[tuple[Request, Part]] = deque()
        self._outstanding: dict[int, Request] = {}
        self._stream: FrameStream | None = None
        self._generation = 0
        self._closed = False
        self._heard = False  # something, on the present stream
        self._reader: threading.Thread | None = None

    def submit(self, request: Request, part: Part) -> None:
        """Sends one more part of a request, behind everything submitted before."""
        with self._changed:
            if self._closed:
                raise ConnectionLostError(f"the connection to {self._address} is closed")
            request.parts.append(part)
            self._outstanding[request.number] = request
            self._queue.append((request, part))
            self._changed.notify_all()
            if self._reader is None:
                self._reader = threading.Thread(
                    target=self._run, name=f"paramserver {self._address}", daemon=True
                )
                self._reader.start()

    def again(self, request: Request, part: Part) -> None:
        """Sends something once more on this stream only."""
        with self._changed:
            self._queue.append((request, part))
            self._changed.notify_all()

    def cancel(self, request: Request) -> None:
        """Forgets a request, and tells the server."""
        with self._changed:
            if self._outstanding.pop(request.number, None) is not None:
                self._queue.append((request, lambda: [(pb.Record(cancel=pb.Cancel()), ())]))
                self._changed.notify_all()

    def close(self) -> None:
        """Ends the stream; requests under way fail."""
        with self._changed:
            self._closed = True
            stream = self._stream
            self._changed.notify_all()
        if stream is not None:
            stream.cancel()
        if self._reader is not None and self._reader is not threading.current_thread():
            self._reader.join(timeout=2.0)

    # The reader's thread

    def _run(self) -> None:
        pause = FIRST_PAUSE
        while not self._closed:
            self._heard = False
            try:
                self._check()
                self._read_stream()
            except (ConnectionLostError, ChecksumError) as error:
                if not self._closed:
                    log.info("stream to %s broke, sending again: %s", self._address, error)
            except ParameterServerError as error:
                self._fail_all(error)
            pause = FIRST_PAUSE if self._heard else min(2 * pause, LAST_PAUSE)
            with self._changed:
                self._changed.wait_for(lambda: self._closed, pause * random.uniform(0.5, 1.0))
        self._fail_all(ConnectionLostError(f"the connection to {self._address} was closed"))

    def _read_stream(self) -> None:
        """One stream, from its opening to its end."""
        with self._changed:
            self._generation += 1
            generation = self._generation
            self._queue = deque((r, p) for r in self._outstanding.values() for p in r.parts)
        try:
            stream = self._transport.server(self._address).exchange(self._outgoing(generation))
            self._stream = stream
            for message in stream:
                self._heard = True
                self._receive(message)
        finally:
            with self._changed:
                self._stream = None
                self._generation += 1  # ends the sender of this stream
                self._changed.notify_all()

    def _receive(self, message: bytes) -> None:
        records, payload = decode(message)
        at = 0
        for record in records:
            request = self._outstanding.get(record.request)
            kind = record.WhichOneof("body")
            if kind == "data":
                pieces = []
                for size in record.data.sizes:
                    pieces.append(payload[at : at + size])
                    at += size
                if request is not None:
                    request.answers.data(record.data, pieces)
            elif request is None:
                continue
            elif kind == "accepted":
                request.answers.accepted(record.accepted)
            elif kind == "waiting":
                request.answers.waiting(record.waiting.reason)
            elif kind in ("done", "failure"):
                with self._changed:
                    self._outstanding.pop(record.request, None)
                if kind == "done":
                    request.answers.done(record.done)
                else:
                    request.answers.failed(from_failure(record.failure))

    def _fail_all(self, error: ParameterServerError) -> None:
        with self._changed:
            failed = list(self._outstanding.values())
            self._outstanding.clear()
            self._queue.clear()
        for request in failed:
            request.answers.failed(error)

    # The sender: a generator that the transport consumes in a thread of its own

    def _outgoing(self, generation: int) -> Iterator[bytes]:
        records: list[pb.Record] = []
        pieces: list[Piece] = []
        size = 0
        while True:
            item = self._next(generation, wait=not records)
            if item is None:
                if records:
                    yield encode(records, pieces)
                    records, pieces, size = [], [], 0
                    continue
                return
            for record, bodies in item[1]():
                more = sum(len(b) for b in bodies)
                if records and (
                    size + more > self._frame_bytes or len(records) >= RECORDS_PER_FRAME
                ):
                    yield encode(records, pieces)
                    records, pieces, size = [], [], 0
                record.request = item[0].number
                records.append(record)
                pieces.extend(bodies)
                size += more

    def _next(self, generation: int, *, wait: bool) -> tuple[Request, Part] | None:
        """The next part to send; None: none now, or (having waited) the stream is over."""
        with self._changed:
            while self._generation == generation and not self._closed:
                if self._queue:
                    return self._queue.popleft()
                if not wait:
                    return None
                self._changed.wait()
        return None


class Links:
    """The links of one client, by address."""

    def __init__(self, transport: Transport, check: Callable[[], None], limits: Limits) -> None:
        self._transport = transport
        self._check = check
        self._limits = limits
        self._links: dict[str, Link] = {}

    def to(self, address: str) -> Link:
        """The link to the server at ``address``, opened at the first use."""
        if address not in self._links:
            self._links[address] = Link(self._transport, address, self._check, self._limits)
        return self._links[address]

    def close(self) -> None:
        """Closes all of them."""
        for link in self._links.values():
            link.close()
        self._links.clear()
