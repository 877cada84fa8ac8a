"""Local steps: an inner optimizer here, an outer one on the servers (``ps.Local``)."""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import torch
from torch import Tensor

from paramserver.core.placement import GroupSpec, Option
from paramserver.errors import (
    ConfigurationError,
    NonFiniteError,
    UnsupportedError,
)
from paramserver.schemes import Local
from paramserver.types import Async, StepResult, canonical
from paramserver.worker import roster
from paramserver.worker.group import Group
from paramserver.worker.job_optimizer import JobOptimizer, check_weight
from paramserver.worker.optimizer import wire_name
from paramserver.worker.parameters import (
    Members,
    Model,
    check_class,
    construct,
    hyper_parameters,
    members,
    tensor_specs,
)
from paramserver.worker.registry import Registry

NESTEROV = functools.partial(torch.optim.SGD, lr=0.7, momentum=0.9, nesterov=True)
SHARE = functools.partial(torch.optim.SGD, lr=1.0)  # each push says 1 / live workers


@dataclass(slots=True)
class Fragment:
    """Tensors that travel together, and how much work they have seen since they last did."""

    names: Sequence[str]
    steps: int = 0
    samples: float = 0.0


class LocalOptimizer(JobOptimizer):
    """Steps locally; now and then pushes what that changed, and takes what all have made of it.

    ``param_groups`` and ``state`` are those of the inner optimizer: schedules act on it, and
    ``state_dict()`` saves it. What the servers hold, and ``client.state_dict()`` gives, is the base
    that all workers start a round from.
    """

    def __init__(
        self,
        found: Members,
        optimizer_class: type[torch.optim.Optimizer],
        hyperparameters: Mapping[str, Any],
        scheme: Local,
    ) -> None:
        """Not connected yet: ``bind`` gives it its group.

        Raises:
            ConfigurationError: hyper-parameters that torch refuses; more fragments than tensors.
        """
        params = [
            {"params": [tensor for _, tensor in pairs], **options}
            for pairs, options in found.param_groups
        ]
        self._inner = construct(optimizer_class, params, hyperparameters)
        super().__init__(found, self._inner.param_groups, dict(self._inner.defaults))
        self._share_inner()
        self._scheme = scheme
        trained = {name: p for name, p in found.named if p.requires_grad}
        self._parameters = frozenset(trained)
        self._tensors = {**trained, **found.buffers}
        self._base = {n: _host_copy(t) for n, t in self._tensors.items()}
        self._fragments = fragments(self._tensors, scheme.fragments)
        self._flight: tuple[Callable[[float], StepResult], Fragment] | None = None
        self._steps = 0  # since the last push was started
        self._interval = 1

    def bind(self, group: Group, options: Sequence[Mapping[str, Option]] | None) -> None:
        """Rounds go to this group; ``options``: outer ones whose lr is to be 1 / live workers."""
        self._group = group
        self._shared = options
        group.session.before_settle(self.flush)

    def newest(self) -> dict[str, Tensor]:
        """The newest base on the servers, by name, without waiting."""
        return self.group.read()

    @overload
    def step(self, closure: None = None, *, weight: float | None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float], *, weight: float | None = None) -> float: ...

    def step(
        self, closure: Callable[[], float] | None = None, *, weight: float | None = None
    ) -> float | None:
        """One local step; at the end of a round also an exchange with the servers.

        Args:
            closure: as the inner optimizer takes it.
            weight: samples in the batch; default: those that ``client.loader`` handed out since
                the last step, else 1.

        Raises:
            NonFiniteError: a round ends with NaN or infinity in a tensor; nothing was sent, and
                the model has the values of the base again.
            WaitTimeoutError: names whom it waited for.
        """
        check_weight(weight)
        self.group.session.check()
        loss = self._inner.step() if closure is None else self._inner.step(closure)
        samples = self.group.session.batches.work(self.group.name)
        if weight is None:
            weight = 1.0 if samples is None else float(samples)
        self._steps += 1
        for fragment in self._fragments:
            fragment.steps += 1
            fragment.samples += weight
        self.last = self._meet() or self._alone()
        return loss

    def _alone(self) -> StepResult:
        result = StepResult(self.group.clock, None, 0.0, 0.0, 0, 0)
        self.group.session.count(result)
        return result

    def _meet(self) -> StepResult | None:
        """What is due after a step: an exchange to be used, the next one to be started."""
        result = None
        if self._flight is not None and self._steps >= self._scheme.delay:
            result = self._land()
        if self._steps >= self._interval:
            result = self._send() or result
            if not self._scheme.delay:
                result = self._land()
        return result

    @torch.no_grad()
    def _send(self) -> StepResult | None:
        """Starts the exchange of the fragment whose turn it is; an earlier one ends first."""
        result = self._land()
        fragment = self._fragments[self.group.clock % len(self._fragments)]
        try:
            complete = self.group.start_exchange(
                {name: self._difference(name) for name in fragment.names},
                {name: self._base[name] for name in fragment.names},
                weight=fragment.samples,
                options=self._outer_options(),
            )
        except NonFiniteError:
            self._give_up()
            raise
        self._flight = complete, fragment
        fragment.steps, fragment.samples = 0, 0.0
        self._steps = 0
        self._begin_interval()
        return result

    def _give_up(self) -> None:
        """Back to the base: of a round with NaN in it nothing can be kept."""
        for name, local in self._tensors.items():
            local.copy_(self._base[name])
        for fragment in self._fragments:
            fragment.steps, fragment.samples = 0, 0.0
        self._steps = 0
        session = self.group.session
        session.settle_push(session.begin_push(self.group.name), dropped=True)  # samples go back

    def _difference(self, name: str) -> Tensor:
        """As the tensor's rule takes it: against the gradient for parameters, along for buffers."""
        base, local = self._base[name], self._tensors[name].detach()
        local = local.to(base.device)
        if name in self._parameters:
            return base - local
        return local - base if local.is_floating_point() else local

    def _outer_options(self) -> Sequence[Mapping[str, Option]] | None:
        if self._shared is None:
            return None
        lr = 1 / max(1, roster.live(self.group.session.view()))
        return [{**options, "lr": lr} for options in self._shared]

    def _begin_interval(self) -> None:
        """Decides how many steps the next push is away."""
        steps, parts = self._scheme.steps, len(self._fragments)
        if self._scheme.dylu:
            steps = max(1, int(self.group.session.pace() * steps))
        turn = self.group.clock % parts
        self._interval = max(1, (turn + 1) * steps // parts - turn * steps // parts)

    def _land(self) -> StepResult | None:
        """Ends the exchange under way, if there is one: its fragment moves to the new base."""
        if self._flight is None:
            return None
        (complete, fragment), self._flight = self._flight, None
        result = complete(time.monotonic())
        # Samples of a dropped push go back to the queue, so nothing of them is kept.
        lost = result.dropped or result.skipped
        self._merge(fragment.names, 0.0 if lost else self._scheme.alpha)
        return result

    @torch.no_grad()
    def _merge(self, names: Sequence[str], alpha: float) -> None:
        for name in names:
            local = self._tensors[name]
            base = self._base[name].to(local.device)
            if alpha and local.is_floating_point():
                local.lerp_(base, 1 - alpha)
            else:
                local.copy_(base if local.is_floating_point() else torch.maximum(local, base))

    def flush(self) -> None:
        """Ends a started round: pushes what local steps changed, and takes the new base."""
        self._land()
        for _ in self._fragments:
            if any(fragment.steps for fragment in self._fragments):
                self._send()
                self._land()

    @torch.no_grad()
    def refresh(self) -> None:
        """Activates the group and starts a round from the base of its clock.

        What local steps changed and no push carried yet is kept on top.
        """
        kept = [n for f in self._fragments if f.steps for n in f.names if n in self._parameters]
        drift = {name: self._difference(name) for name in kept}
        self.group.activate()
        self.group.pull_into(self._base)
        for name, local in self._tensors.items():
            local.copy_(self._base[name])
            if name in drift:
                local.sub_(drift[name].to(local.device))
        self._begin_interval()

    @torch.no_grad()
    def load_newest(self) -> None:
        """The newest base, in place, without waiting."""
        every = self.members.tensors
        for name, value in self.group.read().items():
            every[name].copy_(value)
            if name in self._base:
                self._base[name].copy_(value)

    def _share_inner(self) -> None:
        self.param_groups, self.state = self._inner.param_groups, self._inner.state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused once the group is registered: servers have placed its tensors."""
        if self._group is not None:
            raise UnsupportedError(
                "add_param_group after client.optimizer: servers have placed the group's tensors; "
                "give all param groups to client.optimizer, or make another group"
            )
        super().add_param_group(param_group)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Loads the inner optimizer's state and hyper-parameters, as torch does."""
        self._inner.load_state_dict(dict(state_dict))
        self._share_inner()


def _host_copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def fragments(tensors: Mapping[str, Tensor], count: int) -> list[Fragment]:
    """Tensors dealt in their order, each to the smallest fragment so far: some of every depth.

    Raises:
        ConfigurationError: a fragment would be empty.
    """
    if count > len(tensors):
        raise ConfigurationError(
            f"fragments={count}: the group has {len(tensors)} tensors, a fragment needs one at "
            "least"
        )
    names: list[list[str]] = [[] for _ in range(count)]
    sizes = [0] * count
    for name, tensor in tensors.items():
        smallest = min(range(count), key=lambda i: (sizes[i], len(names[i])))
        names[smallest].append(name)
        sizes[smallest] += tensor.nbytes
    return [Fragment(part) for part in names]


def outer_rule(scheme: Local) -> tuple[str, dict[str, Option]]:
    """The outer optimizer's name and hyper-parameters.

    Raises:
        ConfigurationError, UnsupportedError: one that servers cannot run.
    """
    late = isinstance(scheme.base, Async)
    default = SHARE if late and not scheme.nesterov_every else NESTEROV
    given: Any = default if scheme.outer is None else scheme.outer
    rule: type[torch.optim.Optimizer] = getattr(given, "func", given)
    check_class(rule)
    if getattr(given, "args", ()):
        raise ConfigurationError("outer: name its hyper-parameters, as in partial(SGD, lr=0.7)")
    stand_in = construct(rule, [{"params": [torch.zeros(1)]}], getattr(given, "keywords", {}))
    options = hyper_parameters(stand_in.param_groups[0], stand_in.defaults)
    if scheme.nesterov_every:
        return "DelayedNesterov", _delayed(rule, options, scheme.nesterov_every)
    if late and (options.get("momentum") or "betas" in options):
        warnings.warn(
            f"Local(base=Async(), outer={rule.__name__} with momentum): late pushes and momentum "
            "add up, and training may diverge; use nesterov_every=, or SGD without momentum",
            stacklevel=6,
        )
    return rule.__name__, options


def _delayed(rule: type, options: Mapping[str, Option], every: int) -> dict[str, Option]:
    if rule is not torch.optim.SGD or not options["momentum"]:
        raise ConfigurationError(
            f"nesterov_every={every} with outer={rule.__name__}: the outer optimizer must be SGD "
            "with momentum"
        )
    return {"lr": options["lr"], "momentum": options["momentum"], "every": every}


def _wire(scheme: Local, wire_dtype: str | None, overlap: bool) -> str:
    if overlap:
        raise UnsupportedError(
            "overlap=True with Local: gradients stay here; use delay= to go on while a round's "
            "result is under way"
        )
    if scheme.compress and wire_dtype:
        raise ConfigurationError(
            f"wire_dtype={wire_dtype!r} with Local(compress={scheme.compress!r}): give one of them"
        )
    return wire_name(wire_dtype or scheme.compress)


def open_local_optimizer(
    registry: Registry,
    model: Model,
    optimizer_class: type[torch.optim.Optimizer],
    hyperparameters: Mapping[str, Any],
    *,
    consistency: Local,
    group: str,
    buffers: str,
    wire_dtype: str | None,
    overlap: bool,
    on_nonfinite: str,
) -> LocalOptimizer:
    """Registers a model as a group that meets in rounds; see ``Client.optimizer``."""
    scheme = consistency
    wire = _wire(scheme, wire_dtype, overlap)
    found = members(model, buffers)
    rule, options = outer_rule(scheme)
    made = LocalOptimizer(found, optimizer_class, hyperparameters, scheme)
    spec = GroupSpec(
        name=group,
        tensors=tuple(replace(t, param_group=0) for t in tensor_specs(found, buffers)),
        optimizer=rule,
        param_groups=(options,),
        consistency=canonical(scheme.base),
        scheme=scheme.text,
        on_nonfinite=on_nonfinite,
    )
    opened = registry.open(spec, found.tensors, wire)
    shared = scheme.outer is None and rule == "SGD" and isinstance(scheme.base, Async)
    made.bind(opened, [options] if shared else None)
    made.load_newest()
    registry.add(opened, made.refresh)
    return made
