"""The ordered log of what changes a server, and the rule that nothing leaves before it is kept.

Whatever changes state appends an entry (``ps.records`` makes them) while it holds the lock of what
it changes. Whatever leaves the server (answers, notices to followers, reports to a lead) waits for
``durable`` first: the sink, a file or another machine, has all entries that it may depend on. So a
server that begins again from its journal contradicts nothing that anybody was told.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol, TypeVar

from paramserver.errors import InternalError, ResourceError
from paramserver.ps.gate import Gate
from paramserver.types import Durability
from paramserver.v1 import journal_pb2
from paramserver.wire.entries import encode_entry
from paramserver.wire.frames import Piece

T = TypeVar("T")
ROOM_S = 300.0  # that a push waits for room on a full disk


class Sink(Protocol):
    """Where entries are kept. Tells its journal: ``reached``, ``block``, ``fail``."""

    @property
    def durability(self) -> Durability:
        """What an acknowledgement is worth."""

    def put(self, position: int, data: bytes) -> None:
        """Takes an encoded entry; positions come in order, without gaps. Must not block."""

    def close(self) -> None:
        """Ends; what is not kept yet may be lost."""


class Journal:
    """Appended to from any thread; waited for on the event loop that it was made on.

    Args:
        position: number of the newest entry of an earlier life.

    Attributes:
        position: number of the newest entry; 0: none yet.
        blocked: why nothing more can be kept for the moment ("" if it can): new pushes wait.
        failure: why nothing will be kept any more; None while all is well.
        failed: set with it.
    """

    def __init__(self, position: int = 0) -> None:
        self.position = position
        self.blocked = ""
        self.failure: InternalError | None = None
        self.failed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._lock = threading.Lock()
        self._kept = Gate(position)
        self._room = asyncio.Event()
        self._room.set()
        self._sink: Sink | None = None

    @property
    def durability(self) -> Durability:
        """What an acknowledgement of this server is worth."""
        return self._sink.durability if self._sink is not None else "memory"

    def attach(self, sink: Sink | None) -> int:
        """Entries go to this sink from now on; the position of the last that went elsewhere.

        None: nobody keeps them, and ``durable`` waits for nothing.
        """
        with self._lock:
            self._sink = sink
            position = self.position
        self.reached(position)
        return position

    def append(
        self,
        entry: journal_pb2.Entry,
        pieces: Sequence[Piece] = (),
        note: Callable[[], None] | None = None,
    ) -> None:
        """Appends an entry, copying the pieces. Any thread; the order of calls is the order.

        Args:
            note: called in the same moment, as ``at_once`` sees it.
        """
        self.append_encoded(encode_entry(entry, pieces), note)

    def append_encoded(self, data: bytes, note: Callable[[], None] | None = None) -> None:
        """As ``append``, of bytes."""
        with self._lock:
            self.position += 1
            if note is not None:
                note()
            if self._sink is not None:
                self._sink.put(self.position, data)

    def at_once(self, read: Callable[[], T]) -> tuple[int, T]:
        """The position, and what ``read`` finds while nothing is appended."""
        with self._lock:
            return self.position, read()

    async def room(self) -> None:
        """Returns when what begins now can be kept: at once, unless the disk is full.

        Raises:
            ResourceError: it was full for ``ROOM_S`` seconds.
            InternalError: nothing will be kept any more.
        """
        if not self._room.is_set():
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._room.wait(), ROOM_S)
        if self.failure is not None:
            raise self.failure
        if self.blocked:
            raise ResourceError(self.blocked)

    def has(self, position: int) -> bool:
        """Whether the entries up to this one are kept."""
        return self._sink is None or self._kept.value >= position

    async def durable(self, position: int | None = None) -> None:
        """Returns when the entries up to ``position`` (default: all so far) are kept.

        Raises:
            InternalError: they never will be.
        """
        wanted = self.position if position is None else position
        while self._sink is not None and self._kept.value < wanted:
            if self.failure is not None:
                raise self.failure
            await self._kept.reach(wanted)

    # What sinks say, from any thread

    def reached(self, position: int) -> None:
        """Entries up to this one are kept."""
        self._on_loop(self._kept.advance, position)

    def block(self, reason: str) -> None:
        """Nothing can be kept for the moment; "": it can again."""
        self._on_loop(self._block, reason)

    def _block(self, reason: str) -> None:
        self.blocked = reason
        if reason:
            self._room.clear()
        else:
            self._room.set()

    def fail(self, error: InternalError) -> None:
        """Nothing will be kept any more."""
        self._on_loop(self._fail, error)

    def _fail(self, error: InternalError) -> None:
        self.failure = self.failure or error
        self.failed.set()
        self._room.set()
        self._kept.stir()

    def _on_loop(self, what: Callable[..., None], *args: object) -> None:
        if threading.get_ident() == self._thread:
            what(*args)
        else:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(what, *args)
