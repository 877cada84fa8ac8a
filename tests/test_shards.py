"""The shard queue: one contract for all policies; nothing is lost, nothing counts twice."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from paramserver.core.assignment import POLICIES, RandomDeal, assignment
from paramserver.core.dataset import (
    MAX_SHARDS,
    DatasetSpec,
    Drained,
    Empty,
    Leased,
    complete,
    default_shard_size,
    disagreement,
)
from paramserver.core.shards import ShardQueue
from paramserver.core.spans import Ranges
from paramserver.errors import InvalidRequestError
from paramserver.types import Span, WorkerId

POLICY = pytest.mark.parametrize("assign", sorted(POLICIES))
A, B, C = (WorkerId(rank, 1) for rank in range(3))


def queue(
    assign: str = "dynamic",
    size: int = 100,
    shard: int = 8,
    workers: tuple[WorkerId, ...] = (A, B),
    seed: int = 0,
) -> ShardQueue:
    spec = complete(DatasetSpec("train", size, 4, shard, seed, True, assign), 2)
    made = ShardQueue(spec, itertools.count(1))
    for who in workers:
        made.join(who)
        made.use(who)
    return made


def lease(made: ShardQueue, who: WorkerId, epoch: int, sequence: int) -> Leased:
    found = made.next(who, epoch, sequence)
    assert isinstance(found, Leased), found
    return found


def whole(leased: Leased) -> Span:
    return Span(leased.lease, leased.start, leased.stop)


def take_all(made: ShardQueue, who: WorkerId, epoch: int, first: int) -> list[Leased]:
    found: list[Leased] = []
    for sequence in itertools.count(first):
        one = made.next(who, epoch, sequence)
        if not isinstance(one, Leased):
            return found
        found.append(one)
    return found


# -- the contract of every policy


@POLICY
def test_every_position_once_in_every_epoch(assign: str) -> None:
    made = queue(assign)
    for epoch in range(3):
        seen: list[int] = []
        for who in (A, B):
            for one in take_all(made, who, epoch, epoch * 100):
                seen += range(one.start, one.stop)
                made.report(who, [whole(one)])
            made.check_invariants()
        assert sorted(seen) == list(range(100))
        assert made.drained
        assert made.next(A, epoch, epoch * 100 + 50) == Drained(epoch)


@POLICY
def test_the_next_epoch_opens_only_when_drained(assign: str) -> None:
    made = queue(assign)
    held = [*take_all(made, A, 0, 0), *take_all(made, B, 0, 0)]
    ahead = made.next(A, 1, 100)
    assert isinstance(ahead, Empty)
    assert "epoch 0" in ahead.reason
    for one in held:
        for who in (A, B):
            made.report(who, [whole(one)])
    assert isinstance(made.next(A, 1, 101), Leased)
    assert made.next(B, 0, 100) == Drained(0)
    with pytest.raises(InvalidRequestError, match="open epoch is 1"):
        made.next(B, 3, 101)


@POLICY
def test_a_lost_answer_gives_the_same_lease_again(assign: str) -> None:
    made = queue(assign)
    first = lease(made, A, 0, 7)
    assert made.next(A, 0, 7) == first
    assert lease(made, A, 0, 8) != first
    with pytest.raises(InvalidRequestError, match="answered already"):
        made.next(A, 0, 7)


@POLICY
def test_what_a_lost_worker_did_not_push_comes_back(assign: str) -> None:
    made = queue(assign)
    mine = lease(made, A, 0, 0)
    made.leave(A)
    assert made.recover(A, [Span(mine.lease, mine.start, mine.start + 4)]) == 4
    made.check_invariants()
    rest = take_all(made, B, 0, 0)
    assert sum(x.stop - x.start for x in rest) == 96
    made.report(B, [whole(x) for x in rest])
    assert made.drained
    assert made.counts().requeued == 1


@POLICY
def test_the_last_worker_may_be_lost_and_come_back(assign: str) -> None:
    made = queue(assign, workers=(A,))
    lease(made, A, 0, 0)
    made.leave(A)
    made.recover(A, [])
    again = WorkerId(0, 2)
    made.join(again)
    rest = take_all(made, again, 0, 0)
    assert sum(x.stop - x.start for x in rest) == 100


@POLICY
def test_a_newer_incarnation_takes_over_the_deal_but_not_the_leases(assign: str) -> None:
    made = queue(assign)
    held = lease(made, A, 0, 0)
    again = WorkerId(0, 2)
    made.join(again)
    assert made.report(again, [whole(held)]).lost == (held.lease,)
    made.recover(A, [])
    got = [*take_all(made, again, 0, 0), *take_all(made, B, 0, 0)]
    assert sum(x.stop - x.start for x in got) == 100


@POLICY
def test_a_returned_span_comes_back_as_its_missing_parts(assign: str) -> None:
    made = queue(assign, size=16, shard=16, workers=(A,))
    held = lease(made, A, 0, 0)
    made.report(A, [Span(held.lease, 4, 8)])
    said = made.report(A, returned=[whole(held)])
    assert said.returned
    parts = [lease(made, A, 0, n) for n in (1, 2)]
    assert [(p.start, p.stop) for p in parts] == [(0, 4), (8, 16)]
    assert made.counts().requeued == 2


@POLICY
def test_a_span_counts_once(assign: str) -> None:
    made = queue(assign)
    held = lease(made, A, 0, 0)
    half = Span(held.lease, held.start, held.start + 4)
    for _ in range(3):
        assert made.report(A, [half], unpushed=4).lost == ()
    assert made.counts().samples_done == 4
    assert made.unpushed == 4
    made.report(A, [whole(held)])
    assert made.report(A, [whole(held)]).lost == ()
    assert made.counts().samples_done == 8


@POLICY
def test_a_lease_of_another_is_lost_and_the_rest_counts(assign: str) -> None:
    made = queue(assign)
    mine, other = lease(made, A, 0, 0), lease(made, B, 0, 0)
    assert made.report(A, [whole(other), whole(mine)]).lost == (other.lease,)
    assert made.counts().samples_done == 8
    assert made.report(A, [Span(999, 0, 4)]).lost == (999,)
    made.report(B, returned=[whole(other)])
    assert made.report(B, [whole(other)]).lost == (other.lease,)


@POLICY
def test_a_span_outside_its_lease_is_refused_whole(assign: str) -> None:
    made = queue(assign)
    one, two = lease(made, A, 0, 0), lease(made, A, 0, 1)
    for start, stop in ((two.start, two.stop + 1), (two.start - 1, two.stop), (4, 3)):
        with pytest.raises(InvalidRequestError, match="must lie in"):
            made.report(A, [whole(one), Span(two.lease, start, stop)])
    assert made.counts().samples_done == 0


@POLICY
def test_who_breaks_off_a_pass_cannot_hang_the_others(assign: str) -> None:
    made = queue(assign)
    held = lease(made, A, 0, 0)
    made.report(A, returned=[whole(held)])
    assert isinstance(made.next(A, 1, 1), Empty)
    rest = take_all(made, B, 0, 0)
    assert sum(x.stop - x.start for x in rest) == 100


@POLICY
def test_a_pass_that_all_broke_off_is_an_error_with_its_cure(assign: str) -> None:
    made = queue(assign, workers=(A,))
    held = lease(made, A, 0, 0)
    made.report(A, returned=[whole(held)])
    with pytest.raises(InvalidRequestError, match="goes on with epoch 0"):
        made.next(A, 1, 1)
    assert sum(x.stop - x.start for x in take_all(made, A, 0, 1)) == 100


@POLICY
def test_an_empty_data_set_is_drained_at_once(assign: str) -> None:
    made = queue(assign, size=0)
    assert made.next(A, 0, 0) == Drained(0)
    assert made.next(A, 1, 1) == Drained(1)


@POLICY
@given(shards=st.integers(0, 60), workers=st.integers(1, 9), epoch=st.integers(0, 3))
@settings(max_examples=30, deadline=None)
def test_a_deal_is_even_whole_and_repeatable(
    assign: str, shards: int, workers: int, epoch: int
) -> None:
    policy = assignment(assign, 5)
    hands = policy.deal(shards, workers, epoch)
    assert sorted(x for hand in hands for x in hand) == list(range(shards))
    assert len(hands) == (1 if policy.shared else workers)
    assert max(map(len, hands)) - min(map(len, hands)) <= 1
    assert [list(h) for h in hands] == [list(h) for h in policy.deal(shards, workers, epoch)]


# -- what the policies differ in


def test_random_is_a_permutation_by_seed_and_epoch() -> None:
    deals = [RandomDeal(seed).deal(50, 1, epoch)[0] for seed in (1, 2) for epoch in (0, 1)]
    assert all(sorted(d) == list(range(50)) for d in deals)
    assert len({tuple(d) for d in deals}) == 4


@pytest.mark.parametrize("assign", ["round-robin", "random"])
def test_static_deals_keep_to_their_worker(assign: str) -> None:
    made = queue(assign, size=96)
    mine = take_all(made, A, 0, 0)
    assert len(mine) == 6
    assert isinstance(made.next(A, 0, 50), Empty)


def test_round_robin_gives_every_second_shard() -> None:
    made = queue("round-robin", size=96)
    assert [x.shard for x in take_all(made, B, 0, 0)] == [1, 3, 5, 7, 9, 11]


def test_dynamic_gives_all_to_whoever_asks() -> None:
    assert len(take_all(queue(), A, 0, 0)) == 13


@pytest.mark.parametrize("assign", ["round-robin", "random"])
def test_a_lost_workers_rest_is_dealt_over_the_live(assign: str) -> None:
    made = queue(assign, size=96, workers=(A, B, C))
    lease(made, A, 0, 0)
    made.leave(A)
    made.recover(A, [])
    counts = [len(take_all(made, who, 0, 0)) for who in (B, C)]
    assert sum(counts) == 12
    assert abs(counts[0] - counts[1]) <= 1


# -- specifications


@pytest.mark.parametrize(
    ("size", "batch", "workers", "expected"),
    [
        (1000, 10, 1, 80),
        (1000, 10, 2, 60),
        (1000, 10, 4, 30),
        (100, 10, 4, 10),
        (10**6, 64, 4, 512),
    ],
)
def test_the_default_shard_size(size: int, batch: int, workers: int, expected: int) -> None:
    assert default_shard_size(size, batch, workers) == expected


def test_shard_size_is_rounded_up_to_whole_batches() -> None:
    assert complete(DatasetSpec("d", 100, 8, 20), 1).shard_size == 24


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (DatasetSpec("d", -1, 1), "size=-1"),
        (DatasetSpec("d", 10, 0), "batch_size=0"),
        (DatasetSpec("d", 10, 1, -2), "shard_size=-2"),
        (DatasetSpec("d", 10, 1, assign="best"), "assign='best'"),
        (DatasetSpec("d", 2 * MAX_SHARDS, 1, 1), "larger shard_size"),
    ],
)
def test_what_cannot_work_is_refused(spec: DatasetSpec, said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        complete(spec, 1)


def test_workers_that_disagree_are_told_in_what() -> None:
    spec = complete(DatasetSpec("d", 100, 4, 8), 1)
    assert disagreement(spec, complete(DatasetSpec("d", 100, 2, 8), 1)) is None
    assert disagreement(spec, complete(DatasetSpec("d", 99, 4, 8), 1)) == "size is 100, not 99"
    assert disagreement(spec, complete(DatasetSpec("d", 100, 4, 8, 3), 1)) == "seed is 0, not 3"


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=12),
)
@settings(max_examples=60, deadline=None)
def test_ranges_are_a_set_of_positions(cuts: list[tuple[int, int]]) -> None:
    ranges, model = Ranges([(0, 30)]), set(range(30))
    for start, stop in cuts:
        taken = {p for a, b in ranges.take(start, stop) for p in range(a, b)}
        assert taken == model & set(range(start, stop))
        model -= taken
        assert len(ranges) == len(model)
        assert ranges.overlap(5, 20) == len(model & set(range(5, 20)))


# -- any sequence of events


class QueueMachine(RuleBasedStateMachine):
    """I15: without failures every position is done once, with failures at least once; free,
    leased and done positions are all positions; nothing is dropped; no epoch before its time."""

    @initialize(assign=st.sampled_from(sorted(POLICIES)), size=st.integers(0, 40))
    def begin(self, assign: str, size: int) -> None:
        self.made = queue(assign, size, 4, ())
        self.size = size
        self.live: dict[int, WorkerId] = {}
        self.sequence = itertools.count()
        self.incarnation = itertools.count(1)
        self.held: dict[int, tuple[WorkerId, Leased]] = {}
        self.done: set[int] = set()
        self.epoch = 0

    ranks = st.integers(0, 3)

    @rule(rank=ranks)
    def come(self, rank: int) -> None:
        old = self.live.get(rank)
        new = self.live[rank] = WorkerId(rank, next(self.incarnation))
        self.made.join(new)
        self.made.use(new)
        if old is not None:
            self.gone(old, None)

    def gone(self, who: WorkerId, applied: Span | None) -> None:
        self.made.recover(who, [applied] if applied else [])
        for number in [n for n, (w, _) in self.held.items() if w == who]:
            if applied and applied.lease == number:
                self.done |= set(range(applied.start, applied.stop))
            del self.held[number]

    @rule(rank=ranks, data=st.data())
    def lose(self, rank: int, data: st.DataObject) -> None:
        who = self.live.pop(rank, None)
        if who is None:
            return
        self.made.leave(who)
        mine = [x for w, x in self.held.values() if w == who]
        applied = data.draw(st.sampled_from(mine)) if mine else None
        self.gone(who, whole(applied) if applied else None)

    @rule(rank=ranks, ahead=st.booleans(), want=st.integers(0, 9))
    def ask(self, rank: int, ahead: bool, want: int) -> None:
        who = self.live.get(rank)
        if who is None:
            return
        over = len(self.done) == self.size and self.made.epoch >= 0
        try:
            want *= self.made.policy.shared
            found = self.made.next(who, self.epoch + ahead, next(self.sequence), want)
        except InvalidRequestError:
            assert ahead
            assert not over
            return
        if ahead and over and self.made.epoch > self.epoch:
            self.epoch += 1
            self.done.clear()
            self.held.clear()
        if isinstance(found, Leased):
            assert found.epoch == self.epoch
            positions = set(range(found.start, found.stop))
            assert not positions & self.done
            self.held[found.lease] = (who, found)
        elif isinstance(found, Drained):
            assert len(self.done) == self.size

    @rule(speeds=st.lists(st.sampled_from([0.0, 1.0, 8.0]), min_size=4, max_size=4))
    def steal(self, speeds: list[float]) -> None:
        """Idle workers ask for the tail of a lease; its holder gives back what it likes of it."""
        waiting = [w for w in self.live.values() if all(w != h for h, _ in self.held.values())]
        asked = self.made.recall(waiting, lambda w: speeds[w.rank], 1.0)
        if asked is not None:
            holder, samples = asked
            assert 0 < samples <= self.made.spec.shard_size
            assert self.made.recalled(holder)

    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        for who in self.live.values():
            for span in self.made.recalled(who):
                start = data.draw(st.integers(span.start, span.stop))
                self.made.report(who, returned=[Span(span.lease, start, span.stop)])
                held = self.held[span.lease][1]
                rest = set(range(held.start, start))
                if self.done >= rest:
                    del self.held[span.lease]
                else:
                    self.held[span.lease] = (who, replace(held, stop=start))

    @rule(data=st.data(), back=st.booleans(), thief=ranks)
    def report(self, data: st.DataObject, back: bool, thief: int) -> None:
        if not self.held:
            return
        number = data.draw(st.sampled_from(sorted(self.held)))
        who, held = self.held[number]
        start = data.draw(st.integers(held.start, held.stop))
        stop = data.draw(st.integers(start, held.stop))
        span = Span(number, start, stop)
        robber = WorkerId(thief, 0)
        assert self.made.report(robber, [span]).lost == (number,)
        self.made.report(who, [span])
        self.done |= set(range(start, stop))
        if back or self.done >= set(range(held.start, held.stop)):
            self.made.report(who, returned=[whole(held)])
            del self.held[number]

    @invariant()
    def nothing_is_lost(self) -> None:
        if not hasattr(self, "made"):
            return
        self.made.check_invariants()
        assert self.made.counts().samples_done == len(self.done)

    def teardown(self) -> None:
        """Liveness: whatever happened, those that are left can drain the epoch."""
        if not hasattr(self, "made"):
            return
        self.come(0)
        for number, (who, held) in list(self.held.items()):
            self.made.report(who, [Span(number, held.start, held.stop)])
        for _ in range(3):
            for rank, who in self.live.items():
                for one in take_all(self.made, who, self.epoch, next(self.sequence) + 1000 * rank):
                    self.made.report(who, [whole(one)])
                self.sequence = itertools.count(next(self.sequence) + 10_000)
        if self.made.epoch >= 0:
            assert self.made.drained


QueueMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)
TestQueue = QueueMachine.TestCase
