"""Gradients sent while the backward pass still runs (``overlap=True``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from paramserver.errors import NonFiniteError, UnsupportedError
from paramserver.types import StepResult
from paramserver.worker.deferred import DeferredPush
from paramserver.worker.group import Group


class Overlap:
    """Hooks that send each gradient as soon as it is accumulated.

    What they send is staged on the servers and counts only when ``step()`` commits it.
    """

    def __init__(self, group: Group, trained: Sequence[tuple[str, Tensor]]) -> None:
        self._group = group
        self._push: DeferredPush | None = None
        self._sent: dict[str, tuple[Tensor, int]] = {}
        self._skips = False  # NaN or infinity was in a gradient of this step
        for name, parameter in trained:
            parameter.register_post_accumulate_grad_hook(self._hook(name))

    def _hook(self, name: str) -> Callable[[Tensor], None]:
        return lambda parameter: self._accumulated(name, parameter)

    def _accumulated(self, name: str, parameter: Tensor) -> None:
        gradient = parameter.grad
        if gradient is None or self._skips:
            return
        if name in self._sent:
            self._give_up()
            raise UnsupportedError(
                f"a second gradient of {name!r} before step(): with overlap=True the first was "
                "sent already; call step() after each backward(), or accumulate with overlap=False"
            )
        if gradient.layout != torch.strided:
            raise UnsupportedError(
                f"the gradient of {name!r} is sparse: make the layer with sparse=False"
            )
        try:
            if self._push is None:
                self._push = DeferredPush(self._group)
            self._push.send(name, gradient)
        except NonFiniteError:
            self._give_up()
            if self._group.spec.on_nonfinite != "skip":
                raise
            self._skips = True
            return
        except BaseException:
            self._give_up()
            raise
        self._sent[name] = (gradient, gradient._version)

    def _give_up(self) -> None:
        if self._push is not None:
            self._push.give_up()
        self._push = None
        self._sent = {}

    def refuse_scaler(self) -> None:
        """Raises UnsupportedError: gradients left before the scaler could look at them."""
        self._give_up()
        raise UnsupportedError(
            "overlap=True with a GradScaler: gradients are sent before it has unscaled them; "
            "use overlap=False"
        )

    def commit(
        self,
        pushed: Mapping[str, Tensor],
        into: Mapping[str, Tensor],
        weight: float | None,
        options: Sequence[Mapping[str, Any]] | None,
    ) -> StepResult:
        """Makes the push count; gradients changed since they were sent are sent again.

        Raises:
            NonFiniteError: NaN or infinity; the push does not count, the clock stays.
        """
        push = self._push
        self._skips = False
        if push is None:  # of a step to be skipped, the exchange finds out by itself
            return self._group.exchange(pushed, into, weight=weight, options=options)
        try:
            for name, value in pushed.items():
                if not self._is_sent(name, value):
                    push.send(name, value)
        except NonFiniteError:
            self._give_up()
            return self._group.exchange(pushed, into, weight=weight, options=options)
        except BaseException:
            self._give_up()
            raise
        try:
            result = push.commit(into, weight=weight, options=options, names=list(pushed))
        except BaseException:
            self._give_up()
            raise
        self._push, self._sent = None, {}
        return result

    def _is_sent(self, name: str, value: Tensor) -> bool:
        tensor, version = self._sent.get(name, (None, 0))
        return tensor is value and value._version == version
