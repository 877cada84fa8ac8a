"""Who gets which data shard: round-robin, random, dynamic.

A policy deals shard numbers when an epoch opens; leases, returns and losses are the queue's affair.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from paramserver.errors import InvalidRequestError


class Assignment(Protocol):
    """A policy; must not keep state, so that the same call deals the same."""

    @property
    def shared(self) -> bool:
        """One queue for all workers: ``deal`` returns one sequence."""

    def deal(self, shards: int, workers: int, epoch: int) -> list[Sequence[int]]:
        """Shard numbers of each worker, in the order in which it gets them.

        Every number of range(shards) appears once; counts differ by at most 1.
        """


@dataclass(frozen=True, slots=True)
class RoundRobin:
    """Shard i to worker i mod W."""

    @property
    def shared(self) -> bool:
        return False

    def deal(self, shards: int, workers: int, epoch: int) -> list[Sequence[int]]:
        return [range(i, shards, workers) for i in range(workers)]


@dataclass(frozen=True, slots=True)
class RandomDeal:
    """A permutation of the shards by seed and epoch, dealt like cards."""

    seed: int = 0

    @property
    def shared(self) -> bool:
        return False

    def deal(self, shards: int, workers: int, epoch: int) -> list[Sequence[int]]:
        order = list(range(shards))
        random.Random(f"{self.seed}/{epoch}").shuffle(order)
        return [order[i::workers] for i in range(workers)]


@dataclass(frozen=True, slots=True)
class Dynamic:
    """The next shard to whoever is free."""

    @property
    def shared(self) -> bool:
        return True

    def deal(self, shards: int, workers: int, epoch: int) -> list[Sequence[int]]:
        return [range(shards)]


POLICIES: dict[str, Callable[[int], Assignment]] = {
    "round-robin": lambda seed: RoundRobin(),
    "random": RandomDeal,
    "dynamic": lambda seed: Dynamic(),
}


def assignment(name: str, seed: int) -> Assignment:
    """The policy of that name.

    Raises:
        InvalidRequestError: an unknown name.
    """
    if name not in POLICIES:
        raise InvalidRequestError(f"assign={name!r}: must be one of {', '.join(POLICIES)}")
    return POLICIES[name](seed)
