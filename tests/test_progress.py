"""What a snapshot keeps of a data set: every sample of an epoch trained once, on both sides."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramserver.core.assignment import POLICIES
from paramserver.core.dataset import DatasetSpec, Drained, Leased, complete
from paramserver.core.progress import Progress, continued, from_json, to_json, union, without
from paramserver.core.resume import ResumableQueue
from paramserver.errors import InvalidRequestError, MismatchError
from paramserver.types import Span, WorkerId

POLICY = pytest.mark.parametrize("assign", sorted(POLICIES))


def workers(count: int, incarnation: int = 1) -> list[WorkerId]:
    return [WorkerId(rank, incarnation) for rank in range(count)]


def queue(spec: DatasetSpec, who: list[WorkerId], leases: itertools.count[int]) -> ResumableQueue:
    made = ResumableQueue(spec, leases)
    for one in who:
        made.join(one)
        made.use(one)
    return made


class Loop:
    """Workers that take batches in turn, and push each: what was applied, and in what order."""

    def __init__(self, made: ResumableQueue, who: list[WorkerId], batch: int) -> None:
        self.queue, self.who, self.batch = made, who, batch
        self.epochs = dict.fromkeys(who, max(made.epoch, 0))
        self.sequence = 0
        self.leases: dict[WorkerId, list[int]] = {}  # lease, next, stop
        self.applied: list[Span] = []
        self.trained: list[tuple[int, int, int, int]] = []  # rank, epoch, start, stop

    def step(self, who: WorkerId, *, report: bool) -> bool:
        """One batch; False: nothing to do for this worker now."""
        if who not in self.leases:
            self.sequence += 1
            found = self.queue.next(who, self.epochs[who], self.sequence)
            if isinstance(found, Drained):
                self.epochs[who] += 1
            if not isinstance(found, Leased):
                return isinstance(found, Drained)
            self.leases[who] = [found.lease, found.start, found.stop]
        lease, start, stop = self.leases[who]
        cut = min(start + self.batch, stop)
        self.applied.append(Span(lease, start, cut))
        self.trained.append((who.rank, self.epochs[who], start, cut))
        if report:
            self.queue.report(who, [Span(lease, 0 + start, cut)])
        self.leases[who][1] = cut
        if cut == stop:
            del self.leases[who]
        return True

    def report_all(self) -> None:
        """Everything applied was reported after all."""
        for who in self.who:
            self.queue.report(who, [s for s in self.applied if self.holds(who, s.lease)])

    def holds(self, who: WorkerId, lease: int) -> bool:
        held = self.queue._leases.get(lease)
        return held is not None and held.holder == who

    def drain(self, until: int) -> None:
        """Goes on until epoch ``until`` is over."""
        for _ in range(100_000):
            if self.queue.epoch >= until and self.queue.drained:
                return
            for who in self.who:
                self.step(who, report=True)
        raise AssertionError("the epoch does not end")


@POLICY
def test_the_same_workers_go_on_as_if_nothing_had_happened(assign: str) -> None:
    """Every cut of two epochs: the rest is what it would have been, worker by worker."""
    spec = complete(DatasetSpec("train", 50, 4, 8, 3, True, assign), 2)
    who = workers(2)
    for steps in range(26):
        whole = Loop(queue(spec, who, itertools.count(1)), who, 4)
        for _ in range(steps):
            for one in who:
                whole.step(one, report=True)
        before = whole.queue.begin_snapshot()
        progress = from_json(json.loads(json.dumps(to_json(whole.queue.end_snapshot(before, [])))))
        begun = len(whole.trained)
        whole.drain(2)

        again = workers(2, incarnation=7)
        made = queue(spec, again, itertools.count(1000))
        made.resume(progress)
        made.check_invariants()
        rest = Loop(made, again, 4)
        rest.drain(2)
        if assign == "dynamic":
            continue
        for rank in range(2):
            old = [t for t in whole.trained[begun:] if t[0] == rank]
            assert [t for t in rest.trained if t[0] == rank] == old, f"after {steps} steps"


@settings(max_examples=150, deadline=None)
@given(
    assign=st.sampled_from(sorted(POLICIES)),
    size=st.integers(1, 120),
    shard=st.integers(1, 16),
    batch=st.integers(1, 6),
    first=st.integers(1, 4),
    then=st.integers(1, 4),
    before=st.integers(0, 40),
    between=st.integers(0, 40),
    after=st.integers(0, 30),
    late=st.booleans(),
    lost=st.booleans(),
    data=st.data(),
)
def test_every_sample_once_whatever_the_moment(
    assign: str,
    size: int,
    shard: int,
    batch: int,
    first: int,
    then: int,
    before: int,
    between: int,
    after: int,
    late: bool,
    lost: bool,
    data: st.DataObject,
) -> None:
    """Servers tell what was applied at the cut; the queue has gone on, or heard of less."""
    spec = complete(DatasetSpec("train", size, batch, shard, 1, True, assign), first)
    who = workers(first)
    loop = Loop(queue(spec, who, itertools.count(1)), who, batch)

    def go(steps: int, *, report: bool) -> None:
        for _ in range(steps):
            loop.step(data.draw(st.sampled_from(loop.who)), report=report)

    go(before, report=True)
    if lost and first > 1:
        gone = loop.who.pop()
        loop.leases.pop(gone, None)
        loop.queue.leave(gone)
        loop.queue.recover(gone, [])
    saved = loop.queue.begin_snapshot()
    go(between, report=not late)
    if late:
        loop.report_all()
    cut = list(loop.applied)
    trained = list(loop.trained)
    go(after, report=True)
    progress = from_json(to_json(loop.queue.end_snapshot(saved, cut)))

    again = workers(then, incarnation=9)
    made = queue(spec, again, itertools.count(10_000))
    made.resume(progress)
    made.check_invariants()
    rest = Loop(made, again, batch)
    rest.drain(max(progress.epoch, 0) + 1)
    for epoch in range(max(progress.epoch, 0) + 2):
        seen = [i for _, e, a, b in trained if e == epoch for i in range(a, b)]
        if epoch >= progress.epoch:
            seen += [i for _, e, a, b in rest.trained if e == epoch for i in range(a, b)]
        assert sorted(seen) == list(range(size)), f"epoch {epoch}"


def test_shards_are_shared_when_the_number_of_workers_changes() -> None:
    spec = complete(DatasetSpec("train", 96, 4, 4, 0, True, "round-robin"), 2)
    two = workers(2)
    loop = Loop(queue(spec, two, itertools.count(1)), two, 4)
    for _ in range(4):
        for one in two:
            loop.step(one, report=True)
    progress = loop.queue.end_snapshot(loop.queue.begin_snapshot(), [])
    assert progress.samples_done == 32
    made = queue(spec, workers(4, 2), itertools.count(100))
    made.resume(progress)
    assert [len(made._deal._hands[rank]) for rank in range(4)] == [4, 4, 4, 4]


def test_leases_of_the_snapshot_stay_known_while_epochs_pass() -> None:
    spec = complete(DatasetSpec("train", 8, 4, 4, 0, True, "dynamic"), 1)
    who = workers(1)
    loop = Loop(queue(spec, who, itertools.count(1)), who, 4)
    saved = loop.queue.begin_snapshot()
    loop.step(who[0], report=True)
    cut = list(loop.applied)
    loop.drain(5)
    assert loop.queue.end_snapshot(saved, cut) == Progress(spec, 0, (), ((0, 4),))


def test_a_data_set_goes_on_only_where_positions_mean_the_same() -> None:
    saved = complete(DatasetSpec("train", 100, 4, 0, 0, True, "random"), 2)
    asked = DatasetSpec("train", 100, 5, 0, 0, True, "dynamic")
    assert continued(saved, asked) == DatasetSpec(
        "train", 100, 5, saved.shard_size, 0, True, "dynamic"
    )
    for name, value in (("size", 99), ("seed", 1), ("shuffle", False)):
        values = {"name": "train", "size": 100, "batch_size": 4, name: value}
        with pytest.raises(MismatchError, match=f"has {name}"):
            continued(saved, DatasetSpec(**values))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"done": [[0, 60], [50, 70]]},
        {"done": [[0, 101]]},
        {"done": [[-1, 3]]},
        {"done": [[4]]},
        {"epoch": "x"},
        {"spec": {"name": "train"}},
        {"ranks": None},
    ],
)
def test_damaged_progress_is_refused(change: dict[str, object]) -> None:
    spec = complete(DatasetSpec("train", 100, 4, 8), 1)
    good = to_json(Progress(spec, 0, (0,), ((0, 4),)))
    with pytest.raises(InvalidRequestError):
        from_json({**good, **change})


@given(
    part=st.tuples(st.integers(0, 30), st.integers(0, 30)).map(lambda t: (min(t), max(t))),
    taken=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 5))),
)
def test_without_and_union(part: tuple[int, int], taken: list[tuple[int, int]]) -> None:
    ranges = union((a, a + n) for a, n in taken)
    covered = {i for a, b in ranges for i in range(a, b)}
    assert covered == {i for a, n in taken for i in range(a, a + n)}
    left = without(part, ranges)
    assert {i for a, b in left for i in range(a, b)} == set(range(*part)) - covered
    assert all(a < b for a, b in left)
