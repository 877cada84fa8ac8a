"""A table as a worker sees it: rows by 64-bit ids, pulled and pushed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from paramserver.core.tables import TableSpec
from paramserver.errors import ChecksumError, InvalidRequestError, UnsupportedError
from paramserver.types import StepResult
from paramserver.v1 import server_pb2 as pb
from paramserver.wire.convert import wire_to_proto
from paramserver.wire.frames import Piece
from paramserver.wire.rows import decode_rows, row_bytes
from paramserver.wire.tensors import DTYPES, checksum
from paramserver.wire.transport import Transport
from paramserver.worker.group import Group
from paramserver.worker.operation import Operation, ServerAnswers
from paramserver.worker.plan import Shard
from paramserver.worker.rows import (
    PIECE_BYTES,
    LookupParts,
    Routed,
    RowParts,
    check_gradients,
    check_ids,
)
from paramserver.worker.waiting import long_poll

KEY_BYTES = 8


@dataclass(frozen=True, slots=True)
class TableCounts:
    """What servers say of a table.

    Attributes:
        rows: that exist.
        bytes: memory of rows, optimizer state, index and counts.
        evicted: rows forgotten so far.
        not_admitted: gradients that met a row that was not born.
    """

    rows: int
    bytes: int
    evicted: int
    not_admitted: int


class Table:
    """Rows of floats by id, born on the servers by the first push that touches them.

    Made by ``client.table``. One thread at a time.

    Attributes:
        name: of the table.
        dim: floats of a row.
        rows: ids are 0 to rows - 1; None: any 64-bit integer.
    """

    def __init__(self, group: Group, transport: Transport) -> None:
        assert group.spec.table is not None
        self.group = group
        self.name = group.name
        self._table: TableSpec = group.spec.table
        self.dim, self.rows = self._table.dim, self._table.rows
        self.dtype = DTYPES[group.spec.tensors[0].dtype]
        self._transport = transport

    def __len__(self) -> int:
        """Rows that exist: those that a push has given birth to."""
        return self.counts().rows

    def counts(self) -> TableCounts:
        """Rows, bytes and what became of rows, over all servers."""
        found = []
        for shard in self.group.plan.shards:
            reply = self._transport.server(shard.address).call("Describe", pb.DescribeRequest())
            found += [g for g in reply.groups if g.group == self.name]
        return TableCounts(
            sum(g.table.rows for g in found),
            sum(g.bytes for g in found),
            sum(g.table.evicted for g in found),
            sum(g.table.not_admitted for g in found),
        )

    def shrink(self) -> int:
        """Forgets the rows whose time has come, now, on all servers, and gives memory back.

        Servers do so by themselves while pushes come in, a little late; this is exact. Under Sync
        it acts between two clocks: let one worker call it, and a barrier follow.

        Returns:
            Rows forgotten.

        Raises:
            UnsupportedError: the table has no ``evict``.
            WaitTimeoutError: names whom it waited for.
        """
        if self._table.evict is None:
            raise UnsupportedError(
                f"table {self.name!r} never forgets rows: make it with evict=TTL, LRU or Decay"
            )
        self.group.session.check()
        return sum(self._shrink(shard) for shard in self.group.plan.shards)

    def _shrink(self, shard: Shard) -> int:
        channel = self._transport.server(shard.address)
        request = pb.ShrinkRequest(
            worker=self.group.identity(),
            group=self.name,
            map_version=self.group.plan.map.version,
            clock=self.clock,
        )

        def ask(park: float) -> pb.ShrinkReply:
            request.park_seconds = park
            reply: pb.ShrinkReply = channel.call("Shrink", request, timeout=park + 30)
            return reply

        reply = long_poll(
            ask,
            lambda reply: not reply.pending,
            f"shrink of table {self.name!r} at clock {self.clock}",
            self.group.session.config.wait_timeout,
            time.monotonic,
        )
        return int(reply.evicted)

    @property
    def clock(self) -> int:
        """The 0-based index of the step this worker is on."""
        return self.group.clock

    @property
    def last(self) -> StepResult | None:
        """What the newest push did; None before the first."""
        return self.group.last

    def pull(self, ids: Tensor) -> Tensor:
        """The rows of ``ids`` that this worker may read at its clock.

        An unseen row reads as its initial value; pulling creates nothing.

        Args:
            ids: integers of any shape; duplicates are welcome.

        Returns:
            [*ids.shape, dim], on the ids' device.

        Raises:
            InvalidRequestError: an id out of range.
            WaitTimeoutError: names whom it waited for.
        """
        lookup = Lookup(self, ids)
        lookup.send()
        lookup.wait()
        return lookup.future(ids).result()

    def pull_async(self, ids: Tensor) -> Future[Tensor]:
        """As ``pull``, without waiting."""
        lookup = Lookup(self, ids)
        lookup.send()
        return lookup.future(ids)

    def push(self, ids: Tensor, grads: Tensor, weight: float | None = None) -> StepResult:
        """Pushes gradients of rows and ticks the clock; does not wait for other workers.

        Args:
            ids: integers [n]; gradients of duplicates are summed.
            grads: [n, dim].
            weight: samples that the gradients are a mean over; default: as for ``Group.push``.

        Raises:
            InvalidRequestError: an id out of range, another shape; nothing was sent.
            NonFiniteError: names the id; nothing was sent, the clock stays.
        """
        return self.group.finish_push(*self.start_push(ids, grads, weight))

    def push_async(
        self, ids: Tensor, grads: Tensor, weight: float | None = None
    ) -> Future[StepResult]:
        """As ``push``, without waiting; a 65th one that is not applied waits for room."""
        operation, _, clock, began = self.start_push(ids, grads, weight)
        return self.group.future(operation, clock, began)

    def start_push(
        self,
        ids: Tensor,
        grads: Tensor,
        weight: float | None = None,
        options: Sequence[Mapping[str, Any]] | None = None,
    ) -> tuple[Operation, Any, int, float]:
        """Sends a push on its way."""

        return self.group.start_push(lambda: Sparse(self, ids, grads), weight, options)

    def check_size(self, routed: Routed) -> None:
        """Raises InvalidRequestError for more rows than one call can carry."""
        most = max((stop - start for start, stop in map(routed.range, routed.slices)), default=0)
        room = PIECE_BYTES // (KEY_BYTES + row_bytes(self.dim, self.wire))
        if most > room:
            raise InvalidRequestError(
                f"table {self.name!r}: {len(routed.keys)} rows of {self.dim} in one call: at most "
                f"about {room * len(routed.slices)}; take them in parts"
            )

    @property
    def wire(self) -> str:
        """The data type in which rows travel."""
        return self.group.wire_dtype or self.group.spec.tensors[0].dtype


class Sparse:
    """Gradients of rows, as a push carries them."""

    def __init__(self, table: Table, ids: Tensor, grads: Tensor) -> None:
        check_ids(table.name, ids, table.rows)
        check_gradients(table.name, ids, grads, table.dim, table.clock)
        self._group, self._routed = table.group, Routed(ids)
        table.check_size(self._routed)
        flat = grads.detach().to("cpu", table.dtype).reshape(-1, table.dim)
        self._rows = self._routed.sums(flat)

    def share(self, shard: Shard, push: pb.Push) -> RowParts:
        """One server's part."""
        return RowParts(self._group, shard, push, self._routed, self._rows)

    def end(self, counted: bool) -> None:
        """Nothing is kept back."""


class Lookup:
    """One lookup under way.

    Attributes:
        routed: the distinct keys asked for.
    """

    def __init__(self, table: Table, ids: Tensor) -> None:
        table.group.session.check()
        check_ids(table.name, ids, table.rows)
        self._table = table
        self.routed = Routed(ids)
        table.check_size(self.routed)
        self._rows = torch.empty((len(self.routed.keys), table.dim), dtype=table.dtype)
        self._clock = table.clock
        self._operation: Operation | None = None

    def send(self) -> None:
        """Asks every server for its share."""
        group = self._table.group
        lookup = pb.Lookup(
            worker=group.identity(),
            group=group.name,
            map_version=group.plan.map.version,
            clock=self._clock,
            wire_dtype=wire_to_proto(group.wire_dtype),
            timeout=group.session.config.wait_timeout,
        )
        shares = [
            (shard, parts)
            for shard in group.plan.shards
            if (parts := LookupParts(shard, lookup, self.routed)).slices
        ]
        self._operation = operation = Operation(len(shares))
        for shard, parts in shares:
            answers = ServerAnswers(operation, shard.index, self._take, parts.some)
            operation.submit(group.links.to(shard.address), answers, parts.all)

    def future(self, ids: Tensor) -> Future[Tensor]:
        """The rows in the order of ``ids``, once they are here."""
        assert self._operation is not None
        done, found = self._operation.done, Future[Tensor]()

        def here() -> None:
            if done.error is not None:
                found.set_exception(done.error)
            else:
                rows = self._rows.index_select(0, self.routed.inverse)
                found.set_result(rows.view(*ids.shape, self._table.dim).to(ids.device))

        done.then(here)
        return found

    def _take(self, data: pb.Data, pieces: Sequence[Piece]) -> None:
        table = self._table
        for index, version, mark, piece in zip(
            data.slices, data.versions, data.checksums, pieces, strict=True
        ):
            if checksum(piece) != mark:
                raise ChecksumError(f"rows of sub-table {index}: bytes changed on the way here")
            start, stop = self.routed.range(index)
            self._rows[start:stop] = decode_rows(piece, table.dim, table.wire, table.dtype)
            table.group.held.versions[index] = version

    def wait(self) -> None:
        """Returns when the rows are here.

        Raises:
            WaitTimeoutError: names whom it waited for.
        """
        assert self._operation is not None
        what = f"rows of table {self._table.name!r} at clock {self._clock}"
        self._table.group.wait(self._operation, self._operation.done, what)
