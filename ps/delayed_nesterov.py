"""Delayed Nesterov (Liu et al., 2024): momentum for pushes that arrive one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer


class DelayedNesterov(Optimizer):
    """Each gradient acts at once, divided by ``every``; momentum acts on every so many of them.

    With the mean m of the last ``every`` gradients g_1, g_2, ...: value -= lr * g_i / every for
    each; with the last one also buffer = momentum * buffer + m, value -= lr * momentum * buffer.
    ``every=1`` is SGD with Nesterov momentum, to the bit.

    Args:
        params: as for torch's own.
        lr: learning rate.
        momentum: factor of the buffer.
        every: pushes between two moves of momentum; at least as many as there are workers.
    """

    def __init__(self, params: Any, lr: float = 0.7, momentum: float = 0.9, every: int = 1) -> None:
        if lr < 0 or not 0 <= momentum < 1 or every < 1:
            raise ValueError(
                f"lr={lr}, momentum={momentum}, every={every}: must be lr >= 0, "
                "0 <= momentum < 1 and every >= 1"
            )
        super().__init__(params, {"lr": lr, "momentum": momentum, "every": every})

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One push. Call it with gradients disabled."""
        for group in self.param_groups:
            for value in group["params"]:
                if value.grad is not None:
                    value.add_(self._direction(value, group), alpha=-group["lr"])

    def _direction(self, value: Tensor, group: dict[str, Any]) -> Tensor:
        assert value.grad is not None
        state, every = self.state[value], group["every"]
        share = value.grad / every if every > 1 else value.grad
        state["sum"] = state["sum"].add_(share) if state.get("pushes") else share.clone()
        state["pushes"] = state.get("pushes", 0) + 1
        if state["pushes"] < every:
            return share
        state["pushes"] = 0
        mean, buffer = state["sum"], state.get("momentum_buffer")
        state["momentum_buffer"] = mean if buffer is None else buffer.mul_(group["momentum"]) + mean
        return share.add(state["momentum_buffer"], alpha=group["momentum"])
