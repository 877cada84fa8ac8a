"""One group captured as it is at a cut, cell by cell, while it goes on changing."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any

from google.protobuf.json_format import MessageToDict

from paramserver.errors import SnapshotError
from paramserver.ps.group import Cell, GroupState
from paramserver.ps.vectors import VectorSpace
from paramserver.slice_state import SliceState, only_changes
from paramserver.snapshot_groups import VECTOR
from paramserver.v1 import server_pb2 as pb
from paramserver.wire.convert import group_to_proto, spans_to_proto


class GroupCapture:
    """What a group was when this was made. Made on the event loop, between two changes.

    A cell is copied by whoever comes first: the writer of the file, or the next change of it. So
    nothing waits longer than for the copy of one cell.

    Attributes:
        clock: at which the group goes on when it is restored.
        over: nothing more will be copied.
    """

    def __init__(self, group: GroupState, clock: int, vectors: VectorSpace | None = None) -> None:
        self.group = group
        self.clock = clock
        self.version = group.version
        self.ledger: dict[str, Any] = group.ledger.dump(settled=True)
        self.spans = group.ledger.all_spans()
        self.since: Mapping[int, int] = {}
        self.over = False
        self._vectors = vectors.dump() if vectors is not None else {}
        self.stored = group.stored
        self._cells = list(group.cells)  # slices may move meanwhile; these stay as they were
        self._left: dict[Cell, None] = dict.fromkeys(self._cells)
        self._copies: dict[Cell, dict[int, SliceState]] = {}
        self._lock = threading.Lock()
        self.versions: dict[int, int] = {}
        self.tallies: dict[str, list[list[float]]] = {}
        for cell in self._cells:
            cell.capture = self

    def copy(self, cell: Cell) -> None:
        """Copies a cell, unless it has been; called with its lock held."""
        with self._lock:
            if cell not in self._left:
                return
            del self._left[cell]
        cell.capture = None
        states = cell.rows.dump(since=self._since(cell)) if cell.rows else cell.bucket.dump()
        self._copies[cell] = states

    def _since(self, cell: Cell) -> int:
        return max((self.since.get(index, 0) for index in cell.slices), default=0)

    def states(self) -> Iterator[tuple[int, SliceState]]:
        """Every slice and its state; each is handed out once and then forgotten here. Blocks.

        Raises:
            SnapshotError: the capture was ended meanwhile.
        """
        for cell in self._cells:
            with cell.lock:
                if self.over:
                    raise SnapshotError(f"the capture of group {self.group.spec.name!r} was ended")
                self.copy(cell)
            for index, state in self._copies.pop(cell).items():
                since = self._since(cell)
                changed = since and "since" not in state.numbers
                self.versions[index] = int(state.numbers["version"])
                yield index, only_changes(state, since) if changed else state

    def vector_parts(self) -> Iterator[tuple[str, int, Any]]:
        """Name, slice and tensor of the vectors, as they were at the cut."""
        for name, vector in self._vectors.items():
            self.tallies[name] = [[*part, total] for part, total in vector.parts.items()]
            for index, value in vector.values.items():
                yield VECTOR + name, index, value

    def metadata(self, numbers: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
        """All but the tensors, JSON-able."""
        return {
            "name": self.group.spec.name,
            "spec": MessageToDict(group_to_proto(self.group.spec)),
            "slice_elements": self.group.map.slice_elements,
            "clock": self.clock,
            "version": self.version,
            "ledger": self.ledger,
            "vectors": self.tallies,
            "slices": {str(index): dict(each) for index, each in numbers.items()},
        }

    def describe(self) -> pb.CapturedGroup:
        """What the scheduler is told, once all has been written."""
        return pb.CapturedGroup(
            group=self.group.spec.name,
            clock=self.clock,
            version=self.version,
            slices=list(self.versions),
            versions=list(self.versions.values()),
            spans=spans_to_proto(self.spans),
            stored=self.stored,
        )

    def end(self) -> None:
        """Nothing needs to be copied any more."""
        self.over = True
        with self._lock:
            left = list(self._left)
            self._left.clear()
        for cell in left:
            if cell.capture is self:
                cell.capture = None
        self._copies.clear()
        self._vectors = {}


def next_clock(group: GroupState) -> int:
    """The clock at which a held group goes on: beyond all that were pushed."""
    return max(group.frontier.value, *group.ledger.opened().values(), 0)
