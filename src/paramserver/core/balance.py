"""Batch sizes by measured speed, with a constant sum, so that all workers step together."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

GAIN = 1.15  # a step must become so many times as short, else the sizes stay
SETTLE = 10  # clocks between two changes: what was measured before says little of the new sizes
KEPT = 16  # changes that a worker far behind may still have to catch up with
SLOWEST = 1e-9  # samples per second; less was not measured


@dataclass(frozen=True, slots=True)
class Sizes:
    """Batch sizes by rank, from a clock on."""

    clock: int
    of: Mapping[int, int]


class Balance:
    """The batch sizes of one data set, clock by clock.

    New sizes hold from the clock after the last one that anybody was given a batch of. So the
    batches of one clock always add up to the same global batch.

    Args:
        batch_size: of each worker, before anything is measured.
    """

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._changes: deque[Sizes] = deque([Sizes(0, {})], maxlen=KEPT)
        self._asked = -1
        self._measured = False  # the newest sizes rest on everybody's speed

    def size(self, rank: int, clock: int) -> int:
        """Samples of a worker's batch at a clock; at least 1."""
        self._asked = max(self._asked, clock)
        for sizes in reversed(self._changes):
            if sizes.clock <= clock:
                return sizes.of.get(rank, self._batch_size)
        return self._changes[0].of.get(rank, self._batch_size)

    def observe(self, speeds: Mapping[int, float]) -> Sizes | None:
        """Takes the speeds of all workers, 0.0 where it is not known; new sizes, if they change.

        A worker whose speed is not known counts as the mean of the others.
        """
        now = self._changes[-1]
        measured = all(speeds.values())
        if not speeds or not self._worth(now, speeds, measured):
            return None
        made = Sizes(self._asked + 1, dict(self._sizes(speeds)))
        self._measured = measured
        if made.of == now.of:
            return None
        self._changes.append(made)
        return made

    def _worth(self, now: Sizes, speeds: Mapping[int, float], measured: bool) -> bool:
        if now.of.keys() != speeds.keys():
            return True
        settled = self._asked >= now.clock + SETTLE
        if not measured or (self._measured and not settled):
            return False
        return step_time(now.of, speeds) > GAIN * step_time(self._sizes(speeds), speeds)

    def _sizes(self, speeds: Mapping[int, float]) -> dict[int, int]:
        return batch_sizes(speeds, self._batch_size * len(speeds))


def step_time(sizes: Mapping[int, int], speeds: Mapping[int, float]) -> float:
    """Seconds until the last worker has its batch; all speeds must be known."""
    return max(sizes[rank] / speed for rank, speed in speeds.items())


def batch_sizes(speeds: Mapping[int, float], total: int) -> dict[int, int]:
    """Sizes in proportion to speeds, by largest remainders; each at least 1, the sum exact.

    Args:
        speeds: samples per second by rank; 0.0, or next to it: as the mean of the others.
        total: the global batch; at least one sample for each worker.
    """
    known = [speed for speed in speeds.values() if speed > SLOWEST]
    mean = sum(known) / len(known) if known else 1.0
    wanted = {rank: speed if speed > SLOWEST else mean for rank, speed in speeds.items()}
    sizes: dict[int, int] = {}
    while wanted:
        per_speed = (total - len(sizes)) / sum(wanted.values())
        tiny = [rank for rank, speed in wanted.items() if speed * per_speed < 1]
        if not tiny:
            return {**sizes, **_rounded({r: v * per_speed for r, v in wanted.items()})}
        for rank in tiny:
            sizes[rank] = 1
            del wanted[rank]
    return sizes


def _rounded(exact: Mapping[int, float]) -> dict[int, int]:
    """Whole numbers of the same sum; the largest remainders are rounded up."""
    sizes = {rank: int(size) for rank, size in exact.items()}
    rest = round(sum(exact.values())) - sum(sizes.values())
    by_remainder = sorted(exact, key=lambda rank: (sizes[rank] - exact[rank], rank))
    for rank in by_remainder[:rest]:
        sizes[rank] += 1
    return sizes
