"""Who the replicas are: formations under any order of events; buckets and headers beside them."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from paramserver.core.replicas import Formed, Missing, Offer, Replicas
from paramserver.errors import NotFoundError
from paramserver.types import Span, WorkerId
from paramserver.worker.buckets import assign, pack
from paramserver.worker.headers import SPANS, Header, headers, more, table

A, B, C = WorkerId(0, 1), WorkerId(1, 2), WorkerId(2, 3)


def offer(sequence: int = 1, clock: int = 0, *, whole: bool = False, at: str = "x:1") -> Offer:
    return Offer(sequence, clock, at, whole)


def formed(replicas: Replicas, *who: WorkerId, clock: int = 0, whole: bool = False) -> Formed:
    """Forms with exactly these."""
    calls = offer(replicas.number + 99, clock, whole=whole)
    found = [replicas.form(w, calls, who) for w in who]
    assert isinstance(found[-1], Formed)
    return found[-1]


def test_all_must_come_and_all_are_told_the_same() -> None:
    replicas = Replicas("g")
    assert replicas.form(B, offer(at="b:1"), [A, B]) == Missing((A,))
    told = replicas.form(A, offer(at="a:1"), [A, B])
    assert told == Formed(1, (A, B), "a:1", A, spread=True)
    assert replicas.form(B, offer(at="b:1"), [A, B]) is told


def test_the_highest_clock_counts_and_a_stranger_never() -> None:
    replicas = Replicas("g")
    formed(replicas, B, C)
    replicas.form(A, offer(clock=0), [A, B, C])  # a joiner, of the lowest rank
    replicas.form(B, offer(2, clock=4, whole=True), [A, B, C])
    told = replicas.form(C, offer(2, clock=5, whole=True), [A, B, C])
    assert isinstance(told, Formed)
    assert (told.root, told.spread) == (C, True)


def test_equal_clocks_need_no_copies() -> None:
    replicas = Replicas("g")
    formed(replicas, A, B, C)
    replicas.leave(B)
    assert not formed(replicas, A, C, clock=3, whole=True).spread


def test_survivors_tell_of_the_lost() -> None:
    replicas = Replicas("g")
    formed(replicas, A, B, C)
    replicas.leave(C)
    assert replicas.untold(C)
    spans = {C: (Span(7, 0, 4),)}
    replicas.form(A, Offer(2, 3, "", True, spans), [A, B])
    replicas.form(B, Offer(2, 3, "", True, {C: (Span(7, 4, 6),)}), [A, B])
    assert not replicas.untold(C)
    assert replicas.told(C) == {Span(7, 0, 4), Span(7, 4, 6)}


def test_values_that_nobody_has_are_not_made_up() -> None:
    replicas = Replicas("g")
    formed(replicas, A)
    replicas.leave(A)
    with pytest.raises(NotFoundError, match="every replica of formation 1 is gone"):
        replicas.form(B, offer(), [B])
    assert not replicas.untold(A)


class Formations(RuleBasedStateMachine):
    """Workers come, ask, ask again, leave and come back as newer incarnations."""

    def __init__(self) -> None:
        super().__init__()
        self.replicas = Replicas("g")
        self.here: dict[int, WorkerId] = {}
        self.sequence: dict[WorkerId, int] = {}
        self.asking: set[WorkerId] = set()
        self.numbers = 0

    @rule(rank=st.integers(0, 3))
    def comes(self, rank: int) -> None:
        if rank in self.here:
            self._leave(rank)
        self.numbers += 1
        self.here[rank] = WorkerId(rank, self.numbers)

    @rule(rank=st.integers(0, 3))
    @precondition(lambda self: self.here)
    def leaves(self, rank: int) -> None:
        if rank in self.here:
            self._leave(rank)

    def _leave(self, rank: int) -> None:
        who = self.here.pop(rank)
        self.asking.discard(who)
        self.replicas.leave(who)

    @rule(rank=st.integers(0, 3), clock=st.integers(0, 5), fresh=st.booleans())
    def asks(self, rank: int, clock: int, fresh: bool) -> None:
        who = self.here.get(rank)
        if who is None:
            return
        if fresh and who not in self.asking:
            self.sequence[who] = self.sequence.get(who, 0) + 1
        call = Offer(self.sequence.setdefault(who, 1), clock, f"{rank}:1", clock > 0)
        try:
            found = self.replicas.form(who, call, list(self.here.values()))
        except NotFoundError:
            assert self.replicas.number
            assert not self.replicas.live
            return
        if isinstance(found, Missing):
            self.asking.add(who)
            assert found.workers
            assert who not in found.workers
        else:
            assert who in found.replicas
            assert found.root in found.replicas
            assert list(found.replicas) == sorted(found.replicas)
            self.asking.discard(who)

    @invariant()
    def parts_agree(self) -> None:
        self.replicas.check_invariants()
        assert self.replicas.live <= set(self.here.values())


TestFormations = Formations.TestCase
TestFormations.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@given(st.lists(st.integers(0, 40), max_size=30))
def test_buckets_are_filled_in_order(sizes: list[int]) -> None:
    numbers = assign(sizes, first=5, rest=20)
    assert numbers == sorted(numbers)
    assert all(b - a <= 1 for a, b in itertools.pairwise(numbers))
    for number in set(numbers):
        inside = [s for s, n in zip(sizes, numbers, strict=True) if n == number]
        assert sum(inside) <= (20 if number else 5) or sum(s > 0 for s in inside) == 1


def test_a_bucket_packs_and_finds_nan() -> None:
    tensors = {"a": torch.ones(2, 3), "b": torch.arange(4.0), "c": torch.ones(2).double()}
    first, second = pack("step", tensors)
    assert (first.names, second.names) == (("a", "b"), ("c",))
    first.fill({"b": torch.full((4,), 2.0)})
    assert torch.equal(first.flat, torch.tensor([0.0] * 6 + [2.0] * 4))
    assert first.is_finite()
    first.fill({"a": torch.full((2, 3), torch.nan)})
    assert not first.is_finite()


@given(
    st.lists(
        st.builds(
            Header,
            weight=st.floats(0, 1e9),
            active=st.booleans(),
            forming=st.booleans(),
            changed=st.booleans(),
            partial=st.booleans(),
            spans=st.lists(
                st.builds(Span, st.integers(1, 2**62), st.integers(0, 2**62), st.integers(0, 9)),
                max_size=SPANS + 4,
            ).map(tuple),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_headers_arrive_as_they_were(given_: list[Header]) -> None:
    size = len(given_)
    rows = sum((table(size, i, h) for i, h in enumerate(given_)), torch.zeros(1).long())
    rests = [more(size, i, h, rows) for i, h in enumerate(given_)]
    rest = None if rests[0] is None else torch.stack([r for r in rests if r is not None]).sum(0)
    assert headers(rows, rest) == given_
