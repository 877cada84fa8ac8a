"""The whole state of one slice or sub-table, as it is captured, moved and restored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from paramserver.errors import InvalidRequestError

VALUE = "value"
ROW_COLUMNS = ("keys", "rows", "changed", "scores")  # of a sub-table, beside one another


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


def only_changes(state: SliceState, since: int) -> SliceState:
    """What a dump with ``since`` has of a sub-table that was dumped whole."""
    columns = {name: state.tensors[name] for name in ROW_COLUMNS if name in state.tensors}
    later = columns["changed"] > since
    tensors = {name: column[later] for name, column in columns.items()}
    if state.numbers["evicted_at"] >= since:  # eviction alone makes no version
        tensors["living"] = columns["keys"]
    rest = {name: t for name, t in state.tensors.items() if name not in ROW_COLUMNS}
    return SliceState(tensors | rest, {**state.numbers, "since": since})


def with_changes(base: SliceState, later: SliceState) -> SliceState:
    """A sub-table as it was when ``later`` was dumped with ``since`` the version of ``base``.

    Raises:
        InvalidRequestError: the changes are of another base.
    """
    since, version = later.numbers.get("since", 0), base.numbers["version"]
    if since != version:
        raise InvalidRequestError(f"changes since version {since} of a table at {version}")
    old = {name: base.tensors[name].numpy() for name in ROW_COLUMNS if name in base.tensors}
    new = {name: later.tensors[name].numpy() for name in ROW_COLUMNS if name in later.tensors}
    kept = ~np.isin(old["keys"], new["keys"])
    if "living" in later.tensors:
        kept &= np.isin(old["keys"], later.tensors["living"].numpy())
    both = {name: np.concatenate([old[name][kept], new[name]]) for name in new}
    order = np.argsort(both["keys"].view(np.uint64), kind="stable")
    rest = {n: t for n, t in later.tensors.items() if n not in ROW_COLUMNS and n != "living"}
    numbers = {n: v for n, v in later.numbers.items() if n != "since"}
    return SliceState({n: torch.from_numpy(c[order]) for n, c in both.items()} | rest, numbers)
