"""Gradients sent while the backward pass still runs."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from paramserver.errors import NonFiniteError, UnsupportedError
from paramserver.types import StepResult
from paramserver.worker import overlap
from tests.fake_group import FakeGroup, backward, made


class FakePush:
    """Keeps what was sent and committed.

    Attributes:
        all: every push begun, in order.
    """

    all: list[FakePush]

    def __init__(self, group: FakeGroup) -> None:
        self.sent: list[tuple[str, Tensor]] = []
        self.names: list[str] | None = None
        self.given_up = False
        FakePush.all.append(self)

    def send(self, name: str, gradient: Tensor) -> None:
        if not torch.isfinite(gradient).all():
            raise NonFiniteError(name)
        self.sent.append((name, gradient.clone()))

    def give_up(self) -> None:
        self.given_up = True

    def commit(self, into: Any, *, weight: Any, options: Any, names: list[str]) -> StepResult:
        self.names = names
        return StepResult(0, None, 0.0, 0.0, 0, 0)


@pytest.fixture
def pushes(monkeypatch: pytest.MonkeyPatch) -> list[FakePush]:
    FakePush.all = []
    monkeypatch.setattr(overlap, "DeferredPush", FakePush)
    return FakePush.all


def test_overlap_sends_in_backward_and_commits_in_step(pushes: list[FakePush]) -> None:
    model = nn.Linear(3, 1)
    optimizer, group = made(model, overlapping=True)
    backward(model)
    assert {name for name, _ in pushes[0].sent} == {"weight", "bias"}
    assert pushes[0].names is None
    optimizer.step()
    assert sorted(pushes[0].names or ()) == ["bias", "weight"]
    assert len(pushes[0].sent) == 2
    assert group.pushes == []
    optimizer.zero_grad()
    backward(model)
    assert len(pushes) == 2


def test_overlap_sends_what_changed_again_and_leaves_out_what_is_gone(
    pushes: list[FakePush],
) -> None:
    model = nn.Linear(3, 1)
    optimizer, _ = made(model, overlapping=True)
    backward(model)
    cast(Tensor, model.weight.grad).mul_(0.5)  # as clipping does
    model.bias.grad = None
    optimizer.step()
    assert [name for name, _ in pushes[0].sent][2:] == ["weight"]
    assert torch.equal(pushes[0].sent[2][1], torch.ones(1, 3))
    assert pushes[0].names == ["weight"]


def test_overlap_refuses_a_second_backward(pushes: list[FakePush]) -> None:
    model = nn.Linear(3, 1)
    made(model, overlapping=True)
    backward(model)
    with pytest.raises(UnsupportedError, match="overlap=False"):
        backward(model)
    assert pushes[0].given_up


def test_overlap_refuses_a_scaler(pushes: list[FakePush]) -> None:
    model = nn.Linear(3, 1)
    optimizer, _ = made(model, overlapping=True)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(model(torch.ones(2, 3)).sum()).backward()
    with pytest.raises(UnsupportedError, match="GradScaler"):
        scaler.step(optimizer)
    assert pushes[0].given_up


def test_overlap_gives_up_on_a_gradient_that_is_not_finite(pushes: list[FakePush]) -> None:
    model = nn.Linear(3, 1)
    optimizer, group = made(model, overlapping=True)
    with pytest.raises(NonFiniteError):
        (model(torch.ones(2, 3)).sum() * float("inf")).backward()
    assert pushes[0].given_up
    optimizer.zero_grad()
    optimizer.step()
    assert group.pushes[0][0] == {}  # nothing was sent in a backward: an ordinary push
