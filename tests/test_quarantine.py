"""What worker after worker is lost over: set aside after a few, counted, never dropped."""

from __future__ import annotations

import itertools

from paramserver.config import SchedulerConfig
from paramserver.core.dataset import DatasetSpec, Drained, Leased, complete
from paramserver.core.members import Caller, JobState, Role
from paramserver.core.quarantine import HOLDERS
from paramserver.core.resume import ResumableQueue
from paramserver.core.shards import ShardQueue
from paramserver.scheduler.state import SchedulerState
from paramserver.types import Span, WorkerId


def queue(size: int = 8, shard_size: int = 4) -> ShardQueue:
    spec = complete(DatasetSpec("d", size, 2, shard_size), 1)
    made = ShardQueue(spec, itertools.count(1))
    made.join(WorkerId(0, 1))
    return made


def lose(made: ShardQueue, incarnation: int, done: int = 0, failed: bool = True) -> Leased:
    """A worker takes the next shard, does so many samples of it, and is lost."""
    who = WorkerId(0, incarnation)
    made.join(who)
    found = made.next(who, 0, 1)
    assert isinstance(found, Leased)
    if done:
        made.report(who, [Span(found.lease, found.start, found.start + done)])
    made.leave(who)
    made.recover(who, (), failed)
    made.check_invariants()
    return found


def test_the_third_worker_in_a_row_was_the_last() -> None:
    made = queue()
    for incarnation in range(HOLDERS):
        found = lose(made, incarnation)
        assert (found.start, found.stop) == (0, 4)
    assert made.aside.newest == ((0, 4),)
    assert made.counts().quarantined == 4
    assert lose(made, 9, failed=False).start == 4, "the rest is dealt as ever"
    who = WorkerId(0, 10)
    made.join(who)
    rest = made.next(who, 0, 1)
    assert isinstance(rest, Leased)
    assert made.report(who, [Span(rest.lease, 4, 8)]).drained
    assert made.counts().samples_done == 4
    assert isinstance(made.next(who, 0, 2), Drained)
    again = made.next(who, 1, 3)
    assert isinstance(again, Leased), "another epoch gives out all of it again"
    assert (again.start, made.counts().quarantined) == (0, 4)
    made.check_invariants()


def test_whoever_came_further_before_it_was_lost_accuses_nobody() -> None:
    made = queue(12, 12)
    for incarnation in range(5):
        lose(made, incarnation, done=2)
    assert made.counts().quarantined == 0
    assert made.counts().samples_done == 10


def test_those_that_finish_accuse_nobody() -> None:
    made = queue()
    for incarnation in range(2 * HOLDERS):
        lose(made, incarnation, failed=False)
    assert made.counts().quarantined == 0


def test_only_the_shard_that_was_worked_on_is_accused() -> None:
    made = queue()
    for incarnation in range(HOLDERS):
        who = WorkerId(0, incarnation)
        made.join(who)
        assert [made.next(who, 0, n).start for n in (1, 2)] == [0, 4]  # type: ignore[union-attr]
        made.leave(who)
        made.recover(who, (), True)
    assert made.aside.newest == ((0, 4),)
    assert made.counts().free == 1


def test_a_job_without_all_of_its_samples_says_so_at_its_end() -> None:
    state = SchedulerState(SchedulerConfig(), 0.0)

    def register(role: Role, name: str) -> Caller:
        made = state.register(role, name, 0.0, address="h:1", host="", pid=0).member
        return Caller(made.name, made.incarnation, state.members.job)

    register(Role.SERVER, "ps-0")
    for _ in range(HOLDERS):
        who = register(Role.WORKER, "worker-0")
        for loss in state.take_losses():
            state.recover(loss, (), 0.0)
        state.open_dataset(who, DatasetSpec("d", 8, 2, 4), 0.0)
        found = state.next_shard(who, "d", 0, 1, False, 0.0)
        assert isinstance(found, Leased)
    who = register(Role.WORKER, "worker-0")
    for loss in state.take_losses():
        state.recover(loss, (), 0.0)
    rest = state.next_shard(who, "d", 0, 1, False, 0.0)
    assert isinstance(rest, Leased)
    assert rest.start == 4
    state.report(who, "d", [Span(rest.lease, 4, 8)], (), 0, 0.0)
    said = [event for event in state.journal.events() if "INCOMPLETE" in event]
    assert len(said) == 1
    assert "positions [0, 4) set aside: 3 workers were lost over them" in said[0]
    state.finish(who, 0.0)
    assert state.members.state is JobState.DONE
    assert state.members.message.startswith("INCOMPLETE: 4 samples of data set 'd' were set aside")


def test_a_snapshot_tries_again_what_was_set_aside() -> None:
    """And knows how much of earlier epochs nobody did."""
    made = ResumableQueue(complete(DatasetSpec("d", 8, 2, 4), 1), itertools.count(1))
    made.aside.total = 5
    for incarnation in range(HOLDERS):
        lose(made, incarnation)
    assert made.aside.samples == 4
    saved = made.end_snapshot(made.begin_snapshot(), ())
    assert (saved.done, saved.aside) == ((), 5)
    again = ResumableQueue(made.spec, itertools.count(1))
    again.resume(saved)
    again.check_invariants()
    assert (again.aside.samples, again.aside.total, again.counts().samples_done) == (0, 5, 0)
