"""The index against a dict."""

from __future__ import annotations

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from paramserver.ps.tables.index import MISSING, Index
from paramserver.wire.rows import ids_of, keys_of

IDS = st.lists(
    st.integers(-5, 40) | st.integers(-(1 << 63), (1 << 63) - 1), unique=True, max_size=60
)


def keys(ids: list[int]) -> np.ndarray:
    return keys_of(np.array(ids, np.int64))


def test_a_key_names_one_id() -> None:
    ids = np.array([0, 1, -1, (1 << 63) - 1, -(1 << 63)], np.int64)
    assert (ids_of(keys_of(ids)) == ids).all()


class AgainstADict(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.index = Index()
        self.model: dict[int, int] = {}
        self.next = 0

    @rule(ids=IDS)
    def add(self, ids: list[int]) -> None:
        new = [i for i in ids if i not in self.model]
        places = np.arange(self.next, self.next + len(new), dtype=np.int32)
        self.next += len(new)
        self.index.add(keys(new), places)
        self.model.update(zip(new, places.tolist(), strict=True))

    @rule(ids=IDS)
    def find(self, ids: list[int]) -> None:
        wanted = [self.model.get(i, MISSING) for i in ids]
        assert self.index.find(keys(ids)).tolist() == wanted

    @rule(ids=IDS)
    def remove(self, ids: list[int]) -> None:
        there = [i for i in ids if i in self.model]
        freed = self.index.remove(keys(there))
        assert freed.tolist() == [self.model.pop(i) for i in there]

    @invariant()
    def consistent(self) -> None:
        self.index.check_invariants()


AgainstADict.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestAgainstADict = AgainstADict.TestCase


def test_it_grows() -> None:
    index = Index()
    ids = np.random.default_rng(0).integers(-(1 << 62), 1 << 62, 20_000)
    ids = np.unique(ids)
    for part in np.array_split(ids, 7):
        index.add(keys_of(part), np.arange(index.count, index.count + len(part), dtype=np.int32))
    index.check_invariants()
    assert (index.find(keys_of(ids)) == np.arange(len(ids))).all()
    assert (index.find(keys_of(ids + 1)) == MISSING).mean() > 0.99
