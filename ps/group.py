"""One group on one server: its buckets, its staged pushes, the clocks closed on it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from paramserver.core.clock import Close, Cut, Drop, may_read
from paramserver.core.ledger import Ledger, Receipt
from paramserver.core.placement import GroupSpec, SliceMap, slices_of
from paramserver.core.slices import Slice, pack, travels_as
from paramserver.errors import InternalError, InvalidRequestError, MovedError
from paramserver.failpoints import failpoint
from paramserver.ps import records
from paramserver.ps.cell import Cell
from paramserver.ps.gate import Gate
from paramserver.ps.journal import Journal
from paramserver.ps.optimizers import check_options
from paramserver.ps.tables.bucket import RowBucket
from paramserver.ps.workshop import Workshop
from paramserver.types import Adaptive, AllReduce, ScaleLr, Span, Stale, Sync, WorkerId

if TYPE_CHECKING:
    from paramserver.ps.holds import GroupHold

log = logging.getLogger("paramserver")

__all__ = ["Cell", "GroupState", "Staged"]


@dataclass(slots=True)
class Staged:
    """A push whose gradients are here, and whose clock has not closed."""

    worker: WorkerId
    clock: int
    weight: float
    options: Sequence[Mapping[str, Any]]
    samples: Sequence[Span]
    gradients: dict[int, Any] = field(default_factory=dict)  # tensors, or rows of a table
    nbytes: int = 0


class GroupState:
    """What a server holds of one group. Used on the event loop; tensor work goes to the workshop.

    Attributes:
        version: sync: clocks closed; stale and async: pushes applied.
        frontier: sync: clocks closed on all buckets; stale: the lead's min_clock.
        dropped: next clock of workers whose push was not on a closed list.
    """

    def __init__(
        self,
        spec: GroupSpec,
        slice_map: SliceMap,
        server: str,
        workshop: Workshop,
        journal: Journal | None = None,
        buckets: Sequence[Sequence[int]] = (),
    ) -> None:
        """A group without values; ``buckets`` has the slices of each, if not as packed anew."""
        self.spec = spec
        self.map = slice_map
        self.server = server
        self.lead = slice_map.servers[slice_map.lead]
        self.consistency = spec.consistency
        self.journal = journal
        self.workshop = workshop
        mine = [
            s
            for s, owner in zip(slices_of(spec, slice_map), slice_map.owners, strict=True)
            if slice_map.servers[owner] == server
        ]
        self.slices: dict[int, Slice] = {s.index: s for s in mine}
        if mine and spec.optimizer and spec.table is None:
            check_options(spec.optimizer, spec.param_groups)
        packed = [[self.slices[i] for i in each] for each in buckets]
        packed = packed or (pack(mine) if spec.table is None else [[s] for s in mine])
        self.cells = [Cell(piece, spec, journal) for piece in packed]
        self.cell_of = {i: cell for cell in self.cells for i in cell.slices}
        self.ledger = Ledger()
        self.frontier = Gate()
        self.follow_bounds({})
        self.version = 0
        self._unset = set(self.slices) if spec.table is None else set()
        self.staged: dict[tuple[WorkerId, int], Staged] = {}
        self._decisions: asyncio.Queue[Close | Drop | Cut] = asyncio.Queue()
        self._applier: asyncio.Task[None] | None = None
        self._paused = False
        self.kept: dict[tuple[WorkerId, int], dict[int, int]] = {}  # see ``keep``
        self.is_gone: Callable[[WorkerId], bool] = lambda worker: False
        self._stirred = asyncio.Event()  # something was staged, or somebody lost
        self.settled = Gate()  # clocks whose pushes have their final receipts
        self.failure: InternalError | None = None
        self.on_cut: Callable[[Cut], None] = lambda cut: None
        self.hold: GroupHold | None = None  # of pushes applied on arrival

    @property
    def sync(self) -> bool:
        """Whether pushes are staged until their clock closes."""
        return isinstance(self.consistency, Sync)

    def follow_bounds(self, bounds: Mapping[str, int]) -> None:
        """An adaptive group is ``Stale`` with the scheduler's bound of the moment.

        Reads under way look again: a higher bound lets them go, a lower one holds them back. What
        was granted stays granted.
        """
        if isinstance(self.spec.consistency, Adaptive):
            bound = bounds.get(self.spec.name, 0)
            self.consistency = Stale(bound, self.spec.consistency.scale_lr)
            self.frontier.stir()

    @property
    def leads(self) -> bool:
        """Whether this server closes the group's clocks."""
        return self.lead == self.server

    @property
    def stored(self) -> bool:
        """Whether every slice has its first value."""
        return not self._unset

    @property
    def nbytes(self) -> int:
        """Bytes of values; of a table with its optimizer state and index."""
        return sum(cell.rows.nbytes if cell.rows else cell.size for cell in self.cells)

    def declared_bytes(self, slices: Sequence[int]) -> int:
        """Bytes that a push of these slices is to bring; 0 of a table, whose rows tell."""
        return 0 if self.spec.table is not None else sum(self.slices[i].bytes for i in slices)

    def check_map(self, version: int) -> None:
        """Raises MovedError for another slice map than this server has."""
        if version != self.map.version:
            raise MovedError(
                f"group {self.spec.name!r}: request with slice map {version}, this server has "
                f"{self.map.version}; fetch the map and send the request again"
            )

    def check_slices(self, indices: Sequence[int], rules: frozenset[str] | None = None) -> None:
        """Raises unless this server holds all slices, each once, of tensors with such rules."""
        if len(set(indices)) != len(indices):
            raise InvalidRequestError("a slice is named twice in one request")
        for index in indices:
            piece = self.slices.get(index)
            if piece is None:
                raise MovedError(
                    f"slice {index} of group {self.spec.name!r} is not on {self.server}; "
                    "fetch the slice map"
                )
            tensor = self.spec.tensors[piece.tensor]
            if rules is not None and tensor.rule not in rules:
                raise InvalidRequestError(
                    f"tensor {tensor.name!r} has rule {tensor.rule!r} and takes no pushes"
                )

    def wire_dtype(self, piece: Slice, wire: str) -> str:
        """The data type in which a slice travels."""
        tensor = self.spec.tensors[piece.tensor]
        return travels_as(tensor.dtype, tensor.rule, wire)

    async def store(self, index: int, value: Tensor) -> None:
        """Takes a first value; one that is there stays."""
        cell = self.cell_of[index]
        if isinstance(cell.bucket, RowBucket):
            raise InvalidRequestError("a table takes no first values: rows begin by themselves")
        await cell.change(self.workshop, value.nbytes, cell.store, index, value)
        self.has_value(index)

    def has_value(self, index: int) -> None:
        """A slice has its first value."""
        self._unset.discard(index)

    def restored(self, clock: int, version: int) -> None:
        """Every slice was loaded, as far as it had a value; the group goes on at this clock."""
        self.version = version
        self._unset = {i for i in self._unset if i not in self.cell_of[i].dense.values}
        for gate in (self.frontier, self.settled, *(cell.closed for cell in self.cells)):
            gate.advance(clock)
        for cell in self.cells:
            cell.stepped = clock

    def use(self, journal: Journal | None) -> None:
        """Changes are written there from now on."""
        self.journal = journal
        for cell in self.cells:
            cell.journal = journal

    def reshape(
        self, slice_map: SliceMap, slices: Mapping[int, Slice], cells: Sequence[Cell]
    ) -> None:
        """Slices came or left: these are here now, in these cells, by this map."""
        self.map, self.lead = slice_map, slice_map.servers[slice_map.lead]
        self.slices, self.cells = dict(slices), list(cells)
        self.cell_of = {i: cell for cell in self.cells for i in cell.slices}
        self._unset.clear()
        self.ledger.reshape()

    @property
    def scale(self) -> ScaleLr:
        """How the learning rate falls with staleness."""
        if isinstance(self.consistency, (Sync, AllReduce)):
            return "none"
        return self.consistency.scale_lr

    async def tick_others(self, pushed: set[int]) -> None:
        """A completed push ticks the slices that it had no gradient for."""
        if len(pushed) == len(self.slices):
            return
        for cell in self.cells:
            rest = [i for i in cell.slices if i not in pushed]
            if rest:
                await cell.change(self.workshop, 0, cell.tick, rest)

    def decide(self, decision: Close | Drop | Cut) -> None:
        """Queues what the lead decided; decisions are carried out one after the other, in order.

        A clock may close with a push of a worker that is dropped right after.
        """
        self._decisions.put_nowait(decision)
        self.resume(self._paused)

    async def pause(self) -> None:
        """What the lead decides waits until ``resume``: slices are about to come."""
        self._paused = True
        await self.drained()

    def resume(self, paused: bool = False) -> None:
        """Carries out what waits, unless it is to go on waiting."""
        self._paused = paused
        if not paused and (self._applier is None or self._applier.done()):
            self._applier = asyncio.create_task(self._carry_out())

    async def _carry_out(self) -> None:
        while not (self._decisions.empty() or self._paused) and self.failure is None:
            decision = self._decisions.get_nowait()
            try:
                if isinstance(decision, Drop):
                    self._free(decision.worker)
                elif isinstance(decision, Cut):
                    self.on_cut(decision)
                else:
                    await self._apply(decision)
            except Exception as error:
                log.exception("group %s cannot be stepped", self.spec.name)
                self.failure = InternalError(f"group {self.spec.name!r} cannot be stepped: {error}")

    async def _apply(self, decision: Close) -> None:
        clock = decision.clock
        if clock < self.frontier.value:
            return
        await self._all_staged(decision)
        listed = [
            (c.weight, self.staged[c.worker, clock])
            for c in decision.contributors
            if (c.worker, clock) in self.staged
        ]
        options = listed[0][1].options if listed else ()
        by_cell = [(weight, self._by_cell(push.gradients)) for weight, push in listed]
        await asyncio.gather(
            *(
                self._close_cell(
                    cell, clock, [(w, part.get(cell, {})) for w, part in by_cell], options
                )
                for cell in self.cells
                if cell.closed.value <= clock  # after a restart some may have closed it already
            )
        )
        self.version += 1
        said = []
        for _, push in listed:
            receipt = Receipt(clock, self.version, 0.0, applied=True)
            self.ledger.amend(push.worker, clock, receipt)
            del self.staged[push.worker, clock]
            digest = self.ledger.digest(push.worker, clock)
            said.append(records.settled(push.worker, clock, push.samples, digest=digest))
        for worker, staged_clock in list(self.staged):
            if staged_clock <= clock:
                self._drop(worker, staged_clock)
                said.append(records.settled(worker, staged_clock, dropped=True))
        if self.journal is not None:
            records.closed(self.journal, self.spec.name, clock, self.version, said)
        self.frontier.advance(clock + 1)
        self.settled.advance(clock + 1)

    async def _all_staged(self, decision: Close) -> None:
        """Waits for pushes on the list that a restart lost: their workers send them again.

        Raises:
            InvalidRequestError: one of these workers is lost too.
        """
        clock = decision.clock
        while missing := [
            c.worker for c in decision.contributors if (c.worker, clock) not in self.staged
        ]:
            gone = next((w for w in missing if self.is_gone(w)), None)
            if gone is not None or self.journal is None:
                raise InvalidRequestError(
                    f"clock {clock} closes with a push of rank {(gone or missing[0]).rank} that is "
                    f"not staged on {self.server}: both were lost in the same step; restore the "
                    "newest snapshot"
                )
            self._stirred.clear()
            await self._stirred.wait()

    def stage(self, push: Staged) -> None:
        """A push is complete; its clock may close."""
        self.staged[push.worker, push.clock] = push
        self._stirred.set()

    def stir(self) -> None:
        """Somebody may be gone."""
        self._stirred.set()

    def expect(self, worker: WorkerId, clock: int) -> None:
        """The lead set a worker's clock; as ``Ledger.expect``."""
        if self.ledger.expected(worker) != clock and self.journal is not None:
            records.expected(self.journal, self.spec.name, worker, clock)
        self.ledger.expect(worker, clock)

    def keep(self, worker: WorkerId, clock: int, taken: Mapping[int, int]) -> None:
        """Slices of an open push are in the journal, with their checksums: for a dump, which must
        not take for applied what was only claimed."""
        self.kept.setdefault((worker, clock), {}).update(taken)

    def _by_cell(self, gradients: Mapping[int, Any]) -> dict[Cell, dict[int, Any]]:
        parts: dict[Cell, dict[int, Any]] = {}
        for index, gradient in gradients.items():
            parts.setdefault(self.cell_of[index], {})[index] = gradient
        return parts

    async def _close_cell(
        self,
        cell: Cell,
        clock: int,
        contributions: Sequence[tuple[float, Mapping[int, Any]]],
        options: Sequence[Mapping[str, Any]],
    ) -> None:
        size = cell.size
        if cell.rows is not None:  # known only by what came
            size = sum(rows.nbytes for _, part in contributions for rows in part.values())
        await cell.change(self.workshop, size, cell.close, clock, contributions, options)
        failpoint("ps.after_apply")
        cell.closed.advance(clock + 1)

    def _drop(self, worker: WorkerId, clock: int) -> None:
        del self.staged[worker, clock]
        receipt = Receipt(clock, self.version, 0.0, applied=False, dropped=True)
        self.ledger.amend(worker, clock, receipt)

    def _free(self, worker: WorkerId) -> None:
        """Frees what a lost worker staged and no clock closed."""
        for key in [k for k in self.staged if k[0] == worker]:
            del self.staged[key]

    def close(self) -> None:
        """Carries out nothing more."""
        if self._applier is not None:
            self._applier.cancel()

    async def drained(self) -> None:
        """Waits until every decision so far is carried out."""
        if self._applier is not None:
            await asyncio.shield(self._applier)

    async def readable(self, cell: Cell, clock: int, timeout: float) -> bool:
        """Waits until the consistency lets a worker at ``clock`` read this bucket."""
        if self.failure is not None:
            raise self.failure
        if self.sync:
            return await cell.closed.reach(clock, timeout)
        end = time.monotonic() + timeout
        while not self.readable_now(clock):
            assert isinstance(self.consistency, Stale)
            left = end - time.monotonic()
            if left <= 0:
                return False
            await self.frontier.reach(clock - self.consistency.bound, left)
        return True

    def readable_now(self, clock: int) -> bool:
        """Whether ``readable`` would not wait, for any bucket."""
        if self.sync:
            return self.frontier.value >= clock
        return may_read(self.consistency, clock, self.frontier.value)

    def check_invariants(self) -> None:
        """Raises AssertionError if slices, versions or the ledger contradict one another."""
        assert set(self.cell_of) == set(self.slices)
        assert all(clock >= self.frontier.value for _, clock in self.staged) or not self.sync
        self.ledger.check_invariants()
