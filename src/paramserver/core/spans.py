"""Sorted, disjoint half-open ranges of positions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from paramserver.errors import InvalidRequestError
from paramserver.types import Span

Range = tuple[int, int]


class Ranges:
    """A set of positions as ranges; the usual case, cutting from the front, costs O(1)."""

    __slots__ = ("parts",)

    def __init__(self, parts: Iterable[Range] = ()) -> None:
        self.parts: list[Range] = [p for p in parts if p[0] < p[1]]

    def __len__(self) -> int:
        return sum(stop - start for start, stop in self.parts)

    def __bool__(self) -> bool:
        return bool(self.parts)

    def take(self, start: int, stop: int) -> list[Range]:
        """Removes [start, stop) and returns the parts of it that were here."""
        if not self.parts or start >= stop:
            return []
        first = self.parts[0]
        if len(self.parts) == 1 and first[0] == start and stop <= first[1]:
            self.parts = [(stop, first[1])] if stop < first[1] else []
            return [(start, stop)]
        taken: list[Range] = []
        kept: list[Range] = []
        for left, right in self.parts:
            low, high = max(left, start), min(right, stop)
            if low >= high:
                kept.append((left, right))
                continue
            taken.append((low, high))
            kept += [part for part in ((left, low), (high, right)) if part[0] < part[1]]
        self.parts = kept
        return taken

    def overlap(self, start: int, stop: int) -> int:
        """How many positions of [start, stop) are here."""
        return sum(max(0, min(right, stop) - max(left, start)) for left, right in self.parts)


def common(one: Iterable[Span], other: Iterable[Span]) -> frozenset[Span]:
    """Positions that are in both, however each has cut them."""
    others: dict[int, list[Span]] = {}
    for span in other:
        others.setdefault(span.lease, []).append(span)
    found = (
        Span(a.lease, max(a.start, b.start), min(a.stop, b.stop))
        for a in one
        for b in others.get(a.lease, ())
    )
    return frozenset(span for span in found if span.start < span.stop)


def check_spans(samples: Sequence[Span]) -> tuple[Span, ...]:
    """The spans that hold samples.

    Raises:
        InvalidRequestError: a span that begins below 0 or ends before it begins.
    """
    for span in samples:
        if not 0 <= span.start <= span.stop:
            raise InvalidRequestError(
                f"samples [{span.start}, {span.stop}) of lease {span.lease}: "
                "must begin at 0 or later and not end before they begin"
            )
    return tuple(span for span in samples if span.start < span.stop)


def merge(spans: list[tuple[int, int]], start: int, stop: int) -> list[tuple[int, int]]:
    """Sorted disjoint spans with one more; spans that touch become one."""
    apart = [span for span in spans if span[1] < start or span[0] > stop]
    for low, high in spans:
        if not (high < start or low > stop):
            start, stop = min(start, low), max(stop, high)
    return sorted([*apart, (start, stop)])
