"""The torch optimizer whose step happens on the servers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from paramserver.core.placement import GroupSpec, Option
from paramserver.errors import ConfigurationError, UnsupportedError
from paramserver.types import Consistency, StepResult, canonical
from paramserver.worker.group import Group
from paramserver.worker.job_optimizer import JobOptimizer, dense_gradients, unscaled
from paramserver.worker.overlap import Overlap
from paramserver.worker.parameters import (
    Members,
    Model,
    check_class,
    check_hyper_parameters,
    construct,
    hyper_parameters,
    members,
    tensor_specs,
)
from paramserver.worker.registry import Registry
from paramserver.worker.uplink import FEEDBACK

Options: TypeAlias = tuple[dict[str, Option], ...]

WIRE_DTYPES = {None: "", "bf16": "bfloat16", "fp16": "float16", "int8": "int8", "int4": "int4"}


class ServerOptimizer(JobOptimizer):
    """Pushes gradients, ticks the clock, pulls what the consistency model asks for.

    Learning-rate schedulers, GradScaler, accelerate, Lightning and HF Trainer drive it as any torch
    optimizer. Optimizer state lives on the servers; hyper-parameters changed in ``param_groups``
    travel with the next push.

    """

    _step_supports_amp_scaling = True  # so that a scaler calls step() even on an overflow
    grad_scale: Tensor | None
    found_inf: Tensor | None

    def __init__(
        self,
        found: Members,
        optimizer_class: type[torch.optim.Optimizer],
        hyperparameters: Mapping[str, Any],
    ) -> None:
        """Not connected yet: ``bind`` gives it its group.

        Raises:
            ConfigurationError, UnsupportedError: hyper-parameters that torch or servers refuse.
        """
        params = [
            {"params": [tensor for _, tensor in pairs], **options}
            for pairs, options in found.param_groups
        ]
        # torch itself checks and completes the hyper-parameters; its state is not used.
        model = construct(optimizer_class, params, hyperparameters)
        super().__init__(found, model.param_groups, dict(model.defaults))
        self._frozen = frozenset(name for name, t in found.named if not t.requires_grad)
        self._class, self._rule = optimizer_class, optimizer_class.__name__
        self._registered = self._checked = self.options()
        # Kernels of batch norm do not mark what they write to, so pulled values are kept apart.
        self._pulled = {n: b.detach().contiguous().clone() for n, b in found.buffers.items()}
        self._overlap: Overlap | None = None

    def spec(self, name: str, buffers: str, consistency: Consistency) -> GroupSpec:
        """What is to be registered."""
        return GroupSpec(
            name=name,
            tensors=tensor_specs(self.members, buffers),
            optimizer=self._rule,
            param_groups=self._registered,
            consistency=canonical(consistency),
        )

    def bind(self, group: Group, *, overlap: bool) -> None:
        """Steps go to this group from now on."""
        self._group = group
        if overlap:
            self._overlap = Overlap(group, self._trained())

    def newest(self) -> dict[str, Tensor]:
        """The newest values on the servers, by name, without waiting."""
        return self.group.read()

    def _trained(self) -> list[tuple[str, Tensor]]:
        return [(name, p) for name, p in self.members.named if name not in self._frozen]

    def options(self) -> Options:
        """The present hyper-parameters of each param group, as they travel."""
        return tuple(hyper_parameters(group, self.defaults) for group in self.param_groups)

    def check(self) -> None:
        """Raises ConfigurationError for hyper-parameters that no step can take."""
        self._changed_options()

    def _changed_options(self) -> Options | None:
        """The present hyper-parameters, if they are not as registered.

        Raises:
            ConfigurationError: torch refuses them; a push that servers refuse would leave its clock
                open for good.
        """
        options = self.options()
        if options == self._registered:
            return None
        if options != self._checked:
            for group in options:
                check_hyper_parameters(self._class, group)
            self._checked = options
        return options

    def _work(self, weight: float | None) -> StepResult:
        result = self._exchange(weight)
        self._take_buffers()
        return result

    def _exchange(self, weight: float | None) -> StepResult:
        options = self._changed_options()
        if self._overlap is not None:
            if getattr(self, "found_inf", None) is not None or self._scale() is not None:
                self._overlap.refuse_scaler()
            whole = {**self._gradients(), **self._deltas()}
            return self._overlap.commit(whole, self._into(), weight, options)
        gradients = self._unscaled_gradients()
        if gradients is None:
            return self.group.exchange({}, self._into(), weight=0.0, options=options)
        pushed = {**gradients, **self._deltas()}
        return self.group.exchange(pushed, self._into(), weight=weight, options=options)

    def _scale(self) -> Tensor | None:
        return getattr(self, "grad_scale", None)

    def _unscaled_gradients(self) -> dict[str, Tensor] | None:
        """The gradients as they are without a GradScaler; None: it found infinity in them."""
        found_inf = getattr(self, "found_inf", None)
        if found_inf is not None and bool(found_inf):
            return None
        gradients, grad_scale = self._gradients(), self._scale()
        if grad_scale is not None:
            gradients = unscaled(gradients, grad_scale)
        return gradients

    def _gradients(self) -> dict[str, Tensor]:
        return dense_gradients(self.members.named, self._frozen)

    def _deltas(self) -> dict[str, Tensor]:
        """What buffers changed by since they were pulled; integers as they are."""
        return changes(self.members.buffers, self._pulled)

    def _into(self) -> dict[str, Tensor]:
        """Where values go: parameters themselves, buffers by way of ``_take_buffers``."""
        return {**dict(self.members.named), **self._pulled}

    def _take_buffers(self) -> None:
        for name, buffer in self.members.buffers.items():
            buffer.copy_(self._pulled[name])

    @torch.no_grad()
    def refresh(self) -> None:
        """Activates the group and pulls the values of the clock it is set to, in place."""
        self.group.activate()
        self.group.pull_into(self._into())
        self._take_buffers()

    @torch.no_grad()
    def load_newest(self) -> None:
        """The newest values on the servers, in place, without waiting."""
        into = self._into()
        for name, value in self.group.read().items():
            into[name].copy_(value)
        self._take_buffers()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused once the group is registered: servers have placed its tensors."""
        if self._group is not None:
            raise UnsupportedError(
                "add_param_group after client.optimizer: servers have placed the group's tensors; "
                "give all param groups to client.optimizer, or make another group"
            )
        super().add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """``param_groups`` as in torch; ``state`` is empty, it lives on the servers."""
        return super().state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Takes hyper-parameters from ``param_groups``.

        Raises:
            UnsupportedError: there is optimizer state in it.
        """
        if state_dict.get("state"):
            raise UnsupportedError(
                "load_state_dict with optimizer state: it lives on the servers; "
                "give {'state': {}, 'param_groups': ...}"
            )
        super().load_state_dict(dict(state_dict))


def changes(buffers: Mapping[str, Tensor], since: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By how much float buffers differ from ``since``; other buffers that differ, as they are."""
    return {
        name: buffer - since[name] if buffer.is_floating_point() else buffer.clone()
        for name, buffer in buffers.items()
        if not torch.equal(buffer, since[name])
    }


def wire_name(wire_dtype: str | None) -> str:
    """A wire data type as groups know it.

    Raises:
        ConfigurationError: there is no such type.
    """
    if wire_dtype not in WIRE_DTYPES:
        known = ", ".join(repr(name) for name in WIRE_DTYPES)
        raise ConfigurationError(f"wire_dtype={wire_dtype!r}: must be one of {known}")
    return WIRE_DTYPES[wire_dtype]


def open_server_optimizer(
    registry: Registry,
    model: Model,
    optimizer_class: type[torch.optim.Optimizer],
    hyperparameters: Mapping[str, Any],
    *,
    consistency: Consistency,
    group: str,
    buffers: str,
    wire_dtype: str | None,
    overlap: bool,
    on_nonfinite: str,
) -> ServerOptimizer:
    """Registers a model as a group; see ``Client.optimizer``."""
    wire = wire_name(wire_dtype)
    if overlap and wire in FEEDBACK:
        raise UnsupportedError(
            f"overlap=True with wire_dtype={wire_dtype!r}: what rounding keeps back is known only "
            "once a push is whole; use 'int8', or overlap=False"
        )
    check_class(optimizer_class)
    found = members(model, buffers)
    made = ServerOptimizer(found, optimizer_class, hyperparameters)
    spec = replace(made.spec(group, buffers, consistency), on_nonfinite=on_nonfinite)
    opened = registry.open(spec, found.tensors, wire)
    made.bind(opened, overlap=overlap)
    made.load_newest()
    registry.add(opened, made.refresh)
    return made
