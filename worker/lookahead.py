"""The batch behind the one that a loop works on, and which ids a module will find in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

TRIES = 3  # batches in which no way to a call's ids was found, before it is given up
MOST_CALLS = 32  # of one module in one batch; an evaluation within a pass makes many more


class Lookahead:
    """What a loader hands out, for those who want to know what comes next.

    Attributes:
        wanted: somebody does: loaders look one batch ahead.
        number: of hand-outs so far.
        batch: the one the loop works on.
        following: the one behind it; None if that is not known.
    """

    def __init__(self) -> None:
        self.wanted = False
        self.number = 0
        self.batch: Any = None
        self.following: Any = None

    def show(self, batch: Any, following: Any) -> None:
        """A batch is handed out."""
        self.number += 1
        self.batch, self.following = batch, following

    def pairs(self, batches: Iterator[Any]) -> Iterator[tuple[Any, Any]]:
        """Each batch with the one behind it, or with None while nobody wants it."""
        end = object()
        batch = next(batches, end)
        while batch is not end:
            peeked = self.wanted
            following = next(batches, end) if peeked else None
            yield batch, None if following is end else following
            batch = following if peeked else next(batches, end)


@dataclass(frozen=True, slots=True)
class Way:
    """From a batch to ids: a tensor in it, and a view of that tensor.

    Attributes:
        path: keys and indices that lead to the tensor.
        shape, strides: of the tensor.
        size, stride, offset: of the view; the offset counts from the tensor's first element.
    """

    path: tuple[Any, ...]
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    def ids(self, batch: Any) -> Tensor | None:
        """The ids in another batch; None if it looks too different."""
        tensor = batch
        try:
            for step in self.path:
                tensor = tensor[step]
        except (LookupError, TypeError):
            return None
        if not isinstance(tensor, Tensor) or tensor.stride() != self.strides:
            return None
        size = self._size(tuple(tensor.shape))
        return None if size is None else _view(tensor, size, self.stride, self.offset)

    def _size(self, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """The size of the view in a tensor with more or fewer samples: dimension 0."""
        if shape == self.shape:
            return self.size
        if len(shape) != len(self.shape) or shape[1:] != self.shape[1:] or not self.shape[0]:
            return None
        if len(self.size) == 1 and self.size[0] == _elements(self.shape):
            return (_elements(shape),)
        by_sample = [
            size == self.shape[0] and stride == self.strides[0]
            for size, stride in zip(self.size, self.stride, strict=True)
        ]
        if sum(by_sample) != 1:
            return None
        return tuple(
            shape[0] if sample else size for sample, size in zip(by_sample, self.size, strict=True)
        )


def find_way(ids: Tensor, batch: Any) -> Way | None:
    """How ``ids`` came out of a batch: as a view of a tensor in it, or of a converted copy."""
    candidates = [
        (tensor.untyped_storage().data_ptr() != ids.untyped_storage().data_ptr(), path, tensor)
        for path, tensor in _tensors(batch, ())
        if not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
    ]
    for copied, path, tensor in sorted(candidates, key=lambda c: c[0]):
        offset = int(ids.storage_offset()) - (0 if copied else int(tensor.storage_offset()))
        shape, strides = tuple(tensor.shape), tuple(tensor.stride())
        way = Way(path, shape, strides, tuple(ids.shape), tuple(ids.stride()), offset)
        found = way.ids(batch)
        if found is not None and _equal(found, ids):
            return way
    return None


class Calls:
    """The calls of one module within a batch: each has a way of its own to its ids."""

    def __init__(self) -> None:
        self._number = 0
        self._call = 0
        self._ways: dict[int, Way | None] = {}
        self._failures: dict[int, int] = {}

    def next_ids(self, ids: Tensor, ahead: Lookahead) -> Tensor | None:
        """What this call will most likely be given in the next batch.

        Args:
            ids: what it is given now.
        """
        if ahead.number != self._number:
            self._number, self._call = ahead.number, 0
        call, self._call = self._call, self._call + 1
        given_up = call >= MOST_CALLS or self._failures.get(call, 0) >= TRIES
        if ahead.following is None or given_up:
            return None
        way = self._ways.get(call)
        expected = way.ids(ahead.batch) if way is not None else None
        if expected is None or not _equal(expected, ids):
            way = self._ways[call] = find_way(ids, ahead.batch)
            self._failures[call] = 0 if way else self._failures.get(call, 0) + 1
        return way.ids(ahead.following) if way is not None else None


def _tensors(batch: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Tensor]]:
    """The tensors of a batch made of tuples, lists and mappings, and the way to each."""
    if isinstance(batch, Tensor):
        yield path, batch
    elif isinstance(batch, Mapping):
        for key, value in batch.items():
            yield from _tensors(value, (*path, key))
    elif isinstance(batch, (list, tuple)):
        for index, value in enumerate(batch):
            yield from _tensors(value, (*path, index))


def _view(
    tensor: Tensor, size: tuple[int, ...], stride: tuple[int, ...], offset: int
) -> Tensor | None:
    """A view, unless it would reach beyond the tensor."""
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    if offset < 0 or last > reach or tensor.layout != torch.strided or 0 in tensor.shape:
        return None
    return tensor.as_strided(size, stride, tensor.storage_offset() + offset)


def _equal(some: Tensor, others: Tensor) -> bool:
    if some.data_ptr() == others.data_ptr() and some.stride() == others.stride():
        return some.shape == others.shape and some.dtype == others.dtype
    return some.shape == others.shape and torch.equal(
        some.to("cpu", torch.int64), others.to("cpu", torch.int64)
    )


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
