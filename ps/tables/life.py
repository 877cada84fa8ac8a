"""Admission and eviction on one sub-table: which rows are born, which are forgotten."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from paramserver.core.tables import SUB_TABLES
from paramserver.life_cycle import LRU, TTL, Admission, CountFilter, Decay, Eviction
from paramserver.ps.tables.columns import Allocator, Column
from paramserver.ps.tables.index import Index, Places
from paramserver.ps.tables.initial import unit_numbers
from paramserver.wire.rows import Keys

Flags = npt.NDArray[np.bool_]
Versions = npt.NDArray[np.int64]
Counts = npt.NDArray[np.int64]
NEVER = np.iinfo(np.int64).max  # the version of a free place: no rule picks it
SWEEPS = 8  # in the life of a row


class Moment:
    """The time, standing still within a change, so that the change can be made again."""

    def __init__(self) -> None:
        self._ahead = 0.0
        self._now = time.monotonic()

    def __call__(self) -> float:
        """Seconds."""
        return self._now

    def look(self) -> float:
        """A change begins now."""
        self._now = time.monotonic() + self._ahead
        return self._now

    def replay(self, now: float) -> None:
        """A change that began then is made again; the time goes on from there."""
        self._now, self._ahead = now, now - time.monotonic()


class Draw:
    """``Probability``: no state at all."""

    nbytes = 0

    def __init__(self, p: float, seed: int) -> None:
        self._p, self._seed = p, seed

    def admit(self, keys: Keys, times: Counts, version: int) -> Flags:
        """Which of these unseen rows are born; ``times``: pushes that touched each."""
        miss = (1.0 - self._p) ** times
        drawn: Flags = unit_numbers(keys, self._seed, version) >= miss
        return drawn

    def forget(self, rule: Oldest, version: int) -> None:
        """Nothing is kept."""

    def dump(self) -> dict[str, npt.NDArray[Any]]:
        """Nothing is kept."""
        return {}

    def load(self, columns: Mapping[str, npt.NDArray[Any]]) -> None:
        """Nothing is kept."""


class Counter:
    """``CountFilter``: a number for each row that is not born yet."""

    def __init__(self, n: int, skip: int) -> None:
        self._n = n
        self._index = Index(skip)
        self._places = Allocator()
        self._counts, self._changed = Column(np.int32), Column(np.int64)

    @property
    def nbytes(self) -> int:
        each = self._counts.row_bytes + self._changed.row_bytes
        return self._index.nbytes + self._places.used * each

    def admit(self, keys: Keys, times: Counts, version: int) -> Flags:
        """Which of these unseen rows are born; ``times``: pushes that touched each."""
        places = self._index.find(keys)
        known = places >= 0
        total = times.copy()
        total[known] += self._counts.array[places[known]]
        born: Flags = total >= self._n
        self._remove(keys[born & known])
        places[~known & ~born] = self._create(keys[~known & ~born])
        kept = places[~born]
        self._counts.array[kept] = total[~born]
        self._changed.array[kept] = version
        return born

    def _create(self, keys: Keys) -> npt.NDArray[np.int32]:
        places = self._places.take(len(keys))
        self._counts.reserve(self._places.used)
        self._changed.reserve(self._places.used)
        self._index.add(keys, places)
        return places

    def _remove(self, keys: Keys) -> None:
        if len(keys):
            freed = self._index.remove(keys)
            self._changed.array[freed] = NEVER
            self._places.give_back(freed)

    def forget(self, rule: Oldest, version: int) -> None:
        """Rows that were counted long ago begin at zero again."""
        entries = self._index.entries()
        keys, places = entries
        gone = rule.gone(self._changed.array[: self._places.used], None, version, entries)
        self._remove(keys[gone[places]])

    def dump(self) -> dict[str, npt.NDArray[Any]]:
        """Rows that are not born yet, by column; keys ascend."""
        keys, places = in_order(self._index)
        return {
            "unborn_keys": keys,
            "unborn_counts": self._counts.array[places],
            "unborn_changed": self._changed.array[places],
        }

    def load(self, columns: Mapping[str, npt.NDArray[Any]]) -> None:
        """Into an empty one, what another has dumped."""
        keys = columns["unborn_keys"]
        places = self._create(keys)
        self._counts.array[places] = columns["unborn_counts"]
        self._changed.array[places] = columns["unborn_changed"]


class Oldest:
    """An eviction rule on one sub-table.

    Args:
        index: which of the sub-tables: it has its share of ``max_rows``.
    """

    def __init__(self, rule: Eviction, index: int, now: Callable[[], float] = time.monotonic):
        self.rule = rule
        self._now = now
        self._swept = 0
        self._marks: deque[tuple[float, int]] = deque()  # (time, newest version by then)
        self._touched, self._begun = -math.inf, now()
        if isinstance(rule, LRU):
            whole = rule.max_rows
            self._share = whole * (index + 1) // SUB_TABLES - whole * index // SUB_TABLES

    def pushed(self, version: int) -> None:
        """Rows are about to be touched at this version."""
        if isinstance(self.rule, TTL) and self.rule.seconds:
            since = self._touched - (self._marks[-1][0] if self._marks else -math.inf)
            if since >= self.rule.seconds / SWEEPS:
                self._marks.append((self._touched, version - 1))
            self._touched = self._now()

    def due(self, rows: int, version: int) -> bool:
        """Whether it is worth looking through the rows."""
        rule = self.rule
        if isinstance(rule, LRU):
            return rows > self._share
        if isinstance(rule, TTL) and rule.seconds:
            return self._now() - self._begun >= rule.seconds / SWEEPS
        life = rule.clocks if isinstance(rule, TTL) else rule.horizon
        return version - self._swept >= max(1.0, life / SWEEPS)

    def gone(
        self,
        changed: Versions,
        scores: npt.NDArray[np.float32] | None,
        version: int,
        entries: tuple[Keys, Places],
    ) -> Flags:
        """Which places hold rows that are to be forgotten.

        Args:
            changed: when each was touched last, NEVER where there is no row.
            scores: at that moment; None: 1.
            entries: keys and their places. What goes is a matter of keys, never of places: a table
                that was moved or restored forgets the same rows.
        """
        rule = self.rule
        if isinstance(rule, LRU):
            return self._beyond(changed, *entries)
        if isinstance(rule, Decay) and scores is not None:
            age = np.where(changed == NEVER, 0, version - changed)
            low: Flags = (scores * rule.rate**age < rule.threshold) & (changed != NEVER)
            return low
        old: Flags = changed <= self._cutoff(version)
        return old

    def swept(self, version: int) -> None:
        """The rows have been looked through."""
        self._swept, self._begun = version, self._now()

    def _cutoff(self, version: int) -> float:
        """The newest version that is too old."""
        rule = self.rule
        if isinstance(rule, Decay):
            return version - rule.horizon - 1e-9
        assert isinstance(rule, TTL)
        if rule.clocks:
            return version - rule.clocks
        before = self._now() - rule.seconds
        if self._touched <= before:
            return version
        while len(self._marks) > 1 and self._marks[1][0] <= before:
            self._marks.popleft()
        return self._marks[0][1] if self._marks and self._marks[0][0] <= before else -1

    def _beyond(self, changed: Versions, keys: Keys, places: Places) -> Flags:
        """The oldest ones, down to a little below the share, so that sweeps are rare."""
        rows = int((changed != NEVER).sum())
        excess = rows - (self._share - self._share // 16)
        if rows <= self._share:
            return np.zeros(len(changed), np.bool_)
        newest = np.partition(changed, excess - 1)[excess - 1]
        picked: Flags = changed < newest
        tied = changed[places] == newest
        ties = places[tied][np.argsort(keys[tied])]
        picked[ties[: excess - int(picked.sum())]] = True
        return picked

    def dump(self) -> dict[str, Any]:
        """How far it is; moments, which only seconds need, as how long ago they were."""
        if not (isinstance(self.rule, TTL) and self.rule.seconds):
            return {"swept": self._swept}
        now = self._now()
        return {
            "swept": self._swept,
            "begun": now - self._begun,
            "touched": None if self._touched == -math.inf else now - self._touched,
            "marks": [[now - moment, version] for moment, version in self._marks],
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """What another has dumped."""
        self._swept = state["swept"]
        if "begun" in state:
            now, touched = self._now(), state["touched"]
            self._begun = now - state["begun"]
            self._touched = -math.inf if touched is None else now - touched
            self._marks = deque((now - age, version) for age, version in state["marks"])


def in_order(index: Index) -> tuple[Keys, Places]:
    """Keys, ascending, and their places."""
    keys, places = index.entries()
    order = np.argsort(keys, kind="stable")
    return keys[order], places[order]


def admission_of(rule: Admission | None, seed: int, skip: int) -> Draw | Counter | None:
    """What carries out a rule; None: every row is born at once."""
    if isinstance(rule, CountFilter):
        return Counter(rule.n, skip) if rule.n > 1 else None
    return Draw(rule.p, seed) if rule is not None else None
