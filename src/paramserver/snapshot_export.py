"""A snapshot as plain PyTorch: state dicts that load without us."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from paramserver.core.placement import GroupSpec
from paramserver.core.slices import cut
from paramserver.errors import InvalidRequestError, NotFoundError, SnapshotError
from paramserver.slice_state import VALUE, SliceState
from paramserver.snapshot_files import Manifest, Store, chain
from paramserver.snapshot_groups import GroupFile, groups_in, newest_state
from paramserver.snapshot_tensors import TensorReader
from paramserver.wire.rows import ids_of
from paramserver.wire.tensors import DTYPES


class SnapshotGroup:
    """One group of a snapshot, put together from the files of all servers.

    Attributes:
        spec: of the group.
        clock, version: at the cut.
    """

    def __init__(self, files: Sequence[GroupFile]) -> None:
        newest = files[-1]
        self.spec: GroupSpec = newest.spec
        self.clock, self.version = newest.clock, newest.version
        self._elements = newest.slice_elements
        self._files: dict[int, list[GroupFile]] = {}
        for file in files:
            for index in file.slices:
                self._files.setdefault(index, []).append(file)

    def state_dict(self) -> dict[str, Tensor]:
        """Every tensor by name. Of a table: "NAME.ids" [rows] and "NAME.weight" [rows, dim].

        Raises:
            SnapshotError: a slice is missing, or damaged.
        """
        if self.spec.table is not None:
            return self._table()
        found = {}
        for number, states in self._by_tensor():
            spec = self.spec.tensors[number]
            found[spec.name] = torch.cat([s.tensors[VALUE] for s in states]).reshape(spec.shape)
        return found

    def optimizer_state_dict(self) -> dict[str, Any]:
        """As ``optimizer.state_dict()`` of the class in ``torch.optim``, for the same parameters.

        Parameters are numbered by param group, and within one in the order of the group's tensors.

        Raises:
            InvalidRequestError: the group is a table, or has no optimizer that torch has.
            SnapshotError: a slice is missing, or damaged.
        """
        rule = getattr(torch.optim, self.spec.optimizer, None) if self.spec.optimizer else None
        if self.spec.table is not None or rule is None:
            raise InvalidRequestError(
                f"group {self.spec.name!r}: no optimizer of torch.optim has its state"
            )
        numbers = self._parameter_numbers()
        groups: list[dict[str, Any]] = []
        for given, mine in zip(self.spec.param_groups, numbers, strict=True):
            like = [torch.zeros(1) for _ in mine] or [torch.zeros(1)]
            plain = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
            group = {**rule(like).defaults, **plain}
            start = sum(len(g["params"]) for g in groups)
            groups.append({**group, "params": list(range(start, start + len(mine)))})
        place = {number: k for k, number in enumerate(n for mine in numbers for n in mine)}
        state = {
            place[number]: _whole(states, self.spec.tensors[number].shape)
            for number, states in self._by_tensor()
            if number in place and len(states[0].tensors) > 1
        }
        return {"state": dict(sorted(state.items())), "param_groups": groups}

    def _parameter_numbers(self) -> list[list[int]]:
        """By param group, the numbers of its tensors."""
        numbers: list[list[int]] = [[] for _ in self.spec.param_groups]
        for number, tensor in enumerate(self.spec.tensors):
            if tensor.rule == "step":
                numbers[tensor.param_group].append(number)
        return numbers

    def _by_tensor(self) -> Iterator[tuple[int, list[SliceState]]]:
        """By number of a tensor the states of its slices, one tensor at a time."""
        pieces: dict[int, list[int]] = {}
        for piece in cut(self.spec.tensors, self._elements):
            pieces.setdefault(piece.tensor, []).append(piece.index)
        for number, indices in pieces.items():
            yield number, [self._state(index) for index in indices]

    def _state(self, index: int) -> SliceState:
        if index not in self._files:
            raise SnapshotError(f"group {self.spec.name!r}: no file has slice {index}")
        return newest_state(self._files[index], index)

    def _table(self) -> dict[str, Tensor]:
        assert self.spec.table is not None
        dim, name = self.spec.table.dim, self.spec.name
        states = [self._state(index) for index in sorted(self._files)]
        keys = torch.cat([state.tensors["keys"] for state in states])
        weight = torch.cat([state.tensors["rows"][:, :dim] for state in states])
        ids = torch.from_numpy(ids_of(keys.numpy().view("uint64")))
        order = torch.argsort(ids)
        stored = DTYPES[self.spec.tensors[0].dtype]
        return {f"{name}.ids": ids[order], f"{name}.weight": weight[order].to(stored)}


def _whole(states: Sequence[SliceState], shape: Sequence[int]) -> dict[str, Any]:
    """The optimizer's state of a tensor from that of its slices."""
    made: dict[str, Any] = dict(states[0].numbers.get("state", {}))
    for name, first in states[0].tensors.items():
        if name == VALUE:
            continue
        parts = [state.tensors[name] for state in states]
        made[name] = torch.cat(parts).reshape(tuple(shape)) if first.dim() else first
    return made


@contextmanager
def open_groups(store: Store, manifest: Manifest) -> Iterator[Mapping[str, SnapshotGroup]]:
    """The groups of a snapshot by name, for as long as the context lasts.

    Raises:
        SnapshotError: a file is missing or damaged.
    """
    with ExitStack() as stack:
        files: dict[str, list[GroupFile]] = {}
        for each in chain(store, manifest):
            for part in each.files:
                name = f"{each.name}/{part.file}"
                path = stack.enter_context(store.local(name))
                reader = stack.enter_context(TensorReader(path, name))
                for group, found in groups_in(reader).items():
                    files.setdefault(group, []).append(found)
        yield {name: SnapshotGroup(found) for name, found in files.items()}


def group_of(groups: Mapping[str, SnapshotGroup], name: str) -> SnapshotGroup:
    """Raises NotFoundError for a group that is not in the snapshot."""
    if name not in groups:
        raise NotFoundError(f"no group {name!r} in this snapshot; it has {', '.join(groups)}")
    return groups[name]
