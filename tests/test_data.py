"""Batches, leases, loaders: what is done, what goes back, who waits when."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from paramserver.errors import (
    ConfigurationError,
    ConnectionLostError,
    InvalidRequestError,
    MismatchError,
    UnsupportedError,
    UsageError,
)
from paramserver.types import Span, WorkerId
from paramserver.worker.batches import Batch, Batches, Ticket, merged
from paramserver.worker.data import (
    LeaseBatchSampler,
    LeaseLoader,
    LeaseShards,
    check_options,
    default_shard_size,
)
from paramserver.worker.leases import LeaseSource, Order
from paramserver.worker.session import Session
from paramserver.worker.sources import dataset_spec
from tests.fakes import FakeScheduler, fake_session

Data = Dataset[Any]


class Rig:
    """One worker with a data set of ``size`` samples, and what it was told."""

    def __init__(self, size: int, batch: int, *, shard: int | None = None, **how: Any) -> None:
        self.scheduler = FakeScheduler()
        self.session: Session = fake_session(self.scheduler)
        self.session.add_group("model", lambda: 0, lambda: None)
        self.active: list[bool] = []
        options = {"shuffle": False, "seed": 0, "assign": None, "shard_size": shard, **how}
        spec = dataset_spec("train", size, batch, **options)
        self.source = LeaseSource(self.session, spec, lambda view, idle: self.active.append(idle))
        self.dataset = TensorDataset(torch.arange(size))
        self.asked = 0

    @property
    def queue(self) -> Any:
        return self.scheduler.queues["train"]

    def sampler(self, drop_last: bool = False) -> LeaseBatchSampler:
        return LeaseBatchSampler(self.source, lambda: 1, drop_last)

    def loader(self, *, drop_last: bool = False, **options: Any) -> LeaseLoader:
        return LeaseLoader(self.dataset, self.sampler(drop_last), self._ask, **options)

    def shards(self) -> LeaseShards:
        return LeaseShards(self.source, self._ask)

    def _ask(self) -> None:
        self.asked += 1

    def push(self, *, dropped: bool = False) -> Ticket:
        ticket = self.session.begin_push("model")
        self.session.settle_push(ticket, dropped=dropped)
        return ticket

    def other(self, rank: int = 1) -> WorkerId:
        who = WorkerId(rank, 1)
        self.queue.join(who)
        self.queue.use(who)
        return who


@pytest.fixture
def rig() -> Iterator[Callable[..., Rig]]:
    made: list[Rig] = []

    def make(*args: Any, **options: Any) -> Rig:
        made.append(Rig(*args, **options))
        return made[-1]

    yield make
    for each in made:
        each.session.stop()
        for queue in each.scheduler.queues.values():
            queue.check_invariants()


def indices(batch: Any) -> list[int]:
    values: list[int] = batch[0].tolist()
    return values


# The order of an epoch


def test_order_is_a_permutation_that_seed_and_epoch_decide() -> None:
    order = Order(100, 3, True)
    first = order.indices(0, 0, 100)
    assert sorted(first) == list(range(100))
    assert order.indices(1, 0, 100) != first
    assert Order(100, 3, True).indices(0, 40, 60) == first[40:60]
    assert Order(100, 4, True).indices(0, 0, 100) != first
    # The next seed does not begin with this seed's second epoch.
    assert Order(100, 4, True).indices(0, 0, 100) != Order(100, 3, True).indices(1, 0, 100)


def test_order_without_shuffle_is_the_data_sets() -> None:
    assert Order(10, 3, False).indices(5, 2, 6) == [2, 3, 4, 5]


# The loader


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
    dropped = 0
    for batch in r.loader():
        seen.update(indices(batch))
        r.push(dropped=not dropped)
        dropped += 1
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
    assert [indices(b) for b in loader][0] == [0, 1, 2, 3]  # nothing left: the next epoch
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


def test_an_aborted_push_leaves_its_batch_to_the_next(rig: Callable[..., Rig]) -> None:
    r = rig(8, 4, shard=8)
    passing = iter(r.loader())
    next(passing)
    refused = r.session.begin_push("model")
    r.session.abort_push(refused)
    assert r.session.samples_since("model") == 4
    assert r.push().spans == refused.spans


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
    new = iter(loader)
    next(new)
    with pytest.raises(UsageError, match="newer pass"):
        next(old)


def test_a_peek_costs_nothing(rig: Callable[..., Rig]) -> None:
    r = rig(8, 4)
    loader = r.loader()
    next(iter(loader))
    assert sorted(i for b in loader for i in indices(b)) == list(range(8))


# The sampler


def test_sampler_settles_the_oldest_batch_with_each_push(rig: Callable[..., Rig]) -> None:
    r = rig(12, 4, shard=12)
    drawing = iter(r.sampler())
    assert [next(drawing), next(drawing)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert r.session.samples_since("model") == 4
    assert [(s.start, s.stop) for s in r.push().spans] == [(0, 4)]
    r.source.report()
    assert r.queue.counts().samples_done == 4


def test_sampler_in_a_plain_dataloader_serves_epochs(rig: Callable[..., Rig]) -> None:
    r = rig(12, 4)
    loader = DataLoader(r.dataset, batch_sampler=r.sampler(), num_workers=2)
    for _ in range(2):
        seen = []
        for batch in loader:
            seen += indices(batch)
            r.push()
        assert seen == list(range(12))
    r.source.finish()
    r.source.report()
    assert r.queue.drained
    assert r.queue.counts().unpushed == 0


def test_sampler_never_waits_while_it_holds_batches(rig: Callable[..., Rig]) -> None:
    r = rig(12, 4)
    r.queue.next(r.other(), 0, 1)
    assert len(list(r.sampler())) == 2  # and ends: the third shard is another worker's
    assert [request.wait_s for request in r.scheduler.heard("NextShard")] == [0, 0, 0]


def test_sampler_state_names_the_data_set_and_moves_nothing(rig: Callable[..., Rig]) -> None:
    r, other = rig(12, 4), rig(13, 4)
    sampler = r.sampler()
    sampler.load_state_dict(sampler.state_dict())
    with pytest.raises(MismatchError, match="size=13"):
        sampler.load_state_dict(other.sampler().state_dict())


# Raw shards


def test_shards_are_done_on_leaving_the_body(rig: Callable[..., Rig]) -> None:
    r = rig(10, 1, shard=4)
    shards = r.shards()
    for epoch in range(2):
        seen = []
        for shard in shards:
            assert (shard.epoch, shard.stop - shard.start) == (epoch, len(shard.indices))
            assert r.push().spans == ()  # done as a whole, not by a push
            seen += shard.indices
        assert seen == list(range(10))
    assert r.queue.drained


def test_shards_left_early_go_back(rig: Callable[..., Rig]) -> None:
    r = rig(10, 1, shard=4)
    for shard in r.shards():
        if shard.start:
            break
    counts = r.queue.counts()
    assert (counts.samples_done, counts.leased) == (4, 0)


def test_shards_do_not_weigh(rig: Callable[..., Rig]) -> None:
    r = rig(10, 1, shard=4)
    for _ in r.shards():
        assert r.session.samples_since("model") is None


@pytest.mark.parametrize(("samples", "size"), [(1, 1), (64, 1), (65, 2), (6400, 100)])
def test_default_size_of_raw_shards(samples: int, size: int) -> None:
    assert default_shard_size(samples) == size


# Refusals


def test_two_uses_of_one_name_must_agree(rig: Callable[..., Rig]) -> None:
    r = rig(10, 4)
    same = dataset_spec("train", 10, 4, shuffle=False, seed=0, shard_size=None, assign=None)
    r.source.agrees(same)
    other = dataset_spec("train", 10, 4, shuffle=False, seed=1, shard_size=None, assign=None)
    with pytest.raises(InvalidRequestError, match="seed=0, now seed=1"):
        r.source.agrees(other)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ({"size": 0}, "samples=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"shard_size": 0}, "shard_size=0"),
        ({"assign": "fair"}, "round-robin, random, dynamic"),
    ],
)
def test_values_that_cannot_work(bad: dict[str, Any], why: str) -> None:
    good = {"size": 8, "batch_size": 4, "shuffle": True, "seed": 0, "shard_size": None}
    with pytest.raises(ConfigurationError, match=why):
        dataset_spec("train", **{"assign": None, **good, **bad})


class Stream(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


@pytest.mark.parametrize(
    ("dataset", "options", "why"),
    [
        (TensorDataset(torch.zeros(3)), {"in_order": False}, "in_order"),
        (TensorDataset(torch.zeros(3)), {"sampler": [1]}, "sampler"),
        (TensorDataset(torch.zeros(3)), {"batch_sampler": [[1]]}, "batch_sampler"),
        (Stream(), {}, "no length"),
    ],
)
def test_options_that_leases_cannot_serve(dataset: Data, options: Any, why: str) -> None:
    with pytest.raises(UnsupportedError, match=why):
        check_options(dataset, options)


# The account


def test_neighbouring_spans_are_joined() -> None:
    spans = [Span(1, 4, 8), Span(2, 8, 9), Span(1, 0, 4)]
    assert merged(spans) == [Span(1, 0, 8), Span(2, 8, 9)]


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
TestAccount.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
