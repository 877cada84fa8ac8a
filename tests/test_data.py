"""The loader: what is done, what goes back, who waits when."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from torch.utils.data import DataLoader

from paramserver.errors import ConnectionLostError, UsageError
from paramserver.types import Span
from tests.rig import Rig, indices, rigs


@pytest.fixture
def rig() -> Iterator[Callable[..., Rig]]:
    with rigs() as make:
        yield make


def test_a_pass_is_an_epoch(rig: Callable[..., Rig]) -> None:
    r = rig(10, 4)
    loader = r.loader()
    assert isinstance(loader, DataLoader)
    assert len(loader) == 3
    for epoch in range(3):
        assert r.source.epoch == epoch
        seen = []
        for batch in loader:
            seen += indices(batch)
            r.push()
        assert seen == list(range(10))
    assert r.queue.counts().unpushed == 0
    assert r.asked == 9
    assert r.active[0] is False  # the first lease made it active


def test_a_push_carries_the_batch_it_was_computed_on(rig: Callable[..., Rig]) -> None:
    r = rig(8, 4)
    for _ in r.loader():
        assert [s.stop - s.start for s in r.push().spans] == [4]
        assert r.push().spans == ()  # the second push on the same batch


def test_a_batch_is_done_only_when_the_loop_asks_for_the_next(rig: Callable[..., Rig]) -> None:
    r = rig(8, 4, shard=8)
    passing = iter(r.loader())
    next(passing)
    r.push()
    r.source.report()
    assert r.queue.counts().samples_done == 0
    next(passing)
    r.source.report()
    assert r.queue.counts().samples_done == 4


def test_a_batch_is_done_only_when_all_its_pushes_are_applied(rig: Callable[..., Rig]) -> None:
    r = rig(8, 4, shard=8)
    passing = iter(r.loader())
    next(passing)
    first = r.session.begin_push("model")
    second = r.session.begin_push("critic")
    next(passing)
    for ticket in (first, second):
        r.source.report()
        assert r.queue.counts().samples_done == 0
        r.session.settle_push(ticket)
    r.source.report()
    assert r.queue.counts().samples_done == 4


def test_batches_without_a_push_wait_for_the_next_one(rig: Callable[..., Rig]) -> None:
    r = rig(12, 4, shard=12)
    carried = []
    for number, _ in enumerate(r.loader()):
        if number % 2:
            carried.append([(s.start, s.stop) for s in r.push().spans])
    assert carried == [[(0, 4), (4, 8)]]
    assert r.queue.counts().unpushed == 4  # the last one: the pass ended without a push


def test_a_dropped_push_returns_its_batch(rig: Callable[..., Rig]) -> None:
    r = rig(8, 4)
    seen: Counter[int] = Counter()
    for number, batch in enumerate(r.loader()):
        seen.update(indices(batch))
        r.push(dropped=number == 0)
    assert sorted(seen.elements()) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7]
    assert r.queue.counts().requeued == 1


def test_break_returns_what_is_undone_at_once(rig: Callable[..., Rig]) -> None:
    r = rig(16, 4, shard=16)
    for number, _ in enumerate(r.loader()):
        if number == 1:
            break
        r.push()
    counts = r.queue.counts()
    assert (counts.samples_done, counts.leased, counts.free) == (4, 0, 1)


def test_break_after_a_push_keeps_what_it_did(rig: Callable[..., Rig]) -> None:
    r = rig(16, 4, shard=16)
    for _ in r.loader():
        r.push()
        break
    assert r.queue.counts().samples_done == 4


def test_an_exception_returns_what_is_undone(rig: Callable[..., Rig]) -> None:
    r = rig(16, 4, shard=16)

    def train() -> None:
        for _ in r.loader():
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        train()
    assert r.queue.counts().leased == 0


def test_a_pass_after_a_break_goes_on_with_the_same_epoch(rig: Callable[..., Rig]) -> None:
    r = rig(12, 4)
    loader = r.loader()
    seen = []
    for _ in range(3):
        for batch in loader:
            r.push()
            seen += indices(batch)
            break
    assert seen == list(range(12))
    assert r.source.epoch == 0
    assert indices(list(loader)[0]) == [0, 1, 2, 3]  # nothing left: the next epoch  # noqa: RUF015
    assert r.source.epoch == 2


def test_a_pass_takes_over_what_another_worker_loses(rig: Callable[..., Rig]) -> None:
    r = rig(12, 4)
    other = r.other()
    taken = r.queue.next(other, 0, 1)
    r.scheduler.others = lambda: (r.queue.leave(other), r.queue.recover(other, ()))[0]
    seen = []
    for batch in r.loader():
        seen += indices(batch)
        r.push()
    assert sorted(seen) == list(range(12))
    assert seen[-4:] == list(range(taken.start, taken.stop))
    assert r.active == [False, False, True]  # idle once, then active again


def test_waiting_holds_nothing_undone(rig: Callable[..., Rig]) -> None:
    r = rig(12, 4)
    other = r.other()
    taken = r.queue.next(other, 0, 1)

    def finish() -> None:
        assert not r.session.batches.undone("train")
        assert r.queue.counts().leased == 1  # the other's alone
        r.queue.report(other, [Span(taken.lease, taken.start, taken.stop)])

    r.scheduler.others = finish
    for _ in r.loader():
        r.push()
    assert r.queue.drained


def test_a_late_worker_whose_epoch_others_did_passes_empty(rig: Callable[..., Rig]) -> None:
    r = rig(4, 4)
    other = r.other()
    taken = r.queue.next(other, 0, 1)
    r.queue.report(other, [Span(taken.lease, taken.start, taken.stop)])
    assert list(r.loader()) == []
    assert r.source.epoch == 1


def test_drop_last_leaves_a_short_batch_out(rig: Callable[..., Rig]) -> None:
    r = rig(10, 4)
    loader = r.loader(drop_last=True)
    assert len(loader) == 2
    for _ in range(2):
        assert [len(indices(b)) for b in loader] == [4, 4]
    assert r.queue.counts().unpushed == 20


@pytest.mark.parametrize("persistent", [False, True])
def test_worker_processes_prefetch_without_hanging(
    rig: Callable[..., Rig], persistent: bool
) -> None:
    r = rig(40, 4, shard=8)
    loader = r.loader(num_workers=2, persistent_workers=persistent, prefetch_factor=4)
    for epoch in range(2):
        seen = []
        for batch in loader:
            seen += indices(batch)
            r.push()
            if epoch == 0 and len(seen) == 8:
                break
        assert sorted(seen) == list(range(8) if epoch == 0 else range(8, 40))
        assert r.queue.counts().leased == 0


def test_weight_is_what_was_handed_out_since_the_last_push(rig: Callable[..., Rig]) -> None:
    r = rig(12, 4, shard=12)
    assert r.session.samples_since("model") is None
    weights = []
    for number, _ in enumerate(r.loader()):
        if number != 1:
            weights.append(r.session.samples_since("model"))
            r.push()
            assert r.session.samples_since("model") == weights[-1]  # again on the same samples
    assert weights == [4, 8]


def test_samples_that_no_push_carries_weigh_nothing(rig: Callable[..., Rig]) -> None:
    r = rig(12, 4)
    list(r.loader())  # an evaluation
    passing = iter(r.loader())
    next(passing)
    assert r.session.samples_since("model") == 4


def test_an_aborted_push_leaves_its_batches_to_the_next(rig: Callable[..., Rig]) -> None:
    r = rig(16, 4, shard=16)
    passing = iter(r.loader())
    next(passing)
    r.push()
    next(passing)
    next(passing)
    refused = r.session.begin_push("model")
    r.session.abort_push(refused)
    assert r.session.samples_since("model") == 8
    next(passing)
    assert r.session.samples_since("model") == 12
    pushed = r.push().spans
    assert pushed[:2] == refused.spans
    assert len(pushed) == 3


def test_a_dropped_batch_weighs_nothing_afterwards(rig: Callable[..., Rig]) -> None:
    r = rig(16, 4, shard=16)
    passing = iter(r.loader())
    next(passing)
    r.push(dropped=True)
    next(passing)
    next(passing)
    assert r.session.samples_since("model") == 8
    assert r.session.samples_since("critic") is None


def test_a_report_that_did_not_arrive_is_sent_again(rig: Callable[..., Rig]) -> None:
    r = rig(8, 4, shard=8)
    passing = iter(r.loader())
    next(passing)
    r.push()
    next(passing)

    def away(request: Any) -> Any:
        raise ConnectionLostError("away")

    r.scheduler.answers["ReportSamples"] = away
    r.source.report()
    del r.scheduler.answers["ReportSamples"]
    r.source.report()
    assert r.queue.counts().samples_done == 4


def test_one_pass_at_a_time(rig: Callable[..., Rig]) -> None:
    r = rig(8, 4)
    loader = r.loader()
    old = iter(loader)
    next(old)
    r.source.report()
    new = iter(loader)
    next(new)
    assert r.queue.counts().leased == 1  # the old pass holds nothing
    with pytest.raises(UsageError, match="newer pass"):
        next(old)


def test_a_peek_costs_nothing(rig: Callable[..., Rig]) -> None:
    r = rig(8, 4)
    loader = r.loader()
    next(iter(loader))
    assert sorted(i for b in loader for i in indices(b)) == list(range(8))
