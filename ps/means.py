"""What several pushes of one clock come to, and what one push does where no optimizer steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from paramserver.errors import InvalidRequestError

HALF = frozenset({torch.bfloat16, torch.float16})
MEANS = frozenset({"step", "delta"})

Gradients = Mapping[int, Tensor]
Contribution = tuple[float, Gradients]


def mean(
    live: Sequence[Contribution], rules: Mapping[int, str], sums: Mapping[int, torch.dtype]
) -> dict[int, Tensor]:
    """(g_0 + Σ (n_i/n_0) g_i) / Σ n_i/n_0 by slice; a gradient that one lacks counts as zero.

    Sums grow in place, in the first gradient of each slice.
    """
    if len(live) == 1:
        return {index: g for index, g in live[0][1].items() if rules[index] in MEANS}
    result: dict[int, Tensor] = {}
    total = 0.0
    for weight, gradients in live:
        ratio = weight / live[0][0]
        total += ratio
        into: list[Tensor] = []
        add: list[Tensor] = []
        for index, given in gradients.items():
            if rules[index] not in MEANS:
                continue
            gradient = given if given.dtype == sums[index] else given.to(sums[index])
            if index in result:
                into.append(result[index])
                add.append(gradient)
            else:
                result[index] = gradient if ratio == 1.0 else gradient.mul_(ratio)
        if into:
            torch._foreach_add_(into, add, alpha=ratio)
    if result and total != 1.0:
        torch._foreach_div_(list(result.values()), total)
    return result


def add_all(value: Tensor, parts: Sequence[Tensor]) -> None:
    """value += each part in order; half precision is rounded once."""
    into = value.float() if value.dtype in HALF and len(parts) > 1 else value
    for part in parts:
        into.add_(part)
    if into is not value:
        value.copy_(into)


def arrive_one(rule: str, value: Tensor, gradient: Tensor, factor: float) -> None:
    """One push to one slice that no optimizer steps."""
    if rule == "delta" and factor != 1.0:
        value.add_(gradient, alpha=factor)
    elif rule == "maximum":
        torch.maximum(value, gradient, out=value)
    elif rule == "frozen":
        raise InvalidRequestError("a frozen tensor takes no pushes; it is stored once")
    else:
        value.add_(gradient)
