"""What modules over one table share: rows for the forward pass, gradients for the step."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from paramserver.core.tables import check_row_option
from paramserver.errors import (
    ConfigurationError,
    NonFiniteError,
    RefusedError,
    ResourceError,
    UsageError,
)
from paramserver.types import Async
from paramserver.worker.lookup import Lookup, Sparse
from paramserver.worker.parameters import hyper_parameters
from paramserver.worker.pushes import Started
from paramserver.worker.rows import Routed

if TYPE_CHECKING:
    from paramserver.worker.table import Table

Options = Mapping[str, Any]


@dataclass(slots=True)
class TableStats:
    """Rows that the modules over a table have asked for; every batch counts its distinct ones.

    Attributes:
        hits: were prefetched.
        misses: were not.
        changed: of the prefetched ones, travelled again because a push had changed them meanwhile.
        waited: seconds that forward passes waited for rows.
    """

    hits: int = 0
    misses: int = 0
    changed: int = 0
    waited: float = 0.0


@dataclass(slots=True, eq=False)
class _Early:
    """A lookup for a later batch.

    Attributes:
        ids: as they were given, int64 [n].
        lookup: None until the batch may be in flight.
        steps: taken since it was asked for.
    """

    ids: Tensor
    routed: Routed
    lookup: Lookup | None = None
    steps: int = 0


class _Source(NamedTuple):
    """Where the rows of a leaf come from; versions by sub-table."""

    routed: Routed
    versions: Mapping[int, int]


class Feed:
    """Rows of a table on their way through a model.

    A step takes with it the gradients of every forward pass since the last one. Between the lookup
    of a batch and the word that its push is applied, the batch is *in flight*.

    Attributes:
        leaves: rows that have a gradient, float [u + 1, dim]; the last one stands for padding.
        tau: most batches in flight (PERSIA; Lian et al., 2022); None: as many as pushes may wait.
        exact: a prefetched row must be as if it had been pulled now.
        stats: counts.
    """

    def __init__(self, table: Table) -> None:
        self._table = table
        self._group = table.group
        # Under Async a row that is a push or two old is as good as any.
        self.exact = not isinstance(self._group.spec.consistency, Async)
        self.leaves: list[Tensor] = []
        self.tau: int | None = None
        self.stats = TableStats()
        self._sources: dict[int, _Source] = {}
        self._early: list[_Early] = []
        self._flying: deque[Started] = deque()
        self._pushed: Started | None = None
        self._param_group: Mapping[str, Any] | None = None

    # Forward

    def route(self, ids: Tensor) -> Routed:
        """The distinct keys of ids, int64 [n]; at no cost if they were prefetched in this order."""
        for early in self._early:
            if torch.equal(early.ids, ids):
                return early.routed
        return Routed(ids)

    def take(self, routed: Routed, device: torch.device) -> Tensor:
        """The rows of distinct keys, as a leaf whose gradient goes with the next step.

        Returns:
            [u + 1, dim]; the last row is zero.

        Raises:
            WaitTimeoutError: names whom it waited for.
        """
        self._make_room()
        lookup = self._prefetched(routed)
        if lookup is None:
            self.stats.misses += len(routed.keys)
            lookup = Lookup(self._table, routed)
        else:
            self.stats.hits += len(routed.keys)
        began = time.monotonic()
        lookup.wait()
        self.stats.waited += time.monotonic() - began
        self.stats.changed += lookup.changed
        leaf = lookup.rows.to(device)
        if torch.is_grad_enabled():
            leaf.requires_grad_()
            source = _Source(routed, lookup.versions)  # not the lookup: it has the leaf's memory
            leaf.register_post_accumulate_grad_hook(lambda leaf: self._arrived(leaf, source))
        return leaf

    def _prefetched(self, routed: Routed) -> Lookup | None:
        for early in self._early:
            lookup = early.lookup
            if lookup is not None and early.routed.same(routed):
                self._early.remove(early)
                return self._renewed(lookup, wait=True)
        return None

    def _renewed(self, lookup: Lookup, *, wait: bool) -> Lookup | None:
        """As of now, if the consistency model wants that; None if it failed."""
        if lookup.failed:
            return None
        if not self.exact or lookup.clock == self._table.clock or not (wait or lookup.over):
            return lookup
        lookup.wait()
        return Lookup(self._table, lookup.routed, known=lookup)

    def _arrived(self, leaf: Tensor, source: _Source) -> None:
        if self._param_group is None:
            raise UsageError(
                f"a gradient for rows of table {self._table.name!r}, but no optimizer pushes it: "
                "call client.optimizer(model, ...) with the module that the embedding is part of"
            )
        if id(leaf) not in self._sources:
            self.leaves.append(leaf)
            self._sources[id(leaf)] = source

    # Ahead

    def prefetch(self, ids: Tensor) -> None:
        """These ids will be asked for soon: pulls their rows, once their batch may be in flight.

        Rows that no forward pass has taken within two steps are given up.

        Args:
            ids: int64 [n].
        """
        with torch.inference_mode(False):  # what is kept may be used in training
            ids = ids.clone()  # the batch that they are in may be changed in place
            routed = self.route(ids)
        if len(routed.keys) and not any(early.routed.same(routed) for early in self._early):
            self._early.append(_Early(ids, routed))
            self._send_early()

    def _send_early(self) -> None:
        if self.tau is None or self._in_flight() + 1 < self.tau:
            for early in self._early:
                early.lookup = early.lookup or Lookup(self._table, early.routed)

    def catch_up(self, *, wait: bool) -> None:
        """Behind a push: asks which of the prefetched rows changed, where that matters.

        Args:
            wait: for rows that are not here yet; else they are left for later.
        """
        for early in self._early:
            if early.lookup is not None:
                early.lookup = self._renewed(early.lookup, wait=wait)

    # Steps

    def drive(self, param_group: Mapping[str, Any], tau: int | None) -> None:
        """Steps go to the table from now on, with the hyper-parameters of this param group."""
        self._param_group, self.tau = param_group, tau

    @property
    def driven(self) -> bool:
        """Whether an optimizer pushes the gradients."""
        return self._param_group is not None

    def clear(self) -> None:
        """Forgets gradients that were not pushed."""
        self.leaves.clear()
        self._sources.clear()

    def payload(self, inverse: Tensor | None) -> Sparse | None:
        """The gradients since the last step, summed by row; None: the step is to be skipped.

        Args:
            inverse: what to multiply them by; None: 1.

        Raises:
            NonFiniteError: NaN or infinity in a row; names its id.
        """
        try:
            return self._whole(inverse)
        except NonFiniteError:
            if self._group.spec.on_nonfinite != "skip":
                raise
            return None

    def _whole(self, inverse: Tensor | None) -> Sparse:
        parts, rows = [], []
        for leaf in self.leaves:
            if leaf.grad is None:
                continue
            parts.append(self._sources[id(leaf)])
            grad = leaf.grad[:-1]
            if inverse is not None:
                grad = grad * inverse.to(grad.device, grad.dtype)
            rows.append(grad.to("cpu", self._table.dtype))
        if len(parts) == 1:
            return Sparse(self._table, parts[0].routed, rows[0], parts[0].versions)
        return self._sum(parts, rows)

    def _sum(self, parts: Sequence[_Source], rows: Sequence[Tensor]) -> Sparse:
        routed = Routed.together([part.routed for part in parts])
        bases: dict[int, int] = {}
        for part in parts:
            for index, version in part.versions.items():
                bases[index] = min(version, bases.get(index, version))
        table = self._table
        every = torch.cat(list(rows)) if rows else torch.empty((0, table.dim), dtype=table.dtype)
        return Sparse(table, routed, routed.sums(every), bases)

    def options(self) -> Options:
        """The hyper-parameters of this step.

        Raises:
            ConfigurationError: one that no step can take.
        """
        assert self._param_group is not None
        registered = self._group.spec.param_groups[0]
        options = hyper_parameters(self._param_group, registered)
        for key, value in options.items():
            try:
                check_row_option(key, value, registered[key])
            except ConfigurationError as error:
                raise ConfigurationError(
                    f"table {self._table.name!r}: {error}; nothing was sent"
                ) from None
        return options

    def start(self, payload: Sparse | None, options: Options, weight: float | None) -> None:
        """Pushes; ``finish`` waits for it."""
        changed = [options] if options != dict(self._group.spec.param_groups[0]) else None
        self._send_early()
        carried = payload or Sparse.nothing(self._table)
        weight = weight if payload else 0.0
        self._pushed = self._group.start_push(lambda _: carried, weight, changed)
        self._pushed[0].skipped = payload is None
        self.clear()
        for early in self._early:
            early.steps += 1
        self._give_up([early for early in self._early if early.steps > 1])

    def _give_up(self, earlies: Sequence[_Early]) -> None:
        for early in earlies:
            self._early.remove(early)
            if early.lookup is not None:
                early.lookup.give_up()

    def finish(self) -> None:
        """Returns when the push is accepted; under Async it flies on, ``tau`` permitting.

        Raises:
            RefusedError: a push was refused.
        """
        pushed, self._pushed = self._pushed, None
        if pushed is None:
            return
        self._flying.append(pushed)
        if self.exact:
            self._land()
        self._in_flight()

    def _in_flight(self) -> int:
        """Batches whose push is not known to be applied."""
        while self._flying and self._flying[0][0].accepted.happened:
            self._land()
        return len(self._flying)

    def _make_room(self) -> None:
        while self.tau is not None and self._in_flight() >= self.tau:
            self._land()

    def _land(self) -> None:
        """Waits for the oldest push."""
        operation, clock, _ = self._flying.popleft()
        try:
            # Counted from now: what passed before was not spent waiting.
            self._group.finish_push(operation, clock, time.monotonic())
        except (RefusedError, ResourceError):
            self._flying.clear()  # those behind it are refused for the gap
            raise
