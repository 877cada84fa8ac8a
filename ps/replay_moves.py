"""Moves of slices, as a journal tells of them."""

from __future__ import annotations

import json
from collections.abc import Sequence

from torch import Tensor

from paramserver.core.placement import SliceMap
from paramserver.ps.group import GroupState
from paramserver.ps.regroup import blank_map, lead_on, regroup
from paramserver.ps.reshape import Part
from paramserver.ps.service import ServerService
from paramserver.ps.slice_parts import Fetched
from paramserver.ps.state import SliceState
from paramserver.v1 import journal_pb2 as pb
from paramserver.wire.convert import dtype_from_proto, map_from_proto
from paramserver.wire.frames import Piece
from paramserver.wire.tensors import DTYPES, from_bytes

MOVES = frozenset({"came", "bound", "followed", "released"})


class MovesReplay:
    """Applies the entries of moves; a part that does not end is left for ``Reshape.resume``."""

    def __init__(self, service: ServerService) -> None:
        self._service = service
        self._came: dict[str, dict[int, SliceState]] = {}  # by group, until they are bound

    def apply(self, kind: str, group: GroupState, entry: pb.Entry, pieces: Sequence[Piece]) -> None:
        """One entry."""
        name, moves = entry.group, self._service.reshape
        if kind == "came":
            came = self._came.setdefault(name, {})
            came[entry.came.slice] = state_of(entry.came, entry.parts, pieces)
        elif kind == "bound":
            part = Part(entry.bound.move, group, bound=True)
            if entry.bound.HasField("map"):
                fetched = Fetched(entry.bound.group, self._came.pop(name, {}))
                part.taken = map_from_proto(entry.bound.map), fetched
            moves.remember(name, part)
        elif kind == "released":
            moves.remembered(name)
        else:
            self._follow(group, map_from_proto(entry.followed.map), entry.followed.now)

    def _follow(self, group: GroupState, new: SliceMap, now: float) -> None:
        service, name = self._service, group.spec.name
        if group.map.version >= new.version:
            return
        part, fetched = service.reshape.remembered(name), None
        if part is not None and part.taken is not None and part.taken[0].version == new.version:
            fetched = part.taken[1]
            if not group.slices:
                group = service.make(group.spec, blank_map(new))
                service.install(group)
        regroup(group, new, fetched, now)
        if group.leads:
            lead_on(service, group, fetched)
        else:
            service.leads.drop(name)


def state_of(body: pb.DumpedSlice, parts: Sequence[pb.Part], pieces: Sequence[Piece]) -> SliceState:
    """A slice's state, as copies that may be written to."""
    tensors = {
        part.name: tensor_of(part, memoryview(bytearray(piece))).view(tuple(part.shape))
        for part, piece in zip(parts, pieces, strict=True)
    }
    return SliceState(tensors, json.loads(body.numbers))


def tensor_of(part: pb.Part, piece: Piece) -> Tensor:
    """A flat tensor that shares the bytes."""
    return from_bytes(piece, DTYPES[dtype_from_proto(part.dtype)])
