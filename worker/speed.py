"""How fast this worker computes: samples per second, without its waits for others."""

from __future__ import annotations

import statistics
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from paramserver.emulation import Emulation

KEPT = 9  # batches; the median of them is not moved by a slow step now and then


class Speed:
    """A stop watch between handing out a batch and the loop's asking for the next one.

    With an emulated machine, asking takes as long as is left of the batch's emulated time.

    Args:
        now: seconds on a monotonic clock.
        pause: waits for so many seconds.
        emulation: the machine that this one plays.
    """

    def __init__(
        self,
        now: Callable[[], float],
        pause: Callable[[float], object],
        emulation: Emulation | None = None,
    ) -> None:
        self._now = now
        self._pause = pause
        self._emulation = emulation
        self._thread = 0
        self._depth = 0
        self._waited = 0.0
        self._began: float | None = None
        self._samples = 0
        self._steps = 0
        self._warm = False
        self._costs: deque[float] = deque(maxlen=KEPT)  # seconds a sample

    @property
    def per_second(self) -> float:
        """Samples per second, the median of the last batches; 0.0 until two were worked on."""
        costs = list(self._costs)
        cost = statistics.median(costs) if costs else 0.0
        return 1.0 / cost if cost > 0 else 0.0

    def begin(self, samples: int) -> None:
        """The loop got a batch."""
        self._thread = threading.get_ident()
        self._depth, self._waited = 0, 0.0
        self._samples = samples
        self._began = self._now()

    def end(self, rank: int) -> None:
        """The batch is worked on; returns when an emulated machine would be there."""
        if self._began is None:
            return
        spent = self._now() - self._began - self._waited
        if self._emulation is not None:
            whole = self._emulation.seconds(rank, self._steps, self._samples)
            if whole > spent:
                self._pause(whole - spent)
                spent = whole
        self._take(self._samples, spent)

    def lap(self, rank: int, samples: int) -> None:
        """Work on these samples ends here, and work on the next begins (``client.sampler``)."""
        self._samples = samples
        self.end(rank)
        self.begin(0)

    def stop(self) -> None:
        """What comes until the next batch is no computing."""
        self._began = None

    def _take(self, samples: int, seconds: float) -> None:
        self._began = None
        self._steps += 1
        if not self._warm:  # the first batch loads kernels and fills caches
            self._warm = True
            return
        if samples:
            self._costs.append(seconds / samples)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The loop waits for others inside; that is no computing."""
        if threading.get_ident() != self._thread:
            yield
            return
        self._depth += 1
        began = self._now()
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                self._waited += self._now() - began
