"""What a worker has done so far, for the heartbeat."""

from __future__ import annotations

import threading

from paramserver.types import StepResult


class Figures:
    """Sums over all steps, and the newest staleness. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[str, float] = {}

    def step(self, result: StepResult, samples: float) -> float:
        """A push, and samples that no loader handed out; all samples so far."""
        with self._lock:
            self._add("steps", 1.0)
            self._add("samples", samples)
            self._add("waited_s", result.waited)
            self._add("sent_bytes", result.sent_bytes)
            self._add("received_bytes", result.received_bytes)
            self._values["staleness"] = result.staleness
            if result.skipped:
                self._add("skipped", 1.0)
            return self._values["samples"]

    def samples(self, count: int) -> None:
        """Samples that an applied push carried."""
        with self._lock:
            self._add("samples", count)

    def _add(self, name: str, value: float) -> None:
        self._values[name] = self._values.get(name, 0.0) + value

    def now(self) -> dict[str, float]:
        """All of them."""
        with self._lock:
            return dict(self._values)
