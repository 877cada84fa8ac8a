"""Slices on their way to another server: their state, and the gradients staged for them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from paramserver.errors import ChecksumError, InvalidRequestError
from paramserver.ps.group import GroupState, Staged
from paramserver.ps.state import SliceState
from paramserver.ps.tables.store import Rows
from paramserver.types import WorkerId
from paramserver.v1 import server_pb2 as pb
from paramserver.wire.convert import (
    dtype_from_proto,
    dtype_to_proto,
    options_from_proto,
    options_to_proto,
    spans_from_proto,
    spans_to_proto,
)
from paramserver.wire.tensors import DTYPES, NAMES, as_bytes, checksum, flat_host, from_bytes

CHUNK = 1 << 20
Gradients = dict[int, Any]  # by slice: a tensor, or rows of a table


def group_part(group: GroupState, clock: Mapping[str, Any] | None) -> pb.SlicePart:
    """All that the servers of a group have in common; ``clock``: of its lead."""
    staged = [
        pb.StagedPush(
            push=pb.Staged(
                rank=s.worker.rank,
                incarnation=s.worker.incarnation,
                clock=s.clock,
                weight=s.weight,
            ),
            options=[options_to_proto(o) for o in s.options],
            samples=spans_to_proto(s.samples),
        )
        for s in group.staged.values()
    ]
    state = pb.MovedGroup(
        version=group.version,
        frontier=group.frontier.value,
        ledger=json.dumps(group.ledger.dump()),
        staged=staged,
        clock=json.dumps(clock) if clock is not None else "",
    )
    return pb.SlicePart(group=state)


def state_parts(index: int, state: SliceState) -> Iterator[pb.SlicePart]:
    """One slice's state."""
    yield pb.SlicePart(slice=index, numbers=json.dumps(dict(state.numbers)))
    for name, tensor in state.tensors.items():
        yield from _tensor_parts(index, 0, name, tensor)


def pushes_parts(group: GroupState, slices: Sequence[int]) -> Iterator[pb.SlicePart]:
    """What the staged pushes of a group have for these slices."""
    for number, staged in enumerate(group.staged.values(), 1):
        for index in slices:
            if index in staged.gradients:
                yield from staged_parts(index, number, staged.gradients[index])


def staged_parts(index: int, number: int, gradient: Tensor | Rows) -> Iterator[pb.SlicePart]:
    """What a staged push, numbered from 1, has for a slice."""
    if isinstance(gradient, Tensor):
        yield from _tensor_parts(index, number, "gradient", gradient)
        return
    keys = torch.from_numpy(gradient.keys.view(np.int64))
    yield from _tensor_parts(index, number, "keys", keys)
    yield from _tensor_parts(index, number, "grads", gradient.grads)


def _tensor_parts(index: int, staged: int, name: str, tensor: Tensor) -> Iterator[pb.SlicePart]:
    flat = as_bytes(flat_host(tensor))
    for start in range(0, max(len(flat), 1), CHUNK):
        data = bytes(flat[start : start + CHUNK])
        yield pb.SlicePart(
            slice=index,
            staged=staged,
            name=name,
            dtype=dtype_to_proto(NAMES[tensor.dtype]),
            shape=tensor.shape,
            size=len(flat),
            checksum=checksum(data),
            data=data,
        )


@dataclass(slots=True)
class Fetched:
    """What came.

    Attributes:
        group: of the whole group on the source.
        states: by slice.
        staged: by staged push, in the order of ``group``: gradients by slice.
    """

    group: pb.MovedGroup
    states: dict[int, SliceState] = field(default_factory=dict)
    staged: list[Gradients] = field(default_factory=list)

    def pushes(self) -> list[Staged]:
        """The staged pushes, with the gradients that came."""
        return [
            Staged(
                WorkerId(told.push.rank, told.push.incarnation),
                told.push.clock,
                told.push.weight,
                [options_from_proto(o) for o in told.options],
                spans_from_proto(told.samples),
                gradients,
            )
            for told, gradients in zip(self.group.staged, self.staged, strict=True)
        ]


class _Whole:
    """Tensors put together again from their parts."""

    def __init__(self) -> None:
        self.numbers: dict[int, Any] = {}
        self.tensors: dict[tuple[int, int], dict[str, Tensor]] = {}  # by slice, staged
        self._bytes: dict[tuple[int, int, str], bytearray] = {}

    def take(self, part: pb.SlicePart) -> None:
        """One more part.

        Raises:
            ChecksumError: bytes changed on the way.
            InvalidRequestError: more bytes than were announced.
        """
        if part.numbers:
            self.numbers[part.slice] = json.loads(part.numbers)
            return
        if checksum(part.data) != part.checksum:
            raise ChecksumError(f"slice {part.slice}: bytes changed on the way here")
        key = (part.slice, part.staged, part.name)
        held = self._bytes.setdefault(key, bytearray())
        held += part.data
        if len(held) > part.size:
            raise InvalidRequestError(f"slice {part.slice}: more bytes than were announced")
        if len(held) == part.size:
            flat = from_bytes(bytes(held), DTYPES[dtype_from_proto(part.dtype)])
            tensor = flat.reshape(tuple(part.shape))
            self.tensors.setdefault((part.slice, part.staged), {})[part.name] = tensor
            del self._bytes[key]

    def complete(self, slices: Sequence[int]) -> None:
        """Raises InvalidRequestError unless all of these are here."""
        if self._bytes or set(self.numbers) != set(slices):
            raise InvalidRequestError("a move of slices: the source sent other slices, or too few")


async def gather(parts: AsyncIterator[pb.SlicePart], slices: Sequence[int]) -> Fetched:
    """All that a source sends.

    Raises:
        ChecksumError: bytes changed on the way.
        InvalidRequestError: something is missing.
    """
    group: pb.MovedGroup | None = None
    whole = _Whole()
    async for part in parts:
        if part.HasField("group"):
            group = part.group
        else:
            whole.take(part)
    whole.complete(slices)
    if group is None:
        raise InvalidRequestError("a move of slices: the source said nothing of the group")
    made = Fetched(group, staged=[{} for _ in group.staged])
    for index in slices:
        made.states[index] = SliceState(whole.tensors.pop((index, 0), {}), whole.numbers[index])
    for (index, number), tensors in whole.tensors.items():
        made.staged[number - 1][index] = _gradient(tensors)
    return made


def _gradient(tensors: Mapping[str, Tensor]) -> Tensor | Rows:
    if "gradient" in tensors:
        return tensors["gradient"]
    return Rows(tensors["keys"].numpy().view(np.uint64), tensors["grads"])
