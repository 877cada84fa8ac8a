"""Below the loader: the batch sampler, raw data shards, the order of an epoch, refusals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from paramserver.errors import (
    ConfigurationError,
    InvalidRequestError,
    MismatchError,
    UnsupportedError,
)
from paramserver.worker.data import check_options, default_shard_size
from paramserver.worker.leases import Order
from paramserver.worker.sources import dataset_spec
from tests.rig import Rig, indices, rigs

Data = Dataset[Any]


@pytest.fixture
def rig() -> Iterator[Callable[..., Rig]]:
    with rigs() as make:
        yield make


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


def test_a_newer_iteration_ends_the_older(rig: Callable[..., Rig]) -> None:
    r = rig(12, 4, shard=12)
    sampler = r.sampler()
    old = iter(sampler)
    next(old)
    next(iter(sampler))
    assert list(old) == []


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
        seen: list[int] = []
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
