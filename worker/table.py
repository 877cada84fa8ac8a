"""A table as a worker sees it: rows by 64-bit ids, pulled and pushed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

from google.protobuf.message import Message
from torch import Tensor

from paramserver.core.tables import TableSpec
from paramserver.errors import InvalidRequestError, UnsupportedError
from paramserver.types import StepResult
from paramserver.v1 import server_pb2 as pb
from paramserver.wire.rows import KEY_BYTES, row_bytes
from paramserver.wire.tensors import DTYPES
from paramserver.wire.transport import Transport
from paramserver.worker.feed import Feed, TableStats
from paramserver.worker.group import Group
from paramserver.worker.lookup import Lookup, Sparse
from paramserver.worker.plan import Shard
from paramserver.worker.pushes import Started
from paramserver.worker.rows import PIECE_BYTES, Routed, check_gradients, check_ids
from paramserver.worker.waiting import long_poll


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
            reply = self._call(shard, "Describe", pb.DescribeRequest(), 30.0)
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
        return self.group.moves.retried(
            lambda: sum(self._shrink(shard) for shard in self.group.plan.shards)
        )

    def _call(self, shard: Shard, method: str, request: Message, timeout: float) -> Any:
        directory = self.group.session.directory
        return directory.call(self._transport, shard.address, method, request, timeout=timeout)

    def _shrink(self, shard: Shard) -> int:
        request = pb.ShrinkRequest(
            worker=self.group.identity(),
            group=self.name,
            map_version=self.group.plan.map.version,
            clock=self.clock,
        )

        def ask(park: float) -> pb.ShrinkReply:
            request.park_seconds = park
            reply: pb.ShrinkReply = self._call(shard, "Shrink", request, park + 30)
            return reply

        reply = long_poll(
            ask,
            lambda reply: not reply.pending,
            f"shrink of table {self.name!r} at clock {self.clock}",
            self.group.session.config.wait_timeout,
            time.monotonic,
        )
        return int(reply.evicted)

    @cached_property
    def feed(self) -> Feed:
        """What the modules over this table have in common."""
        return Feed(self)

    @property
    def stats(self) -> TableStats:
        """Rows that modules looked up, and how many of them were prefetched."""
        return self.feed.stats

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
        lookup = self._look_up(ids)
        lookup.wait()
        return lookup.future(ids).result()

    def pull_async(self, ids: Tensor) -> Future[Tensor]:
        """As ``pull``, without waiting."""
        return self._look_up(ids).future(ids)

    def _look_up(self, ids: Tensor) -> Lookup:
        check_ids(self.name, ids, self.rows)
        return Lookup(self, Routed(ids))

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
        return self.group.future(*self.start_push(ids, grads, weight))

    def start_push(
        self,
        ids: Tensor,
        grads: Tensor,
        weight: float | None = None,
        options: Sequence[Mapping[str, Any]] | None = None,
    ) -> Started:
        """Sends a push on its way."""

        def make(whole: bool) -> Sparse:
            return self._sparse(ids, grads) if whole else Sparse.nothing(self)

        return self.group.start_push(make, weight, options)

    def _sparse(self, ids: Tensor, grads: Tensor) -> Sparse:
        check_ids(self.name, ids, self.rows)
        check_gradients(self.name, ids, grads, self.dim)
        routed = Routed(ids)
        flat = grads.detach().to("cpu", self.dtype).reshape(-1, self.dim)
        return Sparse(self, routed, routed.sums(flat), {})

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

    def __deepcopy__(self, memo: object) -> Table:
        """Itself: the rows are on the servers, a copy of a module reads the same ones."""
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise UnsupportedError(
            f"table {self.name!r} cannot be pickled: its rows are on the servers; connect again in "
            "the other process and make it by client.table"
        )
