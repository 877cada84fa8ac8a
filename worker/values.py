"""Values on their way from the servers into tensors, and which versions a client holds."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from paramserver.core.slices import Slice, travels_as
from paramserver.errors import ChecksumError
from paramserver.v1 import server_pb2 as pb
from paramserver.wire.frames import Piece
from paramserver.wire.tensors import DTYPES, checksum, from_bytes
from paramserver.worker.plan import Plan

FIRST_VERSION = 1  # of first values, as servers count


class Held:
    """The tensors that hold the newest pulled values, and the version of each slice in them.

    A slice whose version the servers have not changed need not travel again, as long as the tensor
    was not written to since.

    Attributes:
        versions: by slice.
        own: pushes since the pull that the local copy has taken as well: none of them is late.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.versions = [0] * len(plan.slices)
        self.own = 0
        self._tensors: dict[int, tuple[Tensor, int]] = {}

    def holds(self, tensor: int) -> Tensor | None:
        """The tensor with the pulled values, if nobody wrote to it since."""
        held = self._tensors.get(tensor)
        if held is None or held[0]._version != held[1]:
            return None
        return held[0]

    def hold(self, tensor: int, value: Tensor) -> None:
        """``value`` has the newest pulled values of a tensor."""
        self._tensors[tensor] = (value, value._version)

    def base(self, piece: Slice) -> int:
        """The version that a gradient of now is computed on; without a pull, the first values."""
        return max(self.versions[piece.index], FIRST_VERSION) + self.own

    def have(self, slices: Sequence[Slice]) -> list[int]:
        """The version of each slice that is held; 0 for none."""
        held = {t for t in {s.tensor for s in slices} if self.holds(t) is not None}
        return [self.versions[s.index] if s.tensor in held else 0 for s in slices]


class Landing:
    """One pull's way into ``into``: bytes to slices of tensors, in any thread.

    A tensor that is neither contiguous nor on the CPU is filled by one copy at the end.
    """

    def __init__(self, plan: Plan, held: Held, into: Mapping[str, Tensor], wire: str) -> None:
        self._plan = plan
        self._held = held
        self._wire = wire
        self._into = {plan.number[name]: tensor for name, tensor in into.items()}
        self._flat = {number: _landing_place(t) for number, t in self._into.items()}
        self._landed: set[int] = set()
        self._lock = threading.Lock()
        self._kept = {n: held.holds(n) for n in self._into}

    def take(self, data: pb.Data, pieces: Sequence[Piece]) -> None:
        """Copies slices to their places.

        Raises:
            ChecksumError: bytes changed on the way; ask again.
        """
        for index, version, mark, piece in zip(
            data.slices, data.versions, data.checksums, pieces, strict=True
        ):
            if checksum(piece) != mark:
                raise ChecksumError(f"slice {index}: bytes changed on the way here")
            place = self._plan.slices[index]
            if len(piece) or not place.elements:
                self._copy(place, piece)
            self._held.versions[index] = version

    def _copy(self, place: Slice, piece: Piece) -> None:
        flat = self._flat.get(place.tensor)
        if flat is None:
            return
        spec = self._plan.spec.tensors[place.tensor]
        source = from_bytes(piece, DTYPES[travels_as(spec.dtype, spec.rule, self._wire)])
        with torch.no_grad():
            flat[place.start : place.stop].copy_(source)
        with self._lock:
            self._landed.add(place.index)

    def finish(self) -> None:
        """Fills in what did not travel, and remembers what is held now."""
        self._held.own = 0
        for number, tensor in self._into.items():
            flat = self._flat[number]
            kept = self._kept[number]
            if kept is not None and kept is not tensor:
                self._fill(number, flat, kept.detach().reshape(-1))
            if flat.untyped_storage().data_ptr() != tensor.untyped_storage().data_ptr():
                with torch.no_grad():
                    tensor.copy_(flat.view(tensor.shape))
            self._held.hold(number, tensor)

    def _fill(self, number: int, flat: Tensor, kept: Tensor) -> None:
        for place in self._plan.of_tensor[number]:
            if place.index not in self._landed:
                flat[place.start : place.stop].copy_(kept[place.start : place.stop])


def _landing_place(tensor: Tensor) -> Tensor:
    value = tensor.detach()
    if value.device.type == "cpu" and value.is_contiguous():
        return value.view(-1)
    host = torch.empty(value.numel(), dtype=value.dtype, pin_memory=value.device.type == "cuda")
    host.copy_(value.reshape(-1))
    return host
