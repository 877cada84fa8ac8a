"""Which models, rules and hyper-parameters make a group."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paramserver.errors import ConfigurationError, UnsupportedError
from paramserver.types import Sync
from paramserver.worker.parameters import check_class, members, plain_spec
from tests.fake_group import made


def cannot(model: Any) -> list[tuple[str, Tensor]]:
    return members(model, "mean").named


def test_models_that_cannot_be_trained() -> None:
    a, b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    for model, why in (
        ([a], "without a name"),
        ([{"params": [a]}], "without a name"),
        ([{"lr": 1}], "without 'params'"),
        ([("x", a), ("x", b)], "named twice"),
        ([("x", a), ("y", a)], "same tensor"),
        ([], "no parameters"),
        (nn.ReLU(), "no parameters"),
    ):
        with pytest.raises(ConfigurationError, match=why):
            cannot(model)
    with pytest.raises(ConfigurationError, match="mean, first, local"):
        members(nn.Linear(1, 1), "sum")


def test_tensors_that_servers_cannot_hold() -> None:
    for tensor, why in (
        (nn.Parameter(torch.zeros(1, dtype=torch.complex64)), "complex64"),
        (nn.Parameter(torch.zeros(1, device="meta")), "meta"),
        (nn.UninitializedParameter(), "lazy"),
    ):
        with pytest.raises(UnsupportedError, match=why):
            cannot([("x", tensor)])


class Mine(torch.optim.SGD):
    pass


@pytest.mark.parametrize(
    ("cls", "why"),
    [
        (torch.optim.LBFGS, "all parameters at once"),
        (torch.optim.SparseAdam, "sparse"),
        (torch.optim.Adafactor, "whole matrices"),
        (Mine, "by name"),
    ],
)
def test_rules_that_servers_do_not_run(cls: Any, why: str) -> None:
    with pytest.raises(UnsupportedError, match=why):
        check_class(cls)


@pytest.mark.parametrize(
    ("hyper", "error", "why"),
    [
        ({"lr": -1.0}, ConfigurationError, "learning rate"),
        ({"speed": 1.0}, ConfigurationError, "speed"),
        ({"lr": float("nan")}, ConfigurationError, "lr=nan"),
        ({"lr": torch.ones(2)}, ConfigurationError, "lr"),
        ({"differentiable": True}, UnsupportedError, "differentiable"),
    ],
)
def test_hyper_parameters_that_cannot_work(hyper: Any, error: Any, why: str) -> None:
    with pytest.raises(error, match=why):
        made(nn.Linear(3, 1), torch.optim.SGD, **hyper)


def test_specs_of_plain_tensors() -> None:
    tensors = {"a": torch.zeros(2), "b": torch.zeros((), dtype=torch.float64)}
    adding = plain_spec("g", tensors, None, Sync(), {})
    assert [(t.name, t.shape, t.dtype, t.rule) for t in adding.tensors] == [
        ("a", (2,), "float32", "add"),
        ("b", (), "float64", "add"),
    ]
    assert (adding.optimizer, adding.param_groups) == ("", ())
    stepping = plain_spec("g", tensors, torch.optim.SGD, Sync(), {"lr": 0.5})
    assert {t.rule for t in stepping.tensors} == {"step"}
    assert stepping.param_groups[0]["lr"] == 0.5
    with pytest.raises(ConfigurationError, match="without an optimizer class"):
        plain_spec("g", tensors, None, Sync(), {"lr": 0.5})
    with pytest.raises(ConfigurationError, match="no tensors"):
        plain_spec("g", {}, None, Sync(), {})
