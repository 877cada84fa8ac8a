"""What all optimizers of a job have in common, wherever their step happens."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NoReturn, overload

import torch
from torch import Tensor

from paramserver.errors import ConfigurationError, InvalidRequestError, UnsupportedError
from paramserver.types import StepResult
from paramserver.worker.group import Group
from paramserver.worker.parameters import Members


class JobOptimizer(torch.optim.Optimizer):
    """What ``client.optimizer`` returns.

    Args:
        found: the model's tensors.
        param_groups, defaults: as for torch's own.

    Attributes:
        members: the tensors, by name.
        last: what the last step did; None before the first.
    """

    def __init__(
        self, found: Members, param_groups: list[dict[str, Any]], defaults: dict[str, Any]
    ) -> None:
        self.members = found
        self.last: StepResult | None = None
        self._group: Group | None = None
        super().__init__(param_groups, defaults)

    @property
    def group(self) -> Group:
        """The group on the servers."""
        if self._group is None:
            raise InvalidRequestError("this optimizer has no group; make it by client.optimizer")
        return self._group

    @property
    def on_nonfinite(self) -> str:
        """What becomes of a step with NaN or infinity in a gradient."""
        return self.group.spec.on_nonfinite

    @overload
    def step(self, closure: None = None, *, weight: float | None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float], *, weight: float | None = None) -> float: ...

    @torch.no_grad()
    def step(
        self, closure: Callable[[], float] | None = None, *, weight: float | None = None
    ) -> float | None:
        """One step on the gradients of the parameters; on return they have the new values.

        Args:
            closure: computes the loss and gradients again; called once.
            weight: samples in the batch; default: those that ``client.loader`` handed out since
                the last step, else 1.

        Raises:
            NonFiniteError: NaN or infinity in a gradient; nothing was sent, the clock stays.
            UnsupportedError: a sparse gradient, or one of a frozen parameter.
            WaitTimeoutError: names whom it waited for.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        check_weight(weight)
        self.last = self._work(weight)
        return loss

    def _work(self, weight: float | None) -> StepResult | None:
        """What a step does, once gradients are there."""
        raise NotImplementedError

    def check(self) -> None:
        """Raises ConfigurationError for hyper-parameters that no step can take."""

    @abstractmethod
    def newest(self) -> dict[str, Tensor]:
        """The newest values of the group by name, on the CPU, without waiting."""

    def full_state(self, values: Mapping[str, Tensor]) -> dict[str, Any]:
        """``values`` under every key of the model's ``state_dict()``, tied and local ones too."""
        module = self.members.module
        if module is None:
            return dict(values)
        names = {id(tensor): name for name, tensor in self.members.tensors.items()}
        state: dict[str, Any] = module.state_dict()
        for key, own in module.state_dict(keep_vars=True).items():
            if id(own) in names:
                state[key] = values[names[id(own)]]
            elif isinstance(own, Tensor):
                state[key] = own.detach().cpu().clone()
        return state

    def __deepcopy__(self, memo: object) -> NoReturn:
        raise UnsupportedError("an optimizer of a job has no copy: make another group")

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise UnsupportedError(
            "an optimizer of a job cannot be pickled: save optimizer.state_dict() and "
            "client.state_dict(), connect again in the other process"
        )


def check_weight(weight: float | None) -> None:
    """Raises ConfigurationError unless this is a number of samples, or None."""
    if weight is not None and not (math.isfinite(weight) and weight >= 0):
        raise ConfigurationError(f"weight={weight}: must be a number of samples, >= 0")


def dense_gradients(
    named: Iterable[tuple[str, Tensor]], frozen: Collection[str]
) -> dict[str, Tensor]:
    """The gradients that there are, by name.

    Raises:
        UnsupportedError: a sparse gradient, or one of a frozen parameter.
    """
    found = {}
    for name, parameter in named:
        gradient = parameter.grad
        if gradient is None:
            continue
        if name in frozen:
            raise UnsupportedError(
                f"{name!r} has a gradient, but did not require one when client.optimizer was "
                "called: frozen parameters are stored once; call client.optimizer after "
                "requires_grad_()"
            )
        if gradient.layout != torch.strided:
            raise UnsupportedError(
                f"the gradient of {name!r} is sparse: groups hold dense tensors; make the "
                "layer with sparse=False"
            )
        found[name] = gradient
    return found


def unscaled(gradients: Mapping[str, Tensor], scale: Tensor) -> dict[str, Tensor]:
    """Gradients divided by the scale of a GradScaler."""
    # As torch's own kernel: a float32 reciprocal, then one product.
    inverse = scale.double().reciprocal().float()
    return {n: g * inverse.to(g.device, g.dtype) for n, g in gradients.items()}
