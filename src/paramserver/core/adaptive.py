"""A staleness bound that follows measured waiting and the loss.

Additive increase, multiplicative decrease, window by window: waiting without harm raises the bound
by one; a loss that clearly rose, or gradients that are far too old, halve it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

FIRST_BOUND = 1
WAITING = 0.15  # share of the time; below it, a higher bound has little to give
CLEARLY = 2.0  # standard errors by which the loss must rise to count as harm
STALENESS_PER_WORKER = 8  # versions; equal workers see about one for each other worker


@dataclass(frozen=True, slots=True)
class Window:
    """What was measured since the last decision.

    Attributes:
        waited: share of the workers' time that they waited, in [0, 1].
        losses: as logged, in any order.
        staleness: of pushes, in versions.
    """

    waited: float
    losses: Sequence[float] = ()
    staleness: Sequence[float] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """A new bound, and why."""

    bound: int
    reason: str


class Controller:
    """The bound of one group.

    Args:
        max_bound: it never exceeds this.

    Attributes:
        bound: in [0, max_bound].
    """

    def __init__(self, max_bound: int) -> None:
        self.max_bound = max_bound
        self.bound = min(FIRST_BOUND, max_bound)
        self._before: Sequence[float] = ()

    def observe(self, window: Window, workers: int) -> Change | None:
        """Decides at the end of a window; None: the bound stays.

        Args:
            workers: how many push; the staleness that is too much grows with them.
        """
        rise = _rise(self._before, window.losses)
        if len(window.losses) > 1:
            self._before = tuple(window.losses)
        old = percentile(window.staleness, 0.95)
        limit = STALENESS_PER_WORKER * workers
        if rise > CLEARLY:
            return self._move(self._half(), f"the loss rose by {rise:.1f} sigma")
        if old > limit:
            return self._move(self._half(), f"staleness p95 {old:.0f} is over {limit} versions")
        if window.waited > WAITING and rise <= 1.0:
            return self._move(self.bound + 1, f"{window.waited:.0%} of the time was waiting")
        return None

    def _half(self) -> int:
        """Rounded up, but 0 after 1."""
        return self.bound - max(1, self.bound // 2)

    def _move(self, bound: int, reason: str) -> Change | None:
        bound = min(max(0, bound), self.max_bound)
        if bound == self.bound:
            return None
        self.bound = bound
        return Change(bound, reason)


def _rise(before: Sequence[float], now: Sequence[float]) -> float:
    """By how many standard errors the mean rose; 0.0 where nothing can be said."""
    if len(before) < 2 or len(now) < 2:
        return 0.0
    (mean, error), (mean_now, error_now) = _mean_error(before), _mean_error(now)
    error = math.sqrt(error + error_now)
    difference = mean_now - mean
    if not error > 0:
        return math.copysign(math.inf, difference) if difference else 0.0
    return difference / error


def _mean_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and the square of its standard error."""
    mean = sum(values) / len(values)
    spread = sum((v - mean) ** 2 for v in values) / (len(values) - 1)
    return mean, spread / len(values)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that ``share`` of them do not exceed; 0.0 of nothing."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0
