"""Answers to lookups: the rows of a table that a worker may read at its clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from paramserver.errors import InvalidRequestError
from paramserver.ps.group import Cell
from paramserver.ps.pulls import deadline_in, until_readable
from paramserver.ps.push import wire_of
from paramserver.ps.requests import Request
from paramserver.v1 import server_pb2 as pb
from paramserver.wire.frames import Piece
from paramserver.wire.rows import RECORD_BYTES, Keys, decode_keys, encode_rows, row_bytes
from paramserver.wire.tensors import checksum

if TYPE_CHECKING:
    from paramserver.ps.exchange import Session
    from paramserver.ps.service import ServerService


class Lookup(Request):
    """One lookup: its keys as they come, then the answer."""

    def __init__(self, service: ServerService, session: Session, record: pb.Record) -> None:
        super().__init__(service, session, record)
        self._lookup = record.lookup
        self._keys: dict[int, Keys] = {}

    async def begin(self) -> None:
        lookup = self._lookup
        self._deadline = deadline_in(lookup.timeout)
        if not lookup.latest:
            await self.service.views.admit(lookup.worker)
        self._group = await self.service.group(lookup.group, lookup.map_version)
        if self._group.spec.table is None:
            raise InvalidRequestError(f"group {lookup.group!r} is no table: pull its tensors")
        self._table = self._group.spec.table
        self._group.check_slices(lookup.slices)
        if len(lookup.have) not in (0, len(lookup.slices)):
            raise InvalidRequestError("lookup: as many versions as slices, or none")
        stored = self._group.spec.tensors[0].dtype
        self._wire = wire_of(self._group, lookup.wire_dtype) or stored
        await self.session.settle()  # read-my-writes: what this stream sent before is applied
        self._answer_if_all()

    async def take(self, data: pb.Data, pieces: Sequence[Piece]) -> None:
        refused = []
        for index, piece, mark in zip(data.slices, pieces, data.checksums, strict=True):
            if index not in self._lookup.slices:
                raise InvalidRequestError(f"data: slice {index} is not of its lookup")
            if checksum(piece) == mark:
                self._keys[index] = decode_keys(piece, index, self._table.rows)
            else:
                refused.append(index)
        self.refuse(refused)
        self._answer_if_all()

    def _answer_if_all(self) -> None:
        if len(self._keys) == len(self._lookup.slices):
            self.whole = True
            self.session.start(self.number, self._answer(), self._lookup.group)

    async def _answer(self) -> None:
        lookup, group = self._lookup, self._group
        deadline = self._deadline
        have = dict(zip(lookup.slices, lookup.have, strict=False))
        for part in self._frames():
            for index in part:
                if not lookup.latest:
                    await until_readable(
                        self.service,
                        self.session.outbox,
                        self.number,
                        group,
                        group.cell_of[index],
                        lookup.clock,
                        deadline,
                    )
            await self.session.outbox.room()
            cells = [(group.cell_of[i], i, self._keys[i], have.get(i, 0)) for i in part]
            size = sum(len(k) for _, _, k, _ in cells) * self._row_bytes
            data, found = await self.service.workshop.offload(size, _read, cells, self._wire)
            self.session.outbox.put(pb.Record(request=self.number, data=data), found)
        done = pb.Done(clock=lookup.clock, version=group.version)
        self.session.outbox.put(pb.Record(request=self.number, done=done))

    @property
    def _row_bytes(self) -> int:
        table = self._group.spec.table
        assert table is not None
        return row_bytes(table.dim, self._wire)

    def _frames(self) -> list[list[int]]:
        """Slices that are answered together: about a frame's worth of rows."""
        parts: list[list[int]] = []
        room = 0
        for index in self._lookup.slices:
            size = len(self._keys[index]) * self._row_bytes
            if not parts or size > room:
                parts.append([])
                room = RECORD_BYTES
            parts[-1].append(index)
            room -= size
        return parts


def _read(cells: Sequence[tuple[Cell, int, Keys, int]], wire: str) -> tuple[pb.Data, list[Piece]]:
    """The rows of some sub-tables, copied under their locks. Any thread."""
    data, pieces = pb.Data(), []
    for cell, index, keys, have in cells:
        assert cell.rows is not None
        with cell.lock:
            version = cell.rows.versions[index]
            rows, chosen = cell.rows.table.read(keys, since=have)
        piece = encode_rows(rows, wire)
        if have:
            piece = b"".join((piece, np.packbits(chosen).tobytes()))
        data.slices.append(index)
        data.sizes.append(len(piece))
        data.checksums.append(checksum(piece))
        data.versions.append(version)
        pieces.append(piece)
    return data, pieces
