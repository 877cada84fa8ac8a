"""Data sets: what workers agree on, and what the shard queue answers."""

from __future__ import annotations

from dataclasses import dataclass, replace

from paramserver.core.assignment import assignment
from paramserver.errors import InvalidRequestError
from paramserver.types import BALANCES

MAX_SHARDS = 1 << 22
BATCHES_PER_SHARD = 8
PORTIONS_PER_WORKER = 12
_INT63 = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class DatasetSpec:
    """What workers agree on; ``shard_size`` 0: the default; ``assign`` a name of a policy.

    ``backups``: shards that others still hold are leased once more to whoever finds nothing free.
    ``balance`` "speed": batch sizes follow measured speed, one lease each.
    """

    name: str
    size: int
    batch_size: int
    shard_size: int = 0
    seed: int = 0
    shuffle: bool = True
    assign: str = "dynamic"
    backups: bool = False
    balance: str = ""


def default_shard_size(size: int, batch_size: int, workers: int) -> int:
    """1 to 8 batches, so that every worker gets about 8 shards of a small data set."""
    per_worker = size // (batch_size * BATCHES_PER_SHARD * workers)
    return batch_size * max(1, min(per_worker, BATCHES_PER_SHARD))


def default_portion(size: int, workers: int) -> int:
    """Much less than a worker's share: the slowest portion is soon done again (Sandblaster)."""
    return max(1, -(-size // (PORTIONS_PER_WORKER * workers)))


def complete(spec: DatasetSpec, workers: int) -> DatasetSpec:
    """The specification with its shard size: the default, or rounded up to whole batches.

    Raises:
        InvalidRequestError: a value that cannot work.
    """
    for name, low in (("size", 0), ("batch_size", 1), ("shard_size", 0)):
        value = getattr(spec, name)
        if not low <= value <= _INT63:
            raise InvalidRequestError(f"data set {spec.name!r}: {name}={value}: must be >= {low}")
    policy = assignment(spec.assign, spec.seed)
    if spec.balance not in ("", *BALANCES):
        raise InvalidRequestError(
            f"data set {spec.name!r}: balance={spec.balance!r}: must be one of "
            f"{', '.join(BALANCES)} or not given"
        )
    if spec.balance and not policy.shared:
        raise InvalidRequestError(
            f"data set {spec.name!r}: balance={spec.balance!r} with assign={spec.assign!r}: a "
            "static deal gives every worker the same; use assign='dynamic' or leave it out"
        )
    if spec.backups and spec.assign != "dynamic":
        raise InvalidRequestError(
            f"data set {spec.name!r}: backups with assign={spec.assign!r}: only shards of a common "
            "queue have backups; use assign='dynamic'"
        )
    wanted = spec.shard_size or default_shard_size(spec.size, spec.batch_size, workers)
    shard_size = -(-wanted // spec.batch_size) * spec.batch_size
    if -(-spec.size // shard_size) > MAX_SHARDS:
        raise InvalidRequestError(
            f"data set {spec.name!r}: {spec.size} samples in shards of {shard_size} make more than "
            f"{MAX_SHARDS} shards; use a larger shard_size"
        )
    return replace(spec, shard_size=shard_size)


@dataclass(frozen=True, slots=True)
class Leased:
    """Positions [start, stop) are the worker's until it says otherwise or is lost."""

    lease: int
    shard: int
    epoch: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Drained:
    """The epoch is over for whoever asks."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Empty:
    """No shard now; ``reason`` says why in words."""

    reason: str


@dataclass(frozen=True, slots=True)
class Counts:
    """Of the open epoch; free, leased: pieces; done: shards of which every position is done;
    quarantined: samples set aside, of all epochs."""

    epoch: int
    shards: int
    free: int
    leased: int
    done: int
    requeued: int
    samples_done: int
    unpushed: int
    quarantined: int = 0


@dataclass(frozen=True, slots=True)
class Reported:
    """``lost``: leases that are not the worker's; ``returned``: something is free again;
    ``drained``: this ended the epoch."""

    lost: tuple[int, ...]
    returned: bool
    drained: bool


def disagreement(old: DatasetSpec, new: DatasetSpec) -> str | None:
    """The first thing in which two workers disagree, in words.

    Batch sizes may differ, unless they are balanced.
    """
    also = ("batch_size",) if old.balance and new.balance else ()
    for name in ("size", "seed", "shard_size", "assign", "shuffle", "balance", "backups", *also):
        left, right = getattr(old, name), getattr(new, name)
        if left != right:
            return f"{name} is {left}, not {right}"
    return None
