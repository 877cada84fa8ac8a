"""Rounds count identities, have generations, and answer a repeated call the same."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from paramserver.core.rounds import KEPT_ANSWERS, Released, Rounds, Waiting
from paramserver.errors import InvalidRequestError
from paramserver.types import WorkerId

A, B, C = (WorkerId(rank, 1) for rank in range(3))
ALL = [A, B, C]


def test_a_round_waits_for_all_that_were_there() -> None:
    rounds = Rounds()
    first = rounds.join("x", B, 0, ALL)
    assert first == Waiting("x", 1, (A, C), 2)
    assert rounds.join("x", C, 0, ALL) == Waiting("x", 1, (A,), 1)
    done = rounds.join("x", A, 0, ALL)
    assert isinstance(done, Released)
    assert [a.rank for a in done.arrivals] == [0, 1, 2]


def test_it_counts_identities_not_messages() -> None:
    rounds = Rounds()
    for _ in range(5):
        assert isinstance(rounds.join("x", A, 0, ALL), Waiting)
    assert isinstance(rounds.join("x", B, 0, ALL), Waiting)
    assert isinstance(rounds.join("x", C, 0, ALL), Released)


def test_every_round_of_a_name_is_a_barrier_of_its_own() -> None:
    rounds = Rounds()
    numbers = set()
    for generation in range(3):
        rounds.join("x", A, generation, [A, B])
        done = rounds.join("x", B, generation, [A, B])
        assert isinstance(done, Released)
        numbers.add(done.number)
    assert len(numbers) == 3


def test_a_repeated_call_after_the_release_gets_the_same_answer() -> None:
    rounds = Rounds()
    rounds.join("x", A, 0, [A, B])
    done = rounds.join("x", B, 0, [A, B])
    again = rounds.join("x", A, 0, [A, B])
    assert isinstance(done, Released)
    assert isinstance(again, Released)
    assert (again.number, again.arrivals) == (done.number, done.arrivals)
    assert (done.again, again.again) == (False, True)
    assert not rounds.waiting()


def test_a_call_from_the_past_is_refused() -> None:
    rounds = Rounds()
    rounds.join("x", A, 3, [A])
    with pytest.raises(InvalidRequestError, match="done already"):
        rounds.join("x", A, 2, [A])
    rounds.join("y", A, 3, ALL)
    with pytest.raises(InvalidRequestError, match="came before"):
        rounds.join("y", A, 2, ALL)


def test_who_leaves_is_not_waited_for_and_not_counted() -> None:
    rounds = Rounds()
    rounds.join("x", A, 0, ALL)
    rounds.join("x", B, 0, ALL)
    assert rounds.leave([B]) == []
    (done,) = rounds.leave([C])
    assert [a.worker for a in done.arrivals] == [A]


def test_two_that_leave_together_are_in_no_answer() -> None:
    rounds = Rounds()
    rounds.join("x", A, 0, ALL)
    rounds.join("x", B, 0, ALL)
    (done,) = rounds.leave([B, C])
    assert [a.worker for a in done.arrivals] == [A]


def test_a_late_joiner_takes_part_and_is_not_waited_for() -> None:
    rounds = Rounds()
    late = WorkerId(3, 1)
    rounds.join("x", A, 0, [A, B])
    rounds.join("x", late, 0, [A, B, late])
    done = rounds.join("x", B, 0, [A, B, late])
    assert isinstance(done, Released)
    assert [a.rank for a in done.arrivals] == [0, 1, 3]


def test_who_gives_up_is_still_needed() -> None:
    rounds = Rounds()
    rounds.join("x", A, 0, [A, B])
    rounds.withdraw(A)
    assert not rounds.waiting()
    rounds.join("x", A, 1, ALL)
    rounds.join("x", B, 0, ALL)
    rounds.withdraw(B)
    assert rounds.join("x", C, 0, ALL) == Waiting("x", 2, (B,), 1)


def test_answers_are_kept_for_few_names() -> None:
    rounds = Rounds()
    for number in range(KEPT_ANSWERS + 1):
        rounds.join(f"n{number}", A, 0, [A])
    assert isinstance(rounds.join(f"n{KEPT_ANSWERS}", A, 0, [A]), Released)
    oldest = rounds.join("n0", A, 0, [A])
    assert isinstance(oldest, Released)
    assert not oldest.again


class RoundsMachine(RuleBasedStateMachine):
    """A round is released exactly when every identity that it needs has arrived or left."""

    def __init__(self) -> None:
        super().__init__()
        self.rounds = Rounds()
        self.present = {WorkerId(rank, 1) for rank in range(3)}
        self.calls: dict[tuple[WorkerId, str], int] = {}
        self.blocked: dict[tuple[WorkerId, str], int] = {}
        self.needed: dict[str, set[WorkerId]] = {}
        self.numbers: set[int] = set()

    workers = st.integers(0, 3).map(lambda rank: WorkerId(rank, 1))
    names = st.sampled_from(["x", "y"])

    @rule(who=workers, name=names, times=st.integers(1, 3))
    def join(self, who: WorkerId, name: str, times: int) -> None:
        if who not in self.present:
            return
        key = (who, name)
        opens = not any(n == name for _, n in self.blocked)
        if key not in self.blocked:
            self.calls[key] = self.calls.get(key, -1) + 1
            self.blocked[key] = self.calls[key]
        if opens:
            self.needed[name] = set(self.present)
        for _ in range(times):
            found = self.rounds.join(name, who, self.calls[key], self.present)
        self.judge(name, found if isinstance(found, Released) else None)

    def judge(self, name: str, released: Released | None) -> None:
        arrived = {w for w, n in self.blocked if n == name}
        complete = bool(arrived) and self.needed.get(name, set()) <= arrived
        assert complete == (released is not None)
        if released is None:
            return
        assert {a.worker for a in released.arrivals} == arrived
        assert list(released.arrivals) == sorted(released.arrivals)
        assert released.number not in self.numbers
        self.numbers.add(released.number)
        for who in arrived:
            sequence = self.blocked.pop((who, name))
            again = self.rounds.join(name, who, sequence, self.present)
            assert isinstance(again, Released)
            assert again.again
            assert again.arrivals == released.arrivals

    @rule(who=workers)
    def leave(self, who: WorkerId) -> None:
        self.present.discard(who)
        for name in ("x", "y"):
            self.blocked.pop((who, name), None)
            self.needed.get(name, set()).discard(who)
        released = {r.name: r for r in self.rounds.leave([who])}
        for name in ("x", "y"):
            self.judge(name, released.get(name))

    @rule(who=workers)
    def come(self, who: WorkerId) -> None:
        self.present.add(who)

    @invariant()
    def parts_agree(self) -> None:
        self.rounds.check_invariants()


RoundsMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestRounds = RoundsMachine.TestCase
