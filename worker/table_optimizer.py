"""One optimizer for a model with tables: dense tensors by one group, each table by its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from paramserver.errors import ConfigurationError, NonFiniteError, UnsupportedError
from paramserver.types import StepResult
from paramserver.wire.tensors import is_finite
from paramserver.worker.embedding import TableModule
from paramserver.worker.feed import Feed
from paramserver.worker.group import Group
from paramserver.worker.job_optimizer import JobOptimizer
from paramserver.worker.parameters import Members, Model
from paramserver.worker.table import Table


class TableOptimizer(JobOptimizer):
    """Steps the dense part as its own optimizer would, and pushes once to every table.

    ``param_groups`` are those of the dense part, then one for each table, with the table's
    hyper-parameters: learning-rate schedules act on all of them. A step takes the gradients of rows
    with it; ``zero_grad`` forgets those that no step has taken.

    Attributes:
        dense: the optimizer of everything but the tables; None if there is nothing else.
        tables: by name.
        last: of the dense part; without one, of the first table.
    """

    grad_scale: Tensor | None
    found_inf: Tensor | None

    def __init__(
        self, model: nn.Module, dense: JobOptimizer | None, tables: Sequence[Table], tau: int | None
    ) -> None:
        """Takes charge of the tables."""
        self.dense = dense
        self.tables = {table.name: table for table in tables}
        groups = [_param_group(table) for table in tables]
        inner = dense.param_groups if dense is not None else []
        found = dense.members if dense is not None else Members((), module=model)
        super().__init__(found, [*inner, *groups], {})
        self.defaults = dense.defaults if dense is not None else {}
        self._feeds: list[Feed] = []
        for table, group in zip(tables, groups, strict=True):
            feed = table.feed
            feed.drive(group, tau)
            group["params"] = feed.leaves
            self._feeds.append(feed)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether a scaler calls ``step()`` even on an overflow, and leaves unscaling to it."""
        return self.dense is None or getattr(self.dense, "_step_supports_amp_scaling", False)

    @property
    def group(self) -> Group:
        """The group of the dense part on the servers.

        Raises:
            UnsupportedError: there is none.
        """
        if self.dense is None:
            raise UnsupportedError("this model has tables only: see optimizer.tables")
        return self.dense.group

    def newest(self) -> dict[str, Tensor]:
        """The newest values of the dense part; see ``JobOptimizer``."""
        return self.dense.newest() if self.dense is not None else {}

    def full_state(self, values: Mapping[str, Tensor]) -> dict[str, Any]:
        """As of the dense part: rows of tables are no part of a model's ``state_dict()``."""
        return super().full_state(values) if self.dense is None else self.dense.full_state(values)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets gradients, those of rows too."""
        for feed in self._feeds:
            feed.clear()
        if self.dense is not None:
            self.dense.zero_grad(set_to_none)

    def _work(self, weight: float | None) -> StepResult | None:
        """Tables are pushed first, empty if not touched, and travel with the dense exchange."""
        self._start_tables(weight)
        for feed in self._feeds:
            feed.catch_up(wait=False)
        self._step_dense(weight)
        for feed in self._feeds:
            feed.finish()
            feed.catch_up(wait=True)
        return self._last()

    def _start_tables(self, weight: float | None) -> None:
        if self.dense is not None:
            self.dense.check()
        overflow = getattr(self, "found_inf", None)
        scale = getattr(self, "grad_scale", None)
        if overflow is not None and bool(overflow):
            for feed in self._feeds:
                feed.clear()
            weight = 0.0
        else:
            self._check_finite()
        # As torch's own kernel: a float32 reciprocal, then one product.
        inverse = None if scale is None else scale.double().reciprocal().float()
        # All is checked before anything goes.
        ready = [(feed.options(), feed.payload(inverse)) for feed in self._feeds]
        for feed, (options, payload) in zip(self._feeds, ready, strict=True):
            feed.start(payload, options, weight)

    def _check_finite(self) -> None:
        if self.dense is None or self.dense.on_nonfinite != "reject":
            return
        for name, parameter in self.members.named:
            if parameter.grad is not None and not is_finite(parameter.grad):
                raise NonFiniteError(f"NaN or infinity in {name!r}'s gradient; nothing was sent")

    def _step_dense(self, weight: float | None) -> None:
        dense = self.dense
        if dense is None:
            return
        scaled = {n: getattr(self, n) for n in ("grad_scale", "found_inf") if hasattr(self, n)}
        for name, value in scaled.items():
            setattr(dense, name, value)
        try:
            dense.step(weight=weight)
        finally:
            for name in scaled:
                delattr(dense, name)

    def _last(self) -> StepResult | None:
        if self.dense is not None:
            return self.dense.last
        return next(iter(self.tables.values())).last

    def state_dict(self) -> dict[str, Any]:
        """That of the dense part, and the hyper-parameters of each table under "tables"."""
        empty: dict[str, Any] = {"state": {}, "param_groups": []}
        state = self.dense.state_dict() if self.dense is not None else empty
        tables = self.param_groups[len(self.param_groups) - len(self.tables) :]
        state["tables"] = [{k: v for k, v in g.items() if k != "params"} for g in tables]
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes what ``state_dict`` gave.

        Raises:
            UnsupportedError: there is optimizer state in it that the servers hold.
        """
        rest = {key: value for key, value in state_dict.items() if key != "tables"}
        own = self.param_groups[len(self.param_groups) - len(self.tables) :]
        if self.dense is not None:
            self.dense.load_state_dict(rest)
            self.param_groups[:] = [*self.dense.param_groups, *own]
        for group, given in zip(own, state_dict.get("tables", ()), strict=False):
            group.update(given)


def with_tables(
    model: Model, open_dense: Callable[[], JobOptimizer], tau: int | None
) -> JobOptimizer:
    """The optimizer of a model, with its tables if there are any.

    Args:
        open_dense: makes the optimizer of its parameters.
        tau: as for ``Client.optimizer``.
    """
    tables = tables_of(model)
    if not isinstance(model, nn.Module) or not tables:
        if tau is not None:
            raise ConfigurationError(f"tau={tau}: this model has no tables, give ps.Embedding")
        return open_dense()
    _check(tables, tau)
    dense = open_dense() if any(True for _ in model.parameters()) else None
    return TableOptimizer(model, dense, tables, tau)


def tables_of(model: Model) -> list[Table]:
    """The tables of the modules in a model, each once, by name."""
    if not isinstance(model, nn.Module):
        return []
    found = {m.table.name: m.table for m in model.modules() if isinstance(m, TableModule)}
    return [found[name] for name in sorted(found)]


def _check(tables: Sequence[Table], tau: int | None) -> None:
    for table in tables:
        if table.feed.driven:
            raise ConfigurationError(
                f"table {table.name!r} is in another client.optimizer already: put the modules "
                "that share it into one model"
            )
        if not table.group.spec.optimizer:
            raise ConfigurationError(
                f"table {table.name!r} has optimizer=None: it would add gradients to its rows; "
                "give client.table an optimizer"
            )
    if tau is None:
        return
    if tau < 1:
        raise ConfigurationError(f"tau={tau}: must be >= 1 batch in flight, or None")
    if all(table.feed.exact for table in tables):
        raise ConfigurationError(
            f"tau={tau}: bounds batches in flight of tables with consistency=Async(), of which "
            "this model has none"
        )


def _param_group(table: Table) -> dict[str, Any]:
    return {"params": [], **table.group.spec.param_groups[0], "table": table.name}
