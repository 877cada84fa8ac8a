"""First values of rows: a function of seed and key alone, whichever server computes them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from paramserver.wire.rows import Keys

Floats = npt.NDArray[np.float32]
_STEP = 0x9E3779B97F4A7C15


@dataclass(frozen=True, slots=True)
class Initial:
    """How rows begin.

    Attributes:
        kind: "zeros", "uniform" on [low, high), or "normal" with mean low and deviation high.
        low, high: its parameters.
        seed: rows of two tables with unlike seeds are independent.
    """

    kind: str = "zeros"
    low: float = 0.0
    high: float = 0.0
    seed: int = 0

    def values(self, keys: Keys, dim: int) -> Floats:
        """First values of the rows, float32 [n, dim]."""
        if self.kind == "zeros":
            return np.zeros((len(keys), dim), np.float32)
        if self.kind == "uniform":
            unit = _unit(_mix(_counters(keys, dim, self.seed)))
            return (self.low + (self.high - self.low) * unit).astype(np.float32)
        pairs = (dim + 1) // 2
        counters = _counters(keys, 2 * pairs, self.seed)
        first, second = _unit(_mix(counters[:, :pairs])), _unit(_mix(counters[:, pairs:]))
        radius = np.sqrt(-2.0 * np.log1p(-first))  # Box and Muller, 1958
        angle = 2.0 * np.pi * second
        both = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
        return (self.low + self.high * both[:, :dim]).astype(np.float32)


def _counters(keys: Keys, columns: int, seed: int) -> Keys:
    """One number per element: no two of a table are the same."""
    start = _mix(keys + np.uint64(seed * 0xD1342543DE82EF95 % (1 << 64)))
    steps = (np.arange(1, columns + 1, dtype=np.uint64)) * np.uint64(_STEP)
    return start[:, None] + steps[None, :]


def _mix(x: Keys) -> Keys:
    """The finalizer of SplitMix64 (Steele, Lea and Flood, 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Keys = x ^ (x >> np.uint64(31))
    return mixed


def _unit(x: Keys) -> npt.NDArray[np.float64]:
    """The 53 highest bits as a number in [0, 1)."""
    return (x >> np.uint64(11)).astype(np.float64) * (1.0 / (1 << 53))
