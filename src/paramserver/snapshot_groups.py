"""The groups in one file of a snapshot: specification, slices, state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf.json_format import ParseDict, ParseError
from torch import Tensor

from paramserver.core.placement import GroupSpec
from paramserver.errors import ParameterServerError, SnapshotError
from paramserver.slice_state import SliceState, with_changes
from paramserver.snapshot_tensors import TensorReader
from paramserver.v1 import common_pb2
from paramserver.wire.convert import group_from_proto

VECTOR = "vector:"  # what the tensors of vectors begin with


class GroupFile:
    """One group in one file.

    Attributes:
        spec: of the group.
        slice_elements: how its tensors were cut.
        clock, version: at the cut.
        ledger: the exactly-once record, as ``Ledger.load`` takes it.
        slices: the plain numbers of every slice that is here.
        vectors: by name what was added, as [start, stop, total].
    """

    def __init__(self, reader: TensorReader, number: int, entry: Mapping[str, Any]) -> None:
        self._reader = reader
        self._number = number
        self.spec: GroupSpec = group_from_proto(ParseDict(entry["spec"], common_pb2.GroupSpec()))
        self.slice_elements = int(entry["slice_elements"])
        self.clock, self.version = int(entry["clock"]), int(entry["version"])
        self.ledger: dict[str, Any] = entry["ledger"]
        self.slices: dict[int, dict[str, Any]] = {int(i): n for i, n in entry["slices"].items()}
        self.vectors: dict[str, list[list[float]]] = entry["vectors"]
        self._names: dict[int, list[str]] = {index: [] for index in self.slices}

    def add_name(self, index: int, name: str) -> None:
        """A tensor of a slice is in the file."""
        self._names[index].append(name)

    def tensors(self, index: int) -> dict[str, Tensor]:
        """Copies of a slice's tensors by name; those of vectors are left out.

        Raises:
            SnapshotError: the bytes were changed.
        """
        names = [name for name in self._names[index] if not name.startswith(VECTOR)]
        return {name: self._tensor(index, name) for name in names}

    def vector(self, name: str, index: int) -> Tensor:
        """A copy of a slice of a vector."""
        return self._tensor(index, VECTOR + name)

    def _tensor(self, index: int, name: str) -> Tensor:
        return self._reader.tensor(f"{self._number}/{index}/{name}")


def groups_in(reader: TensorReader) -> dict[str, GroupFile]:
    """All groups of a file, by name.

    Raises:
        SnapshotError: the file says what cannot be.
    """
    try:
        entries = reader.metadata["groups"]
        found = [GroupFile(reader, number, entry) for number, entry in enumerate(entries)]
        for full in reader.names():
            number, index, name = full.split("/", 2)
            found[int(number)].add_name(int(index), name)
    except (ParseError, ParameterServerError, ValueError, LookupError, TypeError) as error:
        raise SnapshotError(f"snapshot file: not readable: {error!r}") from error
    return {group.spec.name: group for group in found}


def newest_state(files: Sequence[GroupFile], index: int) -> SliceState:
    """A slice as the last file has it: the last whole state, and the changes laid over it.

    Args:
        files: those that hold the slice, the oldest first.

    Raises:
        SnapshotError: the bytes were changed.
        InvalidRequestError: changes of another state than the one before.
    """
    whole = [k for k, file in enumerate(files) if "since" not in file.slices[index]]
    first = max(whole, default=0)
    state = SliceState(files[first].tensors(index), files[first].slices[index])
    for file in files[first + 1 :]:
        state = with_changes(state, SliceState(file.tensors(index), file.slices[index]))
    return state
