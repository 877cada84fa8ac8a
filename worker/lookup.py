"""Rows on their way here, and gradients of rows on their way out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from paramserver.errors import ChecksumError
from paramserver.v1 import server_pb2 as pb
from paramserver.wire.convert import wire_to_proto
from paramserver.wire.frames import Piece
from paramserver.wire.rows import decode_rows
from paramserver.wire.tensors import checksum
from paramserver.worker.operation import Operation, ServerAnswers
from paramserver.worker.plan import Shard
from paramserver.worker.rows import LookupParts, Routed, RowParts, check_finite

if TYPE_CHECKING:
    from paramserver.worker.table import Table


class Lookup:
    """One lookup, sent to every server as it is made.

    Args:
        routed: the distinct keys asked for.
        known: an earlier lookup of the same keys, over: only what changed since travels, and its
            rows are taken over.

    Attributes:
        clock: whose values these are.
        rows: [u + 1, dim]; the last one is zero.
        versions: by sub-table, of what came.
        changed: rows that an earlier lookup had brought, and that travelled again.
    """

    def __init__(self, table: Table, routed: Routed, known: Lookup | None = None) -> None:
        table.group.session.check()
        table.check_size(routed)
        self._table = table
        self.routed = routed
        self.clock = table.clock
        self.versions: dict[int, int] = {}
        self.changed = 0
        self._have = known.versions if known is not None else {}
        self.rows: Tensor = self._empty() if known is None else known.rows
        self._operation = self._send()

    def _empty(self) -> Tensor:
        with torch.inference_mode(False):  # the link's thread, in no such mode, writes to it
            rows = torch.empty(
                (len(self.routed.keys) + 1, self._table.dim), dtype=self._table.dtype
            )
            rows[-1] = 0
        return rows

    def _send(self) -> Operation:
        group = self._table.group
        lookup = pb.Lookup(
            worker=group.identity(),
            group=group.name,
            clock=self.clock,
            wire_dtype=wire_to_proto(group.wire_dtype),
            timeout=group.session.config.wait_timeout,
        )
        operation = Operation()

        def send() -> None:
            lookup.map_version = group.plan.map.version
            shares = [
                (shard, parts)
                for shard in group.plan.shards
                if (parts := LookupParts(shard, lookup, self.routed, self._have)).slices
            ]
            operation.begin(len(shares))
            for shard, parts in shares:
                answers = ServerAnswers(operation, shard.index, self._take, parts.some)
                operation.submit(group.links.to(shard.address), answers, parts.all)

        group.moves.begin(operation, send)
        return operation

    @property
    def over(self) -> bool:
        """Whether the rows are here, or will never come."""
        return self._operation.done.happened

    @property
    def failed(self) -> bool:
        """Whether they will never come."""
        return self._operation.done.error is not None

    def future(self, ids: Tensor) -> Future[Tensor]:
        """The rows in the order of ``ids``, once they are here."""
        done, found = self._operation.done, Future[Tensor]()

        def here() -> None:
            if done.error is not None:
                found.set_exception(done.error)
            else:
                rows = self.rows.index_select(0, self.routed.inverse)
                found.set_result(rows.view(*ids.shape, self._table.dim).to(ids.device))

        done.then(here)
        return found

    def _take(self, data: pb.Data, pieces: Sequence[Piece]) -> None:
        for index, version, mark, piece in zip(
            data.slices, data.versions, data.checksums, pieces, strict=True
        ):
            if checksum(piece) != mark:
                raise ChecksumError(f"rows of sub-table {index}: bytes changed on the way here")
            self._land(index, piece)
            self.versions[index] = version
            self._table.group.held.versions[index] = version

    def _land(self, index: int, piece: Piece) -> None:
        table = self._table
        start, stop = self.routed.range(index)
        place = self.rows[start:stop]
        if not self._have.get(index):
            place.copy_(decode_rows(piece, table.dim, table.wire, table.dtype))
            return
        at = len(piece) - (stop - start + 7) // 8
        bits = np.unpackbits(np.frombuffer(piece[at:], np.uint8), count=stop - start)
        chosen = torch.from_numpy(np.flatnonzero(bits))
        place[chosen] = decode_rows(piece[:at], table.dim, table.wire, table.dtype)
        self.changed += len(chosen)

    def wait(self) -> None:
        """Returns when the rows are here.

        Raises:
            WaitTimeoutError: names whom it waited for.
        """
        what = f"rows of table {self._table.name!r} at clock {self.clock}"
        self._table.group.wait(self._operation, self._operation.done, what)

    def give_up(self) -> None:
        """Nobody wants the rows any more."""
        self._operation.give_up()


class Sparse:
    """Gradients of rows, as a push carries them.

    Args:
        routed: the distinct keys.
        rows: a gradient for each, [u, dim].
        bases: by sub-table, the version that they were computed on; default: the newest pulled.

    Raises:
        NonFiniteError: names the id.
    """

    def __init__(
        self, table: Table, routed: Routed, rows: Tensor, bases: Mapping[int, int]
    ) -> None:
        if table.group.spec.on_nonfinite != "apply":
            check_finite(table.name, routed, rows, table.clock)
        table.check_size(routed)
        self._group, self._routed, self._rows, self._bases = table.group, routed, rows, bases

    @classmethod
    def nothing(cls, table: Table) -> Sparse:
        """A push that touches no row."""
        return cls(table, Routed.together([]), torch.empty((0, table.dim), dtype=table.dtype), {})

    def share(self, shard: Shard, push: pb.Push) -> RowParts:
        """One server's part."""
        return RowParts(self._group, shard, push, self._routed, self._rows, self._bases)

    def end(self, counted: bool) -> None:
        """Nothing is kept back."""
