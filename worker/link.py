"""One stream to one server: requests out in order, answers in, all of it again after a break."""

from __future__ import annotations

import itertools
import logging
import queue
import random
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, TypeAlias

from paramserver.config import Limits
from paramserver.errors import (
    ChecksumError,
    ConnectionLostError,
    MovedError,
    ParameterServerError,
)
from paramserver.v1 import server_pb2 as pb
from paramserver.wire.frames import Piece, decode, encode
from paramserver.wire.status import from_failure
from paramserver.wire.transport import FrameStream, Transport
from paramserver.worker.directory import Directory

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
    """A request under way. Its parts can be produced again, for a new stream.

    Attributes:
        over: answered, refused or cancelled: further parts of it are of no use.
    """

    def __init__(self, answers: Answers) -> None:
        self.number = next(_numbers)
        self.answers = answers
        self.parts: list[Part] = []
        self.over = False


Queue: TypeAlias = "queue.SimpleQueue[tuple[Request, Part] | None]"


class Link:
    """The stream to the server at ``address``; thread-safe. A thread of its own reads it.

    Args:
        transport: reaches the server.
        directory: where the server is, if it has moved.
        check: raises when this client must not go on.
    """

    def __init__(
        self,
        transport: Transport,
        directory: Directory,
        address: str,
        check: Callable[[], None],
        limits: Limits,
    ) -> None:
        self._transport = transport
        self._directory = directory
        self._address = address
        self._at = address  # of the present stream
        self._check = check
        self._frame_bytes = limits.frame_bytes
        self._lock = threading.Lock()
        self._queue: Queue = queue.SimpleQueue()  # of the present stream; None ends it
        self._outstanding: dict[int, Request] = {}
        self._stream: FrameStream | None = None
        self._closed = threading.Event()
        self._heard = False  # something, on the present stream
        self._reader: threading.Thread | None = None

    def submit(self, request: Request, part: Part) -> None:
        """Sends one more part of a request that is not over, behind everything submitted before."""
        with self._lock:
            if self._closed.is_set():
                raise ConnectionLostError(f"the connection to {self._address} is closed")
            if request.over:
                return
            request.parts.append(part)
            self._outstanding[request.number] = request
            self._queue.put((request, part))
            if self._reader is None:
                self._reader = threading.Thread(
                    target=self._run, name=f"paramserver {self._address}", daemon=True
                )
                self._reader.start()

    def again(self, request: Request, part: Part) -> None:
        """Sends something once more on this stream only."""
        with self._lock:
            self._queue.put((request, part))

    def cancel(self, request: Request) -> None:
        """Forgets a request, and tells the server."""
        with self._lock:
            if self._outstanding.pop(request.number, None) is not None:
                self._queue.put((request, lambda: [(pb.Record(cancel=pb.Cancel()), ())]))
            request.over = True

    def close(self) -> None:
        """Ends the stream; requests under way fail."""
        with self._lock:
            self._closed.set()
            self._queue.put(None)
            stream = self._stream
        if stream is not None:
            stream.cancel()
        if self._reader is not None and self._reader is not threading.current_thread():
            self._reader.join(timeout=2.0)

    def look(self) -> None:
        """Leaves a stream to where the server is no more; it may never break by itself."""
        stream = self._stream
        if stream is not None and self._directory.locate(self._address) != self._at:
            stream.cancel()

    # The reader's thread

    def _run(self) -> None:
        pause = FIRST_PAUSE
        while not self._closed.is_set():
            self._heard = False
            try:
                self._check()
                self._read_stream()
            except (ConnectionLostError, ChecksumError, MovedError) as error:
                if not self._closed.is_set():
                    log.info("stream to %s broke, sending again: %s", self._at, error)
                    self._tell_waiting(f"the server at {self._at}, out of reach: {error}")
                    self._directory.refresh()
            except ParameterServerError as error:
                self._fail_all(error)
            with self._lock:
                if not self._outstanding and not self._closed.is_set():
                    self._reader = None  # the server may be gone for good; the next request looks
                    return
            pause = FIRST_PAUSE if self._heard else min(2 * pause, LAST_PAUSE)
            self._closed.wait(pause * random.uniform(0.5, 1.0))
        self._fail_all(ConnectionLostError(f"the connection to {self._address} was closed"))

    def _read_stream(self) -> None:
        """One stream, from its opening to its end."""
        with self._lock:
            outgoing = self._queue = queue.SimpleQueue()
            for request in self._outstanding.values():
                for part in request.parts:
                    outgoing.put((request, part))
            if self._closed.is_set():
                outgoing.put(None)
        try:
            self._at = self._directory.locate(self._address)
            channel = self._transport.server(self._at)
            self._stream = channel.exchange(self._outgoing(outgoing))
            for message in self._stream:
                self._heard = True
                self._receive(message)
        finally:
            self._stream = None
            outgoing.put(None)  # ends the sender of this stream

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
                with self._lock:
                    self._outstanding.pop(record.request, None)
                    request.over = True
                if kind == "done":
                    request.answers.done(record.done)
                else:
                    request.answers.failed(from_failure(record.failure))

    def _tell_waiting(self, reason: str) -> None:
        with self._lock:
            waiting = list(self._outstanding.values())
        for request in waiting:
            request.answers.waiting(reason)

    def _fail_all(self, error: ParameterServerError) -> None:
        with self._lock:
            failed = list(self._outstanding.values())
            self._outstanding.clear()
            for request in failed:
                request.over = True
        for request in failed:
            request.answers.failed(error)

    # The sender: a generator that the transport consumes in a thread of its own

    def _outgoing(self, outgoing: Queue) -> Iterator[bytes]:
        batch = _Batch(self._frame_bytes)
        while (item := outgoing.get()) is not None:
            request, part = item
            for record, pieces in part():
                record.request = request.number
                if batch.is_full(pieces):
                    yield batch.take()
                batch.add(record, pieces)
            if outgoing.empty():
                yield batch.take()


class _Batch:
    """Records that go out in one frame: as many as are waiting, up to a frame's size."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._records: list[pb.Record] = []
        self._pieces: list[Piece] = []
        self._size = 0

    def is_full(self, pieces: Sequence[Piece]) -> bool:
        """Whether a record with these pieces must go into the next frame."""
        size = self._size + sum(len(p) for p in pieces)
        return bool(self._records) and (
            size > self._limit or len(self._records) >= RECORDS_PER_FRAME
        )

    def add(self, record: pb.Record, pieces: Sequence[Piece]) -> None:
        """One more record."""
        self._records.append(record)
        self._pieces.extend(pieces)
        self._size += sum(len(p) for p in pieces)

    def take(self) -> bytes:
        """The frame; what comes next goes into another."""
        frame = encode(self._records, self._pieces)
        self._records, self._pieces, self._size = [], [], 0
        return frame


class Links:
    """The links of one client, by address."""

    def __init__(
        self,
        transport: Transport,
        directory: Directory,
        check: Callable[[], None],
        limits: Limits,
    ) -> None:
        self._transport = transport
        self._directory = directory
        self._check = check
        self._limits = limits
        self._links: dict[str, Link] = {}
        directory.on_move(self._look)

    def to(self, address: str) -> Link:
        """The link to the server at ``address``, opened at the first use."""
        if address not in self._links:
            self._links[address] = Link(
                self._transport, self._directory, address, self._check, self._limits
            )
        return self._links[address]

    def _look(self) -> None:
        for link in list(self._links.values()):
            link.look()

    def close(self) -> None:
        """Closes all of them."""
        for link in self._links.values():
            link.close()
        self._links.clear()
