"""Rows on one server against plain torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from paramserver.core.tables import Initial
from paramserver.errors import ConfigurationError, UnsupportedError
from paramserver.ps.tables.bucket import RowBucket
from paramserver.ps.tables.initial import initial_values
from paramserver.ps.tables.rules import RULES, complete, row_rule
from paramserver.ps.tables.store import Layout, Rows, SubTable
from paramserver.wire.rows import keys_of
from paramserver.worker.table_spec import LR

DIM = 5
ROWS = 40


def layout(name: str = "", initial: Initial | None = None, **options: Any) -> Layout:
    rule = row_rule(name) if name else None
    kept = complete(name, options) if name else {}
    return Layout(DIM, rule, kept, initial or Initial("normal", 0.0, 0.1, seed=3))


def keys(ids: Any) -> np.ndarray:
    return keys_of(np.asarray(ids, np.int64))


def batches(steps: int) -> list[tuple[Tensor, Tensor]]:
    """Distinct ids and a gradient for each."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for step in range(steps):
        ids = torch.randperm(ROWS, generator=generator)[: 3 + step % 7]
        made.append((ids, torch.randn(len(ids), DIM, generator=generator)))
    return made


def by_torch(
    first: Tensor, rule: type[torch.optim.Optimizer], options: Mapping[str, Any]
) -> Tensor:
    weight = nn.Parameter(first.clone())
    optimizer = rule([weight], **options)
    with torch.sparse.check_sparse_tensor_invariants():
        for ids, grads in batches(30):
            weight.grad = torch.sparse_coo_tensor(ids[None], grads, weight.shape)
            optimizer.step()
    return weight.detach()


@pytest.mark.parametrize(
    ("name", "rule", "options"),
    [
        ("SGD", torch.optim.SGD, {"lr": 0.1}),
        ("Adagrad", torch.optim.Adagrad, {"lr": 0.1, "lr_decay": 0.01}),
        ("SparseAdam", torch.optim.SparseAdam, {"lr": 0.01}),
    ],
)
def test_as_torch_on_sparse_gradients(
    name: str, rule: type[torch.optim.Optimizer], options: dict[str, Any]
) -> None:
    bucket = RowBucket(0, layout(name, **options), 0)
    every = keys(range(ROWS))
    first, _ = bucket.table.read(every)
    for ids, grads in batches(30):
        bucket.close([(1.0, {0: Rows(keys(ids.numpy()), grads)})])
    found, _ = bucket.table.read(every)
    torch.testing.assert_close(found, by_torch(first, rule, options), atol=1e-6, rtol=1e-6)
    bucket.table.check_invariants()


@pytest.mark.parametrize(
    ("name", "rule", "options"),
    [
        ("Momentum", torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
        ("Momentum", torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
        ("RMSprop", torch.optim.RMSprop, {"lr": 0.01, "weight_decay": 0.1}),
        ("RowAdam", torch.optim.Adam, {"lr": 0.01}),
    ],
)
def test_as_torch_where_every_row_is_touched(
    name: str, rule: type[torch.optim.Optimizer], options: dict[str, Any]
) -> None:
    table = SubTable(layout(name, **options))
    ids = keys(range(ROWS))
    first, _ = table.read(ids)
    weight = nn.Parameter(first.clone())
    optimizer = rule([weight], **options)
    generator = torch.Generator().manual_seed(1)
    for step in range(1, 20):
        grads = torch.randn(ROWS, DIM, generator=generator)
        weight.grad = grads.clone()
        optimizer.step()
        table.push(Rows(ids, grads), table.layout.options, step, step)
    torch.testing.assert_close(table.read(ids)[0], weight.detach(), atol=1e-6, rtol=1e-6)


def test_row_adagrad_keeps_one_number_per_row() -> None:
    table = SubTable(layout("RowAdagrad", lr=0.1))
    assert table.layout.width == DIM + 1
    ids, grads = keys([7]), torch.full((1, DIM), 2.0)
    first, _ = table.read(ids)
    table.push(Rows(ids, grads), table.layout.options, 1, 1)
    torch.testing.assert_close(table.read(ids)[0], first - 0.1 * 2.0 / 2.0)


def test_ftrl_makes_rows_sparse() -> None:
    table = SubTable(layout("Ftrl", Initial(), lr=0.1, l1=10.0))
    ids = keys([1, 2])
    table.push(Rows(ids, torch.ones(2, DIM)), table.layout.options, 1, 1)
    assert not table.read(ids)[0].any()
    table.push(Rows(ids, torch.full((2, DIM), -100.0)), table.layout.options, 2, 2)
    assert (table.read(ids)[0] > 0).all()


def test_ftrl_without_regularisation_steps_as_adagrad_from_any_start() -> None:
    """With beta 0 and no penalty, FTRL-proximal is gradient descent at Adagrad's rate."""
    table = SubTable(layout("Ftrl", lr=0.1, beta=1e-9))
    ids = keys(range(ROWS))
    first, _ = table.read(ids)
    weight = nn.Parameter(first.clone())
    optimizer = torch.optim.Adagrad([weight], lr=0.1)
    for step in range(1, 10):
        grads = torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(step))
        weight.grad = grads.clone()
        optimizer.step()
        table.push(Rows(ids, grads), table.layout.options, step, step)
    torch.testing.assert_close(table.read(ids)[0], weight.detach(), atol=1e-4, rtol=1e-4)


def test_reading_creates_nothing_and_repeats() -> None:
    table = SubTable(layout("Adagrad"))
    ids = keys([5, -1, (1 << 63) - 1, -(1 << 63)])
    once, _ = table.read(ids)
    again, _ = table.read(ids)
    assert len(table) == 0
    assert torch.equal(once, again)
    assert len({tuple(row) for row in once.tolist()}) == 4


def test_initial_values_have_the_right_moments_and_depend_on_seed_and_key_alone() -> None:
    ids = keys(range(4000))
    normal = initial_values(Initial("normal", 1.0, 0.5, seed=1), ids, 7)
    assert abs(normal.mean() - 1.0) < 0.01
    assert abs(normal.std() - 0.5) < 0.01
    uniform = initial_values(Initial("uniform", -2.0, 3.0, seed=1), ids, 3)
    assert -2 <= uniform.min() < -1.99
    assert 2.99 < uniform.max() <= 3
    assert abs(uniform.mean() - 0.5) < 0.03
    other = initial_values(Initial("normal", 1.0, 0.5, seed=2), ids, 7)
    assert abs(np.corrcoef(normal.ravel(), other.ravel())[0, 1]) < 0.03
    part = initial_values(Initial("normal", 1.0, 0.5, seed=1), ids[100:110], 7)
    assert (part == normal[100:110]).all()


def test_only_rows_changed_since_a_version() -> None:
    table = SubTable(layout("SGD", lr=1.0))
    ids = keys([1, 2, 3, 4])
    for version, part in enumerate(([0, 1], [1, 2]), start=2):
        table.push(Rows(ids[part], torch.ones(2, DIM)), table.layout.options, 1, version)
    found, chosen = table.read(ids, since=2)
    assert chosen.tolist() == [False, True, True, False]
    assert torch.equal(found, table.read(ids[[1, 2]])[0])


def test_removed_rows_begin_again() -> None:
    table = SubTable(layout("Adagrad", lr=0.1))
    ids = keys(range(10))
    first, _ = table.read(ids)
    table.push(Rows(ids, torch.ones(10, DIM)), table.layout.options, 1, 1)
    table.remove(ids[:4])
    table.check_invariants()
    assert len(table) == 6
    assert torch.equal(table.read(ids[:4])[0], first[:4])
    table.push(Rows(keys(range(100, 120)), torch.ones(20, DIM)), table.layout.options, 2, 2)
    table.check_invariants()


def test_a_clock_is_the_weighted_mean_over_workers() -> None:
    bucket = RowBucket(0, layout("SGD", lr=1.0), 0)
    every = keys([1, 2, 3])
    first, _ = bucket.table.read(every)
    one = Rows(keys([1, 2]), torch.ones(2, DIM))
    two = Rows(keys([2, 3]), torch.full((2, DIM), 5.0))
    bucket.close([(3.0, {0: one}), (1.0, {0: two}), (0.0, {0: two})])
    moved = first - bucket.table.read(every)[0]
    wanted = torch.tensor([0.75, 2.0, 1.25])[:, None].expand(3, DIM)
    torch.testing.assert_close(moved, wanted)


def test_a_row_of_one_worker_counts_as_zero_for_the_others() -> None:
    bucket = RowBucket(0, layout("SGD", lr=1.0), 0)
    first, _ = bucket.table.read(keys([1]))
    bucket.close([(2.0, {}), (2.0, {0: Rows(keys([1]), torch.ones(1, DIM))})])
    torch.testing.assert_close(first - bucket.table.read(keys([1]))[0], torch.full((1, DIM), 0.5))


def test_without_an_optimizer_updates_are_summed() -> None:
    bucket = RowBucket(0, layout("", Initial()), 0)
    push = Rows(keys([1]), torch.ones(1, DIM))
    bucket.close([(0.0, {0: push}), (7.0, {0: push})])
    assert torch.equal(bucket.table.read(keys([1]))[0], torch.full((1, DIM), 2.0))


def test_a_late_push_moves_less() -> None:
    bucket = RowBucket(0, layout("SGD", lr=1.0), 0)
    first, _ = bucket.table.read(keys([1]))
    for _ in range(3):
        bucket.tick((0,))
    late = bucket.arrive({0: Rows(keys([1]), torch.ones(1, DIM))}, (), {0: 2}, "inverse")
    assert late == 2
    torch.testing.assert_close(first - bucket.table.read(keys([1]))[0], torch.full((1, DIM), 0.5))


@pytest.mark.parametrize("name", sorted(RULES))
def test_bad_options_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="unknown"):
        complete(name, {"speed": 1.0})
    with pytest.raises(ConfigurationError, match="finite"):
        complete(name, {"lr": float("nan")})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("SparseAdam", {"betas": 0.9}),
        ("SparseAdam", {"betas": (0.9,)}),
        ("RowAdam", {"betas": (1.0, 0.9)}),
        ("RMSprop", {"alpha": 1.5}),
        ("SGD", {"lr": (0.1, 0.2)}),
    ],
)
def test_options_that_no_step_could_use_are_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="must be"):
        complete(name, options)


def test_ftrl_takes_another_rate_from_where_it_is() -> None:
    rows = torch.tensor([[0.5, -0.25, 0.0, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    parts = row_rule("Ftrl").parts(rows, 4)
    first = parts[0].clone()
    for lr in (0.1, 0.0, 0.01, 0.1):
        row_rule("Ftrl").step(parts, torch.full((1, 4), 1e-6), complete("Ftrl", {"lr": lr}), 1)
        torch.testing.assert_close(parts[0], first, atol=1e-5, rtol=0)


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="must be one of"):
        row_rule("Muon")


def test_workers_and_servers_agree_on_default_rates() -> None:
    assert {name: rule.defaults["lr"] for name, rule in RULES.items()} == LR
