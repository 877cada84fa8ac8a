"""The whole state of one slice or sub-table, as it is captured, moved and restored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import Tensor

VALUE = "value"


@dataclass(frozen=True, slots=True)
class SliceState:
    """All that a slice needs to go on exactly where it was, in whatever bucket and server.

    Attributes:
        tensors: copies by name. Of a dense slice "value" (absent before its first value) and the
            optimizer's state by torch's own names ("exp_avg", "step", ...); of a sub-table "keys",
            "rows", "changed" and those of its life cycle.
        numbers: plain JSON-able values: "version", "changed", and counters.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    numbers: Mapping[str, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


SliceStates: TypeAlias = Mapping[int, SliceState]
