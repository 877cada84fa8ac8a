"""Who the replicas of an all-reduce group are, and what the lost ones had contributed.

Replicas form: every worker that is to take part offers what it has, and when all have come, all
are told the same list. They form anew when somebody joins, leaves or is lost. The values of the
highest clock count; a step that any survivor completed counts for all who contributed to it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from paramserver.errors import NotFoundError
from paramserver.types import Span, WorkerId


@dataclass(frozen=True, slots=True)
class Offer:
    """What a worker brings to a formation.

    Attributes:
        sequence: its call number; asking again repeats it.
        clock: steps that its values have.
        endpoint: of its store, used if its rank is the lowest.
        whole: it has the values of the group; False before its first formation is complete.
        contributed: samples of other replicas in steps that it completed.
    """

    sequence: int
    clock: int
    endpoint: str
    whole: bool
    contributed: Mapping[WorkerId, Sequence[Span]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Formed:
    """A formation: its number, its replicas in rank order, and whose values count.

    Attributes:
        endpoint: of the lowest rank's store.
        root: the whole replica with the highest clock; among equals the lowest rank.
        spread: whether somebody lacks the values of ``root``.
    """

    number: int
    replicas: tuple[WorkerId, ...]
    endpoint: str
    root: WorkerId
    spread: bool


@dataclass(frozen=True, slots=True)
class Missing:
    """Whom an open formation waits for, by rank."""

    workers: tuple[WorkerId, ...]


class Replicas:
    """The replicas of one group.

    Attributes:
        number: of the newest formation; 0 before the first.
        live: its replicas, less those that left since.
    """

    def __init__(self, name: str) -> None:
        self.number = 0
        self.live: frozenset[WorkerId] = frozenset()
        self._name = name
        self._offers: dict[WorkerId, Offer] = {}
        self._formed: Formed | None = None
        self._answered: dict[WorkerId, int] = {}
        self._left: set[WorkerId] = set()  # since the newest formation
        self._told: dict[WorkerId, frozenset[Span]] = {}

    def form(self, who: WorkerId, offer: Offer, needed: Collection[WorkerId]) -> Formed | Missing:
        """A worker offers to take part, or asks again.

        Args:
            needed: whom a formation waits for now.

        Raises:
            NotFoundError: all replicas that had the values are gone.
        """
        if self._formed is not None and self._answered.get(who) == offer.sequence:
            return self._formed
        if self.number and not self.live:
            raise NotFoundError(
                f"group {self._name!r}: every replica of formation {self.number} is gone, and "
                "servers hold no copy of it; start the job again"
            )
        self._offers[who] = offer
        missing = sorted({*needed, *self.live} - self._offers.keys())
        return Missing(tuple(missing)) if missing else self._close()

    def _close(self) -> Formed:
        ranks = sorted(self._offers)
        whole = [who for who in ranks if self._offers[who].whole]
        root = min(whole or ranks, key=lambda who: (-self._offers[who].clock, who))
        self.number += 1
        for gone in self._left:
            offers = [offer.contributed.get(gone, ()) for offer in self._offers.values()]
            self._told[gone] = frozenset(span for spans in offers for span in spans)
        self._left.clear()
        clocks = {offer.clock for offer in self._offers.values()}
        self._formed = Formed(
            number=self.number,
            replicas=tuple(ranks),
            endpoint=self._offers[ranks[0]].endpoint,
            root=root,
            spread=len(clocks) > 1 or len(whole) < len(ranks),
        )
        self.live = frozenset(ranks)
        self._answered = {who: offer.sequence for who, offer in self._offers.items()}
        self._offers = {}
        return self._formed

    def leave(self, who: WorkerId) -> None:
        """A worker has finished or was lost."""
        self._offers.pop(who, None)
        self._answered.pop(who, None)
        if who in self.live:
            self.live -= {who}
            self._left.add(who)
        if not self.live:  # nobody can tell what they did
            self._left.clear()

    def untold(self, who: WorkerId) -> bool:
        """Whether replicas are still to tell what this one, which left, had contributed."""
        return who in self._left

    def told(self, who: WorkerId) -> frozenset[Span]:
        """What replicas told of one that left."""
        return self._told.get(who, frozenset())

    def forget(self, who: WorkerId) -> None:
        """The leases of one that left are settled."""
        self._told.pop(who, None)

    def check_invariants(self) -> None:
        """Raises AssertionError when the parts disagree."""
        assert not self._left & self.live
        assert not self._left or self.live
        assert not self._offers.keys() & self._left
        assert self._formed is None or self.number == self._formed.number
