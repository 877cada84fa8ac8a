"""Tables over a cluster against one process."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import paramserver as ps
from paramserver.errors import (
    ConfigurationError,
    InvalidRequestError,
    NonFiniteError,
    UnsupportedError,
)
from tests.cluster import cluster

DIM = 6
ROWS = 200


def batch(rank: int, step: int) -> tuple[Tensor, Tensor]:
    """Ids with duplicates, and a gradient for each."""
    generator = torch.Generator().manual_seed(1000 * rank + step)
    size = 5 + (3 * rank + step) % 9
    ids = torch.randint(0, ROWS, (size,), generator=generator)
    ids[-1] = ids[0]
    return ids, torch.randn(size, DIM, generator=generator)


def one_process(
    first: Tensor, rule: type[torch.optim.Optimizer], options: dict[str, Any], workers: int
) -> Tensor:
    weight = nn.Parameter(first.clone())
    optimizer = rule([weight], **options)
    with torch.sparse.check_sparse_tensor_invariants():
        for step in range(8):
            parts = [batch(rank, step) for rank in range(workers)]
            ids = torch.cat([i for i, _ in parts])
            share = sum(1.0 + r for r in range(workers))
            grads = torch.cat([g * (1.0 + r) / share for r, (_, g) in enumerate(parts)])
            weight.grad = torch.sparse_coo_tensor(ids[None], grads, weight.shape)
            optimizer.step()
    return weight.detach()


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("servers", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("rule", "options"),
    [
        (torch.optim.SGD, {"lr": 0.1}),
        (torch.optim.Adagrad, {"lr": 0.1}),
        (torch.optim.SparseAdam, {"lr": 0.01}),
    ],
    ids=["sgd", "adagrad", "adam"],
)
def test_sync_equals_one_process(
    servers: int, workers: int, rule: type[torch.optim.Optimizer], options: dict[str, Any]
) -> None:
    def work(client: ps.Client) -> tuple[Tensor, Tensor, int]:
        table = client.table("t", DIM, optimizer=rule, **options)
        every = torch.arange(ROWS)
        first = table.pull(every)
        client.barrier("read")
        for step in range(8):
            ids, grads = batch(client.rank, step)
            table.pull(ids)
            table.push(ids, grads, weight=1.0 + client.rank)
        found = table.pull(every)
        client.barrier("trained")
        return first, found, len(table)

    with cluster(servers, workers) as c:
        results = c.workers(work)
    first, _, count = results[0]
    touched = {int(i) for r in range(workers) for s in range(8) for i in batch(r, s)[0]}
    assert count == len(touched)
    wanted = one_process(first, rule, options, workers)
    for _, each, _ in results:
        torch.testing.assert_close(each, wanted, atol=1e-6, rtol=1e-6)


def test_any_id_and_any_shape() -> None:
    def work(client: ps.Client) -> None:
        table = client.table("t", DIM, optimizer=torch.optim.SGD, lr=1.0)
        ids = torch.tensor([-1, (1 << 63) - 1, 0, -(1 << 63), -1])
        first = table.pull(ids)
        assert torch.equal(first[0], first[4])
        table.push(ids, torch.ones(5, DIM))
        moved = first - table.pull(ids)
        torch.testing.assert_close(moved[:4], torch.tensor([2.0, 1, 1, 1])[:, None].expand(4, DIM))
        assert len(table) == 4
        assert table.pull(torch.tensor([[1, 2], [3, 4]], dtype=torch.int32)).shape == (2, 2, DIM)
        assert table.pull(torch.arange(10)[::2]).shape == (5, DIM)
        assert table.pull(torch.empty(0, dtype=torch.int64)).shape == (0, DIM)
        table.push(torch.empty(0, dtype=torch.int64), torch.empty(0, DIM))
        assert len(table) == 4

    with cluster(2) as c:
        c.workers(work)


def test_initial_values_do_not_depend_on_the_number_of_servers() -> None:
    found = []
    for servers in (1, 3):
        with cluster(servers) as c:
            found += c.workers(lambda client: client.table("t", DIM).pull(torch.arange(50)))
    assert torch.equal(*found)


def test_futures() -> None:
    def work(client: ps.Client) -> None:
        table = client.table("t", DIM, optimizer=None, init=ps.Zeros(), consistency=ps.Async())
        ids = torch.arange(7)
        pushes = [table.push_async(ids, torch.ones(7, DIM)) for _ in range(20)]
        assert [p.result().clock for p in pushes] == list(range(20))
        assert torch.equal(table.pull_async(ids).result(), torch.full((7, DIM), 20.0))

    with cluster(2) as c:
        c.workers(work)


def test_what_is_refused_changes_nothing() -> None:
    def work(client: ps.Client) -> None:
        table = client.table("t", cast(int, np.int64(DIM)), rows=cast(int, np.int32(10)))
        for bad in (-1, 10, (1 << 63) - 1):
            with pytest.raises(InvalidRequestError, match=f"id {bad} is out of range"):
                table.pull(torch.tensor([1, bad]))
            with pytest.raises(InvalidRequestError, match=f"id {bad} is out of range"):
                table.push(torch.tensor([1, bad]), torch.ones(2, DIM))
        assert table.pull(torch.tensor([1, 9], dtype=torch.uint32)).shape == (2, DIM)
        with pytest.raises(InvalidRequestError, match="give a tensor"):
            table.pull([1, 2])  # type: ignore[arg-type]
        for bad_spec in ({"dim": 2.5}, {"dim": -1}, {"dim": 2, "rows": 0}, {"dim": 2, "rows": "9"}):
            with pytest.raises(ConfigurationError, match="must be"):
                client.table("bad", **bad_spec)
        with pytest.raises(UnsupportedError, match="int4"):
            client.table("bad", DIM, wire_dtype="int4")
        with pytest.raises(ConfigurationError, match="nesterov=True: needs a momentum"):
            client.table("rows", 4, optimizer=torch.optim.SGD, nesterov=True)
        with pytest.raises(ConfigurationError, match="its name"):
            ps.Embedding(100, DIM, client=client)  # type: ignore[arg-type]
        with pytest.raises(UnsupportedError, match="must be one of"):
            client.table("bad", DIM, optimizer=3)  # type: ignore[arg-type]
        with pytest.raises(InvalidRequestError, match="must be integers"):
            table.pull(torch.ones(2))
        with pytest.raises(InvalidRequestError, match="gradients of shape"):
            table.push(torch.tensor([1, 2]), torch.ones(3, DIM))
        grads = torch.ones(3, DIM)
        grads[1, 2] = float("nan")
        with pytest.raises(NonFiniteError, match="row 7 of table 't'"):
            table.push(torch.tensor([4, 7, 8]), grads)
        assert len(table) == 0
        assert table.clock == 0
        with pytest.raises(UnsupportedError, match="SparseAdam or 'RowAdam'"):
            client.table("u", DIM, optimizer=torch.optim.Adam)

    with cluster(1) as c:
        c.workers(work)


@pytest.mark.parametrize(("wire", "error"), [("bf16", 0.01), ("fp16", 0.002), ("int8", 0.01)])
def test_rows_travel_narrow(wire: str, error: float) -> None:
    def work(client: ps.Client) -> None:
        table = client.table(
            "t", 32, optimizer=None, init=ps.Zeros(), wire_dtype=wire, consistency=ps.Async()
        )
        ids, rows = torch.arange(40), torch.randn(40, 32)
        table.push(ids, rows)
        assert (table.pull(ids) - rows).abs().max() < error * 2 * rows.abs().max()

    with cluster(1) as c:
        c.workers(work)
