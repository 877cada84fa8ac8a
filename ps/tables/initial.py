"""First values of rows: a function of seed and key alone, whichever server computes them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from paramserver.core.tables import Initial
from paramserver.wire.rows import Keys

Floats = npt.NDArray[np.float32]
_STEP = 0x9E3779B97F4A7C15


def initial_values(first: Initial, keys: Keys, dim: int) -> Floats:
    """First values of the rows, float32 [n, dim]."""
    if first.kind == "zeros":
        return np.zeros((len(keys), dim), np.float32)
    if first.kind == "uniform":
        unit = _unit(_mix(_counters(keys, dim, first.seed)))
        return (first.low + (first.high - first.low) * unit).astype(np.float32)
    pairs = (dim + 1) // 2
    counters = _counters(keys, 2 * pairs, first.seed)
    one, two = _unit(_mix(counters[:, :pairs])), _unit(_mix(counters[:, pairs:]))
    radius = np.sqrt(-2.0 * np.log1p(-one))  # Box and Muller, 1958
    angle = 2.0 * np.pi * two
    both = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return (first.low + first.high * both[:, :dim]).astype(np.float32)


def unit_numbers(keys: Keys, seed: int, step: int) -> npt.NDArray[np.float64]:
    """For every key a number in [0, 1) that depends on key, seed and step alone."""
    mixed = _mix(keys + np.uint64(seed * 0xD1342543DE82EF95 % (1 << 64)))
    return _unit(_mix(mixed + np.uint64(~step * _STEP % (1 << 64))))


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
