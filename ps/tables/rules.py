"""Optimizers on touched rows: each takes the rows that have a gradient, with their state.

A row holds its values first, then blocks of state as long, then scalars; a rule is given each of
these parts by itself. ``clock`` counts the steps of the whole table. Formulas as in ``torch.optim``
where a class of that name is there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from paramserver.core.tables import check_row_option
from paramserver.errors import ConfigurationError, UnsupportedError

Options = Mapping[str, Any]
Parts: TypeAlias = Sequence[Tensor]  # values [n, dim], blocks of state [n, dim], scalars [n, count]
# (parts, gradients [n, dim], options with defaults, table clock from 1)
Step = Callable[[Parts, Tensor, Options, int], None]


@dataclass(frozen=True, slots=True)
class RowRule:
    """One optimizer.

    Attributes:
        blocks: state of dim floats each.
        scalars: state of one float each, behind the blocks.
        defaults: every hyper-parameter and its default.
        step: changes values and state in place.
        first: what a state element begins with, by options.
    """

    blocks: int
    scalars: int
    defaults: Mapping[str, Any]
    step: Step
    first: Callable[[Options], float] = lambda options: 0.0

    def width(self, dim: int) -> int:
        """Floats of a row with its state."""
        return dim * (1 + self.blocks) + self.scalars

    def parts(self, rows: Tensor, dim: int) -> Parts:
        """The parts of rows [n, width], as views."""
        widths = [dim] * (1 + self.blocks) + [self.scalars] * bool(self.scalars)
        return list(torch.split(rows, widths, dim=1))


def _decayed(values: Tensor, grads: Tensor, o: Options) -> Tensor:
    if not o["weight_decay"]:
        return grads
    return grads.add(values, alpha=o["weight_decay"])


def _sgd(parts: Parts, grads: Tensor, o: Options, clock: int) -> None:
    (values,) = parts
    values.sub_(_decayed(values, grads, o), alpha=o["lr"])


def _momentum(parts: Parts, grads: Tensor, o: Options, clock: int) -> None:
    values, speed, begun = parts
    grads = _decayed(values, grads, o)
    # torch's first step takes the gradient whole, whatever the dampening.
    fresh = torch.where(begun > 0, 1.0 - o["dampening"], 1.0)
    speed.mul_(o["momentum"]).add_(grads * fresh)
    begun.fill_(1.0)
    move = grads.add(speed, alpha=o["momentum"]) if o["nesterov"] else speed
    values.sub_(move, alpha=o["lr"])


def _adagrad(parts: Parts, grads: Tensor, o: Options, clock: int) -> None:
    values, total = parts
    grads = _decayed(values, grads, o)
    total.addcmul_(grads, grads)
    lr = o["lr"] / (1 + (clock - 1) * o["lr_decay"])
    values.addcdiv_(grads, total.sqrt().add_(o["eps"]), value=-lr)


def _row_adagrad(parts: Parts, grads: Tensor, o: Options, clock: int) -> None:
    values, total = parts
    total.add_(grads.square().mean(dim=1, keepdim=True))
    values.addcdiv_(grads, total.sqrt().add_(o["eps"]), value=-o["lr"])


def _rmsprop(parts: Parts, grads: Tensor, o: Options, clock: int) -> None:
    values, square = parts
    grads = _decayed(values, grads, o)
    square.mul_(o["alpha"]).addcmul_(grads, grads, value=1 - o["alpha"])
    values.addcdiv_(grads, square.sqrt().add_(o["eps"]), value=-o["lr"])


def _moments(mean: Tensor, square: Tensor, grads: Tensor, o: Options) -> None:
    beta1, beta2 = o["betas"]
    mean.lerp_(grads, 1 - beta1)
    square.mul_(beta2).addcmul_(grads, grads, value=1 - beta2)


def _sparse_adam(parts: Parts, grads: Tensor, o: Options, clock: int) -> None:
    values, mean, square = parts
    _moments(mean, square, grads, o)
    beta1, beta2 = o["betas"]
    size = o["lr"] * math.sqrt(1 - beta2**clock) / (1 - beta1**clock)
    values.addcdiv_(mean, square.sqrt().add_(o["eps"]), value=-size)


def _row_adam(parts: Parts, grads: Tensor, o: Options, clock: int) -> None:
    values, mean, square, steps = parts
    steps.add_(1)
    _moments(mean, square, grads, o)
    beta1, beta2 = o["betas"]
    long = steps.double()
    size = (o["lr"] / (1 - beta1**long)).to(values.dtype)
    root = (1 - beta2**long).sqrt().to(values.dtype)
    values.sub_(size * mean / ((square.sqrt() / root).add_(o["eps"])))


def _ftrl(parts: Parts, grads: Tensor, o: Options, clock: int) -> None:
    """FTRL-proximal (McMahan et al., 2013); a row begins at its initial value."""
    weights, linear, square, begun = parts
    alpha, beta = o["lr"], o["beta"]
    if not alpha:
        return
    # The linear term that has the present value as its minimum: at another rate than the last
    # step's, the stored one has another. Where the value is 0, l1 alone holds it there.
    rate = (beta + square.sqrt()) / alpha + o["l2"]
    start = -weights * rate - torch.sign(weights) * o["l1"]
    linear.copy_(torch.where((begun > 0) & (weights == 0), linear, start))
    begun.fill_(1.0)
    grown = square + grads.square()
    linear.add_(grads).sub_((grown.sqrt() - square.sqrt()) / alpha * weights)
    square.copy_(grown)
    rate = (beta + square.sqrt()) / alpha + o["l2"]
    weights.copy_(
        torch.where(linear.abs() <= o["l1"], 0.0, -(linear - torch.sign(linear) * o["l1"]) / rate)
    )


RULES: dict[str, RowRule] = {
    "SGD": RowRule(0, 0, {"lr": 1e-3, "weight_decay": 0.0}, _sgd),
    "Momentum": RowRule(
        1,
        1,
        {"lr": 1e-3, "momentum": 0.9, "dampening": 0.0, "nesterov": False, "weight_decay": 0.0},
        _momentum,
    ),
    "Adagrad": RowRule(
        1,
        0,
        {
            "lr": 1e-2,
            "lr_decay": 0.0,
            "weight_decay": 0.0,
            "initial_accumulator_value": 0.0,
            "eps": 1e-10,
        },
        _adagrad,
        lambda o: float(o["initial_accumulator_value"]),
    ),
    "RowAdagrad": RowRule(0, 1, {"lr": 1e-2, "eps": 1e-10}, _row_adagrad),
    "RMSprop": RowRule(
        1, 0, {"lr": 1e-2, "alpha": 0.99, "eps": 1e-8, "weight_decay": 0.0}, _rmsprop
    ),
    "SparseAdam": RowRule(2, 0, {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}, _sparse_adam),
    "RowAdam": RowRule(2, 1, {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}, _row_adam),
    "Ftrl": RowRule(2, 1, {"lr": 0.05, "beta": 1.0, "l1": 0.0, "l2": 0.0}, _ftrl),
}


def row_rule(name: str) -> RowRule:
    """The rule of that name.

    Raises:
        UnsupportedError: no such rule for rows.
    """
    if name not in RULES:
        raise UnsupportedError(f"optimizer {name!r} for a table: must be one of {', '.join(RULES)}")
    return RULES[name]


def complete(name: str, options: Options) -> dict[str, Any]:
    """The options with their defaults.

    Raises:
        ConfigurationError: an unknown hyper-parameter, or a value out of range.
    """
    known = row_rule(name).defaults
    for key, value in options.items():
        if key not in known:
            raise ConfigurationError(f"{key}={value!r}: unknown; {name} has {', '.join(known)}")
        check_row_option(key, value, known[key])
    return {**known, **options}
