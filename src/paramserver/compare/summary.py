"""One run in a few figures, and all of them as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from paramserver.compare.runs import Curve, Run
from paramserver.errors import ConfigurationError

POINTS = 500  # of one curve in JSON and in the picture
FALLS = ("loss", "error", "perplexity", "mse", "rmse", "mae", "bits")


@dataclass(frozen=True, slots=True)
class Target:
    """A value that a logged scalar is to reach.

    Attributes:
        name: of the scalar.
        value: that it is to reach, from above if it is one that falls.
    """

    name: str
    value: float

    @property
    def falls(self) -> bool:
        """Whether smaller is better: a name with "loss", "error" or the like in it."""
        return falls(self.name)

    def __str__(self) -> str:
        return f"{self.name} {'<=' if self.falls else '>='} {self.value:g}"


def falls(name: str) -> bool:
    """Whether a scalar of this name is better when smaller."""
    return any(word in name.lower() for word in FALLS)


def parse_target(text: str) -> Target:
    """``accuracy=0.95``, ``loss=0.2``.

    Raises:
        ConfigurationError: not of that form.
    """
    name, _, value = text.partition("=")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not name.strip() or not math.isfinite(number):
        raise ConfigurationError(f"target {text!r}: write NAME=VALUE, such as accuracy=0.95")
    return Target(name.strip(), number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a scheme did with its budget; None where it cannot be told.

    Attributes:
        scheme: as it was written.
        error: why it failed; empty if it did not.
        workers: how many.
        seconds: from the first batch that a worker asked for to the last step.
        samples: that were learnt from.
        samples_per_s: of all workers.
        target_s, target_samples: when the target was first reached; None: it was not.
        staleness_p50, staleness_p99: of all pushes, in versions.
        waited: share of the workers' time spent in exchanges and idle, 0 to 1.
        sent_per_sample, received_per_sample: bytes of payload.
        finals: the last value of each scalar's curve.
        curves: by name of the scalar.
    """

    scheme: str
    error: str = ""
    workers: int = 0
    seconds: float = 0.0
    samples: float = 0.0
    samples_per_s: float = 0.0
    target_s: float | None = None
    target_samples: float | None = None
    staleness_p50: float = 0.0
    staleness_p99: float = 0.0
    waited: float = 0.0
    sent_per_sample: float = 0.0
    received_per_sample: float = 0.0
    finals: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)


def summarise(scheme: str, run: Run | None, target: Target | None, error: str = "") -> Summary:
    """The figures of a run; of one that failed, those up to then."""
    if run is None:
        return Summary(scheme=scheme, error=error or "it took no step")
    samples, seconds = run.samples, max(run.seconds, 1e-9)
    # A local step is counted too, but sends nothing and is never stale.
    staleness = [step.staleness for step in run.steps if step.sent] or [0.0]
    p50, p99 = (float(np.percentile(staleness, q)) for q in (50, 99))
    blocked = sum(step.waited for step in run.steps) + run.idle_s
    reached = None if target is None else _reached(run.curves.get(target.name), target)
    each = max(samples, 1.0)
    return Summary(
        scheme=scheme,
        error=error,
        workers=run.workers,
        seconds=run.seconds,
        samples=samples,
        samples_per_s=samples / seconds,
        target_s=reached[0] if reached else None,
        target_samples=reached[1] if reached else None,
        staleness_p50=p50,
        staleness_p99=p99,
        waited=min(1.0, blocked / (run.workers * seconds)),
        sent_per_sample=sum(step.sent for step in run.steps) / each,
        received_per_sample=sum(step.received for step in run.steps) / each,
        finals={name: float(curve.values[-1]) for name, curve in sorted(run.curves.items())},
        curves=run.curves,
    )


def _reached(curve: Curve | None, target: Target) -> tuple[float, float] | None:
    if curve is None:
        return None
    there = curve.values <= target.value if target.falls else curve.values >= target.value
    if not there.any():
        return None
    first = int(there.argmax())
    return float(curve.seconds[first]), float(curve.samples[first])


def main_curve(summaries: Sequence[Summary], wanted: str | None = None) -> str | None:
    """The scalar to draw: ``wanted``, else a loss, held-out before others; None: nothing logged."""
    names = sorted({name for summary in summaries for name in summary.curves})
    if wanted is not None:
        return wanted if wanted in names else None

    def rank(name: str) -> tuple[bool, bool]:
        held_out = any(word in name.lower() for word in ("test", "val"))
        return (not falls(name), not held_out)

    return min(names, key=rank, default=None)


def save(summaries: Sequence[Summary], settings: Mapping[str, Any], path: Path) -> None:
    """Writes settings, figures and curves as JSON; what is not finite is null.

    Raises:
        ConfigurationError: the file cannot be written.
    """
    content = {"settings": settings, "schemes": [_plain(summary) for summary in summaries]}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(_finite(content), indent=1, allow_nan=False) + "\n")
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}; name another file") from error


def _plain(summary: Summary) -> dict[str, Any]:
    found = {name: getattr(summary, name) for name in Summary.__dataclass_fields__}
    found["curves"] = {
        name: {
            "seconds": curve.seconds.round(3).tolist(),
            "samples": curve.samples.tolist(),
            "values": curve.values.tolist(),
        }
        for name, whole in sorted(summary.curves.items())
        for curve in [whole.thinned(POINTS)]
    }
    return found


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(x) for name, x in value.items()}
    return [_finite(x) for x in value] if isinstance(value, (list, tuple)) else value
