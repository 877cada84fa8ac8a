"""Training schemes around a consistency model: what a worker does between two pushes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from paramserver.errors import ConfigurationError
from paramserver.types import Async, Consistency, ScaleLr, Sync

Compression = Literal["int8", "int4"]
COMPRESSIONS = ("int8", "int4")


SYNC = Sync()


@dataclass(frozen=True, slots=True)
class Local:
    """Local steps; what they changed is pushed, and an outer optimizer steps on the servers.

    Local SGD (McMahan et al., 2017), DiLoCo (Douillard et al., 2023), its streaming fragments
    (2025), and asynchronous DiLoCo (Liu et al., 2024).

    Args:
        steps: local steps between two pushes.
        base: how rounds of all workers meet: ``Sync()`` or ``Async()``.
        outer: the outer optimizer: a class of ``torch.optim`` or a ``functools.partial`` of one
            with its hyper-parameters. None: under ``Sync()`` SGD with lr 0.7, Nesterov momentum
            0.9; under ``Async()`` SGD with lr 1 / workers.
        fragments: parts of the model that take turns, steps / fragments apart.
        delay: local steps between sending a fragment and using what came back.
        alpha: share of the local values where both meet: 0 takes the servers' as they are.
        dylu: steps by measured speed: a slower worker takes fewer.
        compress: "int8" or "int4": blocks of 256 with a scale, on the way to the servers.
        nesterov_every: asynchronous: momentum acts on every so many pushes (delayed Nesterov);
            0: as the outer optimizer says.
    """

    steps: int
    base: Sync | Async = SYNC
    outer: Any = None
    fragments: int = 1
    delay: int = 0
    alpha: float = 0.0
    dylu: bool = False
    compress: Compression | None = None
    nesterov_every: int = 0

    def __post_init__(self) -> None:
        for name, low in (("steps", 1), ("fragments", 1), ("delay", 0), ("nesterov_every", 0)):
            value = getattr(self, name)
            if value < low:
                raise ConfigurationError(f"{name}={value}: must be >= {low}")
        if self.fragments > self.steps:
            raise ConfigurationError(
                f"fragments={self.fragments}: must be <= steps={self.steps}, one each step at most"
            )
        if self.delay >= max(1, self.steps // self.fragments):
            raise ConfigurationError(
                f"delay={self.delay}: must be < steps / fragments = "
                f"{self.steps // self.fragments}, so that one fragment is under way at a time"
            )
        if not 0 <= self.alpha < 1:
            raise ConfigurationError(f"alpha={self.alpha}: must be in [0, 1)")
        if not isinstance(self.base, (Sync, Async)):
            raise ConfigurationError(f"base={self.base!r}: must be Sync() or Async()")
        if self.compress is not None and self.compress not in COMPRESSIONS:
            raise ConfigurationError(
                f"compress={self.compress!r}: must be None or one of {', '.join(COMPRESSIONS)}"
            )


@dataclass(frozen=True, slots=True)
class Downpour:
    """Asynchronous steps with rare pushes and pulls (Dean et al., 2012).

    A step that does not pull moves the worker's copy by -lr * gradient: plain SGD at the learning
    rate of the moment, whatever rule the servers run.

    Args:
        n_push: steps whose gradients are summed into one push.
        n_fetch: steps between pulls.
        warm_start: steps that the chief takes alone, while ``client.optimizer`` has not returned
            on the others. It ends sooner if the chief ends a pass, comes to a barrier or finishes.
        scale_lr: as for ``Async``; pushes of a worker's own, which its copy has moved by, are not
            counted as staleness.
    """

    n_push: int = 1
    n_fetch: int = 1
    warm_start: int = 0
    scale_lr: ScaleLr = "inverse"

    def __post_init__(self) -> None:
        for name, low in (("n_push", 1), ("n_fetch", 1), ("warm_start", 0)):
            value = getattr(self, name)
            if value < low:
                raise ConfigurationError(f"{name}={value}: must be >= {low}")
        Async(self.scale_lr)


Scheme = Consistency | Local | Downpour
