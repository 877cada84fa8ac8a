"""One sub-table: rows with their state side by side in one slab, found by key."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from paramserver.core.tables import Initial
from paramserver.life_cycle import Admission, Decay, Eviction
from paramserver.ps.tables.columns import Allocator, Column
from paramserver.ps.tables.index import Index, Places
from paramserver.ps.tables.initial import initial_values
from paramserver.ps.tables.life import NEVER, Counts, Oldest, admission_of, in_order
from paramserver.ps.tables.rules import Parts, RowRule
from paramserver.wire.rows import Keys


class Rows(NamedTuple):
    """Distinct keys, and a gradient for each: float32 [n, dim].

    Attributes:
        times: pushes that each is the sum of; None: one.
    """

    keys: Keys
    grads: Tensor
    times: Counts | None = None

    @property
    def pushes(self) -> Counts:
        """As ``times``, for every row."""
        return np.ones(len(self.keys), np.int64) if self.times is None else self.times

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
        admit, evict: which rows are born, and which are forgotten.
    """

    dim: int
    rule: RowRule | None
    options: Mapping[str, Any]
    initial: Initial
    admit: Admission | None = None
    evict: Eviction | None = None

    @property
    def width(self) -> int:
        """Floats of a row with its state."""
        return self.rule.width(self.dim) if self.rule else self.dim

    @property
    def blocks(self) -> int:
        """Blocks of dim floats that a row is cut into; 1 if it cannot be."""
        return self.width // self.dim if self.width % self.dim == 0 else 1


class SubTable:
    """Rows whose keys share their highest bits. Not thread-safe.

    Args:
        skip: how many bits they share.
        number: of the sub-table: it has that share of what the rules allow.
        now: seconds, for rows that are forgotten by time.

    Attributes:
        index: from keys to places in the slab.
        evicted: rows forgotten so far.
        not_admitted: gradients that met a row that was not born.
    """

    def __init__(
        self,
        layout: Layout,
        skip: int = 0,
        number: int = 0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.layout = layout
        self.index = Index(skip, number)
        self.evicted = self.not_admitted = 0
        self._skip, self._number = skip, number
        self._admission = admission_of(layout.admit, layout.initial.seed, skip)
        self._oldest = Oldest(layout.evict, number, now) if layout.evict else None
        self._evicted_at = 0  # the version of the newest eviction
        self._allocate()

    def _allocate(self) -> None:
        self._places = Allocator()
        self._slab = Column(np.float32, self.layout.width, self.layout.blocks)
        self._changed = Column(np.int64)
        self._scores = Column(np.float32) if isinstance(self.layout.evict, Decay) else None
        self._columns = [c for c in (self._slab, self._changed, self._scores) if c is not None]

    def __len__(self) -> int:
        return self.index.count

    @property
    def nbytes(self) -> int:
        """Memory of rows, state, index and counts."""
        rows = self._places.used * sum(c.row_bytes for c in self._columns)
        return rows + self.index.nbytes + (self._admission.nbytes if self._admission else 0)

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
            changed = self._changed.array.take(np.maximum(places, 0)) > since
            # A row that is missing may have been there when the reader looked.
            chosen = np.where(places >= 0, changed, since <= self._evicted_at)
            keys, places = keys[chosen], places[chosen]
        there = places >= 0
        dim = self.layout.dim
        if there.all():
            return self._values(places), chosen
        found = torch.from_numpy(initial_values(self.layout.initial, keys, dim))
        if there.any():
            found[torch.from_numpy(there)] = self._values(places[there])
        return found, chosen

    def _values(self, places: Places) -> Tensor:
        """Values without their state, as copies."""
        if self.layout.width == self.layout.dim * self.layout.blocks:
            return torch.from_numpy(self._slab.take_first(places))
        slab = torch.from_numpy(self._slab.array)
        return slab[:, : self.layout.dim].index_select(0, torch.from_numpy(places).long())

    def push(self, rows: Rows, options: Mapping[str, Any], clock: int, version: int) -> None:
        """One step on these rows; those that are new are born with it, if they are admitted.

        Args:
            rows: distinct keys and their gradients.
            options: hyper-parameters of this step, complete.
            clock: steps of the whole table, this one included.
            version: of the sub-table from now on; larger than before.
        """
        if not len(rows.keys):
            return
        if self._oldest is not None:
            self._oldest.pushed(version)
        rows, places = self._born(rows, version)
        self._step(rows.grads, places, options, clock)
        if self._scores is not None:
            self._score(rows, places, version)
        self._changed.array[places] = version
        if self._oldest is not None and self._oldest.due(len(self), version):
            self.evict(version)

    def _step(self, grads: Tensor, places: Places, options: Mapping[str, Any], clock: int) -> None:
        blocks, layout = self._slab.take_blocks(places), self.layout
        parts: Parts = list(torch.from_numpy(blocks))
        if layout.rule is None:
            parts[0].add_(grads)
        else:
            if len(parts) == 1:
                parts = layout.rule.parts(parts[0], layout.dim)
            layout.rule.step(parts, grads, options, clock)
        self._slab.put_blocks(places, blocks)

    def _score(self, rows: Rows, places: Places, version: int) -> None:
        assert self._scores is not None
        assert isinstance(self.layout.evict, Decay)
        ages = version - self._changed.array[places]
        faded = self._scores.array[places] * self.layout.evict.rate**ages
        self._scores.array[places] = faded + rows.pushes

    def _born(self, rows: Rows, version: int) -> tuple[Rows, Places]:
        """The rows that exist from now on, and their places."""
        places = self.index.find(rows.keys)
        new = np.flatnonzero(places < 0)
        if new.size and self._admission is not None:
            born = self._admission.admit(rows.keys[new], rows.pushes[new], version)
            self.not_admitted += int((~born).sum())
            new = new[born]
        if new.size:
            places[new] = self._create(rows.keys[new], version)
        kept = places >= 0
        if kept.all():
            return rows, places
        grads = rows.grads[torch.from_numpy(kept)]
        return Rows(rows.keys[kept], grads, rows.pushes[kept]), places[kept]

    def _create(self, keys: Keys, version: int) -> Places:
        places = self._places.take(len(keys))
        for column in self._columns:
            column.reserve(self._places.used)
        self.index.add(keys, places)
        layout = self.layout
        rows = np.zeros((len(keys), layout.width), np.float32)
        rows[:, : layout.dim] = initial_values(layout.initial, keys, layout.dim)
        if layout.rule is not None and (first := layout.rule.first(layout.options)):
            rows[:, layout.dim :] = first
        self._slab.put(places, rows)
        self._changed.array[places] = version
        if self._scores is not None:
            self._scores.array[places] = 0
        return places

    def remove(self, keys: Keys) -> None:
        """Forgets rows that are there; they read as initial values from now on."""
        if len(keys):
            places = self.index.remove(keys)
            self._changed.array[places] = NEVER
            self._places.give_back(places)

    def evict(self, version: int) -> int:
        """Forgets the rows whose time has come; how many."""
        if self._oldest is None:
            return 0
        used = self._places.used
        scores = None if self._scores is None else self._scores.array[:used]
        keys, places = entries = self.index.entries()
        gone = self._oldest.gone(self._changed.array[:used], scores, version, entries)
        self._oldest.swept(version)
        if self._admission is not None:
            self._admission.forget(self._oldest, version)
        if not gone.any():
            return 0
        keys = keys[gone[places]]
        self.remove(keys)
        self.evicted += len(keys)
        self._evicted_at = version
        return len(keys)

    def compact(self) -> None:
        """Gives memory back where most places are free."""
        if 2 * len(self) >= self._places.used:
            return
        keys, places = self.index.entries()
        old = [c.array[places] for c in self._columns]
        self.index = Index(self._skip, self._number)
        self._allocate()
        new = self._places.take(len(keys))
        self.index.add(keys, new)
        for column, values in zip(self._columns, old, strict=True):
            column.reserve(len(keys))
            column.array[new] = values

    def dump(self, since: int = 0) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        """Copies of rows and all that their life cycle knows, by column; keys ascend.

        Args:
            since: rows unchanged after this version are left out (0: none are); if rows were
                forgotten meanwhile, the column "living" has all keys that are left.

        Returns:
            Columns and plain numbers.
        """
        keys, places = in_order(self.index)
        columns: dict[str, npt.NDArray[Any]] = {}
        if since:
            if self._evicted_at >= since:
                columns["living"] = keys
            later = self._changed.array[places] > since
            keys, places = keys[later], places[later]
        columns |= {"keys": keys, "rows": self._slab.take(places)}
        columns["changed"] = self._changed.array[places]
        if self._scores is not None:
            columns["scores"] = self._scores.array[places]
        if self._admission is not None:
            columns |= self._admission.dump()
        numbers: dict[str, Any] = {
            "evicted": self.evicted,
            "not_admitted": self.not_admitted,
            "evicted_at": self._evicted_at,
        }
        if self._oldest is not None:
            numbers["oldest"] = self._oldest.dump()
        return columns, numbers

    def load(self, columns: Mapping[str, npt.NDArray[Any]], numbers: Mapping[str, Any]) -> None:
        """Takes what another sub-table has dumped whole; to be called on an empty one."""
        assert not len(self), "rows are loaded into an empty sub-table"
        keys = columns["keys"]
        places = self._places.take(len(keys))
        for column in self._columns:
            column.reserve(self._places.used)
        self.index.add(keys, places)
        if len(keys):
            self._slab.put(places, np.ascontiguousarray(columns["rows"]))
        self._changed.array[places] = columns["changed"]
        if self._scores is not None:
            self._scores.array[places] = columns["scores"]
        if self._admission is not None:
            self._admission.load(columns)
        self.evicted, self.not_admitted = numbers["evicted"], numbers["not_admitted"]
        self._evicted_at = numbers["evicted_at"]
        if self._oldest is not None:
            self._oldest.load(numbers["oldest"])

    def check_invariants(self) -> None:
        """Raises AssertionError where the state cannot be."""
        self.index.check_invariants()
        _, places = self.index.entries()
        every = np.sort(np.concatenate([places, self._places.free]))
        assert (every == np.arange(self._places.used)).all(), "a place is lost, or used twice"
        assert (self._changed.array[self._places.free] == NEVER).all()
