"""Which optimizers a server runs, with which hyper-parameters: names and numbers, never code."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from paramserver.core.optimizers import ELEMENTWISE, check_elementwise
from paramserver.errors import ConfigurationError, UnsupportedError
from paramserver.ps.delayed_nesterov import DelayedNesterov

OPTIMIZERS: dict[str, type[Optimizer]] = {
    **{name: getattr(torch.optim, name) for name in ELEMENTWISE},
    "DelayedNesterov": DelayedNesterov,
}
# Their foreach kernels round otherwise than the loop, which is torch's own choice on CPU.
LOOPS = frozenset({"NAdam", "RAdam", "ASGD"})
KERNELS = frozenset({"foreach", "fused", "capturable", "differentiable"})
# What decides which state an optimizer keeps: it cannot change under a running one.
STRUCTURE = KERNELS | {"amsgrad", "centered", "initial_accumulator_value"}


def resolve(name: str) -> type[Optimizer]:
    """The class in ``torch.optim`` by its name.

    Raises:
        UnsupportedError: not an elementwise rule of dense gradients, or unknown.
    """
    check_elementwise(name)
    return OPTIMIZERS[name]


def check_options(name: str, param_groups: Sequence[Mapping[str, Any]]) -> None:
    """Checks hyper-parameters as torch would, and that they are finite plain values.

    Raises:
        UnsupportedError: a rule that no server runs, tensors or ``capturable`` and the like.
        ConfigurationError: an unknown key, a wrong type, a value out of range.
    """
    resolve(name)
    for number, options in enumerate(param_groups):
        try:
            _check_group(name, _frozen(options))
        except (ConfigurationError, UnsupportedError) as error:
            raise type(error)(f"{name}, param group {number}: {error}") from None
    first = {options.get("initial_accumulator_value") for options in param_groups}
    if len(first) > 1:
        raise ConfigurationError(
            f"{name}: initial_accumulator_value={sorted(map(str, first))}: "
            "torch has one for all param groups; give all the same"
        )


def check_push_options(
    name: str, registered: Sequence[Mapping[str, Any]], options: Sequence[Mapping[str, Any]]
) -> None:
    """Checks the hyper-parameters that a push carries; none at all means as registered.

    Raises:
        UnsupportedError, ConfigurationError: as ``check_options``; or another number of groups, or
            a change of what state the optimizer keeps.
    """
    if not options:
        return
    if len(options) != len(registered):
        raise ConfigurationError(
            f"options of {len(options)} param groups: the group was registered with "
            f"{len(registered)}; param groups cannot be added later"
        )
    for number, (before, now) in enumerate(zip(registered, options, strict=True)):
        for key in STRUCTURE & now.keys():
            if now[key] != before.get(key, defaults(name).get(key)):
                raise ConfigurationError(
                    f"{name}, param group {number}: {key}={now[key]!r} was {before.get(key)!r} "
                    "when registered; it cannot change during a job"
                )
        if name == "RMSprop" and bool({**before, **now}.get("momentum", 0)) != bool(
            before.get("momentum", 0)
        ):
            raise ConfigurationError(
                f"RMSprop, param group {number}: momentum={now['momentum']!r} was "
                f"{before.get('momentum', 0)!r}; it cannot change from or to 0 during a job"
            )
    merged = [{**before, **now} for before, now in zip(registered, options, strict=True)]
    check_options(name, merged)


def plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as torch takes them: lists become tuples."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}


def kernels(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with the fastest kernels that equal torch's default to the bit, or the user's."""
    if options.get("fused") or options.get("foreach") is not None:
        return dict(options)
    return {**options, "foreach": name not in LOOPS}


def construct(
    name: str, groups: Sequence[tuple[Sequence[torch.Tensor], Mapping[str, Any]]]
) -> Optimizer:
    """The optimizer of tensors with their hyper-parameters, one torch param group each.

    Constructor arguments are the first group's: some (Adagrad's initial accumulator) are read
    nowhere else.
    """
    given = [kernels(name, plain(options)) for _, options in groups]
    arguments = {k: v for k, v in given[0].items() if k in _arguments(name)}
    params = [
        {"params": list(tensors), **options}
        for (tensors, _), options in zip(groups, given, strict=True)
    ]
    make = _light(name)
    return make(params, **arguments)


def bare_step(optimizer: Optimizer) -> Callable[[Optimizer], Any]:
    """``step`` without torch's wrappers: the profiler's hook and an import of the compiler.

    They cost more than the step of a small slice. Call it with gradients disabled.
    """
    step: Callable[[Optimizer], Any] = inspect.unwrap(type(optimizer).step)
    return step


@functools.cache
def _light(name: str) -> Callable[..., Optimizer]:
    """The class without a wrapper that imports torch's compiler: 70 MiB and a second."""
    cls = resolve(name)
    return type(name, (cls,), {"add_param_group": inspect.unwrap(cls.add_param_group)})


@functools.cache
def _arguments(name: str) -> frozenset[str]:
    return frozenset(inspect.signature(resolve(name)).parameters) - {"params"}


@functools.cache
def defaults(name: str) -> dict[str, Any]:
    """Every hyper-parameter of a class, at torch's default."""
    return dict(_light(name)([torch.zeros(1)]).defaults)


def _frozen(options: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Hashable, so that a check is made once for equal options; 1, 1.0 and True differ."""
    values: list[tuple[str, Any]] = []
    for key, value in plain(options).items():
        if isinstance(value, torch.Tensor):
            raise UnsupportedError(
                f"{key} is a tensor: hyper-parameters travel as numbers; use {key}.item()"
            )
        good = isinstance(value, (bool, int, float, str, tuple, type(None)))
        if not good or (isinstance(value, tuple) and not all(map(_finite, value))):
            raise ConfigurationError(
                f"{key}={value!r}: must be a finite number, a flag, a text or a list of numbers"
            )
        values.append((key, value))
    return tuple(values)


@functools.lru_cache(maxsize=256, typed=True)
def _check_typed(name: str, keys: tuple[str, ...], *values: Any) -> None:
    options = dict(zip(keys, values, strict=True))
    known = defaults(name)
    for key, value in options.items():
        if key not in known:
            raise ConfigurationError(f"{key}={value!r}: unknown; {name} has {', '.join(known)}")
        _check_value(key, value, known[key])
        if key not in _arguments(name) and value != known[key]:
            raise ConfigurationError(f"{key}={value!r}: {name} fixes it at {known[key]!r}")
    arguments = {k: v for k, v in options.items() if k in _arguments(name)}
    try:
        _light(name)([torch.zeros(1)], **arguments)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ConfigurationError(f"torch refuses the hyper-parameters: {error}") from None


def _check_group(name: str, options: tuple[tuple[str, Any], ...]) -> None:
    _check_typed(name, tuple(key for key, _ in options), *(value for _, value in options))


def _check_value(key: str, value: Any, default: Any) -> None:
    """Type and finiteness; ranges are torch's to check."""
    if key in ("capturable", "differentiable") and value:
        raise UnsupportedError(f"{key}={value!r}: servers step on plain CPU tensors; leave it out")
    if key in KERNELS:
        good = value is None or isinstance(value, bool)
        wanted = "True, False or None"
    elif isinstance(default, bool):
        good, wanted = isinstance(value, bool), "True or False"
    elif isinstance(default, tuple):
        good = isinstance(value, tuple) and len(value) == len(default)
        wanted = f"{len(default)} finite numbers"
    else:
        good, wanted = _finite(value), "a finite number"
    if not good:
        raise ConfigurationError(f"{key}={value!r}: must be {wanted} (torch's default: {default})")


def _finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) < 1 << 63 if isinstance(value, int) else math.isfinite(value)
