"""How pushes change the values of slices: the group's optimizer, sums, differences, maxima."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from paramserver.core.slices import Slice, TensorSpec
from paramserver.errors import InvalidRequestError
from paramserver.ps.means import HALF, Contribution, Gradients, add_all, arrive_one, mean
from paramserver.ps.optimizers import (
    KERNELS,
    OPTIMIZERS,
    bare_step,
    check_options,
    check_push_options,
    construct,
    defaults,
    plain,
    resolve,
)
from paramserver.ps.state import VALUE, SliceState, SliceStates
from paramserver.types import ScaleLr, lr_factor

__all__ = [
    "DTYPES",
    "LARGEST",
    "OPTIMIZERS",
    "Bucket",
    "check_options",
    "check_push_options",
    "resolve",
    "too_large",
]

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int64": torch.int64,
    "int32": torch.int32,
    "int16": torch.int16,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "bool": torch.bool,
}
# Norms of a slice's gradient whose square, a million times over, its data type can still hold.
LARGEST = {
    torch.float32: 1e16,
    torch.bfloat16: 1e16,
    torch.float64: 1e150,
    torch.float16: 65504.0,  # what the type holds at all
}

Options = Sequence[Mapping[str, Any]]
Keep = Callable[[Gradients, Gradients], None]  # means, new values of slices without optimizer


class Bucket:
    """Some slices of one group: their values, versions and optimizer state.

    Called with the bucket's lock held; never blocks. Gradients are 1-D tensors of the slice's
    length, in its dtype or, for floating ones, any floating dtype.

    Args:
        slices: those of the bucket.
        tensors: all tensors of the group, indexed by ``Slice.tensor``.
        optimizer: name in ``torch.optim`` for tensors of rule "step"; empty if there are none.
        param_groups: hyper-parameters of each param group, as registered.

    Attributes:
        indices: slice numbers, as given.
        values: 1-D, contiguous, of every slice stored so far.
        versions: by slice: 0 before the first value, 1 with it, then plus one per push or clock.
        changed: by slice: the version at which the value last changed.
        checked: whether a step that would overflow the optimizer is left out.
        overflows: how many were.
    """

    def __init__(
        self,
        slices: Sequence[Slice],
        tensors: Sequence[TensorSpec],
        optimizer: str,
        param_groups: Options,
    ) -> None:
        self.indices = tuple(piece.index for piece in slices)
        self.values: dict[int, Tensor] = {}
        self.versions = dict.fromkeys(self.indices, 0)
        self.changed = dict.fromkeys(self.indices, 0)
        self.nbytes = sum(piece.bytes for piece in slices)
        self.checked, self.overflows = True, 0
        self._slices = {piece.index: piece for piece in slices}
        self._dtypes = {piece.index: DTYPES[tensors[piece.tensor].dtype] for piece in slices}
        self._rules = {piece.index: tensors[piece.tensor].rule for piece in slices}
        self._sums = {i: torch.float32 if d in HALF else d for i, d in self._dtypes.items()}
        self._rest = tuple(index for index, rule in self._rules.items() if rule != "step")
        self._name = optimizer
        known = defaults(optimizer) if optimizer else {}
        self._registered = [{**known, **plain(options)} for options in param_groups]
        # Empty slices have nothing to step.
        self._stepped: dict[int, list[int]] = {}
        for piece in slices:
            if self._rules[piece.index] == "step" and piece.elements:
                group = tensors[piece.tensor].param_group
                self._stepped.setdefault(group, []).append(piece.index)
        self._optimizer: Optimizer | None = None
        self._step: Callable[[Optimizer], Any] = Optimizer.step
        self._as_registered = True
        self._loaded: dict[int, SliceState] = {}  # their optimizer state waits for the last slice

    @property
    def stored(self) -> bool:
        """Whether every slice has its first value."""
        return len(self.values) == len(self.indices)

    @property
    def state_bytes(self) -> int:
        """Bytes of optimizer state."""
        if self._optimizer is None:
            return 0
        kept = (v for state in self._optimizer.state.values() for v in state.values())
        return sum(value.nbytes for value in kept if isinstance(value, Tensor))

    def store(self, slice_: int, value: Tensor) -> bool:
        """Keeps a copy of a first value. False: it has one already, which stays.

        Raises:
            InvalidRequestError: another dtype or number of elements.
        """
        self._check_value(slice_, value)
        if slice_ in self.values:
            return False
        self._set(slice_, value)
        self.versions[slice_] = self.changed[slice_] = 1
        self._ready()
        return True

    def _check_value(self, slice_: int, value: Tensor) -> None:
        elements, dtype = self._slices[slice_].elements, self._dtypes[slice_]
        if value.numel() != elements or value.dtype != dtype:
            raise InvalidRequestError(
                f"slice {slice_}: {value.numel()} elements of {value.dtype}; "
                f"the group has {elements} of {dtype}"
            )

    def _set(self, slice_: int, value: Tensor) -> None:
        own = self.values.get(slice_)
        if own is None:
            own = torch.empty(self._slices[slice_].elements, dtype=self._dtypes[slice_])
            self.values[slice_] = own
        own.copy_(value.detach().reshape(-1))

    def dump(self, slices: Iterable[int] | None = None) -> dict[int, SliceState]:
        """Copies of all that these slices (None: all of the bucket) need to go on elsewhere."""
        return {i: self._dump(i) for i in (self.indices if slices is None else slices)}

    def _dump(self, index: int) -> SliceState:
        numbers: dict[str, Any] = {"version": self.versions[index], "changed": self.changed[index]}
        if index not in self.values:
            return SliceState({}, numbers)
        value = self.values[index]
        known = self._optimizer.state.get(value, {}) if self._optimizer else {}
        tensors = {VALUE: value.clone()}
        plain_state = {}
        for name, part in known.items():
            if isinstance(part, Tensor):
                tensors[name] = part.clone()
            else:
                plain_state[name] = part
        if plain_state:
            numbers["state"] = plain_state
        return SliceState(tensors, numbers)

    def load(self, states: SliceStates) -> None:
        """Takes slices as they were dumped, from any bucket; what was here of them is replaced.

        Raises:
            InvalidRequestError: a slice of another bucket, or of another shape or data type.
        """
        for index, state in states.items():
            self._check_state(index, state)
        for index, state in states.items():
            self.versions[index] = int(state.numbers["version"])
            self.changed[index] = int(state.numbers["changed"])
            if VALUE in state.tensors:
                self._set(index, state.tensors[VALUE])
                self._loaded[index] = state
        self._ready()

    def _check_state(self, index: int, state: SliceState) -> None:
        if index not in self._slices:
            raise InvalidRequestError(f"slice {index} is not of this bucket")
        for name, tensor in state.tensors.items():
            if name == VALUE:
                self._check_value(index, tensor)
            elif tensor.dim() and tensor.numel() != self._slices[index].elements:
                raise InvalidRequestError(
                    f"slice {index}: {tensor.numel()} elements of {name}; "
                    f"the slice has {self._slices[index].elements}"
                )

    def _ready(self) -> None:
        """The optimizer, once every slice is here, with what was loaded of its state."""
        if not (self._stepped and self.stored):
            return
        if self._optimizer is None:
            self._build()
        assert self._optimizer is not None
        for index, state in self._loaded.items():
            kept = {n: t.clone() for n, t in state.tensors.items() if n != VALUE}
            kept.update(state.numbers.get("state", {}))
            if kept:
                self._optimizer.state[self.values[index]] = kept
            else:
                self._optimizer.state.pop(self.values[index], None)
        self._loaded.clear()

    def close(
        self,
        contributions: Sequence[Contribution],
        options: Options = (),
        keep: Keep | None = None,
    ) -> None:
        """Applies one Sync clock: one step on the weighted mean. All slices tick.

        Args:
            contributions: (weight, {slice: gradient}) in rank order. The tensors may be written to.
            options: hyper-parameters of each param group; empty: as registered.
            keep: told, before the step, what ``replay`` needs.
        """
        self._require_stored()
        self.tick(self.indices)
        live = [c for c in contributions if c[0] > 0]
        means = mean(live, self._rules, self._sums)
        changed = self._close_rest(contributions, live, means)
        if keep is not None:
            stepped = {i: g for i, g in means.items() if self._rules[i] == "step"}
            keep(stepped, {i: self.values[i] for i in changed})
        self._apply_step(means, options, 1.0)

    def replay(self, means: Gradients, values: Gradients, options: Options) -> None:
        """A Sync clock again, as ``close`` told ``keep`` of it."""
        self.tick(self.indices)
        for index, value in values.items():
            self.values[index].copy_(value)
            self.changed[index] = self.versions[index]
        self._apply_step(means, options, 1.0)

    def arrive(
        self,
        gradients: Gradients,
        options: Options,
        bases: Mapping[int, int],
        scale: ScaleLr,
    ) -> float:
        """Applies slices of one push at once (Stale, Async). Only the slices given tick.

        Args:
            gradients: of any slices of the bucket. The tensors may be written to.
            options: as in ``close``.
            bases: by slice: the version that the gradient was computed on.
            scale: how the learning rate falls with the largest staleness among these slices.

        Returns:
            The mean staleness of these slices, in versions.
        """
        self._require_stored()
        versions, rules = self.versions, self._rules
        total = largest = 0
        steps: dict[int, Tensor] = {}
        for index in gradients:
            late = versions[index] - bases.get(index, versions[index])
            if late > 0:
                total += late
                largest = max(largest, late)
        factor = lr_factor(scale, largest)
        for index, gradient in gradients.items():
            versions[index] += 1
            if rules[index] == "step":
                steps[index] = gradient
            elif self.checked and too_large({index: gradient}):
                self.overflows += 1
            else:
                arrive_one(rules[index], self.values[index], gradient, factor)
                self.changed[index] = versions[index]
        if steps:
            self._apply_step(steps, options, factor)
        return total / len(gradients) if gradients else 0.0

    def replace(self, slice_: int, value: Tensor) -> None:
        """A value set as a whole; the slice ticks."""
        self._require_stored()
        self.values[slice_].copy_(value)
        self.versions[slice_] += 1
        self.changed[slice_] = self.versions[slice_]

    def tick(self, slices: Iterable[int]) -> None:
        """One version further for slices of a completed push that brought no gradient."""
        for index in slices:
            self.versions[index] += 1

    def _require_stored(self) -> None:
        if not self.stored:
            missing = [index for index in self.indices if index not in self.values]
            raise InvalidRequestError(f"slices {missing} have no first values yet")

    def _build(self) -> None:
        groups = [
            ([self.values[index] for index in indices], self._registered[group])
            for group, indices in self._stepped.items()
        ]
        self._optimizer = construct(self._name, groups)
        self._step = bare_step(self._optimizer)

    def _apply_step(self, gradients: Gradients, options: Options, factor: float) -> None:
        """One optimizer step on the slices given; slices without a gradient stay, as in torch."""
        optimizer = self._optimizer
        if optimizer is None or not gradients:
            return
        if self.checked:
            gradients = self._sane(gradients)
        stepped = []
        for index, gradient in gradients.items():
            value = self.values[index]
            if self._rules[index] == "step" and value.numel():
                value.grad = gradient if gradient.dtype == value.dtype else gradient.to(value.dtype)
                stepped.append(value)
                self.changed[index] = self.versions[index]
        if not stepped:
            return
        try:
            with torch.no_grad():
                self._set_options(optimizer, options, factor)
                self._step(optimizer)
        finally:
            for value in stepped:
                value.grad = None

    def _sane(self, gradients: Gradients) -> Gradients:
        """Those that the optimizer can square and add up."""
        bad = too_large(gradients)
        self.overflows += len(bad)
        return {i: g for i, g in gradients.items() if i not in bad} if bad else gradients

    def _set_options(self, optimizer: Optimizer, options: Options, factor: float) -> None:
        """The options of one step. Kernels stay as registered."""
        if self._as_registered and not options and factor == 1.0:
            return
        for number, group in zip(self._stepped, optimizer.param_groups, strict=True):
            now = dict(self._registered[number])
            if options:
                now.update(plain(options[number]))
            now["lr"] *= factor
            group.update((key, value) for key, value in now.items() if key not in KERNELS)
        self._as_registered = not options and factor == 1.0

    def _close_rest(
        self,
        contributions: Sequence[Contribution],
        live: Sequence[Contribution],
        means: Gradients,
    ) -> list[int]:
        """A clock for the slices that no optimizer steps; those that it changed."""
        touched = []
        for index in self._rest:
            value, rule = self.values[index], self._rules[index]
            # A sum takes every push, whatever its weight.
            pushes = contributions if rule == "add" else live
            parts = [gradients[index] for _, gradients in pushes if index in gradients]
            if not parts:
                continue
            if self.checked and any(too_large({0: part}) for part in parts):
                self.overflows += 1
                continue
            touched.append(index)
            self.changed[index] = self.versions[index]
            if rule == "delta":
                value.add_(means[index])
            elif rule == "add":
                add_all(value, parts)
            else:
                for part in parts[:1] if rule == "first" else parts:
                    arrive_one(rule, value, part, 1.0)
        return touched


def too_large(gradients: Gradients) -> list[int]:
    """Which of these an optimizer would overflow on: their norm is beyond ``LARGEST``, or NaN."""
    floating = {i: g for i, g in gradients.items() if g.dtype in LARGEST and g.numel()}
    if not floating:
        return []
    norms = torch._foreach_norm([g.float() if g.dtype in HALF else g for g in floating.values()])
    found = dict(zip(floating, torch.stack([n.double() for n in norms]).tolist(), strict=True))
    return [i for i, norm in found.items() if not norm <= LARGEST[floating[i].dtype]]
