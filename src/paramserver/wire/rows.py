"""Row ids of tables on the wire: a hash of the id is the key, and servers own ranges of it."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from paramserver.core.tables import SUB_TABLE_BITS
from paramserver.errors import InvalidRequestError
from paramserver.wire.frames import Piece
from paramserver.wire.tensors import DTYPES, as_bytes, from_bytes

Keys: TypeAlias = npt.NDArray[np.uint64]
Ids: TypeAlias = npt.NDArray[np.int64]

# Odd, so that the product is a permutation of 64-bit numbers: no two ids share a key.
FACTOR = 0x9E3779B97F4A7C15
INVERSE = pow(FACTOR, -1, 1 << 64)
KEY_BYTES = 8
SHIFT = 64 - SUB_TABLE_BITS
RECORD_BYTES = 2 << 20  # of rows that travel in one record, in either direction


def keys_of(ids: Ids) -> Keys:
    """The key of every id; neighbouring ids lie far apart.

    Args:
        ids: int64 [n], any values.

    Returns:
        uint64 [n].
    """
    return ids.view(np.uint64) * np.uint64(FACTOR)


def ids_of(keys: Keys) -> Ids:
    """The ids that have these keys."""
    return (keys * np.uint64(INVERSE)).view(np.int64)


def encode_rows(rows: Tensor, wire: str) -> Piece:
    """Rows as bytes.

    Args:
        rows: floating [n, dim], contiguous.
        wire: data type in which they travel; "int8": every row with a scale of its own, in front.
    """
    if wire == "int8":
        wide = rows.float()
        scales = wide.abs().amax(dim=1).div_(127)
        scales[scales == 0] = 1
        small = (wide / scales[:, None]).round_().to(torch.int8)
        return bytes(as_bytes(scales)) + bytes(as_bytes(small.view(-1)))
    return as_bytes(rows.to(DTYPES[wire]).view(-1))


def decode_rows(piece: Piece, dim: int, wire: str, dtype: torch.dtype) -> Tensor:
    """The rows again, [n, dim].

    Raises:
        InvalidRequestError: not a whole number of rows.
    """
    size = row_bytes(dim, wire)
    if len(piece) % size:
        raise InvalidRequestError(
            f"rows: {len(piece)} bytes, must be a multiple of {size} ({dim} x {wire})"
        )
    count = len(piece) // size
    if wire == "int8":
        scales = from_bytes(piece[: 4 * count], torch.float32)
        small = from_bytes(piece[4 * count :], torch.int8).view(count, dim)
        return (small.float() * scales[:, None]).to(dtype)
    return from_bytes(piece, DTYPES[wire]).view(count, dim).to(dtype)


def row_bytes(dim: int, wire: str) -> int:
    """Bytes of one row on the wire."""
    return dim + 4 if wire == "int8" else dim * DTYPES[wire].itemsize


def encode_keys(keys: Keys) -> Piece:
    """Keys as bytes, eight each."""
    return as_bytes(torch.from_numpy(keys.view(np.int64)))


def decode_keys(piece: Piece, slice_: int, rows: int | None = None) -> Keys:
    """The keys of a sub-table, of a table whose ids are 0 to ``rows`` - 1 (None: any).

    Raises:
        InvalidRequestError: cut off, not ascending, of another sub-table, or of no row.
    """
    if len(piece) % KEY_BYTES:
        raise InvalidRequestError(f"keys: {len(piece)} bytes, must be a multiple of 8")
    keys: Keys = np.frombuffer(piece, np.uint64)
    if len(keys) > 1 and not (keys[1:] > keys[:-1]).all():
        raise InvalidRequestError(
            f"keys of sub-table {slice_} are not ascending: sort them and sum duplicates"
        )
    if len(keys) and not int(keys[0]) >> SHIFT == int(keys[-1]) >> SHIFT == slice_:
        raise InvalidRequestError(f"keys of another sub-table were sent for sub-table {slice_}")
    if rows is not None and len(keys):
        ids = keys * np.uint64(INVERSE)  # negative ones are the largest
        if ids.max() >= rows:
            worst = int(ids.max().view(np.int64))
            raise InvalidRequestError(
                f"id {worst} is out of range: the table has {rows} rows, 0 to {rows - 1}"
            )
    return keys
