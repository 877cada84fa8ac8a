"""The shard queue between replicas of several parties, under any interleaving."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramserver.core.dataset import DatasetSpec, Drained, Empty, Leased, complete
from paramserver.core.parties import ReplicaQueue
from paramserver.core.resume import ResumableQueue
from paramserver.errors import InvalidRequestError
from paramserver.types import Span, WorkerId

BATCH = 2


def make(size: int, parties: int, assign: str = "dynamic", shard: int = 4) -> ReplicaQueue:
    spec = complete(DatasetSpec("train", size, BATCH, shard, 0, True, assign), 2)
    return ReplicaQueue(ResumableQueue(spec, itertools.count(1)), parties)


class Party:
    """A worker that goes through epochs batch by batch, as a loader does; may draw ahead."""

    def __init__(self, queue: ReplicaQueue, who: WorkerId, epoch: int) -> None:
        self.queue, self.who, self.epoch = queue, who, epoch
        self.sequence = 0
        self.drawn: list[tuple[Leased, Span]] = []
        self.had: list[tuple[int, int, int]] = []  # epoch, start, stop of every batch worked on

    def ask(self) -> bool:
        """Draws a shard; False if there is none now."""
        self.sequence += 1
        found = self.queue.next(self.who, self.epoch, self.sequence)
        if isinstance(found, Leased):
            again = self.queue.next(self.who, self.epoch, self.sequence)
            assert again == found, "the answer was lost, and asked for once more"
            for start in range(found.start, found.stop, BATCH):
                stop = min(start + BATCH, found.stop)
                self.drawn.append((found, Span(found.lease, start, stop)))
        elif isinstance(found, Drained):
            assert not self.drawn, "drained before this party had done its shards"
            self.epoch += 1
        return not isinstance(found, Empty)

    def work(self) -> None:
        """One batch, pushed and reported."""
        leased, span = self.drawn.pop(0)
        self.had.append((leased.epoch, span.start, span.stop))
        self.queue.report(self.who, done=[span])

    def break_off(self) -> None:
        """What was drawn and not worked on goes back."""
        back, self.drawn = [span for _, span in self.drawn], []
        self.queue.report(self.who, returned=back)


class Grid:
    """Replicas of parties over one queue.

    Breaking off happens at the same batch on all parties of a replica, as scripts do it.
    """

    def __init__(self, rng: random.Random, size: int, parties: int, replicas: int, assign: str):
        self.rng, self.parties = rng, parties
        self.queue = make(size, parties, assign)
        self.incarnations = itertools.count(1)
        self.live: dict[int, list[Party]] = {}
        self.breaks: dict[int, int] = {}  # replica: after how many batches its pass is broken off
        self.applied: list[tuple[int, int, int]] = []  # by label parties
        for number in range(replicas):
            self.join(number)

    def join(self, number: int) -> None:
        made = []
        for party in range(self.parties):
            who = WorkerId(number * self.parties + party, next(self.incarnations))
            self.queue.join(who)
            self.queue.use(who)
            made.append(Party(self.queue, who, max(self.queue.epoch, 0)))
        self.live[number] = made

    def lose(self, number: int) -> None:
        parties = self.live.pop(number)
        self.breaks.pop(number, None)
        for party in self.rng.sample(parties, len(parties)):
            self.queue.leave(party.who)
        label = parties[0].who
        if self.queue.outstanding(label):
            self.queue.recover(label, [])  # what the label party reported counts as it is
        self.applied += parties[0].had

    def step(self, number: int, party: Party) -> bool:
        """One move of one party; False if it can only wait."""
        limit = self.breaks.get(number)
        if limit is not None and len(party.had) == limit:
            if all(len(p.had) >= limit for p in self.live[number]):
                for mate in self.rng.sample(self.live[number], self.parties):
                    mate.break_off()
                del self.breaks[number]
                return True
            return False
        if party.drawn and (len(party.drawn) > 3 or self.rng.random() < 0.7):
            party.work()
            return True
        if party.ask():
            return True
        if party.drawn:
            party.work()
            return True
        return False

    def finished(self, epochs: int) -> bool:
        return all(p.epoch >= epochs for parties in self.live.values() for p in parties)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    size=st.integers(0, 23),
    parties=st.integers(2, 3),
    replicas=st.integers(1, 3),
    assign=st.sampled_from(["round-robin", "random", "dynamic"]),
)
def test_every_sample_once_and_the_same_for_all_parties(
    seed: int, size: int, parties: int, replicas: int, assign: str
) -> None:
    rng = random.Random(seed)
    grid = Grid(rng, size, parties, replicas, assign)
    epochs, idle = 2, 0
    losses, breaks = rng.randint(0, 2), rng.randint(0, 3)  # few: a loss also ends what hangs
    while not grid.finished(epochs):
        number = rng.choice(sorted(grid.live))
        event = rng.random()
        if event < 0.02 and losses:
            losses -= 1
            grid.lose(number)
            grid.join(number)
        elif event < 0.06 and breaks and number not in grid.breaks:
            breaks -= 1
            ahead = max(len(p.had) for p in grid.live[number])
            grid.breaks[number] = ahead + rng.randint(0, 2)
        party = rng.choice(grid.live[number])
        moved = party.epoch < epochs and grid.step(number, party)
        idle = 0 if moved else idle + 1
        if idle > 200 and grid.breaks:  # nothing is left to break off
            grid.breaks.clear()
            idle = 0
        assert idle < 1000, "nobody can move"
        grid.queue.check_invariants()
    for mates in grid.live.values():
        for mate in mates[1:]:
            assert mate.had == mates[0].had
        grid.applied += mates[0].had
    for epoch in range(epochs):
        spans = sorted((a, b) for e, a, b in grid.applied if e == epoch)
        assert [i for a, b in spans for i in range(a, b)] == list(range(size))


def pair(queue: ReplicaQueue, replica: int = 0, incarnation: int = 1) -> tuple[Party, Party]:
    made = []
    for rank in (2 * replica, 2 * replica + 1):
        who = WorkerId(rank, incarnation)
        queue.join(who)
        queue.use(who)
        made.append(Party(queue, who, 0))
    return made[0], made[1]


def test_a_replica_that_is_not_whole_gets_nothing() -> None:
    queue = make(8, 2)
    queue.join(WorkerId(0, 1))
    found = queue.next(WorkerId(0, 1), 0, 1)
    assert isinstance(found, Empty)
    assert "lacks party 1 (rank 1)" in found.reason


def test_samples_are_done_when_every_party_said_so() -> None:
    queue = make(4, 2)
    label, other = pair(queue)
    for party in (label, other):
        party.ask()
    label.work()
    label.work()
    assert queue.counts().samples_done == 0
    assert queue.holders(5) == [other.who]
    other.work()
    other.work()
    assert queue.counts().samples_done == 4
    assert label.ask()
    assert label.epoch == 1


def test_reports_of_one_party_alone_change_nothing() -> None:
    queue = make(4, 2)
    label, other = pair(queue)
    other.ask()
    other.work()
    other.break_off()
    assert queue.counts().samples_done == queue.counts().requeued == 0
    assert label.ask(), "the label party still gets the same shard"
    assert not other.ask(), "whether there is more for the other is the label party's to say"
    label.work()
    label.break_off()
    assert queue.counts().samples_done == 2
    assert label.ask()
    assert other.ask()
    assert label.drawn == other.drawn
    assert label.drawn[0][1] == Span(2, 2, 4)


def test_a_shard_drawn_too_early_comes_again_after_a_break() -> None:
    queue = make(8, 2)
    label, other = pair(queue)
    other.ask()
    other.break_off()
    assert other.ask()
    assert label.ask()
    assert label.drawn[0][1] == other.drawn[0][1] == Span(1, 0, 2)


def test_a_lost_party_gives_the_samples_to_other_replicas() -> None:
    queue = make(8, 2)
    label, other = pair(queue)
    third, fourth = pair(queue, 1)
    for party in (label, other):
        party.ask()
        party.work()
    queue.leave(other.who)
    assert queue.outstanding(label.who)
    assert not queue.outstanding(other.who)
    assert queue.recover(label.who, []) == 2, "the first batch was learnt by both"
    while third.epoch + fourth.epoch < 2:
        for party in (third, fourth):
            if not party.epoch:
                party.ask()
            while party.drawn:
                party.work()
    assert third.had == fourth.had
    assert sorted(label.had + third.had) == [(0, a, a + 2) for a in range(0, 8, 2)]


def test_what_the_servers_applied_of_the_label_party_is_done() -> None:
    queue = make(4, 2)
    label, other = pair(queue)
    label.ask()
    queue.leave(label.who)
    queue.leave(other.who)
    assert queue.recover(label.who, [label.drawn[0][1]]) == 2


def test_a_request_that_was_answered_is_refused() -> None:
    queue = make(8, 2)
    label, _ = pair(queue)
    label.ask()
    label.ask()
    with pytest.raises(InvalidRequestError, match="request 1 for 'train'"):
        queue.next(label.who, 0, 1)


def test_a_span_outside_its_lease_is_refused() -> None:
    queue = make(8, 2)
    label, _ = pair(queue)
    label.ask()
    with pytest.raises(InvalidRequestError, match="must lie in"):
        queue.report(label.who, done=[Span(1, 0, 7)])


def test_an_epoch_is_over_for_a_party_whose_mate_has_left_after_it() -> None:
    """It asks once more after the label party has finished: there is nothing to wait for."""
    queue = make(4, 2)
    both = [WorkerId(rank, 1) for rank in range(2)]
    for who in both:
        queue.join(who)
        queue.use(who)
    for who in both:
        found = queue.next(who, 0, 1)
        assert isinstance(found, Leased)
        queue.report(who, done=[Span(found.lease, found.start, found.stop)])
    assert isinstance(queue.next(both[0], 0, 2), Drained)
    queue.leave(both[0])
    assert isinstance(queue.next(both[1], 0, 2), Drained)
    assert isinstance(queue.next(both[1], 1, 3), Empty)
