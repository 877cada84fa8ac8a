"""Ids of a batch as a table takes them: distinct keys in order, and the way back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from paramserver.core.tables import SUB_TABLES
from paramserver.errors import InvalidRequestError, NonFiniteError
from paramserver.v1 import server_pb2 as pb
from paramserver.wire.frames import Piece
from paramserver.wire.rows import (
    RECORD_BYTES,
    SHIFT,
    Keys,
    encode_keys,
    encode_rows,
    ids_of,
    keys_of,
    row_bytes,
)
from paramserver.wire.tensors import checksum, is_finite
from paramserver.worker.link import Part
from paramserver.worker.parts import Out
from paramserver.worker.plan import Shard

if TYPE_CHECKING:
    from paramserver.worker.group import Group

PIECE_BYTES = 8 << 20  # of one sub-table in one request: a message has room for it
_BOUNDS = np.arange(SUB_TABLES, dtype=np.uint64) << np.uint64(SHIFT)


class Routed:
    """The distinct ids of a batch, sorted by key, so that each sub-table's are neighbours.

    Args:
        ids: integers of any shape, on any device.

    Attributes:
        keys: uint64 [u].
        inverse: int64 [n]: where each id of the batch is in ``keys``; n = ids.numel().
        slices: numbers of the sub-tables with keys here.
    """

    def __init__(self, ids: Tensor) -> None:
        flat = ids.detach().to("cpu", torch.int64).reshape(-1).contiguous()
        self.keys, self.inverse = distinct(keys_of(flat.numpy()))
        self._divide()

    @classmethod
    def together(cls, parts: Sequence[Routed]) -> Routed:
        """All keys of some others; ``inverse`` says where theirs are, end to end."""
        made = cls.__new__(cls)
        every = [part.keys for part in parts] or [np.empty(0, np.uint64)]
        made.keys, made.inverse = distinct(np.concatenate(every))
        made._divide()
        return made

    def _divide(self) -> None:
        starts = np.searchsorted(self.keys, _BOUNDS).tolist()
        self._ranges = list(zip(starts, [*starts[1:], len(self.keys)], strict=True))
        self.slices = [i for i, (start, stop) in enumerate(self._ranges) if stop > start]

    def range(self, slice_: int) -> tuple[int, int]:
        """Where the keys of a sub-table are."""
        return self._ranges[slice_]

    def same(self, other: Routed) -> bool:
        """Whether the distinct keys are those of another."""
        return self is other or np.array_equal(self.keys, other.keys)

    def sums(self, grads: Tensor) -> Tensor:
        """The sum of the gradients of each distinct id, float [u, dim].

        Args:
            grads: [n, dim], beside the ids.
        """
        inverse = self.inverse.numpy()
        order = np.arange(len(inverse))
        first = np.empty(len(self.keys), np.int64)
        first[inverse[::-1]] = order[::-1]  # of several, the last written stays
        again = torch.from_numpy(np.flatnonzero(first[inverse] != order))
        total = grads.index_select(0, torch.from_numpy(first))
        return total.index_add_(0, self.inverse[again], grads[again]) if len(again) else total

    def ids(self) -> Sequence[int]:
        """The distinct ids, in the order of their keys."""
        found: list[int] = ids_of(self.keys).tolist()
        return found


def distinct(keys: Keys) -> tuple[Keys, Tensor]:
    """The distinct keys in order, and where each key is in them: int64 [n]."""
    # Signed order of the keys with their highest bit flipped is the unsigned order of the keys.
    signed = torch.from_numpy((keys ^ np.uint64(1 << 63)).view(np.int64))
    found, inverse = torch.unique(signed, return_inverse=True)
    return found.numpy().view(np.uint64) ^ np.uint64(1 << 63), inverse


class RowParts:
    """One server's share of a push of rows.

    Args:
        bases: by sub-table, the version that the gradients were computed on.
    """

    def __init__(
        self,
        group: Group,
        shard: Shard,
        push: pb.Push,
        routed: Routed,
        rows: Tensor,
        bases: Mapping[int, int],
    ) -> None:
        mine = {s.index for s in shard.slices}
        self._wire = group.wire_dtype or group.spec.tensors[0].dtype
        self._routed, self._rows = routed, rows
        self._slices = [i for i in routed.slices if i in mine]
        self.size = sum(self._size(i) for i in self._slices)
        self._push = pb.Push()
        self._push.CopyFrom(push)
        self._push.slices.extend(self._slices)
        held = group.held.versions
        self._push.bases.extend(max(bases.get(i, held[i]), 1) for i in self._slices)

    def _size(self, slice_: int) -> int:
        start, stop = self._routed.range(slice_)
        return (stop - start) * (8 + row_bytes(self._rows.shape[1], self._wire))

    def all(self) -> Iterator[Out]:
        """The declaration, then keys and rows, about a frame's worth at a time."""
        yield pb.Record(push=self._push), ()
        yield from self._data(self._slices)

    def some(self, slices: Iterable[int]) -> Part:
        """The bytes of refused sub-tables."""
        wanted = sorted(slices)
        return lambda: self._data(wanted)

    def _data(self, slices: Iterable[int]) -> Iterator[Out]:
        for part in packed(slices, self._size):
            pieces = [self._pieces(i) for i in part]
            yield data_of(part, pieces), [piece for both in pieces for piece in both]

    def _pieces(self, slice_: int) -> tuple[Piece, Piece]:
        start, stop = self._routed.range(slice_)
        keys = encode_keys(self._routed.keys[start:stop])
        return keys, encode_rows(self._rows[start:stop], self._wire)


class LookupParts:
    """One server's share of a lookup.

    Args:
        have: by sub-table, the version of the rows that are here; only newer ones are sent.
    """

    def __init__(
        self, shard: Shard, lookup: pb.Lookup, routed: Routed, have: Mapping[int, int]
    ) -> None:
        mine = {s.index for s in shard.slices}
        self._routed = routed
        self.slices = [i for i in routed.slices if i in mine]
        self._lookup = pb.Lookup()
        self._lookup.CopyFrom(lookup)
        self._lookup.slices.extend(self.slices)
        if have:
            self._lookup.have.extend(have.get(i, 0) for i in self.slices)

    def all(self) -> Iterator[Out]:
        """The declaration, then the keys."""
        yield pb.Record(lookup=self._lookup), ()
        yield from self._data(self.slices)

    def some(self, slices: Iterable[int]) -> Part:
        """The keys of refused sub-tables."""
        wanted = sorted(slices)
        return lambda: self._data(wanted)

    def _data(self, slices: Iterable[int]) -> Iterator[Out]:
        for part in packed(
            slices, lambda i: 8 * (self._routed.range(i)[1] - self._routed.range(i)[0])
        ):
            pieces = []
            for index in part:
                start, stop = self._routed.range(index)
                pieces.append(encode_keys(self._routed.keys[start:stop]))
            yield data_of(part, [(piece,) for piece in pieces]), pieces


def data_of(slices: Sequence[int], pieces: Sequence[Sequence[Piece]]) -> pb.Record:
    """The record that says what the bytes are; of each slice, they may lie in several pieces."""
    data = pb.Data(
        slices=slices,
        sizes=[sum(len(p) for p in of_slice) for of_slice in pieces],
        checksums=[checksum(*of_slice) for of_slice in pieces],
    )
    return pb.Record(data=data)


def packed(slices: Iterable[int], size: Callable[[int], int]) -> Iterator[list[int]]:
    """Slices that travel in one record: about a frame's worth."""
    part: list[int] = []
    room = RECORD_BYTES
    for index in slices:
        if part and size(index) > room:
            yield part
            part, room = [], RECORD_BYTES
        part.append(index)
        room -= size(index)
    if part:
        yield part


def check_ids(name: str, ids: Tensor, rows: int | None) -> None:
    """Raises InvalidRequestError for ids that are no integers, or out of range; names the id."""
    if not isinstance(ids, Tensor):
        raise InvalidRequestError(f"table {name!r}: ids are a {type(ids).__name__}: give a tensor")
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise InvalidRequestError(f"table {name!r}: ids of {ids.dtype}: must be integers")
    if rows is None or not ids.numel():
        return
    ids = ids.to(torch.int64)  # torch has no order of most unsigned types
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= rows:
        worst = low if low < 0 else high
        raise InvalidRequestError(
            f"table {name!r}: id {worst} is out of range: it has {rows} rows, 0 to {rows - 1}; "
            "make the table with rows=None to take any id"
        )


def check_gradients(name: str, ids: Tensor, grads: Tensor, dim: int) -> None:
    """Raises InvalidRequestError for gradients of another shape."""
    if tuple(grads.shape) != (*ids.shape, dim):
        raise InvalidRequestError(
            f"table {name!r}: gradients of shape {tuple(grads.shape)} for ids of shape "
            f"{tuple(ids.shape)}: must be {(*ids.shape, dim)}"
        )


def check_finite(name: str, routed: Routed, rows: Tensor, clock: int) -> None:
    """Raises NonFiniteError naming the id, for gradients beside the distinct keys."""
    if not is_finite(rows):
        bad = int((~torch.isfinite(rows)).any(dim=1).nonzero()[0])
        raise NonFiniteError(
            f"NaN or infinity in the gradient of row {routed.ids()[bad]} of table {name!r} "
            f"at clock {clock}; nothing was sent"
        )
