"""Tensors as bytes and back, without copies where memory allows it; checksums."""

from __future__ import annotations

import math
import warnings

import torch
import xxhash
from torch import Tensor

from paramserver.types import ITEM_SIZES
from paramserver.wire.frames import Piece

DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in ITEM_SIZES}
NAMES: dict[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}

# torch warns once per process that a tensor over read-only memory could be written to.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch.frombuffer(b"\0", dtype=torch.uint8)


def as_bytes(tensor: Tensor) -> Piece:
    """The memory of a contiguous CPU tensor of one dimension, as a view."""
    if not tensor.numel():
        return b""
    return memoryview(tensor.view(torch.uint8).numpy())  # type: ignore[arg-type]


def from_bytes(piece: Piece, dtype: torch.dtype) -> Tensor:
    """A one-dimensional tensor over ``piece``; copied only if the memory is not aligned."""
    if not len(piece):
        return torch.empty(0, dtype=dtype)
    flat = torch.frombuffer(piece, dtype=torch.uint8)
    if flat.data_ptr() % dtype.itemsize:
        flat = flat.clone()
    return flat.view(dtype)


def flat_host(tensor: Tensor) -> Tensor:
    """The elements in C order on the CPU, one dimension; a view where possible."""
    return tensor.detach().to("cpu").reshape(-1).contiguous()


def checksum(*pieces: Piece) -> int:
    """xxh3_64 of the bytes, end to end."""
    if len(pieces) == 1:
        return int(xxhash.xxh3_64_intdigest(pieces[0]))
    digest = xxhash.xxh3_64()
    for piece in pieces:
        digest.update(piece)
    return int(digest.intdigest())


def is_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite; True for integers.

    A sum is several times cheaper than an element-wise test, and only a non-finite sum needs it.
    """
    if not tensor.is_floating_point() or math.isfinite(float(tensor.sum())):
        return True
    return bool(torch.isfinite(tensor).all())
