"""A group in memory, for the optimizer above it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from paramserver.core.placement import GroupSpec
from paramserver.types import StepResult, Sync
from paramserver.worker.group import Group
from paramserver.worker.optimizer import ServerOptimizer
from paramserver.worker.parameters import members


class FakeGroup:
    """Keeps what was pushed; "steps" by adding 1 to parameters and buffers.

    Attributes:
        pushes: of each step: tensors, weight, options.
    """

    def __init__(self) -> None:
        self.clock = 0
        self.spec = GroupSpec("model", (), "", (), Sync())
        self.pushes: list[tuple[dict[str, Tensor], float | None, Any]] = []

    def exchange(
        self,
        tensors: Mapping[str, Tensor],
        into: Mapping[str, Tensor],
        *,
        weight: float | None = None,
        options: Sequence[Mapping[str, Any]] | None = None,
    ) -> StepResult:
        pushed = {name: tensor.clone() for name, tensor in tensors.items()}
        self.pushes.append((pushed, weight, options))
        for tensor in into.values():
            tensor.add_(1)
        self.clock += 1
        return StepResult(self.clock - 1, self.clock, 0.0, 0.0, 0, 0)

    def activate(self) -> None:
        self.clock = 5

    def pull_into(self, into: Mapping[str, Tensor]) -> None:
        for tensor in into.values():
            tensor.fill_(2)


def made(
    model: Any,
    optimizer_class: type[torch.optim.Optimizer] = torch.optim.SGD,
    *,
    buffers: str = "mean",
    overlapping: bool = False,
    **hyper: Any,
) -> tuple[ServerOptimizer, FakeGroup]:
    """An optimizer and the group it was bound to."""
    hyper = {"lr": 0.1, **hyper}
    optimizer = ServerOptimizer(members(model, buffers), optimizer_class, hyper)
    group = FakeGroup()
    optimizer.bind(cast(Group, group), overlap=overlapping)
    return optimizer, group


def backward(model: nn.Module) -> None:
    model(torch.ones(2, 3)).sum().backward()
