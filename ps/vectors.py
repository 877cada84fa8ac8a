"""Vectors laid out like a group, on one server: sums, products, additions that count once."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from paramserver.config import Limits
from paramserver.core.placement import check_name
from paramserver.errors import InvalidRequestError, NotFoundError, ResourceError
from paramserver.ps import records
from paramserver.ps.group import Cell, GroupState
from paramserver.ps.workshop import Workshop
from paramserver.types import FLOATING, WorkerId
from paramserver.v1 import server_pb2 as pb
from paramserver.wire.tensors import DTYPES

VALUES = "values"  # the group's own
LIKE_VALUES = frozenset({"step", "add"})  # rules of the tensors that vectors have


@dataclass(slots=True)
class Vector:
    """One vector.

    Attributes:
        values: by slice.
        parts: the total of what was added for samples [start, stop), by these.
        shared: slices whose tensors somebody else has too; they are not written to.
    """

    values: dict[int, Tensor]
    parts: dict[tuple[int, int], float] = field(default_factory=dict)
    shared: set[int] = field(default_factory=set)

    def tally(self) -> pb.Tally:
        """What was added: samples, and the sum of the totals, in whatever order they came."""
        samples = sum(stop - start for start, stop in self.parts)
        return pb.Tally(samples=samples, total=fsum(list(self.parts.values())))


def fsum(values: Sequence[float]) -> float:
    """The exactly rounded sum; infinite or NaN terms add up as usual."""
    return math.fsum(values) if all(map(math.isfinite, values)) else sum(values)


class Budget:
    """Bytes that all vectors of a server may have."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.held = 0

    def take(self, size: int) -> None:
        """Raises ResourceError if there is no room."""
        if self.held + size > self.limits.vector_bytes:
            raise ResourceError(
                f"vectors hold {self.held} bytes on this server, {size} more exceed the limit of "
                f"{self.limits.vector_bytes}; drop some, or start more servers"
            )
        self.held += size

    def give(self, size: int) -> None:
        """These bytes are free again."""
        self.held -= size


class VectorSpace:
    """The vectors of one group. Decisions on the event loop, tensor work in the workshop."""

    def __init__(self, group: GroupState, budget: Budget, workshop: Workshop) -> None:
        self.group = group
        self.vectors: dict[str, Vector] = {}
        self.budget = budget
        self.turn = asyncio.Lock()  # one operation or addition at a time, in the order of coming
        self._workshop = workshop
        self._lock = threading.Lock()
        self._dtypes = {
            i: DTYPES[group.spec.tensors[piece.tensor].dtype]
            for i, piece in sorted(group.slices.items())
            if group.spec.tensors[piece.tensor].dtype in FLOATING
            and group.spec.tensors[piece.tensor].rule in LIKE_VALUES
        }
        self.bytes = sum(group.slices[i].bytes for i in self._dtypes)
        self._operations: dict[WorkerId, tuple[int, asyncio.Task[pb.VectorsReply]]] = {}
        self._additions: dict[WorkerId, int] = {}

    # Operations

    async def operate(
        self, worker: WorkerId, request: pb.VectorsRequest, check: Callable[[], None]
    ) -> pb.VectorsReply:
        """Carries out a request, or joins it: one sent again is not carried out again.

        Args:
            check: raises if the worker may not act any more, once it is its turn.

        Raises:
            InvalidRequestError: an operation before the newest one, or a bad name.
            NotFoundError: an unknown vector.
            ResourceError: too many vectors, or too large.
        """
        last, task = self._operations.get(worker, (0, None))
        if request.operation < last:
            raise InvalidRequestError(
                f"operation {request.operation} on the vectors of {self.group.spec.name!r}: "
                f"operation {last} of this worker came before"
            )
        if task is None or request.operation > last:
            task = asyncio.create_task(self._operate(request, check))
            self._operations[worker] = (request.operation, task)
        # Whoever waits may go away and come again; the operation goes on.
        return await asyncio.shield(task)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """One operation or addition; while the group stands still to be cut, none begins."""
        while True:
            async with self.turn:
                hold = self.group.hold
                if hold is None:
                    yield
                    return
            await hold.changed()

    async def stand_still(self) -> None:
        """Returns once what began before the hold of the group is over."""
        async with self.turn:
            pass

    async def _operate(
        self, request: pb.VectorsRequest, check: Callable[[], None]
    ) -> pb.VectorsReply:
        async with self._turn():
            check()
            self._check(request)
            size = self.bytes * (len(request.lin) + len(request.dots))
            return await self._workshop.run(self._lock, size, self._compute, request)

    def _check(self, request: pb.VectorsRequest) -> None:
        """Raises unless all of a request can be carried out."""
        names = {VALUES, *self.vectors}
        for lin in request.lin:
            for term in lin.terms:
                self._find(term.vector, names)
                if not math.isfinite(term.coefficient):
                    raise InvalidRequestError(
                        f"lin {lin.out!r}: coefficient {term.coefficient} of {term.vector!r}: "
                        "must be finite"
                    )
            if lin.out != VALUES:
                check_name(lin.out, "vector", self.budget.limits)
            names.add(lin.out)
        for dot in request.dots:
            self._find(dot.left, names)
            self._find(dot.right, names)
        for name in request.tallies:
            self._find(name, names - {VALUES})
        if VALUES in request.drop:
            raise InvalidRequestError("drop 'values': the group's own values stay")
        if not self.group.stored:
            raise InvalidRequestError(f"group {self.group.spec.name!r} has no first values yet")
        more = len(names - {VALUES}) - len(self.vectors)
        if len(self.vectors) + more > self.budget.limits.vectors:
            raise ResourceError(
                f"group {self.group.spec.name!r} would have {len(self.vectors) + more} vectors, "
                f"at most {self.budget.limits.vectors} are allowed; drop some"
            )
        self.budget.take(more * self.bytes)

    def _find(self, name: str, names: set[str]) -> None:
        if name not in names:
            known = ", ".join(sorted(names)[:10])
            raise NotFoundError(
                f"group {self.group.spec.name!r} has no vector {name!r}; it has {known}"
            )

    def _compute(self, request: pb.VectorsRequest) -> pb.VectorsReply:
        if self.group.journal is not None:
            records.request(self.group.journal, request.group, {}, vectors=request)
        for lin in request.lin:
            self._lin(lin)
        dots = [self._dot(dot.left, dot.right) for dot in request.dots]
        tallies = [self.vectors[name].tally() for name in request.tallies]
        for name in request.drop:
            if self.vectors.pop(name, None) is not None:
                self.budget.give(self.bytes)
        names = sorted(self.vectors) if request.names else []
        return pb.VectorsReply(dots=dots, tallies=tallies, names=names)

    def _lin(self, lin: pb.Lin) -> None:
        made = {i: self._sum(i, lin.terms) for i in self._dtypes}
        if lin.out != VALUES:
            self.vectors[lin.out] = Vector(made)
            return
        for cell in self.group.cells:
            with cell.lock:
                for index in cell.slices:
                    if index in made:
                        cell.change_locked(cell.dense.replace, index, made[index])

    def _sum(self, index: int, terms: Sequence[pb.Term]) -> Tensor:
        """The sum of the terms on one slice: in float64, rounded once."""
        result = torch.zeros(self.group.slices[index].elements, dtype=torch.float64)
        for term in terms:
            result.add_(self._slice(term.vector, index), alpha=term.coefficient)
        return result.to(self._dtypes[index])

    def _dot(self, left: str, right: str) -> float:
        return math.fsum(
            float(torch.dot(self._slice(left, i).double(), self._slice(right, i).double()))
            for i in self._dtypes
        )

    def _slice(self, name: str, index: int) -> Tensor:
        if name != VALUES:
            return self.vectors[name].values[index]
        cell: Cell = self.group.cell_of[index]
        with cell.lock:
            return cell.dense.values[index].clone()

    # Additions and pulls

    def check_slices(self, name: str, slices: Sequence[int]) -> None:
        """Raises unless these are slices of a vector that is here."""
        self._find(name, {VALUES, *self.vectors})
        self.group.check_slices(slices)
        for index in slices:
            if index not in self._dtypes:
                tensor = self.group.spec.tensors[self.group.slices[index].tensor]
                raise InvalidRequestError(
                    f"tensor {tensor.name!r} ({tensor.dtype}, rule {tensor.rule!r}) has no part in "
                    "vectors: only floating tensors that pushes change have"
                )

    async def add(
        self, worker: WorkerId, record: pb.AddVector, given: Mapping[int, Tensor]
    ) -> bool:
        """Adds what came whole; False: it was counted before.

        Raises:
            NotFoundError: the vector was dropped meanwhile.
        """
        # An addition that began is finished, even if its stream breaks: it is known as counted.
        return await asyncio.shield(asyncio.create_task(self._add_once(worker, record, given)))

    async def _add_once(
        self, worker: WorkerId, record: pb.AddVector, given: Mapping[int, Tensor]
    ) -> bool:
        async with self._turn():
            self._find(record.vector, set(self.vectors))
            vector = self.vectors[record.vector]
            if not self._count(worker, record, vector):
                return False
            size = sum(value.nbytes for value in given.values())
            await self._workshop.run(self._lock, size, self._add, vector, given, record)
            return True

    def _count(self, worker: WorkerId, record: pb.AddVector, vector: Vector) -> bool:
        """Whether an addition is new; it counts from now on."""
        part = (record.start, record.stop)
        if record.start < record.stop:
            if part in vector.parts:
                return False
            vector.parts[part] = record.total
        elif record.number <= self._additions.get(worker, 0):
            return False
        else:
            self._additions[worker] = record.number
        return True

    def replay(self, request: pb.VectorsRequest) -> None:
        """An operation that was carried out is carried out again."""
        self._check(request)
        worker = WorkerId(request.worker.rank, request.worker.incarnation)
        self._remember(worker, request.operation, self._compute(request))

    def replay_addition(self, record: pb.AddVector, given: Mapping[int, Tensor]) -> None:
        """An addition that counted counts again."""
        worker = WorkerId(record.worker.rank, record.worker.incarnation)
        vector = self.vectors[record.vector]
        if self._count(worker, record, vector):
            self._add(vector, given, record)

    def _remember(self, worker: WorkerId, operation: int, reply: pb.VectorsReply) -> None:
        async def answer() -> pb.VectorsReply:
            return reply

        self._operations[worker] = (operation, asyncio.create_task(answer()))

    def counts(self) -> tuple[dict[str, Any], list[bytes]]:
        """What makes every operation and addition count once, and the newest replies; to be called
        while it is nobody's turn."""
        done = {
            worker: (operation, task.result())
            for worker, (operation, task) in self._operations.items()
            if task.done() and not task.cancelled() and not task.exception()
        }
        numbers = {
            "additions": [[*worker, number] for worker, number in self._additions.items()],
            "operations": [[*worker, operation] for worker, (operation, _) in done.items()],
        }
        return numbers, [reply.SerializeToString() for _, reply in done.values()]

    def load_counts(self, numbers: Mapping[str, Any], replies: Sequence[bytes]) -> None:
        """What ``counts`` of another has told."""
        self._additions = {WorkerId(r, i): number for r, i, number in numbers["additions"]}
        for (rank, incarnation, operation), reply in zip(
            numbers["operations"], replies, strict=True
        ):
            worker = WorkerId(rank, incarnation)
            self._remember(worker, operation, pb.VectorsReply.FromString(reply))

    def _add(
        self, vector: Vector, given: Mapping[int, Tensor], record: pb.AddVector | None = None
    ) -> None:
        if self.group.journal is not None and record is not None:
            records.added(self.group.journal, record, given)
        for index, value in given.items():
            if index in vector.shared:
                vector.values[index] = vector.values[index] + value
                vector.shared.discard(index)
            else:
                vector.values[index] += value

    def dump(self) -> dict[str, Vector]:
        """The vectors as they are after some operation; they cost memory as they change. Blocks."""
        with self._lock:
            for vector in self.vectors.values():
                vector.shared = set(vector.values)
            return {n: Vector(dict(v.values), dict(v.parts)) for n, v in self.vectors.items()}

    @property
    def slices(self) -> list[int]:
        """The slices that vectors have here."""
        return list(self._dtypes)

    def load(self, vectors: Mapping[str, Vector]) -> None:
        """Takes what another has dumped, as far as these are slices of its own."""
        self.budget.take(len(vectors) * self.bytes)
        self.vectors = {
            name: Vector({i: v.values[i].clone() for i in self._dtypes}, dict(v.parts))
            for name, v in vectors.items()
        }

    async def read(self, name: str, slices: Sequence[int]) -> dict[int, Tensor]:
        """Copies of some slices."""
        size = sum(self.group.slices[i].bytes for i in slices)

        def copy() -> dict[int, Tensor]:
            self._find(name, {VALUES, *self.vectors})  # it may be dropped between two buckets
            return {i: self._slice(name, i).clone() for i in slices}

        return await self._workshop.run(self._lock, size, copy)


class Vectors:
    """The vectors of all groups on one server."""

    def __init__(self, limits: Limits, workshop: Workshop) -> None:
        self.budget = Budget(limits)
        self._workshop = workshop
        self._spaces: dict[str, VectorSpace] = {}

    def of(self, group: GroupState) -> VectorSpace:
        """The vectors of a group."""
        name = group.spec.name
        if name not in self._spaces:
            self._spaces[name] = VectorSpace(group, self.budget, self._workshop)
        return self._spaces[name]

    def known(self, name: str) -> VectorSpace | None:
        """The vectors of a group, if there ever were any."""
        return self._spaces.get(name)

    def clear(self) -> None:
        """Forgets everything (a new job)."""
        self._spaces.clear()
        self.budget.held = 0
