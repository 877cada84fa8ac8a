"""The account of samples: drawn, handed out, carried, done or returned."""

from __future__ import annotations

from collections import Counter

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from paramserver.types import Span
from paramserver.worker.batches import Batch, Batches, Ticket, merged


def test_neighbouring_spans_are_joined() -> None:
    spans = [Span(1, 4, 8), Span(2, 8, 9), Span(1, 0, 4)]
    assert merged(spans) == [Span(1, 0, 8), Span(2, 8, 9)]


def automatic(batches: int) -> Batches:
    """Drawn batches of two samples that steps themselves hand out."""
    made = Batches()
    made.add_group("g")
    made.automatic("d", True)
    for number in range(batches):
        made.draw(Batch("d", Span(1, 2 * number, 2 * number + 2)))
    return made


def test_steps_that_push_later_use_one_drawn_batch_each() -> None:
    batches = automatic(4)
    for samples in (2, 4, 6):
        batches.use("g")
        assert batches.samples_since("g") == samples
    ticket = batches.begin("g")
    assert [span.start for span in ticket.spans] == [0, 2, 4]
    batches.settle(ticket)
    batches.use("g")
    assert [span.start for span in batches.begin("g").spans] == [6]


def test_a_step_after_an_aborted_push_goes_on_to_the_next_batch() -> None:
    batches = automatic(3)
    batches.use("g")
    batches.abort(batches.begin("g"))
    batches.use("g")
    assert [span.start for span in batches.begin("g").spans] == [0, 2]


def test_batches_that_went_back_before_their_push_are_counted() -> None:
    batches = automatic(4)
    batches.automatic("d", False)
    batches.hand_out("d")
    batches.settle(batches.begin("g"))
    batches.hand_out("d")
    batches.use("g")
    batches.break_off("d")
    assert batches.returned("g") == 1  # neither the first, which was pushed, nor those not begun
    assert batches.returned("late") == 0


class Account(RuleBasedStateMachine):
    """Whatever happens, each sample drawn is reported once, done or returned, or still held."""

    def __init__(self) -> None:
        super().__init__()
        self.batches = Batches()
        self.batches.add_group("g")
        self.position = 0
        self.current: Batch | None = None
        self.tickets: list[Ticket] = []
        self.done: Counter[int] = Counter()
        self.returned: Counter[int] = Counter()
        self.drawn = 0

    @rule()
    def draw(self) -> None:
        self.batches.draw(Batch("d", Span(1, self.position, self.position + 2)))
        self.position += 2
        self.drawn += 1

    @precondition(lambda self: self.drawn)
    @rule()
    def hand_out(self) -> None:
        if self.current is not None:
            self.batches.leave(self.current)
        self.current = self.batches.hand_out("d")
        self.drawn -= 1

    @rule(group=st.sampled_from(["g", "h"]))
    def use(self, group: str) -> None:
        self.batches.use(group)

    @rule(group=st.sampled_from(["g", "h"]))
    def push(self, group: str) -> None:
        self.tickets.append(self.batches.begin(group))

    @precondition(lambda self: self.tickets)
    @rule(data=st.data(), how=st.sampled_from(["applied", "dropped", "aborted"]))
    def end_push(self, data: st.DataObject, how: str) -> None:
        ticket = self.tickets.pop(data.draw(st.integers(0, len(self.tickets) - 1)))
        if how == "aborted":
            self.batches.abort(ticket)
        else:
            self.batches.settle(ticket, dropped=how == "dropped")

    @rule()
    def end_pass(self) -> None:
        for ticket in self.tickets:
            self.batches.settle(ticket)
        self.tickets = []
        self.batches.break_off("d")
        self.batches.end("d")
        self.current = None
        self.drawn = 0
        assert not self.batches.undone("d")

    @rule(lost=st.booleans())
    def report(self, lost: bool) -> None:
        report = self.batches.take_report("d")
        if lost:
            self.batches.put_back("d", report)
            return
        for span in report.done:
            self.done.update(range(span.start, span.stop))
        for span in report.returned:
            self.returned.update(range(span.start, span.stop))

    @invariant()
    def nothing_is_reported_twice(self) -> None:
        assert max((self.done + self.returned).values(), default=1) == 1

    @invariant()
    def weights_are_never_negative(self) -> None:
        assert (self.batches.samples_since("g") or 0) >= 0

    def teardown(self) -> None:
        self.end_pass()
        self.report(False)
        assert sorted((self.done + self.returned).elements()) == list(range(self.position))


TestAccount = Account.TestCase
TestAccount.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
