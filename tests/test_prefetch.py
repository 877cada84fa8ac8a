"""Rows of the next batch on their way while this one computes: the same numbers, sooner."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import paramserver as ps
from paramserver.errors import InvalidRequestError
from tests.cluster import cluster

DIM = 4
FIELDS = 3


class Model(nn.Module):
    """Two modules over one table, one over another, and a dense layer."""

    def __init__(self, client: ps.Client, prefetch: bool, consistency: Any) -> None:
        super().__init__()
        table = client.table("ids", DIM, lr=0.1, consistency=consistency)
        self.fields = ps.Embedding(table, prefetch=prefetch)
        self.bag = ps.EmbeddingBag(table, mode="sum", prefetch=prefetch, padding_idx=0)
        self.wide = ps.Embedding(
            "wide", 1, client=client, prefetch=prefetch, lr=0.1, consistency=consistency
        )
        self.out = nn.Linear(DIM * (FIELDS + 1), 1)
        with torch.no_grad():
            self.out.weight.fill_(0.1)
            self.out.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        deep = torch.cat([self.fields(x).flatten(1), self.bag(x[:, 1:])], 1).tanh()
        result: Tensor = (self.out(deep) + self.wide(x.long()[:, 0])).squeeze(1)
        return result


def data(size: int = 130) -> TensorDataset:
    """Few distinct ids, so that other workers change what was prefetched."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randint(0, 30, (size, FIELDS), generator=generator, dtype=torch.int32)
    return TensorDataset(x, (x.sum(1) % 2).float())


def train(client: ps.Client, prefetch: bool, consistency: Any) -> tuple[Any, ...]:
    model = Model(client, prefetch, consistency)
    optimizer = client.optimizer(model, torch.optim.Adam, lr=0.01)
    loader = client.loader(data(), batch_size=8, assign="round-robin")
    for epoch in client.epochs(2):
        for x, y in loader:
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(model(x), y).backward()
            optimizer.step()
        if epoch == 0:
            with torch.no_grad():
                model(torch.arange(6, dtype=torch.int32).view(2, 3))
    client.barrier("trained")
    tables = [model.fields.table, model.wide.table]
    rows = [table.pull(torch.arange(40)) for table in tables]
    client.barrier("read")
    return rows, client.state_dict(), [table.stats for table in tables]


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("servers", [1, 2])
def test_prefetch_changes_no_bit_under_sync(servers: int, workers: int) -> None:
    found = []
    for prefetch in (True, False):
        with cluster(servers, workers) as c:
            results = c.workers(partial(train, prefetch=prefetch, consistency=ps.Sync()))
        for rows, _, stats in results:
            assert all(torch.equal(a, b) for a, b in zip(rows, results[0][0], strict=True))
            assert all((s.hits > s.misses) == prefetch for s in stats), stats
            assert all((s.changed > 0) == prefetch for s in stats), stats
        found.append(results[0])
    (rows, state, _), (plain, wanted, _) = found
    assert all(torch.equal(a, b) for a, b in zip(rows, plain, strict=True))
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)


def test_prefetch_keeps_read_my_writes_under_stale() -> None:
    found = []
    for prefetch in (True, False):
        with cluster(2, 1) as c:
            found += c.workers(partial(train, prefetch=prefetch, consistency=ps.Stale(2)))
    (rows, _, stats), (plain, _, _) = found
    assert stats[0].hits > stats[0].misses
    assert all(torch.equal(a, b) for a, b in zip(rows, plain, strict=True))


@pytest.mark.parametrize("wire", ["bf16", "fp16", "int8"])
def test_narrow_rows_are_prefetched_alike(wire: str) -> None:
    def work(client: ps.Client) -> None:
        ids = torch.arange(12)
        for prefetch in (True, False):
            table = client.table(f"t{prefetch}", DIM, lr=0.1, wire_dtype=wire)
            model = ps.Embedding(table)
            optimizer = client.optimizer(model, torch.optim.SGD, group=f"g{prefetch}")
            for step in range(6):
                (model(ids) * (ids[:, None] + 1)).sum().backward()
                optimizer.step()
                model(ids[step : step + 3]).sum().backward()
                if prefetch:
                    model.prefetch(ids)
                optimizer.step()
            assert table.stats.changed == (15 if prefetch else 0)  # the last one is not used
            rows.append(table.pull(ids))

    rows: list[Tensor] = []
    with cluster(2, chaos="rate=0") as c:  # rows looked up again later have not changed since
        c.workers(work)
    assert torch.equal(*rows)


def test_evaluation_in_inference_mode() -> None:
    def work(client: ps.Client) -> None:
        model = ps.Embedding("e", DIM, client=client, optimizer=torch.optim.SGD, lr=1.0)
        optimizer = client.optimizer(model, torch.optim.SGD)
        ids = torch.arange(5)
        with torch.inference_mode():
            first = model(ids)
            assert torch.equal(first, model.table.pull(ids))
            model.prefetch(ids)
        model(ids).sum().backward()
        optimizer.step()
        with torch.inference_mode():
            torch.testing.assert_close(model(ids), first - 1)
        assert model.table.stats.hits == 5

    with cluster(1) as c:
        c.workers(work)


def test_async_takes_prefetched_rows_as_they_are() -> None:
    def work(client: ps.Client) -> None:
        rows, _, stats = train(client, True, ps.Async())
        assert stats[0].hits > stats[0].misses
        assert stats[0].changed == 0
        assert all(torch.isfinite(r).all() for r in rows)

    with cluster(2, 2) as c:
        c.workers(work)


def test_ids_that_no_batch_shows_are_prefetched_by_hand() -> None:
    def work(client: ps.Client) -> None:
        model = ps.Embedding("e", DIM, client=client, rows=50, lr=0.1)
        optimizer = client.optimizer(model, torch.optim.SGD, lr=0.1)
        table = model.table
        for step in range(4):
            ids = torch.tensor([step, step + 1, step + 1])
            model(ids).sum().backward()
            model.prefetch(torch.tensor([step + 2, step + 1]))
            optimizer.step()
            assert table.stats.misses == 2
            assert table.stats.hits == 2 * step
        assert table.stats.changed == 3  # one row of each two was pushed meanwhile
        assert torch.equal(model(torch.tensor([3, 4])), table.pull(torch.tensor([3, 4])))
        with pytest.raises(InvalidRequestError, match="id 50 is out of range"):
            model.prefetch(torch.tensor([50]))
        for step in range(5):  # what nobody takes is given up
            model.prefetch(torch.tensor([40 + step]))
            optimizer.step()
            assert len(table.feed._early) <= 1

    with cluster(2) as c:
        c.workers(work)


def test_ids_changed_in_place_after_the_prefetch_are_others() -> None:
    def work(client: ps.Client) -> None:
        model = ps.Embedding("e", DIM, client=client)
        ids = torch.arange(6)
        model.prefetch(ids)
        ids += 3
        assert torch.equal(model(ids), model.table.pull(torch.arange(3, 9)))
        assert model.table.stats.hits == 0

    with cluster(1) as c:
        c.workers(work)


def test_prefetched_rows_of_an_older_clock_are_brought_up_to_date() -> None:
    """A worker that waited idle comes back at a later clock."""

    def work(client: ps.Client) -> bool:
        model = ps.Embedding("e", DIM, client=client, optimizer=torch.optim.SGD, lr=1.0)
        optimizer = client.optimizer(model, torch.optim.SGD, lr=1.0)
        ids = torch.tensor([1, 2, 3])
        first = model.table.pull(ids)
        client.barrier("read")
        if client.rank == 0:
            model.prefetch(ids)
            client.barrier("idle")  # the other trains on
        else:
            for _ in range(3):
                model(ids).sum().backward()
                optimizer.step()
            client.barrier("idle")
        moved = first - model(ids).detach()
        client.barrier("end")
        return bool(torch.allclose(moved, torch.full((3, DIM), 3.0)))

    with cluster(2, 2) as c:
        assert c.workers(work) == [True, True]


def test_early_lookups_survive_broken_connections() -> None:
    with cluster(2, 2) as c:
        wanted = c.workers(lambda client: train(client, False, ps.Sync()))[0][0]
    with cluster(2, 2, proxies=True) as c:
        assert c.proxies is not None
        for proxy in c.proxies:
            proxy.cut_after = (3_000, 40_000)
        results = c.workers(lambda client: train(client, True, ps.Sync()))
        assert sum(proxy.cuts for proxy in c.proxies) >= 4
    for rows, _, _ in results:
        assert all(torch.equal(a, b) for a, b in zip(rows, wanted, strict=True))
