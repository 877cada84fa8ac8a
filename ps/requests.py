"""Requests of a stream that are neither pushes nor pulls: first values, collectives, vectors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from torch import Tensor

from paramserver.errors import InvalidRequestError, NonFiniteError, WaitTimeoutError
from paramserver.ps.collectives import answer_piece, intact
from paramserver.ps.pulls import REASON_EVERY, deadline_in
from paramserver.ps.push import Parcel, check_sizes
from paramserver.v1 import server_pb2 as pb
from paramserver.wire.frames import Piece
from paramserver.wire.tensors import as_bytes, checksum, is_finite

if TYPE_CHECKING:
    from paramserver.ps.exchange import Session
    from paramserver.ps.service import ServerService


class Request:
    """One request on its way in; errors raised here answer it.

    Attributes:
        number: repeated in every answer.
        whole: no more Data is to come.
    """

    def __init__(self, service: ServerService, session: Session, record: pb.Record) -> None:
        self.service = service
        self.session = session
        self.number = record.request
        self.whole = False

    async def begin(self) -> None:
        """The request has come; its Data may follow."""
        raise NotImplementedError

    async def take(self, data: pb.Data, pieces: Sequence[Piece]) -> None:
        """Data of the request."""
        raise InvalidRequestError("data: this request takes none")

    def close(self) -> None:
        """The stream ended first."""

    def refuse(self, slices: Sequence[int]) -> None:
        """Asks for bytes again whose checksums did not match."""
        if slices:
            accepted = pb.Accepted(refused=slices)
            self.session.outbox.put(pb.Record(request=self.number, accepted=accepted))

    def done(self) -> None:
        """Says that nothing more comes."""
        self.whole = True
        self.session.outbox.put(pb.Record(request=self.number, done=pb.Done()))


class Store(Request):
    """First values of slices."""

    def __init__(self, service: ServerService, session: Session, record: pb.Record) -> None:
        super().__init__(service, session, record)
        self._store = record.store
        self._waiting = set(record.store.slices)

    async def begin(self) -> None:
        await self.service.views.admit(self._store.worker)
        self._group = await self.service.group(self._store.group, self._store.map_version)
        self._group.check_slices(self._store.slices)
        if not self._waiting:
            self.done()

    async def take(self, data: pb.Data, pieces: Sequence[Piece]) -> None:
        if not self._waiting.issuperset(data.slices):
            raise InvalidRequestError("data: a slice that its Store did not declare, or twice")
        dtypes = check_sizes(self._group, data.slices, pieces, "")
        parcel = Parcel(data.slices, pieces, data.checksums, dtypes)
        good, bad = await self.service.workshop.offload(parcel.size, parcel.open)
        for index, value in good.items():
            await self._group.store(index, value)
        self._waiting.difference_update(good)
        self.refuse(bad)
        if not self._waiting:
            self.done()


class Contribute(Request):
    """One worker's tensor for a collective."""

    def __init__(self, service: ServerService, session: Session, record: pb.Record) -> None:
        super().__init__(service, session, record)
        self._record = record.contribute
        self._pieces: dict[int, Piece] = {}

    async def begin(self) -> None:
        await self.service.views.admit(self._record.worker)
        self._keep_if_all()

    async def take(self, data: pb.Data, pieces: Sequence[Piece]) -> None:
        good = self.service.collectives.check(self._record, data, pieces)
        self._pieces.update(good)
        self.refuse([s for s in data.slices if s not in good])
        self._keep_if_all()

    def _keep_if_all(self) -> None:
        if len(self._pieces) == len(self._record.pieces):
            self.service.collectives.add(self._record, self._pieces)
            self.done()


class Collect(Request):
    """A closed round's result."""

    def __init__(self, service: ServerService, session: Session, record: pb.Record) -> None:
        super().__init__(service, session, record)
        self._record = record.collect

    async def begin(self) -> None:
        await self.service.views.admit(self._record.worker)
        collectives, outbox = self.service.collectives, self.session.outbox
        for data, piece in await collectives.collect(self._record, self.service.workshop):
            await outbox.room()
            outbox.put(pb.Record(request=self.number, data=data), [piece])
        self.done()


class AddVector(Request):
    """An addition to a vector; it counts once all of it is here."""

    def __init__(self, service: ServerService, session: Session, record: pb.Record) -> None:
        super().__init__(service, session, record)
        self._record = record.add_vector
        self._waiting = set(record.add_vector.slices)
        self._given: dict[int, Tensor] = {}
        self._bytes = 0

    async def begin(self) -> None:
        record = self._record
        self._worker = await self.service.views.admit(record.worker)
        self._group = await self.service.group(record.group, record.map_version)
        self._space = self.service.vectors.of(self._group)
        self._space.check_slices(record.vector, record.slices)
        size = sum(self._group.slices[i].bytes for i in self._waiting)
        self._space.budget.take(size)
        self._bytes = size
        await self._add_if_all()

    async def take(self, data: pb.Data, pieces: Sequence[Piece]) -> None:
        if not self._waiting.issuperset(data.slices):
            raise InvalidRequestError("data: a slice that its AddVector did not declare, or twice")
        dtypes = check_sizes(self._group, data.slices, pieces, "")
        parcel = Parcel(data.slices, pieces, data.checksums, dtypes)
        good, bad = await self.service.workshop.offload(parcel.size, parcel.open)
        for index, value in good.items():
            if not is_finite(value):
                raise NonFiniteError(
                    f"NaN or infinity in slice {index} added to vector {self._record.vector!r}; "
                    "nothing was added"
                )
        self._given.update(good)
        self._waiting.difference_update(good)
        self.refuse(bad)
        await self._add_if_all()

    async def _add_if_all(self) -> None:
        if self._waiting:
            return
        self.service.views.check(self._worker, self._record.worker.job)
        given, self._given = self._given, {}  # the stream may end, and close this, meanwhile
        counted = await self._space.add(self._worker, self._record, given)
        self.close()
        self.whole = True
        done = pb.Done(dropped=not counted)
        self.session.outbox.put(pb.Record(request=self.number, done=done))

    def close(self) -> None:
        if self._bytes:
            self._space.budget.give(self._bytes)
        self._bytes = 0
        self._given.clear()


class PullVector(Request):
    """The values of a vector, a bucket at a time."""

    def __init__(self, service: ServerService, session: Session, record: pb.Record) -> None:
        super().__init__(service, session, record)
        self._record = record.pull_vector

    async def begin(self) -> None:
        self.whole = True
        self.session.start(self.number, self._answer())

    async def _answer(self) -> None:
        record, outbox = self._record, self.session.outbox
        group = await self.service.group(record.group, record.map_version)
        space = self.service.vectors.of(group)
        space.check_slices(record.vector, record.slices)
        asked = set(record.slices)
        for cell in group.cells:
            wanted = [i for i in cell.slices if i in asked]
            if not wanted:
                continue
            await outbox.room()
            pieces = [as_bytes(v) for v in (await space.read(record.vector, wanted)).values()]
            data = pb.Data(
                slices=wanted,
                sizes=[len(p) for p in pieces],
                checksums=[checksum(p) for p in pieces],
                versions=[0] * len(pieces),
            )
            outbox.put(pb.Record(request=self.number, data=data), pieces)
        self.done()


class Reduce(Request):
    """One party's part in a sum over the parties of its replica."""

    def __init__(self, service: ServerService, session: Session, record: pb.Record) -> None:
        super().__init__(service, session, record)
        self._record = record.reduce
        self._pieces: dict[int, Piece] = {}
        self._awaited = 0

    async def begin(self) -> None:
        await self.service.views.admit(self._record.worker)
        self._deadline = deadline_in(self._record.timeout)
        self._sum = self.service.reduces.open(self._record, self.service.views)
        if self._record.party in self._record.contributors and not self._sum.over.is_set():
            self._awaited = len(self._record.pieces)
        await self._park_if_all()

    async def take(self, data: pb.Data, pieces: Sequence[Piece]) -> None:
        good = intact(self._record, data, pieces)
        self._pieces.update(good)
        self.refuse([s for s in data.slices if s not in good])
        await self._park_if_all()

    async def _park_if_all(self) -> None:
        if len(self._pieces) >= self._awaited:
            self.whole = True
            service = self.service
            await service.reduces.add(self._record, self._sum, self._pieces, service.workshop)
            self.session.start(self.number, self._answer())

    async def _answer(self) -> None:
        await self._until_over()
        outbox = self.session.outbox
        for index, value in sorted(self._sum.result.items()):
            data, piece = answer_piece(index, value)
            await outbox.room()
            outbox.put(pb.Record(request=self.number, data=data), [piece])
        self.done()

    async def _until_over(self) -> None:
        reduces, views = self.service.reduces, self.service.views
        deadline = self._deadline
        while not self._sum.over.is_set():
            left = deadline - time.monotonic()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._sum.over.wait(), max(0.0, min(left, REASON_EVERY)))
                break
            reason = reduces.waiting_for(self._sum, views)
            if left <= REASON_EVERY:
                raise WaitTimeoutError(f"{reason}: not within {self._record.timeout:g} s")
            waiting = pb.Waiting(reason=reason)
            self.session.outbox.put(pb.Record(request=self.number, waiting=waiting))
        if self._sum.error is not None:
            raise self._sum.error


REQUESTS: dict[str, Callable[[ServerService, Session, pb.Record], Request]] = {
    "store": Store,
    "contribute": Contribute,
    "collect": Collect,
    "add_vector": AddVector,
    "pull_vector": PullVector,
    "reduce": Reduce,
}
