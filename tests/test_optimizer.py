"""The torch optimizer on servers: what it sends, what drives it, what it refuses."""

from __future__ import annotations

import copy
import pickle  # noqa: TID251 - to see it refused
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from paramserver.errors import (
    ConfigurationError,
    InvalidRequestError,
    UnsupportedError,
)
from paramserver.worker.optimizer import ServerOptimizer
from paramserver.worker.parameters import members, tensor_specs
from tests.fake_group import backward, made

LR = torch.optim.lr_scheduler


# What a step sends


def test_a_step_pushes_gradients_by_name_and_takes_values_in_place() -> None:
    model = nn.Linear(3, 1)
    optimizer, group = made(model)
    place, before = model.weight.data_ptr(), model.weight.detach().clone()
    backward(model)
    assert optimizer.step() is None
    pushed, weight, options = group.pushes[0]
    assert torch.equal(pushed["weight"], torch.full((1, 3), 2.0))
    assert set(pushed) == {"weight", "bias"}
    assert (weight, options) == (None, None)
    assert torch.equal(model.weight, before + 1)
    assert model.weight.data_ptr() == place
    assert optimizer.last is not None
    assert optimizer.last.clock == 0


def test_weight_is_what_the_caller_says() -> None:
    model = nn.Linear(3, 1)
    optimizer, group = made(model)
    optimizer.step(weight=12)
    assert group.pushes[0][1] == 12
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigurationError, match="weight"):
            optimizer.step(weight=bad)


def test_a_closure_is_called_once_with_gradients() -> None:
    model = nn.Linear(3, 1)
    optimizer, group = made(model)
    calls = []

    def closure() -> float:
        calls.append(1)
        loss = model(torch.ones(2, 3)).sum()
        loss.backward()
        return float(loss.detach())

    assert isinstance(optimizer.step(closure), float)
    assert (calls, set(group.pushes[0][0])) == ([1], {"weight", "bias"})


def test_absent_gradients_are_not_sent() -> None:
    model = nn.Linear(3, 1)
    optimizer, group = made(model)
    model.weight.grad = torch.ones(1, 3)
    optimizer.step()
    assert set(group.pushes[0][0]) == {"weight"}
    optimizer.zero_grad()
    optimizer.step()
    assert group.pushes[1][0] == {}  # the clock ticks all the same


def test_a_learning_rate_travels_once_it_has_changed() -> None:
    model = nn.Linear(3, 1)
    optimizer, group = made(model, torch.optim.Adam)
    schedule = LR.OneCycleLR(optimizer, max_lr=1.0, total_steps=10)
    optimizer.step()
    schedule.step()
    optimizer.step()
    first, second = (options[0] for _, _, options in group.pushes)
    assert first["lr"] == pytest.approx(0.04)
    assert second["lr"] > first["lr"]
    assert second["betas"] != first["betas"]
    # What the schedule keeps for itself does not travel.
    assert set(first) == set(torch.optim.Adam([nn.Parameter(torch.zeros(1))]).defaults)


def test_a_learning_rate_may_be_a_tensor() -> None:
    model = nn.Linear(3, 1)
    optimizer, group = made(model, lr=torch.tensor(0.25))
    assert optimizer.options()[0]["lr"] == 0.25
    optimizer.step()
    assert group.pushes[0][2] is None


def test_param_groups_keep_their_own_hyper_parameters() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    named = dict(model.named_parameters())
    groups = [
        {"params": [(n, p) for n, p in named.items() if n.startswith("0")], "lr": 0.5},
        {"params": [(n, p) for n, p in named.items() if n.startswith("1")]},
    ]
    optimizer, _ = made(groups, momentum=0.9)
    assert [(o["lr"], o["momentum"]) for o in optimizer.options()] == [(0.5, 0.9), (0.1, 0.9)]
    specs = tensor_specs(optimizer.members, "mean")
    assert [(s.name, s.param_group) for s in specs] == [
        ("0.weight", 0),
        ("0.bias", 0),
        ("1.weight", 1),
        ("1.bias", 1),
    ]


def test_param_groups_of_another_optimizer_have_names() -> None:
    model = nn.Linear(3, 1)
    torch_groups = [{"params": list(model.parameters()), "param_names": ["weight", "bias"]}]
    assert dict(members(torch_groups, "mean").named).keys() == {"weight", "bias"}


# Buffers


def test_buffers_travel_as_differences_integers_as_they_are() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    norm = cast(nn.BatchNorm1d, model[1])
    optimizer, group = made(model)
    before = cast(Tensor, norm.running_mean).clone()
    backward(model)
    drift = cast(Tensor, norm.running_mean) - before
    optimizer.step()
    pushed = group.pushes[0][0]
    assert torch.equal(pushed["1.running_mean"], drift)
    assert pushed["1.num_batches_tracked"] == 1
    assert torch.equal(cast(Tensor, norm.running_mean), before + 1)  # what servers said
    optimizer.step()
    assert not any("running" in name for name in group.pushes[1][0])


def test_an_overflow_takes_local_buffers_back() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer, group = made(model)
    backward(model)
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    assert group.pushes[0][:2] == ({}, 0.0)
    assert torch.equal(cast(Tensor, cast(nn.BatchNorm1d, model[1]).running_mean), torch.ones(2))


@pytest.mark.parametrize(
    ("buffers", "rules"),
    [
        ("mean", ["delta", "delta", "maximum"]),
        ("first", ["first", "first", "maximum"]),
        ("local", []),
    ],
)
def test_rules_of_buffers(buffers: str, rules: list[str]) -> None:
    model = nn.BatchNorm1d(2)
    model.register_buffer("scratch", torch.zeros(1), persistent=False)
    specs = tensor_specs(members(model, buffers), buffers)
    assert [s.rule for s in specs] == ["step", "step", *rules]


# Frozen, tied, sparse


def test_frozen_parameters_are_stored_and_not_pushed() -> None:
    model = nn.Linear(3, 1)
    model.bias.requires_grad_(False)
    optimizer, group = made(model)
    specs = tensor_specs(optimizer.members, "mean")
    assert {s.name: s.rule for s in specs} == {"weight": "step", "bias": "frozen"}
    backward(model)
    optimizer.step()
    assert set(group.pushes[0][0]) == {"weight"}
    model.bias.requires_grad_(True)
    backward(model)
    with pytest.raises(UnsupportedError, match=r"'bias' .* frozen"):
        optimizer.step()


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(3, 3, bias=False)
        self.decode = nn.Linear(3, 3, bias=False)
        self.decode.weight = self.encode.weight
        self.register_buffer("scale", torch.ones(1))


def test_tied_parameters_travel_once_and_have_all_their_keys() -> None:
    model = Tied()
    optimizer, _ = made(model, buffers="local")
    assert [name for name, _ in optimizer.members.named] == ["encode.weight"]
    state = optimizer.full_state({"encode.weight": torch.full((3, 3), 7.0)})
    assert list(state) == list(model.state_dict())
    other = Tied()
    other.load_state_dict(state, strict=True)
    assert torch.equal(other.decode.weight, torch.full((3, 3), 7.0))
    state["scale"].fill_(3)
    assert cast(Tensor, model.scale) == 1  # a copy


def test_sparse_gradients_are_refused() -> None:
    model = nn.Embedding(5, 2, sparse=True)
    optimizer, group = made(model)
    model(torch.tensor([1])).sum().backward()
    with pytest.raises(UnsupportedError, match="sparse=False"):
        optimizer.step()
    assert group.pushes == []


# GradScaler


def test_grad_scaler_unscales_and_pushes_weight_0_on_overflow() -> None:
    model = nn.Linear(3, 1)
    optimizer, group = made(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for factor in (1.0, float("inf")):
        optimizer.zero_grad()
        loss = model(torch.ones(2, 3)).sum() * factor
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    (good, weight, _), (bad, nothing, _) = group.pushes
    assert torch.equal(good["weight"], torch.full((1, 3), 2.0))
    assert (weight, bad, nothing) == (None, {}, 0.0)
    assert scaler.get_scale() == 512.0


def test_gradients_unscaled_by_hand_are_not_unscaled_again() -> None:
    model = nn.Linear(3, 1)
    optimizer, group = made(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(model(torch.ones(2, 3)).sum()).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), 1e9)
    scaler.step(optimizer)
    assert torch.equal(group.pushes[0][0]["weight"], torch.full((1, 3), 2.0))


# As a torch optimizer


def test_it_is_a_torch_optimizer_with_torchs_defaults() -> None:
    optimizer, _ = made(nn.Linear(3, 1), torch.optim.AdamW)
    assert isinstance(optimizer, torch.optim.Optimizer)
    plain = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=0.1)
    assert optimizer.defaults == plain.defaults
    assert optimizer.param_groups[0].keys() == plain.param_groups[0].keys()


def test_state_dict_is_hyper_parameters_alone() -> None:
    optimizer, _ = made(nn.Linear(3, 1), torch.optim.Adam)
    state = optimizer.state_dict()
    assert state["state"] == {}
    state["param_groups"][0]["lr"] = 0.7
    optimizer.load_state_dict(state)
    assert optimizer.options()[0]["lr"] == 0.7
    state["state"] = {0: {"step": 1}}
    with pytest.raises(UnsupportedError, match="lives on the servers"):
        optimizer.load_state_dict(state)


def test_refresh_takes_the_values_of_the_clock_it_is_set_to() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer, group = made(model)
    optimizer.refresh()
    assert group.clock == 5
    assert all(bool((value == 2).all()) for value in model.state_dict().values())


def test_what_an_optimizer_on_servers_refuses() -> None:
    optimizer, _ = made(nn.Linear(3, 1))
    with pytest.raises(UnsupportedError, match="add_param_group"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    with pytest.raises(UnsupportedError, match="no copy"):
        copy.deepcopy(optimizer)
    with pytest.raises(UnsupportedError, match="cannot be pickled"):
        pickle.dumps(optimizer)


def test_it_needs_a_group() -> None:
    optimizer = ServerOptimizer(members(nn.Linear(3, 1), "mean"), torch.optim.SGD, {"lr": 1.0})
    with pytest.raises(InvalidRequestError, match=r"client\.optimizer"):
        optimizer.step()
