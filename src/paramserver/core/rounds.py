"""Rounds of barriers and collectives: who must arrive, who has, and what the arrived are told.

A round is opened by the first call of its name. It needs every worker that was registered and not
finished then, less those that finished or were lost since. It counts identities, never messages.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace

from paramserver.errors import InvalidRequestError, ResourceError
from paramserver.types import WorkerId

MAX_OPEN = 1024
NAMED = 8
KEPT_ANSWERS = 64  # names per worker whose last answer can be asked for again


@dataclass(frozen=True, slots=True, order=True)
class Arrival:
    """A worker's call number ``sequence`` of a name; ordered by rank."""

    rank: int
    incarnation: int
    sequence: int

    @property
    def worker(self) -> WorkerId:
        return WorkerId(self.rank, self.incarnation)


@dataclass(frozen=True, slots=True)
class Released:
    """A closed round: its number, which never repeats, and who took part, in rank order.

    ``again``: it was closed before this call, which only repeats the answer.
    """

    name: str
    number: int
    arrivals: tuple[Arrival, ...]
    again: bool = False


@dataclass(frozen=True, slots=True)
class Waiting:
    """An open round, the first few it waits for, by rank, and how many in all."""

    name: str
    number: int
    missing: tuple[WorkerId, ...]
    count: int


@dataclass(slots=True)
class _Round:
    number: int
    needed: frozenset[WorkerId]
    missing: set[WorkerId]
    arrived: dict[WorkerId, int] = field(default_factory=dict)


class Rounds:
    """All rounds of a job.

    Args:
        first: number of the first round; a later job goes on counting.
    """

    def __init__(self, first: int = 1) -> None:
        self.next_number = first
        self._open: dict[str, _Round] = {}
        self._last: dict[WorkerId, OrderedDict[str, tuple[int, Released]]] = {}

    def join(
        self, name: str, who: WorkerId, sequence: int, present: Iterable[WorkerId]
    ) -> Released | Waiting:
        """A worker arrives, or asks again.

        Args:
            sequence: the worker's call number for that name; asking again repeats it.
            present: every worker registered and not finished; read when the call opens a round.

        Returns:
            Released when the round is complete, by this call or before it.

        Raises:
            InvalidRequestError: a call number older than the worker's last.
            ResourceError: too many rounds are open.
        """
        answered = self._answer(name, who, sequence)
        if answered is not None:
            return answered
        current = self._open.get(name)
        if current is None:
            current = self._begin(name, present)
        elif current.arrived.get(who, sequence) > sequence:
            raise InvalidRequestError(
                f"call {sequence} of {name!r}: call {current.arrived[who]} of rank {who.rank} "
                "came before it"
            )
        current.missing.discard(who)
        current.arrived[who] = sequence
        return self._close(name, current) or self._waiting(name, current)

    def _answer(self, name: str, who: WorkerId, sequence: int) -> Released | None:
        kept = self._last.get(who)
        last = kept.get(name) if kept else None
        if last is None or last[0] < sequence:
            return None
        if last[0] > sequence:
            raise InvalidRequestError(
                f"call {sequence} of {name!r}: call {last[0]} of rank {who.rank} is done already"
            )
        return replace(last[1], again=True)

    def _begin(self, name: str, present: Iterable[WorkerId]) -> _Round:
        if len(self._open) >= MAX_OPEN:
            raise ResourceError(f"{name!r}: {MAX_OPEN} rounds are open; wait for some of them")
        needed = frozenset(present)
        current = self._open[name] = _Round(self.next_number, needed, set(needed))
        self.next_number += 1
        return current

    def _waiting(self, name: str, current: _Round) -> Waiting:
        first = heapq.nsmallest(NAMED, current.missing)
        return Waiting(name, current.number, tuple(first), len(current.missing))

    def _close(self, name: str, current: _Round) -> Released | None:
        if current.missing:
            return None
        del self._open[name]
        arrivals = sorted(Arrival(w.rank, w.incarnation, s) for w, s in current.arrived.items())
        released = Released(name, current.number, tuple(arrivals))
        for who, sequence in current.arrived.items():
            kept = self._last.setdefault(who, OrderedDict())
            kept[name] = (sequence, released)
            kept.move_to_end(name)
            if len(kept) > KEPT_ANSWERS:
                kept.popitem(last=False)
        return released

    def leave(self, gone: Collection[WorkerId]) -> list[Released]:
        """Workers have finished or were lost: no round waits for them, and none counts them.

        Returns:
            The rounds that this completed.
        """
        for who in gone:
            self._last.pop(who, None)
        for current in self._open.values():
            current.missing.difference_update(gone)
            for who in gone:
                current.arrived.pop(who, None)
        return self._sweep()

    def withdraw(self, who: WorkerId) -> None:
        """A worker gave up waiting: its arrivals do not count, rounds that needed it still do."""
        for current in self._open.values():
            current.arrived.pop(who, None)
            if who in current.needed:
                current.missing.add(who)
        self._sweep()

    def _sweep(self) -> list[Released]:
        """Ends rounds that nobody is in, or that nobody is missing from."""
        released = []
        for name, current in list(self._open.items()):
            if not current.arrived:
                del self._open[name]
            elif done := self._close(name, current):
                released.append(done)
        return released

    def waiting(self) -> list[Waiting]:
        """Every open round, for status."""
        return [self._waiting(name, current) for name, current in self._open.items()]

    def check_invariants(self) -> None:
        """Raises AssertionError when the parts disagree."""
        for name, current in self._open.items():
            assert current.missing <= current.needed
            assert current.missing, f"round {name!r} waits for nobody"
            assert current.arrived, f"round {name!r} was opened by nobody"
            assert not current.missing & current.arrived.keys()
            assert current.number < self.next_number
        numbers = [r.number for r in self._open.values()]
        assert len(set(numbers)) == len(numbers)
