"""Backups of shards: the first answer counts, nothing is lost, nothing counts twice."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from paramserver.core.backups import BackupQueue
from paramserver.core.dataset import (
    DatasetSpec,
    Drained,
    Empty,
    Leased,
    complete,
    default_portion,
    disagreement,
)
from paramserver.errors import InvalidRequestError
from paramserver.types import Span, WorkerId

A, B, C = (WorkerId(rank, 1) for rank in range(3))


def queue(size: int = 8, shard: int = 4, workers: tuple[WorkerId, ...] = (A, B, C)) -> BackupQueue:
    spec = complete(DatasetSpec("train", size, 1, shard, backups=True), 2)
    made = BackupQueue(spec, itertools.count(1))
    for who in workers:
        made.join(who)
        made.use(who)
    return made


def lease(made: BackupQueue, who: WorkerId, sequence: int, epoch: int = 0) -> Leased:
    found = made.next(who, epoch, sequence)
    assert isinstance(found, Leased), found
    made.check_invariants()
    return found


def whole(leased: Leased) -> Span:
    return Span(leased.lease, leased.start, leased.stop)


def test_whoever_finds_nothing_gets_a_backup_of_the_oldest_lease() -> None:
    made = queue()
    first, second = lease(made, A, 1), lease(made, B, 1)
    backup = lease(made, C, 1)
    assert (backup.start, backup.stop) == (first.start, first.stop)
    assert backup.lease not in (first.lease, second.lease)
    again = lease(made, A, 2)
    assert (again.start, again.stop) == (second.start, second.stop)
    # Every lease has its backup, or is one's own.
    assert isinstance(made.next(C, 0, 2), Empty)


def test_the_first_answer_counts_and_the_second_is_no_news() -> None:
    made = queue(4)
    first, backup = lease(made, A, 1), lease(made, B, 1)
    assert made.report(B, [whole(backup)]).drained
    late = made.report(A, [whole(first)])
    assert (late.lost, late.drained) == ((), False)
    made.check_invariants()
    assert made.counts().samples_done == 4
    assert made.next(A, 0, 2) == Drained(0)


def test_what_another_still_holds_does_not_go_back() -> None:
    made = queue(4)
    first, backup = lease(made, A, 1), lease(made, B, 1)
    made.report(A, returned=[whole(first)])
    made.check_invariants()
    assert made.counts().free == 0
    assert made.recover(B, ()) == 4
    made.check_invariants()
    assert made.counts().free == 1
    assert lease(made, C, 1).start == backup.start


@pytest.mark.parametrize("lost", [A, B])
def test_a_lost_holder_leaves_the_shard_to_the_other(lost: WorkerId) -> None:
    made = queue(4)
    held = {A: lease(made, A, 1), B: lease(made, B, 1)}
    made.leave(lost)
    made.recover(lost, ())
    made.check_invariants()
    # The one that is left can be backed up again.
    assert lease(made, C, 1).start == held[A].start
    other = B if lost == A else A
    assert made.report(other, [whole(held[other])]).drained


def test_samples_that_a_lost_worker_had_applied_are_done() -> None:
    made = queue(4)
    first, backup = lease(made, A, 1), lease(made, B, 1)
    made.leave(A)
    made.recover(A, [Span(first.lease, 0, 3)])
    made.check_invariants()
    assert made.counts().samples_done == 3
    assert made.report(B, [whole(backup)]).drained
    assert made.counts().samples_done == 4


def test_a_lost_answer_to_a_backup_that_is_over() -> None:
    made = queue(8)
    first, _ = lease(made, A, 1), lease(made, B, 1)
    backup = lease(made, C, 1)
    assert made.next(C, 0, 1) == backup
    made.report(A, [whole(first)])
    other = lease(made, C, 1)
    assert (other.start, other.lease != backup.lease) == (4, True)


def test_no_backups_of_an_epoch_that_is_over() -> None:
    made = queue(4)
    made.report(A, [whole(lease(made, A, 1))])
    second = lease(made, A, 2, 1)
    assert second.epoch == 1
    assert made.next(B, 0, 1) == Drained(0)
    assert isinstance(made.next(B, 2, 2), Empty)


def test_portions_are_much_smaller_than_a_share() -> None:
    assert 1797 / (16 * 4) < default_portion(1797, 4) < 1797 / (8 * 4)
    assert default_portion(3, 4) == 1


def test_backups_need_the_common_queue_and_agreement() -> None:
    with pytest.raises(InvalidRequestError, match="assign='dynamic'"):
        complete(DatasetSpec("train", 8, 1, assign="random", backups=True), 2)
    left, right = (DatasetSpec("train", 8, 1, 4, backups=b) for b in (True, False))
    assert disagreement(left, right) == "backups is True, not False"


class BackupMachine(RuleBasedStateMachine):
    """Free, leased (once or twice) and done positions are all positions, whatever happens."""

    ranks = st.integers(0, 3)

    @initialize(size=st.integers(1, 24))
    def begin(self, size: int) -> None:
        self.made = queue(size, 4, ())
        self.size = size
        self.live: dict[int, WorkerId] = {}
        self.sequence = itertools.count(1)
        self.incarnation = itertools.count(1)
        self.held: dict[int, tuple[WorkerId, Leased]] = {}
        self.done: set[int] = set()
        self.epoch = 0

    @rule(rank=ranks)
    def come(self, rank: int) -> None:
        if rank not in self.live:
            who = self.live[rank] = WorkerId(rank, next(self.incarnation))
            self.made.join(who)
            self.made.use(who)

    @rule(rank=ranks)
    def lose(self, rank: int) -> None:
        who = self.live.pop(rank, None)
        if who is not None:
            self.made.leave(who)
            self.made.recover(who, ())
            self.held = {n: (w, x) for n, (w, x) in self.held.items() if w != who}

    @rule(rank=ranks)
    def ask(self, rank: int) -> None:
        who = self.live.get(rank)
        if who is None:
            return
        found = self.made.next(who, self.epoch, next(self.sequence))
        if isinstance(found, Drained):
            assert len(self.done) == self.size
            self.epoch += 1
            self.done, self.held = set(), {}
        elif isinstance(found, Leased):
            assert not set(range(found.start, found.stop)) & self.done
            holders = [w for w, x in self.held.values() if x.start == found.start]
            assert who not in holders
            self.held[found.lease] = (who, found)
        else:  # all that is left is with this worker, or with two others
            mine = {x.shard for w, x in self.held.values() if w == who}
            out = [(w, x) for w, x in self.held.values() if x.start not in self.done]
            others = [x.shard for w, x in out if w != who]
            assert all(shard in mine or others.count(shard) == 2 for shard in others)

    @rule(data=st.data(), done=st.booleans())
    def answer(self, data: st.DataObject, done: bool) -> None:
        if not self.held:
            return
        number = data.draw(st.sampled_from(sorted(self.held)))
        who, leased = self.held.pop(number)
        if done:
            assert self.made.report(who, [whole(leased)]).lost == ()
            self.done |= set(range(leased.start, leased.stop))
        else:
            self.made.report(who, returned=[whole(leased)])

    @rule(data=st.data())
    def answer_late(self, data: st.DataObject) -> None:
        """The other one was faster: that is no error, and changes nothing."""
        over = [n for n, (_, x) in self.held.items() if x.start in self.done]
        if over:
            number = data.draw(st.sampled_from(over))
            who, leased = self.held.pop(number)
            assert self.made.report(who, [whole(leased)]).lost == ()

    @invariant()
    def nothing_is_lost(self) -> None:
        if hasattr(self, "made"):
            self.made.check_invariants()
            if self.made.epoch == self.epoch:
                assert self.made.counts().samples_done == len(self.done)

    def teardown(self) -> None:
        """Liveness: one worker that is left can drain the epoch, whatever others hold."""
        if not hasattr(self, "made") or self.made.epoch < 0:
            return
        for rank in list(self.live):
            self.lose(rank)
        self.come(0)
        while not self.made.drained:
            found = self.made.next(self.live[0], self.made.epoch, next(self.sequence))
            assert isinstance(found, Leased)
            self.made.report(self.live[0], [whole(found)])


BackupMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestBackups = BackupMachine.TestCase
