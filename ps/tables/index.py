"""From keys to places: open addressing over numpy arrays, whole batches at a time."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from paramserver.wire.rows import Keys

Places: TypeAlias = npt.NDArray[np.int32]

EMPTY = -1
DELETED = -2
MISSING = -1
FULLEST, SPREAD = 0.45, 0.2
GOLDEN = 0.6180339887498949
SMALLEST = 16


class Index:
    """Keys of one sub-table and the place of each in its slab.

    Keys of a batch must be distinct. Linear probing; the entry of a key is picked by its bits below
    the ``skip`` highest ones, which all keys of a sub-table have in common. Not thread-safe.

    Args:
        skip: leading bits that say nothing here.
        number: of the sub-table: neighbours grow at unlike sizes, so that not all stop at once.

    Attributes:
        count: keys in it.
    """

    def __init__(self, skip: int = 0, number: int = 0) -> None:
        self._skip = np.uint64(skip)
        self._fullest = FULLEST + SPREAD * (number * GOLDEN % 1)
        self.count = 0
        self._allocate(SMALLEST)

    def _allocate(self, entries: int) -> None:
        self._keys: Keys = np.zeros(entries, np.uint64)
        self._places: Places = np.full(entries, EMPTY, np.int32)
        self._mask = np.int64(entries - 1)
        self._shift = np.uint64(64 - (entries.bit_length() - 1))
        self._deleted = 0

    @property
    def nbytes(self) -> int:
        return self._keys.nbytes + self._places.nbytes

    def _first(self, keys: Keys) -> npt.NDArray[np.int64]:
        """The entry at which the search for each key begins."""
        return ((keys << self._skip) >> self._shift).view(np.int64)

    def find(self, keys: Keys) -> Places:
        """The place of every key; MISSING where there is none."""
        at = self._first(keys)
        places = self._places.take(at)
        same = self._keys.take(at) == keys
        open_ = np.flatnonzero(~same & (places != EMPTY) | (places == DELETED))
        found: Places = np.where(same & (places >= 0), places, np.int32(MISSING))
        at = at.take(open_)
        while open_.size:
            at = (at + 1) & self._mask
            places = self._places.take(at)
            hit = (self._keys.take(at) == keys.take(open_)) & (places >= 0)
            found[open_[hit]] = places[hit]
            on = ~hit & (places != EMPTY)
            open_, at = open_[on], at[on]
        return found

    def add(self, keys: Keys, places: Places) -> None:
        """Takes keys that are not in it."""
        if not keys.size:
            return
        entries = len(self._keys)
        if (self.count + self._deleted + keys.size) > self._fullest * entries:
            self._rebuild(keys.size)
        self._insert(keys, places)
        self.count += keys.size

    def _insert(self, keys: Keys, places: Places) -> None:
        at = self._first(keys)
        while keys.size:
            free = self._places.take(at) < 0
            here = at[free]
            self._deleted -= int((self._places.take(np.unique(here)) == DELETED).sum())
            self._places[here] = places[free]  # of several, the last stays
            won = free.copy()
            won[free] = self._places.take(here) == places[free]
            self._keys[at[won]] = keys[won]
            keys, places, at = keys[~won], places[~won], (at[~won] + 1) & self._mask

    def _rebuild(self, more: int) -> None:
        keys, places = self.entries()
        entries = SMALLEST
        while self.count + more > self._fullest * entries:
            entries *= 2
        self._allocate(entries)
        self._insert(keys, places)

    def remove(self, keys: Keys) -> Places:
        """Forgets keys that are in it; the places that are free now."""
        at = self._first(keys)
        freed = np.empty(keys.size, np.int32)
        open_ = np.arange(keys.size)
        while open_.size:
            places = self._places.take(at)
            hit = (self._keys.take(at) == keys.take(open_)) & (places >= 0)
            freed[open_[hit]] = places[hit]
            self._places[at[hit]] = DELETED
            open_, at = open_[~hit], (at[~hit] + 1) & self._mask
        self.count -= keys.size
        self._deleted += keys.size
        return freed

    def entries(self) -> tuple[Keys, Places]:
        """All keys and their places, in no order."""
        used = self._places >= 0
        return self._keys[used], self._places[used]

    def check_invariants(self) -> None:
        """Raises AssertionError where the state cannot be."""
        keys, places = self.entries()
        assert len(keys) == self.count == len(np.unique(keys)) == len(np.unique(places))
        assert self._deleted == int((self._places == DELETED).sum())
        assert (self.find(keys) == places).all()
