"""A sub-table as a group holds it: what ``rules.Bucket`` is for slices of dense tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from paramserver.core.placement import GroupSpec
from paramserver.core.tables import SUB_TABLE_BITS
from paramserver.errors import InvalidRequestError
from paramserver.ps.rules import LARGEST, too_large
from paramserver.ps.state import SliceState, SliceStates
from paramserver.ps.tables.life import Moment
from paramserver.ps.tables.rules import complete, row_rule
from paramserver.ps.tables.store import Layout, Rows, SubTable
from paramserver.types import ScaleLr, lr_factor

Gradients = Mapping[int, Rows]
Options = Sequence[Mapping[str, Any]]
Keep = Callable[[Gradients, Mapping[int, Any]], None]
FIRST = 1  # the version before any push


class RowBucket:
    """One sub-table with its version. Called with its lock held; never blocks.

    Args:
        index: number of the slice.
        skip: leading bits that all its keys share.

    Attributes:
        versions: by slice: plus one per push or clock, whether it touched rows here or not.
        table: the rows.
        moment: the time, for rows that are forgotten by it.
        checked, overflows: as of ``rules.Bucket``; rows are left out one by one.
    """

    stored = True

    def __init__(self, index: int, layout: Layout, skip: int) -> None:
        self.indices = (index,)
        self.versions = {index: FIRST}
        self.moment = Moment()
        self.table = SubTable(layout, skip, index, self.moment)
        self._index, self._skip = index, skip
        self.checked, self.overflows = True, 0

    @property
    def nbytes(self) -> int:
        return self.table.nbytes

    def close(
        self,
        contributions: Sequence[tuple[float, Gradients]],
        options: Options = (),
        keep: Keep | None = None,
    ) -> None:
        """Applies one Sync clock: one step on the weighted mean; as ``Bucket.close``."""
        self.tick(self.indices)
        additive = self.table.layout.rule is None
        given = [
            (1.0 if additive else weight, gradients[self._index])
            for weight, gradients in contributions
            if (weight > 0 or additive) and self._index in gradients
        ]
        weights = [1.0] if additive else [w for w, _ in contributions if w > 0]
        means = {self._index: _combine(given, weights, mean=not additive)} if given else {}
        if keep is not None:
            keep(means, {})
        for rows in means.values():
            self._step(rows, options, 1.0)

    def replay(self, means: Gradients, options: Options) -> None:
        """A Sync clock again, as ``close`` told ``keep`` of it."""
        self.tick(self.indices)
        for rows in means.values():
            self._step(rows, options, 1.0)

    def arrive(
        self, gradients: Gradients, options: Options, bases: Mapping[int, int], scale: ScaleLr
    ) -> float:
        """Applies one push at once (Stale, Async); its staleness. As ``Bucket.arrive``."""
        late = max(0, self.versions[self._index] - bases.get(self._index, FIRST))
        self.tick(self.indices)
        self._step(gradients[self._index], options, lr_factor(scale, late))
        return float(late)

    def tick(self, slices: Sequence[int]) -> None:
        """One version further."""
        self.versions[self._index] += 1

    def dump(self, slices: Iterable[int] | None = None, since: int = 0) -> dict[int, SliceState]:
        """A copy of all that the sub-table needs to go on elsewhere; as ``Bucket.dump``.

        Args:
            since: only rows that changed after this version (0: all rows).
        """
        if slices is not None and self._index not in slices:
            return {}
        columns, counters = self.table.dump(since)
        numbers: dict[str, Any] = {"version": self.versions[self._index], **counters}
        if since:
            numbers["since"] = since
        return {self._index: SliceState({n: _tensor(c) for n, c in columns.items()}, numbers)}

    def load(self, states: SliceStates) -> None:
        """Takes a sub-table as it was dumped; what was here is replaced.

        Raises:
            InvalidRequestError: another sub-table, rows of another width, or only changes.
        """
        for index, state in states.items():
            table = SubTable(self.table.layout, self._skip, self._index, self.moment)
            if index != self._index or "since" in state.numbers:
                raise InvalidRequestError(
                    f"sub-table {self._index} cannot load {index}, or changes"
                )
            columns = {name: _column(name, tensor) for name, tensor in state.tensors.items()}
            width = columns["rows"].shape[-1]
            if columns["rows"].shape != (len(columns["keys"]), table.layout.width):
                raise InvalidRequestError(
                    f"sub-table {index}: rows of {width} numbers, the table has "
                    f"{table.layout.width}: another dim or optimizer"
                )
            table.load(columns, state.numbers)
            self.table, self.versions = table, {index: int(state.numbers["version"])}

    def shrink(self) -> int:
        """Forgets the rows whose time has come, and gives memory back; how many."""
        evicted = self.table.evict(self.versions[self._index])
        self.table.compact()
        return evicted

    def _step(self, rows: Rows, options: Options, factor: float) -> None:
        now = dict(self.table.layout.options)
        if options:
            now.update(options[0])
        if "lr" in now:
            now["lr"] *= factor
        version = self.versions[self._index]
        if self.checked:
            rows = self._sane(rows)
        self.table.push(rows, now, version - FIRST, version)

    def _sane(self, rows: Rows) -> Rows:
        """Those that the optimizer can square and add up."""
        if not too_large({0: rows.grads}):
            return rows
        kept = torch.linalg.vector_norm(rows.grads, dim=1) <= LARGEST[rows.grads.dtype]
        self.overflows += int((~kept).sum())
        chosen = kept.numpy()
        return Rows(rows.keys[chosen], rows.grads[kept], rows.pushes[chosen])


def row_bucket(index: int, spec: GroupSpec) -> RowBucket:
    """An empty sub-table of a group that is a table.

    Raises:
        UnsupportedError, ConfigurationError: a rule or option that rows cannot have.
    """
    assert spec.table is not None
    rule = row_rule(spec.optimizer) if spec.optimizer else None
    options = complete(spec.optimizer, spec.param_groups[0]) if rule else {}
    table = spec.table
    layout = Layout(table.dim, rule, options, table.initial, table.admit, table.evict)
    return RowBucket(index, layout, SUB_TABLE_BITS)


def _tensor(column: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(column.view(np.int64) if column.dtype == np.uint64 else column)


def _column(name: str, tensor: Tensor) -> npt.NDArray[Any]:
    column: npt.NDArray[Any] = tensor.numpy()
    return column.view(np.uint64) if name.endswith("keys") else column


def _combine(given: Sequence[tuple[float, Rows]], weights: Sequence[float], *, mean: bool) -> Rows:
    """(g_0 + Σ (n_i/n_0) g_i) / Σ n_i/n_0 by row; a row that a push lacks counts as zero.

    Args:
        given: the pushes with rows here, in rank order.
        weights: of all pushes, those without rows here included.
    """
    first = weights[0]
    total = sum(w / first for w in weights) if mean else 1.0
    if len(given) == 1:
        weight, rows = given[0]
        share = weight / first / total if mean else 1.0
        return rows if share == 1.0 else Rows(rows.keys, rows.grads * (weight / first) / total)
    keys, where, times = np.unique(
        np.concatenate([r.keys for _, r in given]), return_inverse=True, return_counts=True
    )
    result = torch.zeros((len(keys), given[0][1].grads.shape[1]))
    at = 0
    for weight, rows in given:
        places = torch.from_numpy(where[at : at + len(rows.keys)])
        result.index_add_(0, places, rows.grads, alpha=weight / first)
        at += len(rows.keys)
    return Rows(keys, result.div_(total) if total != 1.0 else result, times)
