"""The exactly-once record of a server."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from paramserver.core.ledger import KEPT_LEASES, WINDOW, Ledger, Receipt
from paramserver.errors import ClockError, FencedError, InvalidRequestError, ResourceError
from paramserver.types import Span, WorkerId

W = WorkerId(0, 1)
OTHER = WorkerId(1, 2)


def applied(clock: int) -> Receipt:
    return Receipt(clock, clock + 1, 0.0, applied=True)


def staged(clock: int) -> Receipt:
    return Receipt(clock, 0, 0.0, applied=False)


def dropped(clock: int) -> Receipt:
    return Receipt(clock, 0, 0.0, applied=False, dropped=True)


def push(
    ledger: Ledger, clock: int, receipt: Receipt, spans: tuple[Span, ...] = (), worker: WorkerId = W
) -> None:
    assert ledger.open(worker, clock, [0, 1]) is None
    assert ledger.take(worker, clock, 0, 10)
    assert ledger.take(worker, clock, 1, 11)
    ledger.complete(worker, clock, receipt, spans)
    ledger.check_invariants()


def test_a_push_is_taken_once() -> None:
    ledger = Ledger()
    push(ledger, 0, applied(0))
    assert ledger.open(W, 0, [0, 1]) == applied(0)
    assert ledger.receipt(W, 0) == applied(0)
    assert not ledger.take(W, 0, 0, 10), "late bytes of a completed push"
    assert ledger.duplicates == 3
    push(ledger, 1, applied(1))
    assert ledger.expected(W) == 2


def test_a_push_resumes_where_it_broke() -> None:
    ledger = Ledger()
    ledger.open(W, 0, [3, 4, 5])
    assert ledger.take(W, 0, 4, 44)
    assert ledger.open(W, 0, [5, 4, 3]) is None
    assert ledger.missing(W, 0) == {3, 5}
    assert not ledger.take(W, 0, 4, 44)
    assert ledger.duplicates == 1
    with pytest.raises(InvalidRequestError, match="2 of 3 slices missing"):
        ledger.complete(W, 0, applied(0), [])
    with pytest.raises(InvalidRequestError, match="other bytes"):
        ledger.take(W, 0, 4, 45)
    with pytest.raises(InvalidRequestError, match="not declared"):
        ledger.take(W, 0, 6, 66)
    with pytest.raises(InvalidRequestError, match="other slices"):
        ledger.open(W, 0, [3, 4])
    assert ledger.missing(W, 0) == {3, 5}
    ledger.check_invariants()


def test_a_refused_push_changes_nothing() -> None:
    ledger = Ledger()
    with pytest.raises(InvalidRequestError, match="twice"):
        ledger.open(W, 0, [1, 1])
    with pytest.raises(ClockError, match="must be >= 0"):
        ledger.open(W, -1, [])
    with pytest.raises(InvalidRequestError, match="not open"):
        ledger.take(W, 0, 0, 1)
    with pytest.raises(InvalidRequestError, match="no open push"):
        ledger.complete(W, 0, applied(0), [])
    with pytest.raises(InvalidRequestError, match="no completed push"):
        ledger.amend(W, 0, applied(0))
    assert ledger.expected(W) is None
    ledger.open(W, 0, [])
    with pytest.raises(InvalidRequestError, match="must begin at 0"):
        ledger.complete(W, 0, applied(0), [Span(1, 3, 2)])
    ledger.complete(W, 0, applied(0), [])


def test_clocks_do_not_skip_and_do_not_return() -> None:
    ledger = Ledger(keep=WINDOW)
    push(ledger, 5, applied(5))
    with pytest.raises(ClockError, match="clock 7 skips one: expected clock 6"):
        ledger.open(W, 7, [])
    with pytest.raises(ClockError, match="clock 4 has passed: expected clock 6"):
        ledger.open(W, 4, [])
    for clock in range(6, 6 + WINDOW):
        push(ledger, clock, applied(clock))
    with pytest.raises(ClockError, match="has passed"):
        ledger.open(W, 5, [0, 1])


def test_the_lead_sets_a_clock_forward_only() -> None:
    ledger = Ledger()
    ledger.expect(W, 3)
    with pytest.raises(ClockError, match="expected clock 3"):
        ledger.open(W, 0, [])
    push(ledger, 3, applied(3))
    ledger.expect(W, 3)
    assert ledger.expected(W) == 4
    ledger.expect(W, 9)
    push(ledger, 9, applied(9))


def test_an_older_incarnation_is_fenced() -> None:
    ledger = Ledger()
    older, newer = WorkerId(0, 1), WorkerId(0, 2)
    assert ledger.open(older, 0, [0]) is None
    assert ledger.open(newer, 4, [0]) is None, "a new incarnation starts where its lead says"
    with pytest.raises(FencedError, match="incarnation 1 is fenced, 2 has come"):
        ledger.open(older, 0, [0])
    with pytest.raises(FencedError):
        ledger.take(older, 0, 0, 1)
    with pytest.raises(FencedError):
        ledger.expect(older, 7)
    ledger.forget(0, below=2)
    assert ledger.expected(older) is None
    with pytest.raises(FencedError):
        ledger.open(older, 0, [0])
    assert ledger.take(newer, 4, 0, 1)


def test_pushes_are_staged_then_applied_or_dropped() -> None:
    ledger = Ledger()
    push(ledger, 0, staged(0), (Span(7, 0, 10),))
    push(ledger, 1, staged(1), (Span(7, 10, 20),))
    assert ledger.applied_spans(W) == []
    ledger.amend(W, 0, applied(0))
    ledger.amend(W, 1, dropped(1))
    ledger.check_invariants()
    assert ledger.applied_spans(W) == [Span(7, 0, 10)]
    ledger.amend(W, 0, dropped(0))
    assert ledger.open(W, 0, [0, 1]) == applied(0), "what is applied stays applied"
    assert ledger.open(W, 1, [0, 1]) == dropped(1)


def test_a_push_under_way_may_be_dropped() -> None:
    ledger = Ledger()
    ledger.open(W, 0, [0, 1])
    with pytest.raises(InvalidRequestError):
        ledger.amend(W, 0, applied(0))
    ledger.amend(W, 0, dropped(0))
    ledger.check_invariants()
    assert ledger.open(W, 0, [0, 1]) == dropped(0)


def test_abandoned_pushes_start_again() -> None:
    ledger = Ledger()
    ledger.abandon(W, 0)
    push(ledger, 0, applied(0))
    push(ledger, 1, staged(1), (Span(1, 0, 5),))
    ledger.open(W, 2, [0])
    ledger.take(W, 2, 0, 1)
    ledger.open(W, 3, [0])
    for clock in (1, 2, 0):
        ledger.abandon(W, clock)
        ledger.check_invariants()
    with pytest.raises(ClockError, match="expected clock 4"):
        ledger.open(W, 5, [])
    push(ledger, 2, staged(2))
    push(ledger, 1, staged(1), (Span(1, 0, 5),))
    ledger.abandon(W, 3)
    assert ledger.expected(W) == 3
    ledger.amend(W, 1, applied(1))
    assert ledger.applied_spans(W) == [Span(1, 0, 5)]
    assert ledger.open(W, 0, [0, 1]) == applied(0)


def test_a_deferred_push_may_change_until_it_is_committed() -> None:
    ledger = Ledger()
    ledger.open(W, 0, [0, 1])
    assert ledger.take(W, 0, 0, 10)
    assert ledger.take(W, 0, 0, 12, replace=True)
    assert not ledger.take(W, 0, 0, 12, replace=True)
    ledger.redeclare(W, 0, [0, 2])
    assert ledger.missing(W, 0) == {2}
    ledger.redeclare(W, 0, [])
    ledger.complete(W, 0, applied(0), [])


def test_staged_pushes_are_bounded() -> None:
    ledger = Ledger(keep=1)
    for clock in range(WINDOW - 1):
        push(ledger, clock, staged(clock))
    ledger.open(W, WINDOW - 1, [])
    with pytest.raises(ResourceError, match="64 pushes wait"):
        ledger.open(W, WINDOW, [])
    assert ledger.open(OTHER, 0, []) is None
    ledger.amend(W, 0, applied(0))
    assert ledger.open(W, WINDOW, []) is None
    ledger.check_invariants()


def test_leases_are_bounded_to_the_newest() -> None:
    ledger = Ledger()
    for clock in range(KEPT_LEASES + 5):
        ledger.open(W, clock, [])
        ledger.complete(W, clock, applied(clock), [Span(clock, 0, 2), Span(clock, 2, 2)])
    spans = ledger.applied_spans(W)
    assert len(spans) == KEPT_LEASES
    assert spans[0] == Span(5, 0, 2)
    assert ledger.applied_spans(OTHER) == []
    ledger.check_invariants()


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 20), st.integers(0, 6)), max_size=20))
@settings(deadline=None)
def test_spans_are_the_union_of_what_was_applied(pushed: list[tuple[int, int, int]]) -> None:
    ledger = Ledger()
    for clock, (lease, start, length) in enumerate(pushed):
        ledger.open(W, clock, [])
        ledger.complete(W, clock, applied(clock), [Span(lease, start, start + length)])
    ledger.check_invariants()
    found = {(s.lease, k) for s in ledger.applied_spans(W) for k in range(s.start, s.stop)}
    assert found == {(lease, k) for lease, start, n in pushed for k in range(start, start + n)}


class LedgerMachine(RuleBasedStateMachine):
    """Any order of calls is refused by name or keeps the record; a plain model tells which."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()
        self.taken: dict[int, set[int]] = {}
        self.done: dict[int, str] = {}
        self.abandoned: set[int] = set()
        self.next: int | None = None

    @rule(clock=st.integers(0, 5), again=st.booleans())
    def open(self, clock: int, again: bool) -> None:
        clock = clock if again or self.next is None else self.next
        known = self.done.keys() | self.taken.keys()
        may = self.next is None or clock in known | {self.next} | self.abandoned
        try:
            receipt = self.ledger.open(W, clock, [0, 1])
        except ClockError:
            assert not may
            return
        assert may
        assert (receipt is not None) == (clock in self.done)
        if receipt is None:
            self.taken.setdefault(clock, set())
            self.abandoned.discard(clock)
            self.next = max(self.next or 0, clock + 1)

    @precondition(lambda self: self.taken)
    @rule(data=st.data(), slice_=st.integers(0, 1))
    def take(self, data: st.DataObject, slice_: int) -> None:
        clock = data.draw(st.sampled_from(sorted(self.taken)))
        assert self.ledger.take(W, clock, slice_, 1) == (slice_ not in self.taken[clock])
        self.taken[clock].add(slice_)
        assert self.ledger.missing(W, clock) == {0, 1} - self.taken[clock]
        if len(self.taken[clock]) == 2:
            self.ledger.complete(W, clock, staged(clock), [Span(1, clock, clock + 1)])
            del self.taken[clock]
            self.done[clock] = "staged"

    @precondition(lambda self: self.done)
    @rule(data=st.data(), apply=st.booleans())
    def settle(self, data: st.DataObject, apply: bool) -> None:
        clock = data.draw(st.sampled_from(sorted(self.done)))
        self.ledger.amend(W, clock, applied(clock) if apply else dropped(clock))
        if self.done[clock] == "staged":
            self.done[clock] = "applied" if apply else "dropped"

    @precondition(lambda self: self.taken or self.done)
    @rule(data=st.data())
    def abandon(self, data: st.DataObject) -> None:
        clock = data.draw(st.sampled_from(sorted(self.taken.keys() | self.done.keys())))
        self.ledger.abandon(W, clock)
        if self.done.get(clock, "staged") == "staged":
            self.done.pop(clock, None)
            self.taken.pop(clock, None)
            self.abandoned.add(clock)
        assert self.next is not None
        while self.next - 1 in self.abandoned:
            self.next -= 1
            self.abandoned.remove(self.next)

    @invariant()
    def holds(self) -> None:
        self.ledger.check_invariants()
        found = {k for s in self.ledger.applied_spans(W) for k in range(s.start, s.stop)}
        assert found == {clock for clock, state in self.done.items() if state == "applied"}


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
