"""A journal read back: each entry changes the server as it did when it was written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from paramserver.core.ledger import Receipt
from paramserver.errors import InvalidRequestError
from paramserver.ps.group import Cell, GroupState
from paramserver.ps.records import FORMAT
from paramserver.ps.service import ServerService
from paramserver.ps.tables.bucket import RowBucket
from paramserver.ps.tables.store import Rows
from paramserver.types import WorkerId
from paramserver.v1 import journal_pb2 as pb
from paramserver.wire.convert import dtype_from_proto, options_from_proto, spans_from_proto
from paramserver.wire.entries import decode_entry
from paramserver.wire.frames import Piece
from paramserver.wire.tensors import DTYPES, from_bytes

Pieces = Sequence[Piece]


class Replay:
    """Applies entries to a server that nobody else uses meanwhile.

    Attributes:
        begun: what the first entry said; None before.
        position: number of the newest entry that was applied.
    """

    def __init__(self, service: ServerService) -> None:
        self.begun: pb.Begun | None = None
        self.position = 0
        self._service = service

    async def apply(self, position: int, data: bytes | memoryview) -> None:
        """One entry, which must be the next one.

        Raises:
            InvalidRequestError: it cannot have been written by a server like this.
        """
        await self.change(position, *decode_entry(data))

    async def change(self, position: int, entry: pb.Entry, pieces: Pieces) -> None:
        """As ``apply``, of an entry that was read."""
        kind = entry.WhichOneof("body")
        self.position = position
        if kind == "begun":
            if entry.begun.format != FORMAT:
                raise InvalidRequestError(
                    f"journal of format {entry.begun.format}: this version reads {FORMAT}"
                )
            self.begun = entry.begun
            self._service.reset()
        elif kind == "made":
            await self._service.restore_group(entry.made)
        elif kind in _CELLS:
            group = await self._group(entry.group)
            await self.change_cell(group, entry, pieces)
            _account(group, self._cell(group, entry), entry)
        elif kind in _LEDGER:
            _LEDGER[kind](await self._group(entry.group), getattr(entry, kind))
        elif kind == "lead":
            self._service.lead_of(entry.group).replay(entry.lead)
        else:
            raise InvalidRequestError(f"journal entry {position} of unknown kind {kind!r}")

    async def change_cell(self, group: GroupState, entry: pb.Entry, pieces: Pieces) -> None:
        """Only what an entry changes in a bucket."""
        cell, size = self._cell(group, entry), sum(len(p) for p in pieces)
        change = _CELLS[str(entry.WhichOneof("body"))]
        await self._service.workshop.run(cell.lock, size, change, group, cell, entry, pieces)

    @staticmethod
    def is_of_cell(entry: pb.Entry) -> bool:
        """Whether an entry changes a bucket."""
        return entry.WhichOneof("body") in _CELLS

    async def _group(self, name: str) -> GroupState:
        return await self._service.group_named(name)

    @staticmethod
    def _cell(group: GroupState, entry: pb.Entry) -> Cell:
        body = getattr(entry, str(entry.WhichOneof("body")))
        if isinstance(body, pb.Stored):
            return group.cell_of[entry.parts[0].slice]
        index = body.slice if isinstance(body, pb.Shrunk) else body.slices[0]
        return group.cell_of[index]


def _worker(body: Any) -> WorkerId:
    return WorkerId(body.rank, body.incarnation)


def _tensor(part: pb.Part, piece: Piece) -> Tensor:
    return from_bytes(piece, DTYPES[dtype_from_proto(part.dtype)])


def _gradients(
    group: GroupState, entry: pb.Entry, pieces: Pieces
) -> tuple[dict[int, Any], dict[int, Tensor]]:
    """Gradients (of a table: rows) and values by slice, as copies that may be written to."""
    values: dict[int, Tensor] = {}
    found: dict[int, dict[int, Any]] = {}
    for part, piece in zip(entry.parts, pieces, strict=True):
        own = bytearray(piece)
        if part.kind == pb.PART_VALUE:
            values[part.slice] = _tensor(part, memoryview(own))
        elif part.kind == pb.PART_GRADIENT:
            found.setdefault(part.slice, {})[part.kind] = _tensor(part, memoryview(own))
        elif part.kind == pb.PART_KEYS:
            found.setdefault(part.slice, {})[part.kind] = np.frombuffer(own, np.uint64)
        elif part.kind == pb.PART_TIMES:
            found.setdefault(part.slice, {})[part.kind] = np.frombuffer(own, np.int64)
    table = group.spec.table
    if table is None:
        return {i: parts[pb.PART_GRADIENT] for i, parts in found.items()}, values
    rows = {
        i: Rows(
            parts[pb.PART_KEYS],
            parts[pb.PART_GRADIENT].view(-1, table.dim),
            parts.get(pb.PART_TIMES),
        )
        for i, parts in found.items()
    }
    return rows, values


# Buckets: under their locks, any thread


def _stored(group: GroupState, cell: Cell, entry: pb.Entry, pieces: Pieces) -> None:
    part = entry.parts[0]
    cell.dense.store(part.slice, _tensor(part, pieces[0]))


def _stepped(group: GroupState, cell: Cell, entry: pb.Entry, pieces: Pieces) -> None:
    means, values = _gradients(group, entry, pieces)
    options = [options_from_proto(o) for o in entry.stepped.options]
    _set_time(cell, entry.stepped.now)
    if isinstance(cell.bucket, RowBucket):
        cell.bucket.replay(means, options)
    else:
        cell.bucket.replay(means, values, options)


def _arrived(group: GroupState, cell: Cell, entry: pb.Entry, pieces: Pieces) -> None:
    body = entry.arrived
    gradients, _ = _gradients(group, entry, pieces)
    bases: Mapping[int, int] = dict(zip(body.slices, body.bases, strict=False))
    _set_time(cell, body.now)
    options = [options_from_proto(o) for o in body.options]
    cell.bucket.arrive(gradients, options, bases, group.scale)


def _ticked(group: GroupState, cell: Cell, entry: pb.Entry, pieces: Pieces) -> None:
    cell.bucket.tick(list(entry.ticked.slices))


def _shrunk(group: GroupState, cell: Cell, entry: pb.Entry, pieces: Pieces) -> None:
    _set_time(cell, entry.shrunk.now)
    assert cell.rows is not None
    cell.rows.shrink()


def _set_time(cell: Cell, now: float) -> None:
    if cell.rows is not None:
        cell.rows.moment.replay(now)


def _account(group: GroupState, cell: Cell, entry: pb.Entry) -> None:
    """What the entry of a bucket says beside the bucket. On the event loop."""
    kind = entry.WhichOneof("body")
    if kind == "stored":
        group.has_value(entry.parts[0].slice)
    elif kind == "stepped":
        cell.closed.advance(entry.stepped.clock + 1)
    elif kind == "arrived":
        body = entry.arrived
        for index, mark in zip(body.slices, body.checksums, strict=True):
            group.ledger.take(_worker(body), body.clock, index, mark)


# Ledger


def _closed(group: GroupState, body: pb.Closed) -> None:
    group.version = body.version
    for push in body.pushes:
        receipt = Receipt(
            push.clock, body.version, 0.0, applied=not push.dropped, dropped=push.dropped
        )
        digest = push.digest if push.HasField("digest") else None
        group.ledger.restore(_worker(push), receipt, spans_from_proto(push.samples), digest)
    group.frontier.advance(body.clock + 1)
    group.settled.advance(body.clock + 1)


def _opened(group: GroupState, body: pb.Opened) -> None:
    group.ledger.open(_worker(body), body.clock, list(body.slices))


def _completed(group: GroupState, body: pb.Completed) -> None:
    group.version = body.version
    receipt = Receipt(body.clock, body.version, body.staleness, applied=True)
    digest = body.digest if body.HasField("digest") else None
    group.ledger.restore(_worker(body), receipt, spans_from_proto(body.samples), digest)


def _abandoned(group: GroupState, body: pb.Abandoned) -> None:
    group.ledger.abandon(_worker(body), body.clock)


def _expected(group: GroupState, body: pb.Expected) -> None:
    group.ledger.expect(_worker(body), body.clock)


_CELLS = {
    "stored": _stored,
    "stepped": _stepped,
    "arrived": _arrived,
    "ticked": _ticked,
    "shrunk": _shrunk,
}
_LEDGER: Mapping[str, Any] = {
    "closed": _closed,
    "opened": _opened,
    "completed": _completed,
    "abandoned": _abandoned,
    "expected": _expected,
}
