"""Tensors cut into slices, slices dealt over servers, slices packed into buckets."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

from paramserver.errors import ConfigurationError, InvalidRequestError
from paramserver.types import FLOATING, ITEM_SIZES

MAX_SLICE_ELEMENTS = 1 << 18
MIN_SLICE_ELEMENTS = 1 << 10
SLICES_PER_SERVER = 32
BUCKET_BYTES = 1 << 20
BLOCK_WIRES = frozenset({"int8", "int4"})  # wire data types of pushes, never of pulls


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor of a group: what must agree between all that speak of it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    rule: str = "step"
    param_group: int = 0

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements * ITEM_SIZES[self.dtype]


@dataclass(frozen=True, slots=True)
class Slice:
    """Elements [start, stop) of a flattened tensor; ``index`` numbers the slices of a group."""

    index: int
    tensor: int
    start: int
    stop: int
    item_size: int

    @property
    def elements(self) -> int:
        return self.stop - self.start

    @property
    def bytes(self) -> int:
        return self.elements * self.item_size


def slice_elements(tensors: Sequence[TensorSpec], servers: int) -> int:
    """Elements of a full slice: small enough that every server gets about 32 of them.

    Few large slices cannot be dealt evenly; more than a bucket's worth gains nothing.
    """
    total = sum(t.elements for t in tensors)
    wanted = total // (servers * SLICES_PER_SERVER) if servers > 1 else MAX_SLICE_ELEMENTS
    return max(MIN_SLICE_ELEMENTS, min(MAX_SLICE_ELEMENTS, wanted))


def cut(tensors: Sequence[TensorSpec], elements: int) -> list[Slice]:
    """All slices of a group in order. An empty tensor has one empty slice."""
    if not 1 <= elements <= MAX_SLICE_ELEMENTS:
        raise InvalidRequestError(
            f"slice of {elements} elements: must be 1 to {MAX_SLICE_ELEMENTS}"
        )
    slices: list[Slice] = []
    for number, tensor in enumerate(tensors):
        size = ITEM_SIZES[tensor.dtype]
        for start in range(0, max(tensor.elements, 1), elements):
            stop = min(start + elements, tensor.elements)
            slices.append(Slice(len(slices), number, start, stop, size))
    return slices


def deal(slices: Sequence[Slice], servers: int) -> list[int]:
    """The server of each slice: the largest first, each to the lightest server."""
    if servers < 1:
        raise ConfigurationError(f"servers={servers}: at least one server must hold slices")
    owners = [0] * len(slices)
    loads = [(0, server) for server in range(servers)]
    for piece in sorted(slices, key=lambda s: (-s.bytes, s.index)):
        load, server = heapq.heappop(loads)
        owners[piece.index] = server
        heapq.heappush(loads, (load + piece.bytes, server))
    return owners


def pack(slices: Sequence[Slice], limit: int = BUCKET_BYTES) -> list[list[Slice]]:
    """Neighbouring slices in buckets of at most ``limit`` bytes: what one frame carries.

    A larger slice (float64) has a bucket of its own.
    """
    buckets: list[list[Slice]] = []
    room = 0
    for piece in slices:
        if not buckets or piece.bytes > room:
            buckets.append([])
            room = limit
        buckets[-1].append(piece)
        room -= piece.bytes
    return buckets


def travels_as(dtype: str, rule: str, wire: str) -> str:
    """The data type in which a tensor's slices travel under a wire data type ("" for none).

    Values that an optimizer steps may be rounded on the way; statistics and counters may not.
    "int8" and "int4" are blocks of integers with a scale, on the way to the servers.
    """
    if rule not in ("step", "add"):
        return dtype
    if wire in BLOCK_WIRES and dtype in FLOATING:
        return f"{wire}_block"
    narrow = wire in ("bfloat16", "float16") and dtype in ("float32", "float64")
    return wire if narrow else dtype
