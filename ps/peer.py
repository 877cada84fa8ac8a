"""The backup of a server, as its primary sees it: a sink of the journal on another machine."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import NamedTuple

from paramserver.errors import FencedError, InternalError, ParameterServerError
from paramserver.failpoints import failpoint
from paramserver.ps.journal import Journal
from paramserver.types import Durability
from paramserver.v1 import scheduler_pb2
from paramserver.v1 import server_pb2 as pb
from paramserver.wire.transport import AsyncChannel

log = logging.getLogger("paramserver")

MESSAGE_BYTES = 4 << 20
BEHIND_BYTES = 256 << 20  # that a backup which is being filled may be behind before pushes wait
FIRST_PAUSE, LAST_PAUSE = 0.05, 1.0


class Numbered(NamedTuple):
    """An entry on its way, and its position in the journal; 0: of a dump."""

    number: int
    position: int
    data: bytes


class Peer:
    """Sends a server's journal to the process that keeps its backup.

    While the backup is being filled, entries count as kept at once: the server has no backup yet.
    From the moment it is complete, they count once the backup has applied them.

    Args:
        place: of the server: its epoch and its backup.
        job: that it belongs to.
        connect: opens a channel to the backup.
        dump: all that the server is, as entries.
        complete: tells the scheduler that the backup may take over; raises FencedError if not.
    """

    def __init__(
        self,
        journal: Journal,
        place: scheduler_pb2.Place,
        job: int,
        *,
        connect: Callable[[], AsyncChannel],
        dump: Callable[[], AsyncIterator[bytes]],
        complete: Callable[[scheduler_pb2.Place], Awaitable[None]],
    ) -> None:
        self.place = place
        self._journal = journal
        self._job = job
        self._connect, self._dump, self._complete = connect, dump, complete
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()  # of _behind
        self._strict = False
        self._mark = 0  # position when it became so
        self._tail: deque[Numbered] = deque()  # not sent; numbered when they are
        self._sent: deque[Numbered] = deque()  # not applied
        self._behind = 0  # bytes of both
        self._number = 0  # of the newest entry sent
        self._filled = False  # all of the dump was sent in this epoch
        self._applied = 0
        self._told = False
        self._teller: asyncio.Task[None] | None = None
        self._stir = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    # The journal's side: any thread

    @property
    def durability(self) -> Durability:
        """What an acknowledgement is worth."""
        return "replica" if self._strict else "memory"

    def put(self, position: int, data: bytes) -> None:
        """Takes an entry."""
        self._tail.append(Numbered(0, position, data))
        behind = self._count(len(data))
        if not self._strict and behind <= BEHIND_BYTES:
            self._journal.reached(position)
        self._loop.call_soon_threadsafe(self._stir.set)

    def _count(self, change: int) -> int:
        with self._lock:
            self._behind += change
            return self._behind

    def close(self) -> None:
        """Sends nothing more."""
        self._task.cancel()

    # The stream

    async def _run(self) -> None:
        pause = FIRST_PAUSE
        while True:
            channel = self._connect()
            try:
                pause = await self._stream(channel) or pause
            except FencedError as error:
                log.warning("%s is served elsewhere: %s", self.place.server, error)
                self._strict = True  # nothing is acknowledged any more; the next view says why
                return
            except ParameterServerError as error:
                log.info("backup of %s: %s", self.place.server, error)
            finally:
                await channel.close()
            await asyncio.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE)

    async def _stream(self, channel: AsyncChannel) -> float:
        """One stream to the backup, from its opening to its end."""
        there: asyncio.Future[int] = self._loop.create_future()
        self._told = False
        try:
            async for reply in channel.duplex("Replicate", self._outgoing(there)):
                if not there.done():
                    there.set_result(reply.applied)
                    continue
                self._heard(reply.applied)
                self._look()
        finally:
            there.cancel()
            if self._teller is not None:
                self._teller.cancel()
        return FIRST_PAUSE

    def _look(self) -> None:
        """Whether there is something to tell the scheduler, once on each stream."""
        if self._strict and not self._told and self._caught_up:
            self._told = True
            self._teller = asyncio.create_task(self._tell())

    async def _tell(self) -> None:
        pause = FIRST_PAUSE
        while True:
            try:
                await self._complete(self.place)
                return
            except FencedError as error:
                log.warning("backup of %s: %s", self.place.server, error)
                return
            except ParameterServerError as error:
                log.info("backup of %s is complete; telling again: %s", self.place.server, error)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE)

    @property
    def _caught_up(self) -> bool:
        """Whether the backup has the dump, and all that counted as kept without it."""
        return not any(e.position <= self._mark for e in (*self._sent, *self._tail))

    def _heard(self, applied: int) -> None:
        """The backup has applied entries up to this number."""
        position = 0
        while self._sent and self._sent[0].number <= applied:
            entry = self._sent.popleft()
            self._count(-len(entry.data))
            position = entry.position or position
        failpoint("ps.after_replicate")
        self._applied = max(self._applied, applied)
        if self._strict:
            self._journal.reached(position)
        elif self._behind <= BEHIND_BYTES:
            self._journal.reached(self._journal.position)

    async def _outgoing(self, there: asyncio.Future[int]) -> AsyncIterator[pb.ReplicateRequest]:
        place = self.place
        yield pb.ReplicateRequest(server=place.server, job=self._job, epoch=place.epoch)
        applied = await there
        if self._filled and applied >= self._applied:
            self._heard(applied)
            self._look()  # nothing may be left to send: then no other answer would come
            for entry in list(self._sent):
                for message in _messages([entry]):
                    yield message
        else:
            async for message in self._fill():
                yield message
        while True:
            while self._tail:
                for message in _messages(self._batch()):
                    yield message
            self._stir.clear()
            if not self._tail:
                await self._stir.wait()

    async def _fill(self) -> AsyncIterator[pb.ReplicateRequest]:
        """The dump; from its end on, the backup is complete but for what is under way."""
        if self._strict:
            raise InternalError(f"the backup of {self.place.server} has lost what it had")
        self._sent.clear()
        self._tail.clear()
        self._number = self._applied = self._behind = 0
        start = self._journal.attach(self)
        yield pb.ReplicateRequest(fill=True, number=1)
        async for data in self._dump():
            for message in _messages([self._next(Numbered(0, 0, data))]):
                message.position = start
                yield message
        self._filled = self._strict = True
        self._mark = self._journal.position
        self._look()  # all may have been applied already

    def _batch(self) -> list[Numbered]:
        """What waits, about as much as fits into one message."""
        batch: list[Numbered] = []
        size = 0
        while self._tail and (not batch or size + len(self._tail[0].data) <= MESSAGE_BYTES):
            failpoint("ps.before_replicate")
            batch.append(self._next(self._tail.popleft()))
            size += len(batch[-1].data)
        return batch

    def _next(self, entry: Numbered) -> Numbered:
        self._number += 1
        made = entry._replace(number=self._number)
        if not entry.position:
            self._count(len(entry.data))
        self._sent.append(made)
        return made


def _messages(batch: Sequence[Numbered]) -> list[pb.ReplicateRequest]:
    """Some entries in one message, or one that is too large for that in several."""
    if len(batch) != 1:
        records = [entry.data for entry in batch]
        number, position, _ = batch[0]
        return [pb.ReplicateRequest(number=number, position=position, records=records)]
    number, position, data = batch[0]
    return [
        pb.ReplicateRequest(
            number=number,
            position=position,
            records=[data[at : at + MESSAGE_BYTES]],
            more=at + MESSAGE_BYTES < len(data),
        )
        for at in range(0, max(len(data), 1), MESSAGE_BYTES)
    ]
