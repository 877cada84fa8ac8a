"""What leaves for the servers: checked, cast or packed into blocks; error feedback for int4."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from paramserver.core.slices import BLOCK_WIRES, travels_as
from paramserver.errors import NonFiniteError
from paramserver.wire.blocks import LEVELS, pack, unpack
from paramserver.wire.tensors import is_finite
from paramserver.worker.plan import Flat, Packed, Plan

FEEDBACK = frozenset({"int4"})  # int8 loses too little to be worth a copy of the model


class Leaving:
    """Tensors on their way.

    Attributes:
        flat: by tensor number.
    """

    def __init__(self, flat: Mapping[int, Flat], undo: Callable[[], None]) -> None:
        self.flat = flat
        self._undo = undo
        self._lock = threading.Lock()
        self._ended = False

    def end(self, counted: bool) -> None:
        """What was sent counts, or never will; in any thread. The first word holds."""
        with self._lock:
            ended, self._ended = self._ended, True
        if not ended and not counted:
            self._undo()


class Uplink:
    """The way of one group's tensors to the servers.

    With int4, what rounding kept back of a push is added to the next one (error feedback, Seide et
    al., 2014): the sum of what was sent and the residual is the sum of what was pushed. A push that
    does not count leaves the residual as it was.

    Args:
        plan: of the group.
        wire: the wire data type, as ``Group.wire_dtype``.

    Attributes:
        residuals: by tensor number, what has not been sent yet; float32, or as a float64 tensor.
    """

    def __init__(self, plan: Plan, wire: str) -> None:
        self._plan = plan
        self._wire = wire
        self._lock = threading.Lock()  # pushes end in the threads of links
        self.residuals: dict[int, Tensor] = {}

    def leave(self, tensors: Mapping[str, Tensor], clock: int) -> Leaving:
        """What a push of ``tensors`` sends.

        Raises:
            InvalidRequestError: an unknown name, a wrong shape, a frozen tensor.
            NonFiniteError: NaN or infinity, before or after packing; names tensor and clock.
        """
        flat: dict[int, Flat] = {**self._plan.outgoing(tensors, self._wire, clock)}
        if self._wire not in BLOCK_WIRES:
            return Leaving(flat, lambda: None)
        before: dict[int, Tensor | None] = {}
        after: dict[int, Tensor] = {}
        for number, value in flat.items():
            dtype = self._travels_as(number)
            if dtype not in LEVELS or not isinstance(value, Tensor):
                continue
            kept = self.residuals.get(number)
            whole = value if value.dtype == torch.float64 else value.float()
            whole = whole if kept is None else whole + kept
            packed, arrives = self._pack(number, whole, dtype, clock)
            flat[number] = packed
            if self._wire in FEEDBACK:
                before[number], after[number] = kept, whole - arrives
        with self._lock:
            self.residuals.update(after)
        return Leaving(flat, lambda: self._restore(before, after))

    def _travels_as(self, number: int) -> str:
        spec = self._plan.spec.tensors[number]
        return travels_as(spec.dtype, spec.rule, self._wire)

    def _pack(self, number: int, whole: Tensor, dtype: str, clock: int) -> tuple[Packed, Tensor]:
        """A tensor in blocks, and what the servers will make of it."""
        parts: dict[int, Tensor] = {}
        arrives = torch.empty_like(whole, dtype=torch.float32)
        for piece in self._plan.of_tensor[number]:
            packed = pack(whole[piece.start : piece.stop], dtype)
            parts[piece.index] = packed
            arrives[piece.start : piece.stop] = unpack(packed, dtype, piece.elements)
        if self._plan.spec.on_nonfinite != "apply" and not is_finite(arrives):
            name = self._plan.spec.tensors[number].name
            raise NonFiniteError(
                f"infinity in {name!r} at clock {clock}, in {self._wire} blocks, whose scales are "
                "float32; nothing was sent"
            )
        return Packed(parts), arrives

    def _restore(self, before: Mapping[int, Tensor | None], after: Mapping[int, Tensor]) -> None:
        """The residuals of before a push; if others followed, what it changed is undone."""
        with self._lock:
            for number, kept in before.items():
                old = torch.zeros_like(after[number]) if kept is None else kept
                if self.residuals[number] is after[number]:
                    self.residuals[number] = old
                else:
                    self.residuals[number] = self.residuals[number] + (old - after[number])
