"""What of a group lies where: slices by server, in the order of the next forward pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from paramserver.core.placement import GroupSpec, SliceMap, slices_of
from paramserver.core.slices import BLOCK_WIRES, Slice, pack, travels_as
from paramserver.errors import InvalidRequestError, NonFiniteError
from paramserver.wire.frames import Piece
from paramserver.wire.tensors import DTYPES, as_bytes, flat_host, is_finite


@dataclass(frozen=True, slots=True)
class Shard:
    """One server's share of a group."""

    index: int
    address: str
    buckets: tuple[tuple[Slice, ...], ...]
    slices: tuple[Slice, ...]


class Plan:
    """The slices of a group, and where they are: that may change, ``follow`` tells."""

    def __init__(self, spec: GroupSpec, slice_map: SliceMap) -> None:
        self.spec = spec
        self.map = slice_map
        self.slices = slices_of(spec, slice_map)
        self.number = {t.name: i for i, t in enumerate(spec.tensors)}
        self.of_tensor: list[list[Slice]] = [[] for _ in spec.tensors]
        for piece in self.slices:
            self.of_tensor[piece.tensor].append(piece)
        self.shards: list[Shard] = []
        self._deal()

    def _deal(self) -> None:
        shards = [self._shard(i) for i in range(len(self.map.servers))]
        self.shards = [s for s in shards if s.slices]

    def follow(self, slice_map: SliceMap) -> bool:
        """Takes a newer map of the same slices; False for one that is known."""
        if slice_map.version <= self.map.version:
            return False
        self.map = slice_map
        self._deal()
        return True

    def _shard(self, index: int) -> Shard:
        mine = [s for s, owner in zip(self.slices, self.map.owners, strict=True) if owner == index]
        buckets = tuple(tuple(bucket) for bucket in pack(mine))
        return Shard(index, self.map.addresses[index], buckets, tuple(mine))

    def check_names(self, names: Iterable[str]) -> None:
        """Raises InvalidRequestError for a tensor that the group does not have."""
        for name in names:
            if name not in self.number:
                known = ", ".join(sorted(self.number)[:10])
                raise InvalidRequestError(
                    f"group {self.spec.name!r} has no tensor {name!r}; it has {known}"
                )

    def check_shape(self, name: str, tensor: Tensor) -> None:
        """Raises InvalidRequestError unless the tensor has the shape of its specification."""
        wanted = self.spec.tensors[self.number[name]].shape
        if tuple(tensor.shape) != wanted:
            raise InvalidRequestError(
                f"tensor {name!r}: shape {tuple(tensor.shape)}, registered was {wanted}"
            )

    def outgoing(self, tensors: Mapping[str, Tensor], wire: str, clock: int) -> dict[int, Tensor]:
        """Flat host tensors by tensor number, cast for the wire, checked before a byte leaves.

        Raises:
            InvalidRequestError: an unknown name, a wrong shape, a frozen tensor.
            NonFiniteError: NaN or infinity; names tensor and clock.
        """
        self.check_names(tensors)
        flat: dict[int, Tensor] = {}
        for name, tensor in tensors.items():
            self.check_shape(name, tensor)
            number = self.number[name]
            spec = self.spec.tensors[number]
            if spec.rule == "frozen":
                raise InvalidRequestError(f"tensor {name!r} is frozen and takes no pushes")
            # Blocks are packed later, from values in the tensor's own type.
            dtype = DTYPES[travels_as(spec.dtype, spec.rule, "" if wire in BLOCK_WIRES else wire)]
            value = flat_host(tensor.detach().to(dtype))
            if self.spec.on_nonfinite != "apply" and not is_finite(value):
                raise NonFiniteError(
                    f"NaN or infinity in {name!r} at clock {clock}"
                    + (f", after the cast to {wire}" if dtype != tensor.dtype else "")
                    + "; nothing was sent. Lower the learning rate, clip gradients, or use a "
                    "GradScaler"
                )
            flat[number] = value
        return flat


class Packed:
    """A tensor in blocks, packed once: whatever is sent again are the same bytes."""

    def __init__(self, parts: Mapping[int, Tensor]) -> None:
        self._parts = parts

    def part(self, piece: Slice) -> Tensor:
        """The bytes (uint8) of one slice."""
        return self._parts[piece.index]


Flat: TypeAlias = Tensor | Packed


def part_of(value: Flat, piece: Slice) -> Tensor:
    """What travels of one slice."""
    return value.part(piece) if isinstance(value, Packed) else value[piece.start : piece.stop]


def pieces_of(bucket: Sequence[Slice], flat: Mapping[int, Flat]) -> list[tuple[Slice, Piece]]:
    """The bytes of those slices of a bucket whose tensors are given."""
    found: list[tuple[Slice, Piece]] = []
    for piece in bucket:
        value = flat.get(piece.tensor)
        if value is not None:
            found.append((piece, as_bytes(part_of(value, piece))))
    return found


def empty_like(spec: GroupSpec, names: Iterable[str], plan: Plan) -> dict[str, Tensor]:
    """New tensors of the group's shapes and types."""
    found: dict[str, Tensor] = {}
    with torch.inference_mode(False):  # threads that are in no such mode write to them
        for name in names:
            tensor = spec.tensors[plan.number[name]]
            found[name] = torch.empty(tensor.shape, dtype=DTYPES[tensor.dtype])
    return found
