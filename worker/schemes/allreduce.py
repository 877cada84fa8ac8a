"""The torch optimizer of full replicas: workers reduce gradients, servers hold nothing."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from paramserver.core.placement import GroupSpec
from paramserver.errors import InvalidRequestError, UnsupportedError
from paramserver.types import AllReduce, StepResult
from paramserver.worker.group import Group
from paramserver.worker.job_optimizer import (
    JobOptimizer,
    dense_gradients,
    unscaled,
)
from paramserver.worker.parameters import (
    Members,
    Model,
    construct,
    hyper_parameters,
    members,
    tensor_specs,
)
from paramserver.worker.registry import Registry
from paramserver.worker.replica import Replica
from paramserver.worker.replicas import Replicas
from paramserver.worker.ring import check_unencrypted


class AllReduceOptimizer(JobOptimizer):
    """Reduces gradients with the other replicas, then steps as torch does.

    Optimizer state is here, as in torch: ``state_dict()`` has it. ``load_state_dict`` is to be
    called on every worker with the same state, before the first step.
    """

    _step_supports_amp_scaling = True  # so that a scaler calls step() even on an overflow
    grad_scale: Tensor | None
    found_inf: Tensor | None

    def __init__(
        self,
        found: Members,
        optimizer_class: type[torch.optim.Optimizer],
        hyperparameters: Mapping[str, Any],
        buffers: str,
    ) -> None:
        """Not connected yet: ``bind`` gives it its replicas.

        Raises:
            ConfigurationError: hyper-parameters that torch refuses.
        """
        self._replicas: Replicas | None = None
        # Two of a kind: what steps has the hyper-parameters that all replicas agreed on.
        own, inner = (construct(optimizer_class, _groups(found), hyperparameters) for _ in "12")
        super().__init__(found, own.param_groups, dict(own.defaults))
        self.replica = Replica(found, inner, buffers)
        self.state = inner.state
        self._frozen = frozenset(name for name, t in found.named if not t.requires_grad)

    def bind(self, replicas: Replicas) -> None:
        """Steps are taken with these from now on."""
        self._replicas = replicas

    @property
    def replicas(self) -> Replicas:
        """This worker's part in the group."""
        if self._replicas is None:
            raise InvalidRequestError("this optimizer has no group; make it by client.optimizer")
        return self._replicas

    @property
    def group(self) -> Group:
        """Raises UnsupportedError: servers hold nothing of this group."""
        raise UnsupportedError(f"{type(self).__name__} has no group on the servers")

    @property
    def on_nonfinite(self) -> str:
        """What becomes of a step with NaN or infinity in a gradient."""
        return self.replicas.spec.on_nonfinite

    def newest(self) -> dict[str, Tensor]:
        """The values of this replica, by name, on the CPU."""
        return {n: t.detach().cpu().clone() for n, t in self.members.tensors.items()}

    def _work(self, weight: float | None) -> StepResult:
        found_inf = getattr(self, "found_inf", None)
        grad_scale = getattr(self, "grad_scale", None)
        gradients = dense_gradients(self.members.named, self._frozen)
        if found_inf is not None and bool(found_inf):
            gradients, weight = {}, 0.0
        elif grad_scale is not None:
            gradients = unscaled(gradients, grad_scale)
        return self.replicas.step(gradients, weight, self.replica.options(self))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused once the group is registered: replicas have agreed on its tensors."""
        if self._replicas is not None:
            raise UnsupportedError(
                "add_param_group after client.optimizer: replicas have agreed on the group's "
                "tensors; give all param groups to client.optimizer, or make another group"
            )
        super().add_param_group(param_group)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes hyper-parameters and optimizer state; the same on every worker."""
        super().load_state_dict(dict(state_dict))
        self.replica.optimizer.state = self.state


def _groups(found: Members) -> list[dict[str, Any]]:
    return [{"params": [t for _, t in pairs], **options} for pairs, options in found.param_groups]


def open_allreduce_optimizer(
    registry: Registry,
    model: Model,
    optimizer_class: type[torch.optim.Optimizer],
    hyperparameters: Mapping[str, Any],
    *,
    consistency: AllReduce,
    group: str,
    buffers: str,
    wire_dtype: str | None,
    overlap: bool,
    on_nonfinite: str,
) -> AllReduceOptimizer:
    """Registers a model whose replicas step together; see ``Client.optimizer``.

    Raises:
        UnsupportedError: ``overlap`` or ``wire_dtype``, an optimizer that wants a closure, or a
            cluster that encrypts between machines.
    """
    check_unencrypted(registry.session.config)
    if overlap:
        raise UnsupportedError(
            "overlap=True with AllReduce(): gradients are weighted by the samples of all workers, "
            "which are known in step(); leave it out"
        )
    if wire_dtype is not None:
        raise UnsupportedError(
            f"wire_dtype={wire_dtype!r} with AllReduce(): gradients travel as they are; leave it "
            "out, or use Sync()"
        )
    _refuse_closures(optimizer_class)
    found = members(model, buffers)
    made = AllReduceOptimizer(found, optimizer_class, hyperparameters, buffers)
    options = tuple(hyper_parameters(g, made.defaults) for g in made.param_groups)
    spec = GroupSpec(
        name=group,
        tensors=tensor_specs(found, buffers),
        optimizer=optimizer_class.__name__,
        param_groups=options,
        consistency=consistency,
        on_nonfinite=on_nonfinite,
    )
    registry.register(spec)
    registry.session.settle()  # the first time all come: who waits for pushes of this one as well
    replicas = Replicas(registry.session, spec, made.replica)
    made.bind(replicas)
    registry.adopt(replicas, replicas.refresh, replicas.close)
    return made


def _refuse_closures(optimizer_class: type[torch.optim.Optimizer]) -> None:
    closure = inspect.signature(optimizer_class.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise UnsupportedError(
            f"optimizer {optimizer_class.__name__!r} evaluates the loss several times in a step, "
            "which replicas cannot do together; use a rule that steps on given gradients"
        )
