"""Speeds of workers, and what follows from them. Samples per second, waits left out."""

from __future__ import annotations

from collections.abc import Iterable

FASTEST = 0.9  # not the maximum: one mismeasured worker would make all others look slow


def fastest(speeds: Iterable[float]) -> float:
    """The 90th percentile, interpolated; 0.0 of nothing."""
    known = sorted(speed for speed in speeds if speed > 0)
    if not known:
        return 0.0
    place = FASTEST * (len(known) - 1)
    low = int(place)
    high = min(low + 1, len(known) - 1)
    return known[low] + (place - low) * (known[high] - known[low])
