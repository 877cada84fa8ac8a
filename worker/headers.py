"""What replicas tell one another before they reduce gradients: one row of integers each."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paramserver.types import Span, WorkerId

SPANS = 8  # in the first exchange; more need a second one
# Kept of each other replica: they are needed until it reports them itself, with a heartbeat.
KEPT_SPANS = 1024
_FIXED = 3


@dataclass(frozen=True, slots=True)
class Header:
    """One replica at one step.

    Attributes:
        weight: samples in its batch.
        active: its loop called ``step``; else it only answers.
        forming: it knows of somebody who joined or left.
        changed: its hyper-parameters are not those agreed on.
        partial: some parameters have no gradient.
        spans: samples that its push carries.
    """

    weight: float = 0.0
    active: bool = False
    forming: bool = False
    changed: bool = False
    partial: bool = False
    spans: tuple[Span, ...] = ()

    @property
    def contributes(self) -> bool:
        """Whether its gradients count."""
        return self.active and self.weight > 0


_FLAGS = ("active", "forming", "changed", "partial")


def table(size: int, index: int, header: Header) -> Tensor:
    """int64 [size, _]: this replica's row; the sum over replicas has all rows."""
    rows = torch.zeros(size, _FIXED + 3 * SPANS, dtype=torch.int64)
    flags = sum(1 << bit for bit, name in enumerate(_FLAGS) if getattr(header, name))
    (weight,) = struct.unpack("<q", struct.pack("<d", header.weight))
    first = [number for s in header.spans[:SPANS] for number in (s.lease, s.start, s.stop)]
    row = [weight, flags, len(header.spans), *first]
    rows[index, : len(row)] = torch.tensor(row, dtype=torch.int64)
    return rows


def more(size: int, index: int, header: Header, rows: Tensor) -> Tensor | None:
    """int64 [size, _]: the spans that did not fit, if anybody has any; reduced as ``table``."""
    most = int(rows[:, 2].max())
    if most <= SPANS:
        return None
    rest = torch.zeros(size, 3 * (most - SPANS), dtype=torch.int64)
    numbers = [number for s in header.spans[SPANS:] for number in (s.lease, s.start, s.stop)]
    rest[index, : len(numbers)] = torch.tensor(numbers, dtype=torch.int64)
    return rest


def headers(rows: Tensor, rest: Tensor | None) -> list[Header]:
    """The header of each replica, from the sums."""
    tails = [[]] * len(rows) if rest is None else rest.tolist()
    return [_header(row, tail) for row, tail in zip(rows.tolist(), tails, strict=True)]


def _header(row: Sequence[int], tail: Sequence[int]) -> Header:
    (weight,) = struct.unpack("<d", struct.pack("<q", row[0]))
    flags = {name: bool(row[1] >> bit & 1) for bit, name in enumerate(_FLAGS)}
    numbers = [*row[_FIXED:], *tail][: 3 * row[2]]
    spans = tuple(Span(*numbers[i : i + 3]) for i in range(0, len(numbers), 3))
    return Header(weight=weight, spans=spans, **flags)


class Contributed:
    """Samples of each replica in completed steps: who survives it can tell of them."""

    def __init__(self) -> None:
        self._spans: dict[WorkerId, deque[Span]] = {}

    def items(self) -> Iterable[tuple[WorkerId, Iterable[Span]]]:
        """The newest spans of each replica, neighbours joined."""
        return self._spans.items()

    def add(self, replicas: Sequence[WorkerId], given: Sequence[Header]) -> None:
        """A step was completed with these headers, in the order of the replicas."""
        for who, header in zip(replicas, given, strict=True):
            kept = self._spans.setdefault(who, deque(maxlen=KEPT_SPANS))
            for span in header.spans:
                if kept and (kept[-1].lease, kept[-1].stop) == (span.lease, span.start):
                    kept[-1] = Span(span.lease, kept[-1].start, span.stop)
                else:
                    kept.append(span)

    def keep(self, replicas: Collection[WorkerId]) -> None:
        """Forgets all others."""
        self._spans = {who: spans for who, spans in self._spans.items() if who in replicas}
