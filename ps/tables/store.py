"""One sub-table: rows with their state side by side in one slab, found by key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from paramserver.core.tables import Initial
from paramserver.ps.tables.index import Index, Places
from paramserver.ps.tables.initial import initial_values
from paramserver.ps.tables.rules import RowRule
from paramserver.wire.rows import Keys

GROWTH = 1.25  # a slab is copied when it grows, so it grows by little
SMALLEST = 16


class Rows(NamedTuple):
    """Distinct keys, and a gradient for each: float32 [n, dim]."""

    keys: Keys
    grads: Tensor

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.grads.nbytes


@dataclass(frozen=True, slots=True)
class Layout:
    """What all sub-tables of a table have in common.

    Attributes:
        dim: floats of a row's value.
        rule: the optimizer; None adds what is pushed.
        options: its hyper-parameters as registered, with defaults.
        initial: what an unseen row reads as.
    """

    dim: int
    rule: RowRule | None
    options: Mapping[str, Any]
    initial: Initial

    @property
    def width(self) -> int:
        """Floats of a row with its state."""
        return self.rule.width(self.dim) if self.rule else self.dim


class SubTable:
    """Rows whose keys share their highest bits. Not thread-safe.

    Args:
        skip: how many bits they share.

    Attributes:
        index: from keys to places in the slab.
    """

    def __init__(self, layout: Layout, skip: int = 0) -> None:
        self.layout = layout
        self.index = Index(skip)
        self._free: list[Places] = []
        self._allocate(SMALLEST)

    def _allocate(self, rows: int) -> None:
        self._slab = torch.empty((rows, self.layout.width))
        self._changed: npt.NDArray[np.int64] = np.zeros(rows, np.int64)
        self._used = 0

    def __len__(self) -> int:
        return self.index.count

    @property
    def nbytes(self) -> int:
        """Memory of rows, state and index."""
        return self._slab.nbytes + self._changed.nbytes + self.index.nbytes

    def read(self, keys: Keys, since: int = 0) -> tuple[Tensor, npt.NDArray[np.bool_]]:
        """Values of rows; unseen ones as they would begin. Changes nothing.

        Args:
            keys: distinct.
            since: rows unchanged after this version are left out (0: none are).

        Returns:
            Float32 [m, dim], and which of the keys they belong to.
        """
        places = self.index.find(keys)
        chosen = np.ones(len(keys), np.bool_)
        if since:
            chosen = (places >= 0) & (self._changed.take(np.maximum(places, 0)) > since)
            keys, places = keys[chosen], places[chosen]
        there = places >= 0
        values = self._slab[:, : self.layout.dim]
        if there.all():
            return values.index_select(0, _index(places)), chosen
        found = torch.from_numpy(initial_values(self.layout.initial, keys, self.layout.dim))
        if there.any():
            found[torch.from_numpy(np.flatnonzero(there))] = values.index_select(
                0, _index(places[there])
            )
        return found, chosen

    def push(self, rows: Rows, options: Mapping[str, Any], clock: int, version: int) -> None:
        """One step on these rows; those that are new are born with it.

        Args:
            rows: distinct keys and their gradients.
            options: hyper-parameters of this step, complete.
            clock: steps of the whole table, this one included.
            version: of the sub-table from now on; larger than before.
        """
        keys, grads = rows
        if not len(keys):
            return
        places = _index(self._places_of(keys))
        layout = self.layout
        old = self._slab.index_select(0, places)
        if layout.rule is None:
            old.add_(grads)
        else:
            layout.rule.step(old, grads, layout.dim, options, clock)
        self._slab.index_copy_(0, places, old)
        self._changed[places.numpy()] = version

    def _places_of(self, keys: Keys) -> Places:
        places = self.index.find(keys)
        new = np.flatnonzero(places < 0)
        if new.size:
            places[new] = self._create(keys[new])
        return places

    def _create(self, keys: Keys) -> Places:
        places = self._take(len(keys))
        self.index.add(keys, places)
        layout, at = self.layout, _index(places)
        rows = torch.zeros((len(keys), layout.width))
        rows[:, : layout.dim] = torch.from_numpy(initial_values(layout.initial, keys, layout.dim))
        if layout.rule is not None and (first := layout.rule.first(layout.options)):
            rows[:, layout.dim :] = first
        self._slab.index_copy_(0, at, rows)
        return places

    def _take(self, count: int) -> Places:
        """Free places: those of removed rows first."""
        taken: list[Places] = []
        while self._free and count:
            part = self._free.pop()
            if len(part) > count:
                self._free.append(part[count:])
                part = part[:count]
            taken.append(part)
            count -= len(part)
        if count:
            if self._used + count > len(self._slab):
                self._grow(self._used + count)
            taken.append(np.arange(self._used, self._used + count, dtype=np.int32))
            self._used += count
        return np.concatenate(taken)

    def _grow(self, rows: int) -> None:
        old, changed, used = self._slab, self._changed, self._used
        self._allocate(max(rows, int(len(old) * GROWTH)))
        self._slab[:used] = old[:used]
        self._changed[:used] = changed[:used]
        self._used = used

    def remove(self, keys: Keys) -> None:
        """Forgets rows that are there; they read as initial values from now on."""
        if len(keys):
            self._free.append(self.index.remove(keys))

    def check_invariants(self) -> None:
        """Raises AssertionError where the state cannot be."""
        self.index.check_invariants()
        _, places = self.index.entries()
        free = np.concatenate(self._free) if self._free else np.empty(0, np.int32)
        every = np.sort(np.concatenate([places, free]))
        assert (every == np.arange(self._used)).all(), "a place is lost, or used twice"


def _index(places: Places) -> Tensor:
    return torch.from_numpy(places).long()
