"""Embeddings over tables against torch's own."""

from __future__ import annotations

import copy
import functools
import gc
import multiprocessing
import threading
import weakref
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import paramserver as ps
from paramserver.errors import (
    ConfigurationError,
    InvalidRequestError,
    NonFiniteError,
    UnsupportedError,
    UsageError,
)
from tests.cluster import cluster, in_threads

DIM = 3
ROWS = 10
ADAGRAD: dict[str, Any] = {"optimizer": torch.optim.Adagrad, "lr": 0.1}


PLAIN = functools.partial(torch.optim.SGD, lr=0.5)


def alone(work: Callable[[ps.Client], None]) -> None:
    """Runs ``work`` on a cluster of two servers."""
    with cluster(2) as c:
        c.workers(work)


def compare(
    client: ps.Client,
    ours: ps.Embedding | ps.EmbeddingBag,
    make: Callable[[Tensor], nn.Module],
    *calls: tuple[Any, ...],
) -> None:
    """Forward passes and three Adagrad steps of ours, and of torch's on the same weights."""
    every = torch.arange(ROWS)
    first = ours.table.pull(every)
    padding = ours.padding_idx
    if padding is not None:
        first[padding] = 0
    theirs = make(first)
    inner = torch.optim.Adagrad(theirs.parameters(), lr=0.1)
    optimizer = client.optimizer(ours, torch.optim.SGD, lr=0.1)
    for _ in range(3):
        for call in calls:
            mine, wanted = ours(*call), theirs(*call)
            torch.testing.assert_close(mine, wanted)
            assert mine.dtype == wanted.dtype
            for result in (mine, wanted):
                (result * torch.arange(result.numel()).view(result.shape)).sum().backward()
        optimizer.step()
        inner.step()
        inner.zero_grad()
    found, weight = ours.table.pull(every), next(theirs.parameters()).detach()
    if padding is not None:
        found[padding] = 0
    torch.testing.assert_close(found, weight)


# torch's documented examples, those that can apply: values, shapes, gradients


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8])
def test_embedding_as_documented(dtype: torch.dtype) -> None:
    def work(client: ps.Client) -> None:
        ours = ps.Embedding("e", DIM, client=client, rows=ROWS, **ADAGRAD)
        ids = torch.tensor([[1, 2, 4, 5], [4, 3, 2, 9]], dtype=dtype)
        assert ours(ids).shape == (2, 4, 3)
        compare(client, ours, lambda w: nn.Embedding(ROWS, DIM, _weight=w, _freeze=False), (ids,))

    if dtype in (torch.int64, torch.int32):
        alone(work)
        return

    def by_long(client: ps.Client) -> None:  # torch takes no other type; ours does
        ours = ps.Embedding("e", DIM, client=client, rows=ROWS, **ADAGRAD)
        ids = torch.tensor([[1, 2, 4, 5], [4, 3, 2, 9]])
        assert torch.equal(ours(ids.to(dtype)), ours(ids))

    alone(by_long)


def test_embedding_with_padding_as_documented() -> None:
    def work(client: ps.Client) -> None:
        ours = ps.Embedding("e", DIM, client=client, rows=ROWS, padding_idx=0, **ADAGRAD)
        ids = torch.tensor([[0, 2, 0, 5]])
        assert torch.equal(ours(ids)[0, [0, 2]], torch.zeros(2, DIM))
        compare(
            client,
            ours,
            lambda w: nn.Embedding(ROWS, DIM, padding_idx=0, _weight=w),
            (ids,),
            (torch.tensor([0, 0]),),
        )
        assert len(ours.table) == 2  # the padding row is not created

    alone(work)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bag_as_documented(mode: str) -> None:
    def work(client: ps.Client) -> None:
        ours = ps.EmbeddingBag("e", DIM, client=client, rows=ROWS, mode=mode, **ADAGRAD)
        ids = torch.tensor([1, 2, 4, 5, 4, 3, 2, 9])
        offsets = torch.tensor([0, 4])
        assert ours(ids, offsets).shape == (2, 3)
        compare(
            client,
            ours,
            lambda w: nn.EmbeddingBag(ROWS, DIM, mode=mode, _weight=w),
            (ids, offsets),
            (ids.view(2, 4),),
            (ids, torch.tensor([0, 3, 3])),
        )

    alone(work)


def test_bag_with_padding_as_documented() -> None:
    def work(client: ps.Client) -> None:
        ours = ps.EmbeddingBag(
            "e", DIM, client=client, rows=ROWS, mode="sum", padding_idx=2, **ADAGRAD
        )
        ids = torch.tensor([2, 2, 2, 2, 4, 3, 2, 9])
        compare(
            client,
            ours,
            lambda w: nn.EmbeddingBag(ROWS, DIM, mode="sum", padding_idx=2, _weight=w),
            (ids, torch.tensor([0, 4])),
        )
        assert len(ours.table) == 3

    alone(work)


def test_bag_with_weights_and_last_offset() -> None:
    def work(client: ps.Client) -> None:
        ours = ps.EmbeddingBag(
            "e", DIM, client=client, rows=ROWS, mode="sum", include_last_offset=True, **ADAGRAD
        )
        ids = torch.tensor([1, 2, 4, 5, 4, 3, 2, 9])
        weights = torch.linspace(0.1, 0.8, 8)
        compare(
            client,
            ours,
            lambda w: nn.EmbeddingBag(ROWS, DIM, mode="sum", include_last_offset=True, _weight=w),
            (ids, torch.tensor([0, 4, 8]), weights),
        )
        asked = weights.clone().requires_grad_()
        ours(ids, torch.tensor([0, 4, 8], dtype=torch.int32), asked).sum().backward()
        assert asked.grad is not None

    alone(work)


def test_gradients_by_frequency() -> None:
    def work(client: ps.Client) -> None:
        ours = ps.Embedding("e", DIM, client=client, rows=ROWS, scale_grad_by_freq=True, **ADAGRAD)
        compare(
            client,
            ours,
            lambda w: nn.Embedding(ROWS, DIM, scale_grad_by_freq=True, _weight=w),
            (torch.tensor([3, 1, 3, 3, 7, 1]),),
        )

    alone(work)


@pytest.mark.parametrize(
    "ids",
    [
        torch.empty(0, dtype=torch.int64),
        torch.empty(4, 0, dtype=torch.int32),
        torch.full((7,), 5),
        torch.tensor([9, 0, 9, 4, 2, 0]),
        torch.arange(10).view(2, 5).t()[::2],
        torch.tensor(3),
    ],
    ids=["empty", "empty-2d", "one-id-repeated", "unsorted", "non-contiguous", "scalar"],
)
def test_every_kind_of_batch(ids: Tensor) -> None:
    def work(client: ps.Client) -> None:
        ours = ps.Embedding("e", DIM, client=client, rows=ROWS, **ADAGRAD)
        compare(client, ours, lambda w: nn.Embedding(ROWS, DIM, _weight=w), (ids,))

    alone(work)


def test_missing_rows_do_not_shift_the_gradients_of_others() -> None:
    """Rows that exist, new ones and padding, interleaved: each gets its own gradient."""

    def work(client: ps.Client) -> None:
        table = client.table("e", DIM, optimizer=torch.optim.SGD, lr=1.0)
        ours = ps.Embedding(table, padding_idx=7)
        optimizer = client.optimizer(ours, torch.optim.SGD, lr=1.0)
        table.push(torch.tensor([100, -5]), torch.ones(2, DIM))
        ids = torch.tensor([1 << 40, 100, 7, 3, -5, 7, -(1 << 63), 100])
        first = table.pull(ids)
        grads = torch.arange(float(len(ids)))[:, None].expand(-1, DIM)
        (ours(ids) * grads).sum().backward()
        optimizer.step()
        moved = (first - table.pull(ids))[:, 0]
        torch.testing.assert_close(moved, torch.tensor([0.0, 8, 0, 3, 4, 0, 6, 8]))
        assert len(table) == 5

    alone(work)


def test_several_calls_and_modules_are_one_push() -> None:
    def work(client: ps.Client) -> None:
        table = client.table("shared", DIM, optimizer=torch.optim.SGD, lr=1.0)
        other = client.table("untouched", DIM, optimizer=torch.optim.SGD, lr=1.0)
        model = nn.ModuleList([ps.Embedding(table), ps.EmbeddingBag(table, mode="sum")])
        model.append(ps.Embedding(other))
        optimizer = client.optimizer(model, torch.optim.SGD, lr=1.0)
        first = table.pull(torch.tensor([1, 2, 3]))
        loss = model[0](torch.tensor([1, 2])).sum() + model[0](torch.tensor([2])).sum()
        (loss + model[1](torch.tensor([[2, 3]])).sum()).backward()
        optimizer.step()
        assert (table.clock, other.clock) == (1, 1)
        moved = (first - table.pull(torch.tensor([1, 2, 3])))[:, 0]
        torch.testing.assert_close(moved, torch.tensor([1.0, 3.0, 1.0]))
        optimizer.step()  # the gradients went with the first step
        assert (table.clock, len(other)) == (2, 0)
        assert torch.equal(first[:, 0] - moved, table.pull(torch.tensor([1, 2, 3]))[:, 0])

    alone(work)


def test_zero_grad_forgets_and_forward_alone_keeps_nothing() -> None:
    def work(client: ps.Client) -> None:
        ours = ps.Embedding("e", DIM, client=client, **ADAGRAD)
        optimizer = client.optimizer(ours, torch.optim.SGD, lr=1.0)
        ids = torch.tensor([1, 2])
        ours(ids).sum().backward()
        optimizer.zero_grad()
        for _ in range(3):
            assert ours(ids).requires_grad
        with torch.no_grad():
            assert not ours(ids).requires_grad
        assert not ours.table.feed.leaves
        optimizer.step()
        assert len(ours.table) == 0

    alone(work)


def linear() -> nn.Linear:
    """A layer whose first values do not depend on what other threads draw."""
    layer = nn.Linear(DIM, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.linspace(-0.5, 0.4, DIM)[None])
        layer.bias.zero_()
    return layer


class Tower(nn.Module):
    """A table and a dense layer."""

    def __init__(self, table: ps.Table) -> None:
        super().__init__()
        self.rows = ps.Embedding(table)
        self.out = linear()

    def forward(self, ids: Tensor) -> Tensor:
        result: Tensor = self.out(self.rows(ids).tanh()).squeeze(-1)
        return result


class Plain(nn.Module):
    """The same in plain PyTorch."""

    def __init__(self, weight: Tensor, out: nn.Linear) -> None:
        super().__init__()
        self.rows = nn.Embedding(len(weight), DIM, sparse=True, _weight=weight)
        self.out = out

    forward = Tower.forward


def tower(client: ps.Client, name: str = "t", **options: Any) -> Tower:
    return Tower(client.table(name, DIM, **{**ADAGRAD, **options}))


def samples(rank: int, step: int, rows: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 * rank + step)
    ids = torch.randint(0, rows, (6 + (rank + step) % 3,), generator=generator)
    return ids, (ids % 2).float()


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("servers", [1, 2, 3, 4])
def test_sync_training_equals_one_process(servers: int, workers: int) -> None:
    def work(client: ps.Client) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        model = tower(client)
        optimizer = client.optimizer(model, torch.optim.Adam, lr=0.01)
        first = model.rows.table.pull(torch.arange(40))
        client.barrier("read")
        for step in range(6):
            ids, y = samples(client.rank, step)
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(model(ids), y).backward()
            optimizer.step(weight=len(ids))
        found = model.rows.table.pull(torch.arange(40))
        client.barrier("trained")
        return first, found, client.state_dict()

    with cluster(servers, workers) as c:
        results = c.workers(work)
    model = Plain(results[0][0].clone(), linear())
    sparse = torch.optim.Adagrad([model.rows.weight], lr=0.1)
    dense = torch.optim.Adam(model.out.parameters(), lr=0.01)
    for step in range(6):
        parts = [samples(rank, step) for rank in range(workers)]
        ids, y = torch.cat([i for i, _ in parts]), torch.cat([t for _, t in parts])
        for each in (sparse, dense):
            each.zero_grad()
        with torch.sparse.check_sparse_tensor_invariants():
            F.binary_cross_entropy_with_logits(model(ids), y).backward()
        for each in (sparse, dense):
            each.step()
    for _, found, state in results:
        torch.testing.assert_close(found, model.rows.weight.detach(), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(state["out.weight"], model.out.weight.detach())


@pytest.mark.parametrize(
    ("dense", "sparse"),
    [
        (ps.Sync(), ps.Async()),
        (ps.Async(), ps.Sync()),
        (ps.Stale(2), ps.Stale(1)),
        (ps.Sync(backup=1), ps.Stale(2)),
        (ps.Adaptive(2), ps.Async()),
        (ps.Local(2), ps.Async()),
        (ps.Local(2, base=ps.Async("polynomial"), outer=PLAIN), ps.Sync()),
        (ps.Downpour(2, 2), ps.Async()),
        (ps.AllReduce(), ps.Async()),
        (ps.AllReduce(), ps.Sync()),
    ],
    ids=str,
)
def test_each_part_by_its_own_consistency(dense: Any, sparse: Any) -> None:
    def work(client: ps.Client) -> tuple[float, float]:
        model = tower(client, consistency=sparse)
        optimizer = client.optimizer(model, torch.optim.Adam, lr=0.05, consistency=dense)
        losses = []
        for step in range(30):
            ids, y = samples(client.rank, step, rows=8)
            optimizer.zero_grad()
            loss = F.binary_cross_entropy_with_logits(model(ids), y)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        client.barrier("trained")
        return sum(losses[:5]), sum(losses[-5:])

    with cluster(2, 2) as c:
        for first, last in c.workers(work):
            assert last < 0.7 * first


def test_dense_gradients_may_overlap_the_backward_pass() -> None:
    def work(client: ps.Client) -> None:
        first, second = (tower(client, name=name) for name in "ab")
        optimizers = [
            client.optimizer(model, torch.optim.Adam, lr=0.01, group=group, overlap=group == "b2")
            for model, group in ((first, "a2"), (second, "b2"))
        ]
        for step in range(4):
            ids, y = samples(client.rank, step)
            for model, optimizer in zip((first, second), optimizers, strict=True):
                optimizer.zero_grad()
                F.binary_cross_entropy_with_logits(model(ids), y).backward()
                optimizer.step()
            client.barrier("both")
        assert torch.equal(first.out.weight, second.out.weight)
        ids = torch.arange(40)
        assert torch.equal(first.rows.table.pull(ids), second.rows.table.pull(ids))

    with cluster(2, 2) as c:
        c.workers(work)


def test_rows_are_freed_by_the_step_not_by_the_collector() -> None:
    def work(client: ps.Client) -> None:
        model = tower(client)
        optimizer = client.optimizer(model, torch.optim.SGD, lr=0.1)
        gc.disable()
        try:
            model(torch.tensor([1, 2])).sum().backward()
            leaf = weakref.ref(model.rows.table.feed.leaves[0])
            optimizer.step()
            assert leaf() is None
        finally:
            gc.enable()

    alone(work)


@pytest.mark.parametrize("tau", [1, 2, 4, None])
def test_the_hybrid_keeps_to_tau(tau: int | None) -> None:
    def work(client: ps.Client) -> int:
        model = tower(client, consistency=ps.Async())
        optimizer = client.optimizer(model, torch.optim.SGD, lr=0.1, tau=tau)
        feed, most = model.rows.table.feed, 0
        for step in range(20):
            ids, y = samples(client.rank, step)
            loss = F.binary_cross_entropy_with_logits(model(ids), y)
            most = max(most, len(feed._flying) + 1)
            model.rows.prefetch(samples(client.rank, step + 1)[0])
            early = any(e.lookup is not None for e in feed._early)
            most = max(most, len(feed._flying) + 1 + early)
            loss.backward()
            optimizer.step()
        client.barrier("trained")
        assert model.rows.table.stats.hits > 0 or tau == 1
        return most

    with cluster(1, 2) as c:
        for most in c.workers(work):
            assert tau is None or most <= tau


def test_a_closure_and_a_schedule() -> None:
    def work(client: ps.Client) -> None:
        model = ps.Embedding(
            "e", DIM, client=client, optimizer=torch.optim.SGD, lr=1.0, init=ps.Zeros()
        )
        optimizer = client.optimizer(model, torch.optim.SGD, lr=0.5)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        ids = torch.tensor([4])

        def closure() -> float:
            optimizer.zero_grad()
            loss: Tensor = model(ids).sum()
            loss.backward()
            return loss.item()

        assert optimizer.step(closure) == 0.0
        schedule.step()
        assert optimizer.step(closure) == -3.0
        torch.testing.assert_close(model(ids), torch.full((1, DIM), -1.5))
        assert optimizer.last is not None
        assert optimizer.last.clock == 1
        assert client.state_dict() == {}

    alone(work)


def test_grad_scaler() -> None:
    def work(client: ps.Client) -> None:
        for unscale, name in ((False, "a"), (True, "b")):
            table = client.table(name, DIM, optimizer=torch.optim.SGD, lr=1.0)
            model = Tower(table)
            optimizer = client.optimizer(model, torch.optim.SGD, lr=1.0, group=f"dense-{name}")
            scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=100)
            ids = torch.tensor([1, 1, 2])
            for overflow in (False, True, False):
                first, before = table.pull(ids), model.out.weight.detach().clone()
                optimizer.zero_grad()
                out = model.rows(ids).sum() + model.out.weight.sum()
                scaler.scale(out * float("inf") if overflow else out).backward()
                if unscale:
                    scaler.unscale_(optimizer)
                scaler.step(optimizer)
                scaler.update()
                scale = 0.0 if overflow else 1.0
                moved = first - table.pull(ids)
                torch.testing.assert_close(moved[:, 0], scale * torch.tensor([2.0, 2.0, 1.0]))
                torch.testing.assert_close(
                    before - model.out.weight.detach(), torch.full((1, DIM), scale)
                )
            assert table.clock == 3

    alone(work)


def test_grad_scaler_with_tables_alone() -> None:
    def work(client: ps.Client) -> None:
        model = ps.Embedding("e", DIM, client=client, optimizer=torch.optim.SGD, lr=1.0)
        optimizer = client.optimizer(model, torch.optim.SGD, lr=1.0)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        first = model.table.pull(torch.tensor([1]))
        scaler.scale(model(torch.tensor([1])).sum()).backward()
        scaler.step(optimizer)
        torch.testing.assert_close(first - model.table.pull(torch.tensor([1])), torch.ones(1, DIM))

    alone(work)


def test_a_rate_below_zero_is_refused_before_anything_is_sent() -> None:
    def work(client: ps.Client) -> None:
        embedding = ps.Embedding("t", DIM, client=client, lr=0.1)
        optimizer = client.optimizer(nn.Sequential(embedding, nn.Linear(DIM, 1)), torch.optim.SGD)
        for group, why in ((0, "Invalid learning rate"), (1, "nothing was sent")):
            for lr in (-1.0, 0.1):
                optimizer.param_groups[group]["lr"] = lr
                optimizer.zero_grad()
                embedding(torch.tensor([1])).sum().backward()
                if lr < 0:
                    with pytest.raises(ConfigurationError, match=why):
                        optimizer.step()
                else:
                    optimizer.step()
        assert optimizer.group.clock == embedding.table.clock == 2

    with cluster(1) as c:
        c.workers(work)


def test_hyper_parameters_of_rows_are_checked_as_servers_do() -> None:
    def work(client: ps.Client) -> None:
        rows = ps.Embedding("t", DIM, client=client, optimizer="RowAdam", betas=(0.9, 0.99))
        optimizer = client.optimizer(rows, torch.optim.SGD)
        group = optimizer.param_groups[0]
        for betas, why in (((0.9, 1.0), "each below 1"), (0.9, "two numbers"), ((0.5, 0.6), "")):
            group["betas"] = betas
            optimizer.zero_grad()
            rows(torch.tensor([1])).sum().backward()
            if why:
                with pytest.raises(ConfigurationError, match=f"table 't'.*{why}.*nothing was sent"):
                    optimizer.step()
            else:
                optimizer.step()
        assert rows.table.clock == 1

    with cluster(1) as c:
        c.workers(work)


def test_a_dense_rate_is_refused_on_an_overflow_too() -> None:
    def work(client: ps.Client) -> None:
        rows = ps.Embedding("t", DIM, client=client, lr=0.1)
        model = nn.Sequential(rows, nn.Linear(DIM, 1))
        optimizer = client.optimizer(model, torch.optim.SGD, lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        for lr in (-1.0, 0.1):
            optimizer.param_groups[0]["lr"] = lr
            optimizer.zero_grad()
            scaler.scale(model(torch.tensor([1])).sum() * float("inf")).backward()
            if lr < 0:
                with pytest.raises(ConfigurationError, match="Invalid learning rate"):
                    scaler.step(optimizer)
                scaler.update()
            else:
                scaler.step(optimizer)
        assert optimizer.group.clock == rows.table.clock == 1

    with cluster(1) as c:
        c.workers(work)


def test_nan_is_refused_before_anything_is_sent() -> None:
    def work(client: ps.Client) -> None:
        model = tower(client)
        optimizer = client.optimizer(model, torch.optim.SGD, lr=0.1)
        for where, words in (("rows", "row 7 of table 't'"), ("out", "'out.weight'")):
            loss = model(torch.tensor([3, 7])).sum()
            loss.backward()
            if where == "rows":
                leaf = model.rows.table.feed.leaves[0]
                assert leaf.grad is not None
                place = model.rows.table.feed._sources[id(leaf)].routed.ids().index(7)
                leaf.grad[place, 1] = float("nan")
            else:
                assert model.out.weight.grad is not None
                model.out.weight.grad[0, 0] = float("inf")
            with pytest.raises(NonFiniteError, match=words):
                optimizer.step()
            assert (model.rows.table.clock, optimizer.group.clock) == (0, 0)
            optimizer.zero_grad()
        assert len(model.rows.table) == 0

    alone(work)


def test_what_cannot_work_is_refused() -> None:
    def work(client: ps.Client) -> None:
        table = client.table("t", DIM, rows=ROWS, **ADAGRAD)
        with pytest.raises(UnsupportedError, match=r"max_norm=1.*weight_decay"):
            ps.Embedding(table, max_norm=1.0)
        with pytest.raises(ConfigurationError, match="needs embedding_dim and client="):
            ps.Embedding("u", DIM)
        with pytest.raises(ConfigurationError, match="lr beside table 't'"):
            ps.Embedding(table, lr=0.1)
        with pytest.raises(ConfigurationError, match="padding_idx=10"):
            ps.Embedding(table, padding_idx=ROWS)
        with pytest.raises(ConfigurationError, match="mode='median'"):
            ps.EmbeddingBag(table, mode="median")
        with pytest.raises(UnsupportedError, match="scale_grad_by_freq"):
            ps.EmbeddingBag(table, mode="max", scale_grad_by_freq=True)
        assert ps.Embedding(table, padding_idx=-1).padding_idx == ROWS - 1
        ours = ps.Embedding(table)
        with pytest.raises(InvalidRequestError, match="id 10 is out of range"):
            ours(torch.tensor([1, 10]))
        with pytest.raises(InvalidRequestError, match="must be integers"):
            ours(torch.tensor([1.0]))
        with pytest.raises(UsageError, match="no optimizer pushes it"):
            ours(torch.tensor([1])).sum().backward()
        with pytest.raises(ConfigurationError, match=r"tau=2.*none"):
            client.optimizer(ours, torch.optim.SGD, tau=2)
        with pytest.raises(ConfigurationError, match=r"tau=2.*no tables"):
            client.optimizer(nn.Linear(2, 2), torch.optim.SGD, tau=2)
        with pytest.raises(ConfigurationError, match="tau=0"):
            client.optimizer(ours, torch.optim.SGD, tau=0)
        client.optimizer(ours, torch.optim.SGD, lr=0.1)
        with pytest.raises(ConfigurationError, match=r"another client\.optimizer"):
            client.optimizer(ps.Embedding(table), torch.optim.SGD, lr=0.1, group="more")
        sums = ps.Embedding("sums", DIM, client=client, optimizer=None)
        with pytest.raises(ConfigurationError, match="optimizer=None"):
            client.optimizer(sums, torch.optim.SGD, lr=0.1)
        with pytest.raises(UnsupportedError, match="cannot be pickled"):
            table.__reduce_ex__(4)
        assert copy.deepcopy(ours).table is table

    alone(work)


def test_state_of_the_optimizer() -> None:
    def work(client: ps.Client) -> None:
        model = tower(client)
        optimizer = client.optimizer(model, torch.optim.Adam, lr=0.01)
        optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = 0.5, 0.25
        state = optimizer.state_dict()
        optimizer.param_groups[0]["lr"], optimizer.param_groups[1]["lr"] = 1.0, 2.0
        optimizer.load_state_dict(state)
        assert [g["lr"] for g in optimizer.param_groups] == [0.5, 0.25]
        model(torch.tensor([1, 2])).sum().backward()
        optimizer.step()
        assert set(client.state_dict()) == {"out.weight", "out.bias"}
        Plain(torch.zeros(4, DIM), linear()).load_state_dict(client.state_dict(), strict=False)

    alone(work)


# Faults

SAMPLES = 96


def mover(client: ps.Client, consistency: Any) -> tuple[ps.EmbeddingBag, Any]:
    """A model that moves the row of each id by its gradient, and its optimizer."""
    model = ps.EmbeddingBag(
        "e",
        DIM,
        client=client,
        mode="sum",
        optimizer=torch.optim.SGD,
        lr=1.0,
        init=ps.Zeros(),
        consistency=consistency,
    )
    return model, client.optimizer(model, torch.optim.SGD)


def ids_as_samples(client: ps.Client) -> Any:
    """A loader whose samples are ids."""
    return client.loader(cast(Any, range(SAMPLES)), batch_size=4, assign="dynamic")


def _doomed(address: str, consistency: Any, pulled: Any) -> None:
    """A worker that is killed between the pull and the push of its second batch."""
    client = ps.connect(address, name="worker-1")
    model, optimizer = mover(client, consistency)
    for step, ids in enumerate(ids_as_samples(client)):
        loss = model(ids[:, None]).sum()
        if step == 1:
            pulled.put(ids.tolist())
            threading.Event().wait(60)
        loss.backward()
        optimizer.step()


@pytest.mark.slow
@pytest.mark.parametrize("consistency", [ps.Async("none"), ps.Sync()], ids=str)
def test_a_worker_lost_between_pull_and_push(consistency: Any) -> None:
    """Its rows are not created by it; its samples are learnt by the other, once."""
    context = multiprocessing.get_context("spawn")
    pulled = context.Queue()
    killed = threading.Event()

    def kill() -> list[int]:
        ids: list[int] = pulled.get(timeout=60)
        doomed.kill()
        doomed.join()
        killed.set()
        return ids

    def survive() -> Tensor:
        with c.connect("worker-0") as client:
            model, optimizer = mover(client, consistency)
            for ids in ids_as_samples(client):
                if isinstance(consistency, ps.Async):  # else it waits for the other by itself
                    assert killed.wait(60)
                model(ids[:, None]).sum().backward()
                optimizer.step()
            assert len(model.table) == SAMPLES
            return model.table.pull(torch.arange(SAMPLES))[:, 0]

    with cluster(2, 2, lease_s=2.0) as c:
        doomed = context.Process(target=_doomed, args=(c.address, consistency, pulled), daemon=True)
        doomed.start()
        calls: list[Callable[[], Any]] = [kill, survive]
        lost, rows = in_threads(calls)
    assert len(lost) == 4
    if isinstance(consistency, ps.Async):  # each push is applied whole
        assert torch.equal(rows, torch.full((SAMPLES,), -1.0))
    else:  # each clock applies the mean over those who were there: one or two
        assert ((rows == -1.0) | (rows == -0.5)).all()
        assert torch.equal(rows[lost], torch.full((4,), -1.0))


@pytest.mark.parametrize("consistency", [ps.Sync(), ps.Async("none"), ps.Stale(2, "none")], ids=str)
def test_steps_over_breaking_connections_count_once(consistency: Any) -> None:
    def work(client: ps.Client) -> tuple[Tensor, int]:
        model, optimizer = mover(client, consistency)
        for step in range(30):
            ids = torch.arange(SAMPLES)[step % 3 :: 3]
            model(ids[:, None]).sum().backward()
            model.prefetch(torch.arange(SAMPLES)[(step + 1) % 3 :: 3])
            optimizer.step(weight=1.0)
        client.barrier("trained")
        return model.table.pull(torch.arange(SAMPLES))[:, 0], model.table.stats.hits

    with cluster(2, 2, proxies=True) as c:
        assert c.proxies is not None
        for proxy in c.proxies:
            proxy.cut_after = (2_000, 30_000)
        results = c.workers(work)
        assert sum(proxy.cuts for proxy in c.proxies) >= 4
    wanted = -10.0 if isinstance(consistency, ps.Sync) else -20.0
    for rows, hits in results:
        assert torch.equal(rows, torch.full((SAMPLES,), wanted))
        assert hits == 29 * SAMPLES // 3
