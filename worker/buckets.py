"""Tensors packed into flat ones, so that few large reductions take the place of many small ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

# As DistributedDataParallel: a small first bucket starts early, larger ones cost fewer calls.
FIRST_BYTES = 1 << 20
BUCKET_BYTES = 25 << 20

Rule = Literal["step", "mean", "first", "maximum"]
_HALVES = (torch.float16, torch.bfloat16)


def assign(sizes: Sequence[int], first: int = FIRST_BYTES, rest: int = BUCKET_BYTES) -> list[int]:
    """The bucket of each tensor, filled in order; a tensor larger than a bucket has its own.

    Args:
        sizes: bytes.
        first, rest: bytes of the first bucket and of all others.
    """
    buckets, number, limit, used = [], 0, first, 0
    for size in sizes:
        if used and used + size > limit:
            number, limit, used = number + 1, rest, 0
        buckets.append(number)
        used += size
    return buckets


class Bucket:
    """Some tensors of one type and rule, and the flat tensor that is reduced, on the CPU.

    Half-precision tensors are reduced in float32 and rounded once.

    Args:
        rule: "step" gradients, "mean" float buffers, "first" buffers of the lowest contributor,
            "maximum" integer and bool buffers.
        tensors: by name, of one data type.
    """

    def __init__(self, rule: Rule, tensors: Mapping[str, Tensor]) -> None:
        self.rule = rule
        self.names = tuple(tensors)
        some = next(iter(tensors.values()))
        self._dtype = torch.float32 if some.dtype in _HALVES else some.dtype
        if some.dtype is torch.bool:
            self._dtype = torch.uint8
        self._shapes = [t.shape for t in tensors.values()]
        self._sizes = [t.numel() for t in tensors.values()]
        self.renew()

    def renew(self) -> None:
        """Another flat tensor: a reduction that was given up may still write to the old one."""
        self.flat = torch.zeros(sum(self._sizes), dtype=self._dtype)
        parts = self.flat.split(self._sizes)
        shaped = [p.view(s) for p, s in zip(parts, self._shapes, strict=True)]
        self.views = dict(zip(self.names, shaped, strict=True))

    @property
    def nbytes(self) -> int:
        """Bytes that are reduced."""
        return self.flat.numel() * self.flat.itemsize

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Packs these tensors; those that are absent are zero."""
        present = [name for name in self.names if name in tensors]
        for name in self.names:
            if name not in tensors:
                self.views[name].zero_()
        if present:
            views = [self.views[name] for name in present]
            torch._foreach_copy_(views, [tensors[name] for name in present])

    def is_finite(self) -> bool:
        """Whether there is neither NaN nor infinity in it; one pass."""
        if not self.flat.numel() or not self.flat.is_floating_point():
            return True
        low, high = torch.aminmax(self.flat)
        return bool(torch.isfinite(low) & torch.isfinite(high))


def pack(rule: Rule, tensors: Mapping[str, Tensor]) -> list[Bucket]:
    """Buckets of these tensors, in their order; each has one data type."""
    by_type: dict[torch.dtype, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        by_type.setdefault(tensor.dtype, {})[name] = tensor
    buckets = []
    for group in by_type.values():
        numbers = assign([t.numel() * t.itemsize for t in group.values()])
        for number in sorted(set(numbers)):
            members = zip(group.items(), numbers, strict=True)
            buckets.append(Bucket(rule, {n: t for (n, t), k in members if k == number}))
    return buckets
