"""All that a server is as entries of its journal, made while it works; and their reading.

A bucket is copied under its lock, what a group knows of pushes on the event loop, each true as of a
position in the journal. Entries of the journal up to that position are in the copy already.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from torch import Tensor

from paramserver.core.ledger import Ledger
from paramserver.ps.group import Cell, GroupState
from paramserver.ps.replay import Replay
from paramserver.ps.service import ServerService
from paramserver.ps.state import VALUE, SliceState
from paramserver.v1 import journal_pb2 as pb
from paramserver.v1 import scheduler_pb2
from paramserver.wire.convert import (
    dtype_from_proto,
    dtype_to_proto,
    group_to_proto,
    map_to_proto,
)
from paramserver.wire.entries import decode_entry, encode_entry
from paramserver.wire.frames import Piece
from paramserver.wire.tensors import DTYPES, NAMES, as_bytes, from_bytes


async def dump(service: ServerService) -> AsyncIterator[bytes]:
    """Entries that rebuild the server; of a group first its buckets, then the rest."""
    for group in service.groups:
        reply = scheduler_pb2.GetGroupReply(
            spec=group_to_proto(group.spec), map=map_to_proto(group.map), stored=group.stored
        )
        yield encode_entry(pb.Entry(group=group.spec.name, made=reply))
        for cell in group.cells:
            dumped = await service.workshop.run(cell.lock, cell.size, _dump_cell, group, cell)
            for entry in dumped:
                yield entry
        async with group.taking.look():
            entry = _dump_group(service, group)
        yield entry


def _dump_cell(group: GroupState, cell: Cell) -> list[bytes]:
    """One entry for each slice of a bucket; under its lock, any thread."""
    assert group.journal is not None
    position, closed = group.journal.position, max(cell.stepped, cell.closed.value)
    entries = []
    for index, state in cell.bucket.dump().items():
        parts, pieces = [], []
        for name, tensor in state.tensors.items():
            parts.append(_part(index, name, tensor))
            pieces.append(as_bytes(tensor.detach().contiguous().view(-1)))
        body = pb.DumpedSlice(
            position=position,
            slice=index,
            numbers=json.dumps(dict(state.numbers)).encode(),
            closed=closed,
        )
        entry = pb.Entry(group=group.spec.name, dumped_slice=body, parts=parts)
        entries.append(encode_entry(entry, pieces))
    return entries


def _part(index: int, name: str, tensor: Tensor) -> pb.Part:
    return pb.Part(
        slice=index,
        kind=pb.PART_STATE,
        dtype=dtype_to_proto(NAMES[tensor.dtype]),
        bytes=tensor.nbytes,
        name=name,
        shape=tensor.shape,
        scalar=not tensor.dim(),
    )


def _dump_group(service: ServerService, group: GroupState) -> bytes:
    """What the group knows of pushes and clocks. What is staged comes again from its workers."""
    assert group.journal is not None
    lead = service.leadership(group.spec.name)
    numbers = {
        "version": group.version,
        "frontier": group.frontier.value,
        "ledger": group.ledger.dump(settled=group.sync),
        "clock": lead.clock.dump() if lead is not None else None,
    }
    body = pb.DumpedGroup(position=group.journal.position, numbers=json.dumps(numbers).encode())
    return encode_entry(pb.Entry(group=group.spec.name, dumped_group=body))


class Refill(Replay):
    """Applies a dump, and the entries that were written from its beginning on."""

    def __init__(self, service: ServerService) -> None:
        super().__init__(service)
        self._cells: dict[Cell, int] = {}  # positions of the copies
        self._known: dict[str, int] = {}

    async def apply(self, position: int, data: bytes | memoryview) -> None:
        """One entry; ``position`` is 0 for those of a dump.

        Raises:
            InvalidRequestError: it cannot have been written by a server like this.
        """
        entry, pieces = decode_entry(data)
        kind = entry.WhichOneof("body")
        if kind == "dumped_slice":
            await self._slice(entry, pieces)
        elif kind == "dumped_group":
            await self._load_group(entry)
        elif not position or position > self._known.get(entry.group, 0):
            await self.change(position, entry, pieces)
        elif self.is_of_cell(entry):
            group = await self._group(entry.group)
            if position > self._cells.get(self._cell(group, entry), 0):
                await self.change_cell(group, entry, pieces)

    async def _slice(self, entry: pb.Entry, pieces: Sequence[Piece]) -> None:
        body, group = entry.dumped_slice, await self._group(entry.group)
        cell = group.cell_of[body.slice]
        tensors = {p.name: _tensor(p, b) for p, b in zip(entry.parts, pieces, strict=True)}
        state = SliceState(tensors, json.loads(body.numbers))
        size = sum(map(len, pieces))
        await self._service.workshop.run(cell.lock, size, cell.bucket.load, {body.slice: state})
        if VALUE in tensors:
            group.has_value(body.slice)
        cell.closed.advance(body.closed)
        self._cells[cell] = body.position

    async def _load_group(self, entry: pb.Entry) -> None:
        group = await self._group(entry.group)
        numbers: dict[str, Any] = json.loads(entry.dumped_group.numbers)
        group.version = numbers["version"]
        group.frontier.advance(numbers["frontier"])
        if group.sync:
            group.settled.advance(numbers["frontier"])
        group.ledger = Ledger()
        group.ledger.load(numbers["ledger"])
        if numbers["clock"] is not None:
            self._service.lead_of(entry.group).clock.load(numbers["clock"])
        self._known[entry.group] = entry.dumped_group.position


def _tensor(part: pb.Part, piece: Piece) -> Tensor:
    flat = from_bytes(memoryview(bytearray(piece)), DTYPES[dtype_from_proto(part.dtype)])
    return flat.view(tuple(part.shape))
