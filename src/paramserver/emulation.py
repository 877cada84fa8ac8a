"""An emulated machine: how long a batch takes, so that stragglers can be had on any machine."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from paramserver.errors import ConfigurationError

_FORM = "sample=SECONDS[,slow=RANK:FACTOR]...[,jitter=SHARE:FACTOR]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Emulation:
    """What computing costs; a worker waits for what is left of it, and burns no CPU.

    Attributes:
        sample_s: seconds of computing for each sample of a batch.
        slow: (rank, factor): that rank takes so many times as long.
        jitter: (share, factor): this share of all steps, drawn by rank and step, takes so many
            times as long.
    """

    sample_s: float
    slow: tuple[tuple[int, float], ...] = ()
    jitter: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        factors = [factor for _, factor in self.slow] + [self.jitter[1]]
        if not (math.isfinite(self.sample_s) and self.sample_s >= 0):
            raise ConfigurationError(f"emulation: sample={self.sample_s}: must be >= 0 seconds")
        for factor in factors:
            if not (math.isfinite(factor) and factor > 0):
                raise ConfigurationError(f"emulation: factor {factor}: must be > 0")
        if not 0 <= self.jitter[0] <= 1:
            raise ConfigurationError(
                f"emulation: jitter={self.jitter[0]}: the share of slow steps must be in [0, 1]"
            )

    def seconds(self, rank: int, step: int, samples: int) -> float:
        """How long this rank computes on the ``step``-th batch, of so many samples."""
        factor = dict(self.slow).get(rank, 1.0)
        share, times = self.jitter
        if share and random.Random(f"{rank}/{step}").random() < share:
            factor *= times
        return samples * self.sample_s * factor


def parse_emulation(text: str) -> Emulation:
    """``sample=0.001,slow=3:5,jitter=0.1:5``: 1 ms a sample, rank 3 five times slower, and one
    step in ten takes five times as long. ``slow`` may be given for several ranks.

    Raises:
        ConfigurationError: anything else; shows the form.
    """
    sample: float | None = None
    slow: list[tuple[int, float]] = []
    jitter = (0.0, 1.0)
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        first, _, second = value.partition(":")
        try:
            if name == "sample" and not second:
                sample = float(first)
            elif name == "slow":
                slow.append((int(first), float(second)))
            elif name == "jitter":
                jitter = (float(first), float(second))
            else:
                raise ValueError(part)
        except ValueError:
            raise _malformed(text, part) from None
    if sample is None:
        raise _malformed(text, "sample= is missing")
    return Emulation(sample_s=sample, slow=tuple(slow), jitter=jitter)


def _malformed(text: str, part: str) -> ConfigurationError:
    return ConfigurationError(f"emulation {text!r}: {part!r} is not of the form {_FORM}")
