"""What a group is made of: tensors by their ``state_dict`` names, param groups, update rules."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from paramserver.core.optimizers import check_elementwise
from paramserver.core.placement import GroupSpec, Option
from paramserver.core.slices import TensorSpec
from paramserver.errors import ConfigurationError, UnsupportedError
from paramserver.types import Consistency, canonical
from paramserver.wire.tensors import NAMES

Buffers: TypeAlias = Literal["mean", "first", "local"]
Named: TypeAlias = tuple[str, Tensor]
Model: TypeAlias = nn.Module | Iterable[Named] | Iterable[Mapping[str, Any]]

BUFFERS = ("mean", "first", "local")
_RULE_OF_BUFFERS = {"mean": "delta", "first": "first"}


@dataclass(frozen=True, slots=True)
class Members:
    """The tensors of a model that a group holds.

    Attributes:
        param_groups: torch param groups: (name, parameter) pairs and hyper-parameters of each.
        buffers: persistent buffers that servers hold, by name.
        module: the model, if it was given as one.
    """

    param_groups: tuple[tuple[tuple[Named, ...], Mapping[str, Any]], ...]
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    module: nn.Module | None = None

    @property
    def named(self) -> list[Named]:
        """All parameters, in order."""
        return [pair for pairs, _ in self.param_groups for pair in pairs]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors that servers hold, by name, in the order of the specification."""
        return {**dict(self.named), **self.buffers}


def members(model: Model, buffers: str) -> Members:
    """Parameters and buffers of whatever ``client.optimizer`` takes.

    Raises:
        ConfigurationError: no names, a name twice, a parameter twice, no parameter at all.
        UnsupportedError: a tensor that servers cannot hold.
    """
    if buffers not in BUFFERS:
        raise ConfigurationError(f"buffers={buffers!r}: must be one of {', '.join(BUFFERS)}")
    if isinstance(model, nn.Module):
        groups: list[Any] = [{"params": list(model.named_parameters())}]
        kept = {} if buffers == "local" else _persistent_buffers(model)
        found = Members(_groups(groups), kept, model)
    else:
        groups = list(model)
        if groups and not isinstance(groups[0], Mapping):
            groups = [{"params": groups}]
        found = Members(_groups(groups))
    _check(found)
    return found


def _groups(
    groups: Sequence[Mapping[str, Any]],
) -> tuple[tuple[tuple[Named, ...], Mapping[str, Any]], ...]:
    result = []
    for group in groups:
        if "params" not in group:
            raise ConfigurationError("a param group without 'params'")
        options = {k: v for k, v in group.items() if k not in ("params", "param_names")}
        names = group.get("param_names")
        params = group["params"]
        pairs = zip(names, params, strict=True) if names is not None else params
        result.append((tuple(_pair(item) for item in pairs), options))
    return tuple(result)


def _pair(item: Any) -> Named:
    good = isinstance(item, tuple) and len(item) == 2
    if not good or not isinstance(item[0], str) or not isinstance(item[1], Tensor):
        raise ConfigurationError(
            f"a parameter without a name ({type(item).__name__}): servers know tensors by name; "
            "give (name, parameter) pairs, as named_parameters() does"
        )
    return item[0], item[1]


def _persistent_buffers(model: nn.Module) -> dict[str, Tensor]:
    state = {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}
    return {name: buffer for name, buffer in model.named_buffers() if id(buffer) in state}


def _check(found: Members) -> None:
    names: set[str] = set()
    seen: dict[int, str] = {}
    for name, tensor in [*found.named, *found.buffers.items()]:
        if name in names:
            raise ConfigurationError(f"tensor {name!r} is named twice: names are unique in a group")
        if id(tensor) in seen:
            raise ConfigurationError(
                f"{name!r} and {seen[id(tensor)]!r} are the same tensor: give it once"
            )
        names.add(name)
        seen[id(tensor)] = name
        check_tensor(name, tensor)
    if not found.named:
        raise ConfigurationError("no parameters: there is nothing to train")


def check_tensor(name: str, tensor: Tensor) -> None:
    """Raises UnsupportedError for a tensor that servers cannot hold."""
    if isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer)):
        raise UnsupportedError(
            f"{name!r} has no shape yet: run the lazy module once before client.optimizer"
        )
    if tensor.is_meta:
        raise UnsupportedError(f"{name!r} is on the meta device: it has no values to start from")
    if tensor.layout != torch.strided or tensor.dtype not in NAMES:
        raise UnsupportedError(
            f"{name!r} is a {tensor.layout} tensor of {tensor.dtype}: servers hold dense tensors "
            f"of {', '.join(NAMES.values())}"
        )


def tensor_specs(found: Members, buffers: str) -> tuple[TensorSpec, ...]:
    """The tensors as servers know them: frozen parameters and buffers have rules of their own."""
    specs = [
        _spec(name, tensor, "step" if tensor.requires_grad else "frozen", number)
        for number, (pairs, _) in enumerate(found.param_groups)
        for name, tensor in pairs
    ]
    for name, buffer in found.buffers.items():
        floating = buffer.is_floating_point()
        specs.append(_spec(name, buffer, _RULE_OF_BUFFERS[buffers] if floating else "maximum"))
    return tuple(specs)


def _spec(name: str, tensor: Tensor, rule: str, group: int = 0) -> TensorSpec:
    return TensorSpec(name, tuple(tensor.shape), NAMES[tensor.dtype], rule, group)


def plain_spec(
    name: str,
    tensors: Mapping[str, Tensor],
    optimizer_class: type[torch.optim.Optimizer] | None,
    consistency: Consistency,
    hyperparameters: Mapping[str, Any],
) -> GroupSpec:
    """A group of plain tensors, as ``client.register`` makes it.

    Raises:
        ConfigurationError, UnsupportedError: values, rules or tensors that cannot work.
    """
    if not tensors:
        raise ConfigurationError(f"group {name!r} has no tensors")
    for key, tensor in tensors.items():
        check_tensor(key, tensor)
    if optimizer_class is None:
        if hyperparameters:
            raise ConfigurationError(
                f"{', '.join(hyperparameters)}: hyper-parameters without an optimizer class"
            )
        specs = tuple(_spec(key, tensor, "add") for key, tensor in tensors.items())
        return GroupSpec(name, specs, "", (), canonical(consistency))
    check_class(optimizer_class)
    stand_in = construct(optimizer_class, [{"params": [torch.zeros(1)]}], hyperparameters)
    options = (hyper_parameters(stand_in.param_groups[0], stand_in.defaults),)
    specs = tuple(_spec(key, tensor, "step") for key, tensor in tensors.items())
    return GroupSpec(name, specs, optimizer_class.__name__, options, canonical(consistency))


def check_class(optimizer_class: type[torch.optim.Optimizer]) -> None:
    """Raises UnsupportedError unless this is an elementwise class of ``torch.optim`` itself."""
    name = getattr(optimizer_class, "__name__", repr(optimizer_class))
    if getattr(torch.optim, name, None) is not optimizer_class:
        raise UnsupportedError(
            f"optimizer {name!r}: servers run classes of torch.optim, which travel by name; "
            "give the class itself, such as torch.optim.Adam"
        )
    check_elementwise(name)


def construct(
    optimizer_class: type[torch.optim.Optimizer],
    param_groups: list[dict[str, Any]],
    hyperparameters: Mapping[str, Any],
) -> torch.optim.Optimizer:
    """The torch optimizer of these param groups: checks and completes hyper-parameters.

    Raises:
        ConfigurationError: torch refuses them.
    """
    try:
        return optimizer_class(param_groups, **hyperparameters)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigurationError(f"{optimizer_class.__name__}: {error}") from error


def check_hyper_parameters(
    optimizer_class: type[torch.optim.Optimizer], options: Mapping[str, Any]
) -> None:
    """Raises ConfigurationError for values that torch refuses."""
    known = inspect.signature(optimizer_class).parameters
    given = {name: value for name, value in options.items() if name in known}
    construct(optimizer_class, [{"params": [torch.zeros(1)]}], given)


def hyper_parameters(group: Mapping[str, Any], names: Iterable[str]) -> dict[str, Option]:
    """The hyper-parameters of a param group as data: numbers, flags, text.

    What learning-rate schedulers keep there beside them does not travel.

    Raises:
        ConfigurationError, UnsupportedError: a value that cannot travel.
    """
    return {name: _plain(name, group[name]) for name in names if name in group}


def _plain(name: str, value: Any) -> Option:
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ConfigurationError(f"{name} has {value.numel()} elements: must be one number")
        value = value.item()
    if name in ("capturable", "differentiable") and value:
        raise UnsupportedError(f"{name}=True: servers step on plain CPU tensors; leave it out")
    if isinstance(value, (list, tuple)):
        return tuple(_number(name, item) for item in value)
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return value
    return _number(name, value)


def _number(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"{name}={value!r}: hyper-parameters are numbers, flags or text"
        ) from error
    if not math.isfinite(number):
        raise ConfigurationError(f"{name}={number}: must be finite")
    return number
