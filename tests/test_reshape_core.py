"""Which slices move: few, balanced, the lead last; and what the lead's clock makes of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramserver.core.clock import GroupClock
from paramserver.core.decisions import Advance, Close
from paramserver.core.ledger import Ledger, Receipt
from paramserver.core.placement import SliceMap
from paramserver.core.reshape import Move, batches, holders, moved, redeal
from paramserver.errors import ConfigurationError, InvalidRequestError
from paramserver.types import Consistency, Stale, Sync, WorkerId

names = st.sampled_from(["ps-0", "ps-1", "ps-2", "ps-3"])
wholes = st.lists(st.tuples(names, st.integers(0, 1 << 20)), min_size=1, max_size=60)
some = st.lists(names, min_size=1, max_size=4, unique=True)


def carried(owners: list[str], moves: list[Move]) -> list[str]:
    after = list(owners)
    for move in moves:
        for slice_ in move.slices:
            assert after[slice_] == move.source
            after[slice_] = move.destination
    return after


def loads(owners: list[str], sizes: list[int], servers: list[str]) -> list[int]:
    return [sum(s for o, s in zip(owners, sizes, strict=True) if o == n) for n in servers]


@given(wholes, some)
def test_every_slice_ends_on_a_server_that_stays_and_loads_are_even(
    whole: list[tuple[str, int]], servers: list[str]
) -> None:
    owners, sizes = [o for o, _ in whole], [s for _, s in whole]
    after = carried(owners, redeal(owners, sizes, servers))
    assert set(after) <= set(servers)
    loaded = loads(after, sizes, servers)
    spare = sizes[0] if owners[0] in servers else 0  # slice 0 stays, however heavy
    assert max(loaded) - min(loaded) <= max(sizes) + spare


@given(wholes, some)
def test_moving_again_moves_nothing(whole: list[tuple[str, int]], servers: list[str]) -> None:
    owners, sizes = [o for o, _ in whole], [s for _, s in whole]
    after = carried(owners, redeal(owners, sizes, servers))
    assert redeal(after, sizes, servers) == []


@given(wholes, some)
def test_the_lead_stays_unless_its_server_leaves(
    whole: list[tuple[str, int]], servers: list[str]
) -> None:
    owners, sizes = [o for o, _ in whole], [s for _, s in whole]
    moves = redeal(owners, sizes, servers)
    if owners[0] in servers:
        assert all(0 not in move.slices for move in moves)


@given(st.integers(1, 80), st.integers(1, 4), st.integers(1, 4))
def test_equal_slices_move_as_few_as_can_be(count: int, before: int, after: int) -> None:
    owners = [f"ps-{i % before}" for i in range(count)]
    servers = [f"ps-{i}" for i in range(after)]
    moves = redeal(owners, [1] * count, servers)
    share = -(-count // after)
    # What must leave, and what is above a fair share.
    least = sum(
        owners.count(f"ps-{i}") if i >= after else max(0, owners.count(f"ps-{i}") - share)
        for i in range(before)
    )
    assert least <= len(moves) <= least + after


def test_a_server_that_leaves_gives_up_all_it_has() -> None:
    moves = redeal(["ps-0", "ps-1", "ps-1"], [5, 5, 5], ["ps-0"])
    assert [m.slices for m in moves] == [(1,), (2,)]
    with pytest.raises(ConfigurationError, match="at least one server"):
        redeal(["ps-0"], [1], [])


@given(wholes, some, st.integers(1, 1 << 21))
def test_batches_carry_the_same_moves(
    whole: list[tuple[str, int]], servers: list[str], limit: int
) -> None:
    owners, sizes = [o for o, _ in whole], [s for _, s in whole]
    moves = redeal(owners, sizes, servers)
    parts = list(batches(moves, sizes, limit))
    assert carried(owners, parts) == carried(owners, moves)
    for part in parts:
        assert len(part.slices) == 1 or sum(sizes[i] for i in part.slices) <= limit


def test_a_map_after_a_move_names_those_that_hold_slices() -> None:
    before = SliceMap(3, ("ps-0", "ps-1"), ("a:1", "b:1"), 10, (0, 1, 1), 0)
    after = moved(before, Move((0,), "ps-0", "ps-2"), 4, {"ps-2": "c:1"})
    assert after == SliceMap(4, ("ps-1", "ps-2"), ("b:1", "c:1"), 10, (1, 0, 0), 1)
    assert holders(after) == ["ps-1", "ps-2"]
    with pytest.raises(InvalidRequestError, match="slice 1 is on ps-1, not on ps-0"):
        moved(after, Move((1,), "ps-0", "ps-2"), 5, {})


# The lead's clock

A, B = WorkerId(0, 1), WorkerId(1, 1)


def clock_of(consistency: Consistency, *servers: str) -> GroupClock:
    clock = GroupClock(consistency, servers)
    clock.observe(started=True, active=[A, B], lost=[])
    return clock


@pytest.mark.parametrize("consistency", [Sync(), Stale(1)])
def test_a_clock_waits_for_servers_that_joined_and_for_none_that_left(
    consistency: Consistency,
) -> None:
    clock = clock_of(consistency, "ps-0", "ps-1")
    for worker in (A, B):
        assert not clock.staged("ps-0", worker, 0, 1.0)
    clock.staged("ps-1", A, 0, 1.0)
    assert clock.reshape(["ps-0", "ps-2"]) == []  # ps-2 has not told anything
    clock.check_invariants()
    assert not clock.staged("ps-2", A, 0, 1.0)
    made = clock.staged("ps-2", B, 0, 1.0)
    assert [type(d) for d in made] == [Close if isinstance(consistency, Sync) else Advance]
    clock.check_invariants()


def test_the_last_server_that_was_awaited_may_leave() -> None:
    clock = clock_of(Sync(), "ps-0", "ps-1")
    for worker in (A, B):
        clock.staged("ps-0", worker, 0, 1.0)
    (made,) = clock.reshape(["ps-0"])
    assert isinstance(made, Close)
    clock.check_invariants()


def test_a_ledger_does_not_compare_what_was_pushed_to_other_slices() -> None:
    ledger = Ledger()
    ledger.open(A, 0, [1])
    ledger.take(A, 0, 1, 77)
    ledger.complete(A, 0, Receipt(0, 1, 0.0, applied=True), ())
    assert ledger.digest(A, 0) is not None
    ledger.reshape()
    assert ledger.digest(A, 0) is None
    assert ledger.open(A, 0, [1, 2]) is not None
    ledger.check_invariants()
