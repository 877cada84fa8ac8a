"""Values that every floor speaks of: consistency models, data types, members, results."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from paramserver.errors import ConfigurationError

PROTOCOL_VERSION = 1

ScaleLr = Literal["inverse", "sqrt", "polynomial", "none"]
SCALES = ("inverse", "sqrt", "polynomial", "none")
ASSIGNMENTS = ("round-robin", "random", "dynamic")
Durability = Literal["memory", "wal", "replica"]
DURABILITIES: tuple[Durability, ...] = ("memory", "wal", "replica")
BALANCES = ("speed",)

OnNonFinite = Literal["reject", "skip", "apply"]
ON_NONFINITE = ("reject", "skip", "apply")

ITEM_SIZES = {
    "float32": 4,
    "float64": 8,
    "bfloat16": 2,
    "float16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}
FLOATING = frozenset({"float32", "float64", "bfloat16", "float16"})


@dataclass(frozen=True, slots=True)
class Sync:
    """One step per clock over the weighted mean of all workers' gradients.

    Args:
        backup: how many of the slowest workers a clock does not wait for.
        deterministic: add gradients in rank order, so that a run repeats bit for bit.
    """

    backup: int = 0
    deterministic: bool = True

    def __post_init__(self) -> None:
        if self.backup < 0:
            raise ConfigurationError(f"backup={self.backup}: must be >= 0 (0 = wait for all)")


@dataclass(frozen=True, slots=True)
class Stale:
    """A worker may be at most ``bound`` clocks ahead of the slowest (bounded staleness).

    Args:
        bound: clocks; 0 is ``Sync()``.
        scale_lr: learning rate by staleness t in versions: "inverse" lr/max(1,t),
            "sqrt" lr/sqrt(max(1,t)), "polynomial" lr/sqrt(1+t), "none".
    """

    bound: int
    scale_lr: ScaleLr = "inverse"

    def __post_init__(self) -> None:
        if self.bound < 0:
            raise ConfigurationError(
                f"bound={self.bound}: must be >= 0 (0 = synchronous; Async() has no bound)"
            )
        _check_scale(self.scale_lr)


@dataclass(frozen=True, slots=True)
class Async:
    """Pushes are applied on arrival; nobody waits for anybody.

    Args:
        scale_lr: as for ``Stale``.
    """

    scale_lr: ScaleLr = "inverse"

    def __post_init__(self) -> None:
        _check_scale(self.scale_lr)


@dataclass(frozen=True, slots=True)
class Adaptive:
    """``Stale`` with a bound that follows measured waiting and the loss; every change is logged.

    The loss is what workers give ``client.log(loss=...)``. At a bound of 0 pushes are still applied
    on arrival, one by one: that is not ``Sync()``.

    Args:
        max_bound: the bound never exceeds it; it begins at 1 and may fall to 0.
        scale_lr: as for ``Stale``.
    """

    max_bound: int
    scale_lr: ScaleLr = "inverse"

    def __post_init__(self) -> None:
        if self.max_bound < 1:
            raise ConfigurationError(
                f"max_bound={self.max_bound}: must be >= 1 (Sync() is the bound of 0)"
            )
        _check_scale(self.scale_lr)


@dataclass(frozen=True, slots=True)
class AllReduce:
    """Full replicas on the workers; gradients go through ``torch.distributed``, not the servers.

    Args:
        backend: of ``torch.distributed``; "gloo" is the only one. Gradients on an accelerator go
            through the host.
    """

    backend: str = "gloo"

    def __post_init__(self) -> None:
        if self.backend != "gloo":
            raise ConfigurationError(
                f"backend={self.backend!r}: must be 'gloo', which also takes models on an "
                "accelerator, through the host"
            )


Consistency = Sync | Stale | Async | Adaptive | AllReduce


def _check_scale(scale: str) -> None:
    if scale not in SCALES:
        raise ConfigurationError(f"scale_lr={scale!r}: must be one of {', '.join(SCALES)}")


def canonical(consistency: Consistency) -> Consistency:
    """``Stale(0)`` is ``Sync()``: per-clock aggregation, not application on arrival.

    Raises:
        ConfigurationError: not a consistency model.
    """
    if not isinstance(consistency, Consistency):
        raise ConfigurationError(
            f"consistency={consistency!r}: must be Sync(), Stale(bound), Async(), "
            "Adaptive(max_bound) or AllReduce(); in client.optimizer also Local(steps), Downpour()"
        )
    if isinstance(consistency, Stale) and consistency.bound == 0:
        return Sync()
    return consistency


def lr_factor(scale: ScaleLr, staleness: int) -> float:
    """What a learning rate is multiplied by at a staleness in versions (Zhang et al., 2016)."""
    if scale == "inverse":
        return 1.0 / max(1, staleness)
    if scale == "sqrt":
        return 1.0 / math.sqrt(max(1, staleness))
    if scale == "polynomial":
        return 1.0 / math.sqrt(1 + staleness)
    return 1.0


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one push did.

    Attributes:
        clock: the clock that the push carried.
        version: versions of the group after it; None where the push has not been applied yet.
        staleness: versions applied between the pull it was computed on and its application.
        waited: seconds blocked.
        sent_bytes, received_bytes: payload bytes.
        dropped: the clock had closed without this push (``Sync(backup=...)``).
        durability: what it survives: "memory", "wal" (a server that ends and begins again) or
            "replica" (a server that is lost).
        skipped: NaN or infinity was in it, so it carried nothing (``on_nonfinite="skip"``).
    """

    clock: int
    version: int | None
    staleness: float
    waited: float
    sent_bytes: int
    received_bytes: int
    dropped: bool = False
    durability: Durability = "memory"
    skipped: bool = False


@dataclass(frozen=True, slots=True)
class DataShard:
    """A leased range of samples: positions [start, stop) of the epoch's order.

    Attributes:
        id: number of the shard in its epoch.
        epoch: 0-based.
        start, stop: positions in the epoch's (shuffled) order.
        indices: the sample indices at those positions.
        lease: number of the lease.
    """

    id: int
    epoch: int
    start: int
    stop: int
    indices: tuple[int, ...]
    lease: int


class WorkerId(NamedTuple):
    """A worker as clocks and ledgers know it; ordered by rank."""

    rank: int
    incarnation: int


@dataclass(frozen=True, slots=True)
class Span:
    """Positions [start, stop) of the data shard held under a lease."""

    lease: int
    start: int
    stop: int
