"""How rows of a table begin."""

from __future__ import annotations

import math
from dataclasses import dataclass

from paramserver.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Normal:
    """Normal numbers.

    Args:
        std: deviation.
        mean: mean.
    """

    std: float = 0.01
    mean: float = 0.0

    def __post_init__(self) -> None:
        _check(std=self.std, mean=self.mean)
        if self.std < 0:
            raise ConfigurationError(f"std={self.std}: must be >= 0")


@dataclass(frozen=True, slots=True)
class Uniform:
    """Uniform numbers in [low, high)."""

    low: float = -0.05
    high: float = 0.05

    def __post_init__(self) -> None:
        _check(low=self.low, high=self.high)
        if self.low > self.high:
            raise ConfigurationError(f"low={self.low}: must be <= high={self.high}")


@dataclass(frozen=True, slots=True)
class Zeros:
    """Zeros."""


InitialValues = Normal | Uniform | Zeros


def _check(**values: float) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise ConfigurationError(f"{name}={value}: must be finite")
