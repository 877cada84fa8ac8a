"""A journal read back: each entry changes the server as it did when it was written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from paramserver.core.ledger import Receipt
from paramserver.errors import InvalidRequestError
from paramserver.ps.group import Cell, GroupState
from paramserver.ps.lead import Leadership
from paramserver.ps.records import FORMAT
from paramserver.ps.replay_moves import MOVES, MovesReplay, state_of, tensor_of
from paramserver.ps.service import ServerService
from paramserver.ps.state import VALUE
from paramserver.ps.tables.bucket import RowBucket
from paramserver.ps.tables.store import Rows
from paramserver.ps.vectors import Vector, VectorSpace
from paramserver.types import WorkerId
from paramserver.v1 import journal_pb2 as pb
from paramserver.wire.convert import options_from_proto, spans_from_proto
from paramserver.wire.entries import decode_entry
from paramserver.wire.frames import Piece

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
        self._dumped: dict[tuple[str, str | int], int] = {}  # group, part: true as of a position
        self._service = service
        self._moves = MovesReplay(service)

    async def apply(self, position: int, data: bytes | memoryview) -> None:
        """One entry: of a dump, or the next one of the journal.

        Raises:
            InvalidRequestError: it cannot have been written by a server like this.
        """
        entry, pieces = decode_entry(data)
        kind = str(entry.WhichOneof("body"))
        self.position = position
        if kind == "begun":
            self._begin(entry.begun)
        elif kind == "made":
            if not self._service.has_group(entry.group):  # a dump may have had it
                buckets = [bucket.slices for bucket in entry.buckets]
                await self._service.restore_group(entry.made, buckets)
        elif kind in CELLS:
            await self._on_cell(kind, await self._group(entry.group), entry, pieces)
        elif kind in LEDGER:
            if self._is_new(entry.group, "ledger"):
                LEDGER[kind](await self._group(entry.group), getattr(entry, kind))
        elif kind == "lead":
            if self._is_new(entry.group, "ledger"):
                self._lead(entry.group).replay(entry.lead)
        elif kind in MOVES:
            self._moves.apply(kind, await self._group(entry.group), entry, pieces)
        elif kind in REST:
            await self._on_rest(kind, entry, pieces)
        else:
            raise InvalidRequestError(f"journal entry {position} of unknown kind {kind!r}")

    def _begin(self, begun: pb.Begun) -> None:
        if begun.format != FORMAT:
            raise InvalidRequestError(
                f"journal of format {begun.format}: this version reads {FORMAT}"
            )
        self.begun = begun
        self._dumped.clear()
        self._service.reset()

    def _lead(self, group: str) -> Leadership:
        lead = self._service.lead_of(group)
        if lead is None:
            raise InvalidRequestError(f"{self._service.name} does not lead group {group!r}")
        return lead

    def _is_new(self, group: str, part: str | int) -> bool:
        """Whether the entry is not contained in what a dump said of this part."""
        return self.position > self._dumped.get((group, part), 0)

    async def _on_cell(self, kind: str, group: GroupState, entry: pb.Entry, pieces: Pieces) -> None:
        cell, size = self._cell(group, entry), sum(len(p) for p in pieces)
        part = min(cell.slices)
        if kind == "dumped_slice":
            self._dumped[entry.group, part] = entry.dumped_slice.position or self.position
        elif not self._is_new(entry.group, part):
            return self._account(kind, group, cell, entry)
        await self._service.workshop.run(cell.lock, size, CELLS[kind], group, cell, entry, pieces)
        return self._account(kind, group, cell, entry)

    def _account(self, kind: str, group: GroupState, cell: Cell, entry: pb.Entry) -> None:
        """What the entry of a bucket says beside the bucket."""
        if kind == "stored":
            group.has_value(entry.parts[0].slice)
        elif kind == "dumped_slice":
            if any(part.name == VALUE for part in entry.parts):
                group.has_value(entry.dumped_slice.slice)
            cell.closed.advance(entry.dumped_slice.closed)
        elif kind == "stepped":
            cell.closed.advance(entry.stepped.clock + 1)
        elif kind == "arrived" and self._is_new(entry.group, "ledger"):
            body, worker = entry.arrived, _worker(entry.arrived)
            for index, mark in zip(body.slices, body.checksums, strict=True):
                group.ledger.take(worker, body.clock, index, mark)
            marks = dict(zip(body.slices, body.checksums, strict=True))
            group.keep(worker, body.clock, marks)

    async def _on_rest(self, kind: str, entry: pb.Entry, pieces: Pieces) -> None:
        service = self._service
        own = {part.slice: bytes(piece) for part, piece in zip(entry.parts, pieces, strict=True)}
        if kind == "dumped_group":
            self._dumped[entry.group, "ledger"] = entry.dumped_group.position
            group = await self._group(entry.group)
            numbers = json.loads(entry.dumped_group.numbers)
            load_group(group, numbers)
            if group.leads:
                self._lead(entry.group).clock.load(numbers["lead"])
        elif kind == "dumped_rest":
            self._dumped[entry.group, entry.dumped_rest.kind] = entry.dumped_rest.position
            numbers = json.loads(entry.dumped_rest.numbers)
            if entry.dumped_rest.kind == "vectors":
                space = service.vectors.of(await self._group(entry.group))
                _load_vectors(space, numbers, entry, pieces)
            elif entry.dumped_rest.kind == "collectives":
                service.collectives.load(numbers, list(own.values()))
            else:
                service.reduces.load(numbers, list(own.values()))
        elif kind in ("contributed", "collected"):
            if self._is_new("", "collectives") and kind == "contributed":
                service.collectives.add(entry.contributed, own)
            elif self._is_new("", "collectives"):
                service.collectives.replay(entry.collected)
        elif kind == "reduced":
            if self._is_new("", "reduces"):
                service.reduces.replay(entry.reduced, own)
        elif self._is_new(entry.group, "vectors"):
            space = service.vectors.of(await self._group(entry.group))
            if kind == "vectors":
                space.replay(entry.vectors)
            else:
                _, values = _gradients(space.group, entry, pieces)
                space.replay_addition(entry.added, values)

    async def _group(self, name: str) -> GroupState:
        return await self._service.group_named(name)

    @staticmethod
    def _cell(group: GroupState, entry: pb.Entry) -> Cell:
        body = getattr(entry, str(entry.WhichOneof("body")))
        if isinstance(body, pb.Stored):
            index = entry.parts[0].slice
        elif isinstance(body, pb.Shrunk | pb.DumpedSlice):
            index = body.slice
        else:
            index = body.slices[0]
        if index not in group.cell_of:
            raise InvalidRequestError(
                f"journal: slice {index} of group {group.spec.name!r} is not on {group.server}"
            )
        return group.cell_of[index]


def _worker(body: Any) -> WorkerId:
    return WorkerId(body.rank, body.incarnation)


def _gradients(
    group: GroupState, entry: pb.Entry, pieces: Pieces
) -> tuple[dict[int, Any], dict[int, Tensor]]:
    """Gradients (of a table: rows) and values by slice, as copies that may be written to."""
    values: dict[int, Tensor] = {}
    found: dict[int, dict[int, Any]] = {}
    for part, piece in zip(entry.parts, pieces, strict=True):
        own = bytearray(piece)
        if part.kind == pb.PART_VALUE:
            values[part.slice] = tensor_of(part, memoryview(own))
        elif part.kind == pb.PART_GRADIENT:
            found.setdefault(part.slice, {})[part.kind] = tensor_of(part, memoryview(own))
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
    cell.dense.store(part.slice, tensor_of(part, pieces[0]))


def _stepped(group: GroupState, cell: Cell, entry: pb.Entry, pieces: Pieces) -> None:
    means, values = _gradients(group, entry, pieces)
    options = [options_from_proto(o) for o in entry.stepped.options]
    _set_time(cell, entry.stepped.now)
    if isinstance(cell.bucket, RowBucket):
        cell.bucket.replay(means, options)
    else:
        cell.bucket.replay(means, values, options)
    cell.stepped = entry.stepped.clock + 1


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


def _dumped_slice(group: GroupState, cell: Cell, entry: pb.Entry, pieces: Pieces) -> None:
    body = entry.dumped_slice
    _set_time(cell, body.now)
    cell.bucket.load({body.slice: state_of(body, entry.parts, pieces)})
    cell.stepped = max(cell.stepped, body.closed)


def _load_vectors(
    space: VectorSpace, numbers: Mapping[str, Any], entry: pb.Entry, pieces: Pieces
) -> None:
    values: dict[str, dict[int, Tensor]] = {}
    replies: list[bytes] = []
    for part, piece in zip(entry.parts, pieces, strict=True):
        if part.kind == pb.PART_BYTES:
            replies.append(bytes(piece))
        else:
            own = tensor_of(part, memoryview(bytearray(piece)))
            values.setdefault(part.name, {})[part.slice] = own
    parts = {name: {(a, b): total for a, b, total in each} for name, each in numbers["vectors"]}
    space.load({name: Vector(values.get(name, {}), parts[name]) for name in parts})
    space.load_counts(numbers, replies)


# Ledger


def load_group(group: GroupState, numbers: Mapping[str, Any]) -> None:
    """Ledger and clocks as they were dumped."""
    group.ledger.load(numbers["ledger"])
    group.kept = {
        (WorkerId(rank, incarnation), clock): dict(map(tuple, taken))
        for rank, incarnation, known in numbers["ledger"]["workers"]
        for clock, _, taken in known["open"]
    }
    group.version = numbers["version"]
    group.frontier.advance(numbers["frontier"])
    group.settled.advance(numbers["settled"])


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
    group.kept.pop((_worker(body), body.clock), None)


def _abandoned(group: GroupState, body: pb.Abandoned) -> None:
    group.ledger.abandon(_worker(body), body.clock)
    group.kept.pop((_worker(body), body.clock), None)


def _expected(group: GroupState, body: pb.Expected) -> None:
    group.ledger.expect(_worker(body), body.clock)


CELLS = {
    "stored": _stored,
    "stepped": _stepped,
    "arrived": _arrived,
    "ticked": _ticked,
    "shrunk": _shrunk,
    "dumped_slice": _dumped_slice,
}
LEDGER: Mapping[str, Any] = {
    "closed": _closed,
    "opened": _opened,
    "completed": _completed,
    "abandoned": _abandoned,
    "expected": _expected,
}
REST = frozenset(
    {
        "dumped_group",
        "dumped_rest",
        "contributed",
        "collected",
        "reduced",
        "vectors",
        "added",
    }
)
