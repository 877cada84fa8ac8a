"""A bucket of a group with its lock: what changes it, and what is written down of that."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from torch import Tensor

from paramserver.core.placement import GroupSpec
from paramserver.core.slices import Slice
from paramserver.errors import InvalidRequestError
from paramserver.ps import records
from paramserver.ps.gate import Gate
from paramserver.ps.journal import Journal
from paramserver.ps.rules import Bucket
from paramserver.ps.tables.bucket import RowBucket, row_bucket
from paramserver.ps.workshop import Workshop

T = TypeVar("T")


class CellCapture(Protocol):
    """What copies a cell before it changes."""

    def copy(self, cell: Cell) -> None:
        """Copies the cell, unless it has been; called with its lock held."""


class Cell:
    """A bucket, or a sub-table, with its lock, and how many clocks have closed on it.

    What changes it is written into the journal first, if there is one.
    """

    __slots__ = (
        "_group",
        "bucket",
        "capture",
        "closed",
        "journal",
        "lock",
        "rows",
        "size",
        "slices",
        "stepped",
    )

    def __init__(
        self, slices: Sequence[Slice], spec: GroupSpec, journal: Journal | None = None
    ) -> None:
        self._group = spec.name
        self.journal = journal
        self.slices = {s.index: s for s in slices}
        self.size = sum(s.bytes for s in slices)
        self.rows = row_bucket(slices[0].index, spec) if spec.table is not None else None
        self.bucket: Bucket | RowBucket = self.rows or Bucket(
            slices, spec.tensors, spec.optimizer, spec.param_groups
        )
        self.bucket.checked = spec.on_nonfinite != "apply"
        self.lock = threading.Lock()
        self.stepped = 0  # as ``closed``, but of the bucket: to be read under its lock
        self.closed = Gate()
        self.capture: CellCapture | None = None  # that has not copied this cell yet

    @property
    def nbytes(self) -> int:
        """Bytes of what it holds, optimizer state included."""
        return self.size + self.dense.state_bytes if self.rows is None else self.rows.nbytes

    async def change(
        self, workshop: Workshop, size: int, function: Callable[..., T], *args: object
    ) -> T:
        """Everything that changes the cell: ``function(*args)`` under its lock.

        What a capture has not copied yet is copied first.
        """
        if self.capture is not None:
            size = max(size, self.nbytes)
        return await workshop.run(self.lock, size, self.change_locked, function, *args)

    def change_locked(self, function: Callable[..., T], *args: object) -> T:
        """As ``change``, in a thread that has the lock."""
        if self.capture is not None:
            self.capture.copy(self)
        return function(*args)

    def look(self) -> float:
        """A change begins: its time in seconds, where rows are forgotten by it; else 0."""
        return self.rows.moment.look() if self.rows is not None else 0.0

    # Changes: under the lock, any thread

    def store(self, index: int, value: Tensor) -> None:
        """As ``Bucket.store``."""
        if self.dense.store(index, value) and self.journal is not None:
            records.stored(self.journal, self._group, index, self.dense.values[index])

    def tick(self, slices: Sequence[int]) -> None:
        """As ``Bucket.tick``."""
        if self.journal is not None:
            records.ticked(self.journal, self._group, slices)
        self.bucket.tick(slices)

    def close(
        self,
        clock: int,
        contributions: Sequence[tuple[float, Mapping[int, Any]]],
        options: Sequence[Mapping[str, Any]],
    ) -> None:
        """As ``Bucket.close``."""
        now, journal = self.look(), self.journal

        def keep(means: Mapping[int, Any], values: Mapping[int, Tensor]) -> None:
            assert journal is not None
            records.stepped(journal, self._group, clock, self.slices, options, means, values, now)

        self.bucket.close(contributions, options, keep if journal is not None else None)
        self.stepped = clock + 1

    def shrink(self) -> int:
        """As ``RowBucket.shrink``."""
        now = self.look()
        assert self.rows is not None
        if self.journal is not None:
            records.shrunk(self.journal, self._group, self.rows.indices[0], now)
        return self.rows.shrink()

    @property
    def dense(self) -> Bucket:
        """The bucket; raises InvalidRequestError for a sub-table."""
        if isinstance(self.bucket, RowBucket):
            raise InvalidRequestError("a table has rows, not values: look them up by key")
        return self.bucket
