"""Samples and what is said of them: medians, ratios by round, slopes."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stat:
    """The samples of one figure, in the order of the rounds they were taken in."""

    samples: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.samples:
            raise ValueError("a figure needs at least one sample")

    @property
    def median(self) -> float:
        return statistics.median(self.samples)

    @property
    def low(self) -> float:
        return min(self.samples)

    @property
    def high(self) -> float:
        return max(self.samples)

    def over(self, base: Stat) -> Stat:
        """This figure over another, round by round: both sides of a round saw the same machine."""
        if len(self.samples) != len(base.samples):
            raise ValueError(f"{len(self.samples)} samples against {len(base.samples)}")
        return Stat(tuple(a / b for a, b in zip(self.samples, base.samples, strict=True)))


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """The median of the slopes between all pairs of points (Theil-Sen): outliers do not tilt it."""
    if len(xs) != len(ys) or len(xs) < 2:
        raise ValueError("a slope needs at least two points")
    points = list(zip(xs, ys, strict=True))
    pairs = [
        (later[1] - point[1]) / (later[0] - point[0])
        for number, point in enumerate(points)
        for later in points[number + 1 :]
        if later[0] != point[0]
    ]
    return statistics.median(pairs)


def flatness(values: Sequence[float]) -> float:
    """The smallest over the largest: 1.0 is flat."""
    return min(values) / max(values)


def repetitions(seconds: float, target: float, most: int) -> int:
    """How often to repeat what takes ``seconds`` once, to fill about ``target`` seconds."""
    return max(1, min(most, round(target / max(seconds, 1e-6))))
