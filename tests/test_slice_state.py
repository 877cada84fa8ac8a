"""A slice's state goes on elsewhere as if it had never moved, to the bit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import paramserver as ps
from paramserver.core.slices import TensorSpec
from paramserver.core.tables import SUB_TABLES, Initial
from paramserver.errors import InvalidRequestError
from paramserver.ps.tables.bucket import RowBucket
from paramserver.ps.tables.rules import RULES, complete, row_rule
from paramserver.ps.tables.store import Layout, Rows
from paramserver.slice_state import SliceState, only_changes, with_changes
from paramserver.wire.rows import keys_of
from tests.test_rules import UNDER_TEST, Group, random

TENSORS = [
    TensorSpec("w", (5, 4), "float32"),
    TensorSpec("half", (9,), "bfloat16"),
    TensorSpec("mean", (3,), "float32", "delta"),
    TensorSpec("count", (), "int64", "maximum"),
    TensorSpec("none", (0,), "float32"),
    TensorSpec("v", (11,), "float64"),
]
OPTIMIZERS = [*UNDER_TEST, ("DelayedNesterov", {"lr": 0.1, "every": 3})]
DIM = 3


def plain(state: SliceState) -> SliceState:
    """As it comes out of a file."""
    tensors = {name: tensor.clone() for name, tensor in state.tensors.items()}
    return SliceState(tensors, json.loads(json.dumps(dict(state.numbers))))


def moved(group: Group, buckets: int) -> Group:
    """The same slices in other buckets."""
    first = group.buckets[0]
    other = Group(group.tensors, first._name, first._registered, buckets=buckets)
    states = {i: plain(s) for bucket in group.buckets for i, s in bucket.dump().items()}
    for bucket in other.buckets:
        bucket.load({i: states[i] for i in bucket.indices})
    return other


def pushes(seed: int) -> list[tuple[float, dict[str, Tensor]]]:
    given = [random(TENSORS, 10 * seed + k) for k in range(2)]
    for tensors in given:
        tensors["count"] = torch.tensor(seed)
        if seed % 3 == 1:
            del tensors["w"]
    return [(2.0, given[0]), (3.0, given[1])]


@pytest.mark.parametrize(("optimizer", "options"), OPTIMIZERS, ids=lambda value: str(value)[:40])
@pytest.mark.parametrize("how", ["close", "arrive"])
def test_a_dumped_group_goes_on_exactly(optimizer: str, options: dict[str, Any], how: str) -> None:
    stays = Group(TENSORS, optimizer, [options], buckets=1)
    stays.store({**random(TENSORS, 1), "count": torch.tensor(0)})
    moves = moved(stays, 3)
    for seed in range(8):
        for group in (stays, moves):
            if how == "close":
                group.close(pushes(seed))
            else:
                group.arrive(pushes(seed)[0][1], late=seed % 3, options=[{**options, "lr": 0.02}])
        moves = moved(moves, 1 + seed % 4)
        for name, value in stays.values().items():
            assert torch.equal(value, moves.values()[name]), (seed, name)
    for index in stays.buckets[0].indices:
        one = stays.buckets[0].dump([index])[index]
        other = next(b for b in moves.buckets if index in b.indices).dump([index])[index]
        assert one.numbers == other.numbers
        assert one.tensors.keys() == other.tensors.keys()
        assert all(torch.equal(one.tensors[n], other.tensors[n]) for n in one.tensors)


def test_a_dump_is_a_copy() -> None:
    group = Group(TENSORS, "Adam", [{}])
    group.store({**random(TENSORS, 1), "count": torch.tensor(0)})
    group.close(pushes(0))
    before = group.buckets[0].dump()
    kept = {i: {n: t.clone() for n, t in s.tensors.items()} for i, s in before.items()}
    other = moved(group, 1)
    other.buckets[0].load(before)
    group.close(pushes(1))
    other.close(pushes(2))
    for index, state in before.items():
        assert all(torch.equal(t, kept[index][n]) for n, t in state.tensors.items())


def test_a_slice_without_a_first_value_is_dumped_as_that() -> None:
    group = Group(TENSORS, "Adam", [{}])
    index = group.buckets[0].indices[0]
    assert group.buckets[0].dump([index]) == {index: SliceState({}, {"version": 0, "changed": 0})}
    other = moved(group, 2)
    assert not any(bucket.stored for bucket in other.buckets)
    other.store({**random(TENSORS, 1), "count": torch.tensor(0)})
    other.close(pushes(0))


def test_states_that_cannot_be_are_refused() -> None:
    group = Group([TensorSpec("w", (20,), "float32")], "Adam", [{}], elements=20)
    group.store({"w": torch.ones(20)})
    bucket = group.buckets[0]
    good = bucket.dump()[0]
    for tensors, words in [
        ({"value": torch.ones(19)}, "19 elements"),
        ({"value": torch.ones(20, dtype=torch.float64)}, "float64"),
        ({"value": torch.ones(20), "exp_avg": torch.ones(3)}, "3 elements of exp_avg"),
    ]:
        with pytest.raises(InvalidRequestError, match=words):
            bucket.load({0: SliceState(tensors, good.numbers)})
    with pytest.raises(InvalidRequestError, match="not of this bucket"):
        bucket.load({7: good})
    assert torch.equal(bucket.values[0], torch.ones(20))


# Tables


def row_bucket(name: str, admit: Any = None, evict: Any = None) -> RowBucket:
    rule = row_rule(name) if name else None
    options = complete(name, {}) if name else {}
    layout = Layout(DIM, rule, options, Initial("normal", 0.0, 0.1, seed=3), admit, evict)
    return RowBucket(7, layout, 0)


def keys(ids: Sequence[int]) -> Any:
    return keys_of(np.asarray(ids, np.int64))


def rows_of(ids: Sequence[int], seed: int) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    return Rows(keys(ids), torch.randn(len(ids), DIM, generator=generator))


def same(one: RowBucket, other: RowBucket) -> None:
    left, right = one.dump()[7], other.dump()[7]
    assert left.numbers == right.numbers
    assert left.tensors.keys() == right.tensors.keys()
    for name, tensor in left.tensors.items():
        assert torch.equal(tensor, right.tensors[name]), name


def reloaded(bucket: RowBucket) -> RowBucket:
    other = RowBucket(7, bucket.table.layout, 0)
    other.load({7: plain(bucket.dump()[7])})
    return other


LIVES: list[tuple[Any, Any]] = [
    (None, None),
    (ps.CountFilter(3), None),
    (ps.Probability(0.5), None),
    (None, ps.TTL(clocks=4)),
    (ps.CountFilter(2), ps.TTL(clocks=5)),
    (ps.CountFilter(2), ps.LRU(SUB_TABLES * 4)),
    (None, ps.LRU(SUB_TABLES * 5)),
    (None, ps.Decay(0.6, 0.2)),
]
STEPS = st.lists(
    st.tuples(
        st.lists(st.integers(0, 25), unique=True, max_size=9),
        st.sampled_from(["close", "arrive", "tick", "shrink"]),
        st.booleans(),
    ),
    min_size=1,
    max_size=25,
)


def do(bucket: RowBucket, ids: Sequence[int], how: str, seed: int) -> None:
    if how == "close":
        more = rows_of(sorted({*ids, *range(seed % 4)}), seed + 1000)
        bucket.close([(2.0, {7: rows_of(ids, seed)}), (1.0, {7: more})])
    elif how == "arrive":
        bucket.arrive({7: rows_of(ids, seed)}, (), {7: bucket.versions[7] - seed % 3}, "inverse")
    elif how == "tick":
        bucket.tick([7])
    else:
        bucket.shrink()


@pytest.mark.parametrize(("admit", "evict"), LIVES, ids=str)
@settings(max_examples=25, deadline=None)
@given(steps=STEPS)
def test_a_sub_table_goes_on_exactly_whatever_lives_in_it(
    admit: Any, evict: Any, steps: list[tuple[list[int], str, bool]]
) -> None:
    stays, moves = (row_bucket("", admit, evict) for _ in range(2))
    for seed, (ids, how, move) in enumerate(steps):
        for bucket in (stays, moves):
            do(bucket, ids, how, seed)
        if move:
            moves = reloaded(moves)
        same(stays, moves)
        moves.table.check_invariants()


@pytest.mark.parametrize("name", RULES)
def test_a_sub_table_goes_on_exactly_with_every_optimizer(name: str) -> None:
    stays, moves = row_bucket(name), row_bucket(name)
    for seed in range(12):
        ids = sorted({(seed * 7 + k * k) % 23 for k in range(6)})
        for bucket in (stays, moves):
            do(bucket, ids, "arrive" if seed % 2 else "close", seed)
        moves = reloaded(moves)
        same(stays, moves)


@pytest.mark.parametrize(("admit", "evict"), LIVES, ids=str)
@settings(max_examples=25, deadline=None)
@given(steps=STEPS, cut=st.integers(0, 24))
def test_changes_on_a_base_are_the_whole(
    admit: Any, evict: Any, steps: list[tuple[list[int], str, bool]], cut: int
) -> None:
    bucket = row_bucket("RowAdagrad", admit, evict)
    base = plain(bucket.dump()[7])
    for seed, (ids, how, _) in enumerate(steps):
        if seed == cut:
            base = plain(bucket.dump()[7])
        do(bucket, ids, how, seed)
    whole, since = bucket.dump()[7], int(base.numbers["version"])
    changes = bucket.dump(since=since)[7]
    again = only_changes(whole, since)
    assert changes.tensors.keys() == again.tensors.keys()
    assert all(torch.equal(changes.tensors[n], again.tensors[n]) for n in changes.tensors)
    laid = with_changes(base, plain(changes))
    assert laid.tensors.keys() == whole.tensors.keys()
    assert all(torch.equal(laid.tensors[n], whole.tensors[n]) for n in whole.tensors)
    assert laid.numbers == whole.numbers
    with pytest.raises(InvalidRequestError, match="or changes"):
        row_bucket("RowAdagrad", admit, evict).load({7: changes})
    if laid.numbers["version"] != since:
        with pytest.raises(InvalidRequestError, match="changes since"):
            with_changes(laid, changes)


def test_ages_in_seconds_go_on() -> None:
    bucket = row_bucket("", evict=ps.TTL(seconds=100.0))
    now = [0.0]
    oldest = bucket.table._oldest
    assert oldest is not None
    oldest._now = lambda: now[0]
    for at, ids in ((1.0, [1]), (60.0, [2])):
        now[0] = at
        bucket.arrive({7: rows_of(ids, 0)}, (), {}, "none")
    now[0] = 90.0
    state: Mapping[int, SliceState] = {7: plain(bucket.dump()[7])}
    other = RowBucket(7, bucket.table.layout, 0)
    other.load(state)
    later = other.table._oldest
    assert later is not None
    start = later._now()
    later._now = lambda: start + 15.0  # 105 after the beginning
    assert other.shrink() == 1
    assert len(other.table) == 1


def test_a_table_of_another_width_is_refused() -> None:
    one, other = row_bucket("RowAdagrad"), row_bucket("SGD")
    do(one, [1, 2], "close", 0)
    with pytest.raises(InvalidRequestError, match="another dim or optimizer"):
        other.load(one.dump())
