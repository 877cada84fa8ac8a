"""``nn.Embedding`` and ``nn.EmbeddingBag`` over a table on the servers."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paramserver.errors import ConfigurationError, InvalidRequestError, UnsupportedError
from paramserver.worker.lookahead import Calls
from paramserver.worker.rows import check_ids
from paramserver.worker.table import Table

if TYPE_CHECKING:
    from paramserver.worker.client import Client

MODES = ("sum", "mean", "max")


class TableModule(nn.Module):
    """A module whose weights are the rows of a table.

    Attributes:
        table: on the servers.
        embedding_dim: floats of a row.
        padding_idx: the id that stands for nothing; None: there is none.
    """

    def __init__(
        self,
        table: Table | str,
        embedding_dim: int | None,
        client: Client | None,
        padding_idx: int | None,
        max_norm: float | None,
        scale_grad_by_freq: bool,
        ahead: bool,
        options: dict[str, Any],
    ) -> None:
        super().__init__()
        if max_norm is not None:
            raise UnsupportedError(
                f"max_norm={max_norm}: a forward pass changes no row on the servers; "
                "use weight_decay of the table's optimizer"
            )
        self.table = _table(table, embedding_dim, client, options)
        self.embedding_dim = self.table.dim
        self.padding_idx = _padding(padding_idx, self.table)
        self.scale_grad_by_freq = scale_grad_by_freq
        self._calls = Calls()
        self._ahead = ahead
        if ahead:
            self.table.group.session.lookahead.wanted = True

    def extra_repr(self) -> str:
        """As of torch's modules."""
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.table.name!r}, {self.embedding_dim}{padding}"

    def prefetch(self, ids: Tensor) -> None:
        """Pulls the rows that the forward pass of the next batch will ask for.

        Only needed where the ids are no view of what ``client.loader`` hands out.

        Args:
            ids: all that the call will be given, in any order.

        Raises:
            InvalidRequestError: an id out of range.
        """
        check_ids(self.table.name, ids, self.table.rows)
        self.table.feed.prefetch(self._without_padding(ids)[0])

    def _without_padding(self, ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """Ids [m] that have a row, and which of all they are: bool [n]; None for all."""
        flat = ids.detach().to("cpu", torch.int64).reshape(-1)
        if self.padding_idx is None:
            return flat, None
        kept = flat != self.padding_idx
        return flat[kept], kept

    def _weight(self, ids: Tensor) -> tuple[Tensor, Tensor, int | None]:
        """What torch's functions take.

        Returns:
            Where each id is in the weight, int64 as ``ids``; the weight, float [u + 1, dim]; the
            row in it that stands for padding, if there is such an id.
        """
        check_ids(self.table.name, ids, self.table.rows)
        flat, kept = self._without_padding(ids)
        routed = self.table.feed.route(flat)
        weight = self.table.feed.take(routed, ids.device)
        self._look_ahead(ids)
        places = routed.inverse
        if kept is not None:
            places = torch.full(kept.shape, len(routed.keys)).masked_scatter_(kept, places)
        padding = None if kept is None else len(routed.keys)
        return places.view(ids.shape).to(ids.device), weight, padding

    def _look_ahead(self, ids: Tensor) -> None:
        ahead = self.table.group.session.lookahead
        following = self._calls.next_ids(ids, ahead) if self._ahead else None
        if following is None:
            return
        with suppress(InvalidRequestError):  # a forward pass that is given such an id says so
            self.prefetch(following)


class Embedding(TableModule):
    """Rows by id: ``nn.Embedding`` over a table, for any 64-bit ids.

    The rows of a batch are pulled in the forward pass; ``client.optimizer``, given the model,
    pushes their gradients in its step. They are no parameters: not in ``parameters()`` nor in
    ``state_dict()``.

    Args:
        table: a table, which several modules may share, or a name for a new one.
        embedding_dim: with a name: floats of a row.
        client: with a name.
        padding_idx: an id that reads as zeros and has no row; with ``rows=N`` a negative one counts
            from the end, as in torch.
        scale_grad_by_freq: divide gradients by how often an id is in the batch.
        sparse: accepted and ignored: gradients always travel by row.
        max_norm: refused.
        prefetch: pull the rows of the loader's next batch while this one computes. Under ``Sync``
            and ``Stale`` this changes no value; under ``Async`` those rows lack the step between.
        options: with a name: as for ``client.table``.

    Raises:
        ConfigurationError, UnsupportedError: what cannot work, and why.
    """

    def __init__(
        self,
        table: Table | str,
        embedding_dim: int | None = None,
        *,
        client: Client | None = None,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        scale_grad_by_freq: bool = False,
        sparse: bool = True,
        prefetch: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(
            table,
            embedding_dim,
            client,
            padding_idx,
            max_norm,
            scale_grad_by_freq,
            prefetch,
            options,
        )

    def forward(self, input: Tensor) -> Tensor:
        """The rows of ``input``.

        Args:
            input: ids of any integer type and shape.

        Returns:
            [*input.shape, embedding_dim].
        """
        places, weight, padding = self._weight(input)
        return F.embedding(places, weight, padding, scale_grad_by_freq=self.scale_grad_by_freq)


class EmbeddingBag(TableModule):
    """Sums, means or maxima of rows by bag: ``nn.EmbeddingBag`` over a table.

    Args:
        mode: "sum", "mean" or "max".
        include_last_offset: the last of the offsets is the number of ids.
        table, embedding_dim, client, padding_idx, max_norm, scale_grad_by_freq, sparse, prefetch,
            options: as for ``Embedding``; ids that are ``padding_idx`` are in no bag.

    Raises:
        ConfigurationError, UnsupportedError: what cannot work, and why.
    """

    def __init__(
        self,
        table: Table | str,
        embedding_dim: int | None = None,
        *,
        client: Client | None = None,
        mode: str = "mean",
        padding_idx: int | None = None,
        include_last_offset: bool = False,
        max_norm: float | None = None,
        scale_grad_by_freq: bool = False,
        sparse: bool = True,
        prefetch: bool = True,
        **options: Any,
    ) -> None:
        if mode not in MODES:
            raise ConfigurationError(f"mode={mode!r}: must be one of {', '.join(MODES)}")
        if mode == "max" and scale_grad_by_freq:
            raise UnsupportedError('scale_grad_by_freq with mode="max": torch has no such gradient')
        super().__init__(
            table,
            embedding_dim,
            client,
            padding_idx,
            max_norm,
            scale_grad_by_freq,
            prefetch,
            options,
        )
        self.mode = mode
        self.include_last_offset = include_last_offset

    def forward(
        self, input: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        """One row for each bag.

        Args:
            input: ids [bags, n], or [n] with ``offsets``.
            offsets: where each bag begins in ``input``.
            per_sample_weights: float, shaped as ``input``; with ``mode="sum"``.

        Returns:
            [bags, embedding_dim].
        """
        places, weight, padding = self._weight(input)
        return F.embedding_bag(
            places,
            weight,
            None if offsets is None else offsets.long(),
            scale_grad_by_freq=self.scale_grad_by_freq,
            mode=self.mode,
            per_sample_weights=per_sample_weights,
            include_last_offset=self.include_last_offset,
            padding_idx=padding,
        )

    def extra_repr(self) -> str:
        """As of torch's modules."""
        return f"{super().extra_repr()}, mode={self.mode!r}"


def _table(
    table: Table | str, dim: int | None, client: Client | None, options: dict[str, Any]
) -> Table:
    if isinstance(table, Table):
        given = {"embedding_dim": dim, "client": client, **options}
        if extra := [name for name, value in given.items() if value is not None]:
            raise ConfigurationError(
                f"{', '.join(extra)} beside table {table.name!r}: what it is was said to "
                "client.table; leave it out, or give a name for a new table"
            )
        return table
    if client is None or dim is None:
        raise ConfigurationError(
            f"a new table {table!r} needs embedding_dim and client=: "
            f"ps.Embedding({table!r}, 16, client=client)"
        )
    return client.table(table, dim, **options)


def _padding(index: int | None, table: Table) -> int | None:
    if index is None or table.rows is None:
        return index
    if not -table.rows <= index < table.rows:
        raise ConfigurationError(
            f"padding_idx={index}: must be one of the {table.rows} rows of table {table.name!r}"
        )
    return index % table.rows
