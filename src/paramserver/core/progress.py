"""How far a data set has come: what a snapshot keeps of it, and how it goes on from there.

A position is done once the values of the snapshot have seen it. What was leased and not applied
when the snapshot was taken is free again.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from paramserver.core.dataset import DatasetSpec
from paramserver.core.spans import Range
from paramserver.errors import InvalidRequestError, MismatchError
from paramserver.types import Span


@dataclass(frozen=True, slots=True)
class Progress:
    """A data set in the middle of an epoch.

    Attributes:
        spec: completed.
        epoch: the open one; -1: none was begun.
        ranks: of the workers that its shards were dealt to; empty: to whoever asks.
        done: positions, sorted and disjoint.
        unpushed: samples done that no push carried, of all epochs.
        aside: samples of earlier epochs that nobody did, as workers were lost over them.
    """

    spec: DatasetSpec
    epoch: int = -1
    ranks: tuple[int, ...] = ()
    done: tuple[Range, ...] = ()
    unpushed: int = 0
    aside: int = 0

    @property
    def samples_done(self) -> int:
        return sum(stop - start for start, stop in self.done)


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """Positions [start, stop) of an epoch, under a lease that was given once."""

    epoch: int
    start: int
    stop: int


def advanced(
    before: Progress,
    applied: Iterable[Span],
    lease: Callable[[int], LeaseRecord | None],
    ranks: Callable[[int], tuple[int, ...]],
) -> Progress:
    """The progress at a moment of which servers say what was applied.

    Args:
        before: of an earlier moment; nothing of it was undone since.
        applied: spans that pushes carried, of any lease and data set, up to the later moment.
        lease: what a number was given for; None: not by this data set, or long ago.
        ranks: to whom an epoch was dealt.
    """
    found = [(held, span) for span in applied if (held := lease(span.lease)) is not None]
    epoch = max((held.epoch for held, _ in found), default=before.epoch)
    if epoch < before.epoch:
        epoch = before.epoch
    done = list(before.done) if epoch == before.epoch else []
    for held, span in found:
        start, stop = max(span.start, held.start), min(span.stop, held.stop)
        if held.epoch == epoch and start < stop:
            done.append((start, stop))
    if not done and epoch > 0:  # opened, not begun: the one before it is over, and no more is known
        epoch, done = epoch - 1, [(0, before.spec.size)]
    return replace(before, epoch=epoch, ranks=ranks(epoch), done=union(done))


def union(parts: Iterable[Range]) -> tuple[Range, ...]:
    """All positions of the ranges, as sorted ranges that do not touch."""
    merged: list[Range] = []
    for start, stop in sorted(parts):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        elif start < stop:
            merged.append((start, stop))
    return tuple(merged)


def without(part: Range, taken: Sequence[Range]) -> list[Range]:
    """What is left of a range without others, which are sorted and disjoint."""
    start, stop = part
    left: list[Range] = []
    at = max(0, bisect_right(taken, start, key=_begin) - 1)
    while at < len(taken) and taken[at][0] < stop:
        low, high = taken[at]
        if start < min(low, stop):
            left.append((start, min(low, stop)))
        start = max(start, high)
        at += 1
    if start < stop:
        left.append((start, stop))
    return left


def _begin(part: Range) -> int:
    return part[0]


def deal_evenly(sizes: Sequence[int], ranks: Sequence[int]) -> list[int]:
    """Who gets which piece: each goes to whoever has the fewest positions so far.

    Args:
        sizes: of the pieces, in order.
        ranks: at least one.
    """
    loads = [(0, rank) for rank in ranks]
    heapq.heapify(loads)
    owners = []
    for size in sizes:
        load, rank = heapq.heappop(loads)
        owners.append(rank)
        heapq.heappush(loads, (load + size, rank))
    return owners


def continued(saved: DatasetSpec, asked: DatasetSpec) -> DatasetSpec:
    """The specification with which a data set goes on.

    Batch sizes and the way of dealing may change, and so may shards if workers ask for it.

    Args:
        saved: completed, of the snapshot.
        asked: by a worker, with ``shard_size`` 0 for the default.

    Raises:
        MismatchError: positions would mean other samples; names the difference.
    """
    for name in ("size", "seed", "shuffle"):
        left, right = getattr(saved, name), getattr(asked, name)
        if left != right:
            raise MismatchError(
                f"data set {saved.name!r} of the snapshot has {name} {left}, not {right}: its "
                "progress would mean other samples; open it as before, or under another name"
            )
    return replace(asked, shard_size=asked.shard_size or saved.shard_size)


def to_json(progress: Progress) -> dict[str, Any]:
    """As a value that JSON can hold."""
    return asdict(progress)


def from_json(value: Mapping[str, Any]) -> Progress:
    """What ``to_json`` made.

    Raises:
        InvalidRequestError: a value that it cannot have made.
    """
    try:
        spec = DatasetSpec(**value["spec"])
        done = tuple((int(a), int(b)) for a, b in value["done"])
        ranks = tuple(int(r) for r in value["ranks"])
        counts = int(value["unpushed"]), int(value["aside"])
        progress = Progress(spec, int(value["epoch"]), ranks, done, *counts)
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidRequestError(f"not the progress of a data set: {error!r}") from error
    ends = [end for part in progress.done for end in part]
    if ends != sorted(set(ends)) or (ends and not 0 <= ends[0] < ends[-1] <= spec.size):
        raise InvalidRequestError(
            f"progress of data set {spec.name!r}: its ranges overlap or leave [0, {spec.size})"
        )
    return progress
