"""How ids come out of a batch, and the batch that comes next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from paramserver.worker.lookahead import MOST_CALLS, TRIES, Calls, Lookahead, Way, find_way
from tests.rig import Rig, indices, rigs


class Clicks(NamedTuple):
    fields: Tensor
    label: Tensor


def batch(seed: int, size: int = 5) -> dict[str, Any]:
    """A batch with tensors in all sorts of places."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randint(0, 1 << 40, shape, generator=generator)

    return {
        "ids": draw(size, 4),
        "pair": (draw(size).int(), [torch.rand(size, generator=generator), draw(size, 2, 3)]),
        "clicks": Clicks(draw(size, 3), draw(size)),
    }


CALLS: list[Callable[[dict[str, Any]], Tensor]] = [
    lambda b: b["ids"],
    lambda b: b["ids"][:, 2],
    lambda b: b["ids"][:, 1:3],
    lambda b: b["ids"].t(),
    lambda b: b["ids"].reshape(-1),
    lambda b: b["ids"][:, 1:],
    lambda b: b["pair"][0].long(),
    lambda b: b["pair"][1][1][:, 1],
    lambda b: b["clicks"].fields,
    lambda b: b["clicks"].label.to(torch.int64),
    lambda b: b["clicks"].label.unsqueeze(1),
]


@pytest.mark.parametrize("size", [5, 3])
@pytest.mark.parametrize("number", range(len(CALLS)))
def test_the_way_found_in_one_batch_leads_to_the_ids_of_another(number: int, size: int) -> None:
    call = CALLS[number]
    here, there = batch(1), batch(2, size)
    way = find_way(call(here), here)
    assert way is not None
    found = way.ids(there)
    assert found is not None
    assert torch.equal(found.long(), call(there).long())


def test_there_is_no_way_to_computed_ids() -> None:
    b = batch(1)
    assert find_way(b["ids"] + 1, b) is None
    assert find_way(torch.arange(3), b) is None
    assert find_way(b["ids"], None) is None


def test_another_kind_of_batch_has_no_such_ids() -> None:
    b = batch(1)
    way = find_way(b["ids"][:, 2], b)
    assert way is not None
    for other in (None, {}, [1], torch.arange(5), {"ids": 3}, {"ids": torch.ones(5, 9).long()}):
        assert way.ids(other) is None
    assert Way((), (4,), (1,), (4,), (1,), 1).ids(torch.arange(4)) is None  # beyond the end


@given(
    shape=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    cuts=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 2)), min_size=3, max_size=3),
    flat=st.booleans(),
)
def test_any_slice_is_found(shape: list[int], cuts: list[tuple[int, int]], flat: bool) -> None:
    tensor = torch.arange(torch.Size(shape).numel()).view(shape)
    where = tuple(
        slice(start % n, None, step) for n, (start, step) in zip(shape, cuts, strict=False)
    )
    ids = tensor[where].reshape(-1) if flat else tensor[where]
    way = find_way(ids, (tensor,))
    if way is not None:
        found = way.ids((tensor + 100,))
        assert found is not None
        assert torch.equal(found, ids + 100)
    else:
        assert flat  # a copy that is no view of the tensor


def test_calls_learn_each_its_own_way() -> None:
    ahead, calls = Lookahead(), Calls()
    for seed in range(4):
        here, there = batch(seed), batch(seed + 1)
        ahead.show(here, there)
        for column in (0, 3):
            found = calls.next_ids(here["ids"][:, column], ahead)
            assert found is not None
            assert torch.equal(found, there["ids"][:, column])
    ahead.show(batch(9), None)
    assert calls.next_ids(batch(9)["ids"][:, 0], ahead) is None


def test_a_way_that_no_longer_holds_is_learnt_anew() -> None:
    ahead, calls = Lookahead(), Calls()
    ahead.show(batch(1), batch(2))
    calls.next_ids(ahead.batch["ids"], ahead)
    ahead.show(batch(2), batch(3))
    found = calls.next_ids(ahead.batch["pair"][0], ahead)
    assert found is not None
    assert torch.equal(found, batch(3)["pair"][0])


def test_what_is_never_found_is_given_up() -> None:
    ahead, calls = Lookahead(), Calls()
    for seed in range(TRIES):
        ahead.show(batch(seed), batch(seed + 1))
        assert calls.next_ids(ahead.batch["ids"] + 1, ahead) is None
    ahead.show(batch(8), batch(9))
    assert calls.next_ids(ahead.batch["ids"], ahead) is None
    for _ in range(MOST_CALLS):
        calls.next_ids(ahead.batch["ids"], ahead)
    assert calls.next_ids(ahead.batch["ids"], ahead) is None


@given(st.lists(st.booleans(), max_size=12))
def test_pairs_lose_no_batch(wanted: list[bool]) -> None:
    """However often looking ahead is switched on and off."""
    ahead = Lookahead()
    seen, promised = [], None
    for number, (item, following) in enumerate(ahead.pairs(iter(range(10)))):
        assert promised in (None, item)
        seen.append(item)
        promised = following
        ahead.wanted = number < len(wanted) and wanted[number]
    assert seen == list(range(10))
    assert promised is None


# The loader


@pytest.fixture
def rig() -> Iterator[Callable[..., Rig]]:
    with rigs() as make:
        yield make


def test_a_loader_that_looks_ahead_hands_out_the_same(rig: Callable[..., Rig]) -> None:
    r = rig(10, 4, shard=4)
    r.session.lookahead.wanted = True
    for _ in range(3):
        seen, promised = [], None
        for b in r.loader():
            assert promised is None or indices(promised) == indices(b)
            promised = r.session.lookahead.following
            seen += indices(b)
            r.push()
        assert seen == list(range(10))
        assert r.session.lookahead.batch is None
    assert r.queue.counts().unpushed == 0


def test_a_batch_that_was_looked_at_and_not_worked_on_goes_back(rig: Callable[..., Rig]) -> None:
    r = rig(12, 4, shard=12)
    r.session.lookahead.wanted = True
    seen: Counter[int] = Counter()
    for b in r.loader():
        seen.update(indices(b))
        r.push()
        break
    for b in r.loader():
        seen.update(indices(b))
        r.push()
    assert seen == Counter(range(12))
