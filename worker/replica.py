"""The model, optimizer and buckets of one replica: packed, reduced, stepped, copied to others."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from paramserver.errors import NonFiniteError
from paramserver.wire.tensors import DTYPES, NAMES
from paramserver.worker.buckets import Rule, pack
from paramserver.worker.headers import Header
from paramserver.worker.parameters import Members, hyper_parameters
from paramserver.worker.ring import Ring

Wait = Callable[[Any], None]


class Replica:
    """What every replica has the same of.

    Args:
        found: the model's tensors.
        optimizer: torch's own, over the parameters of ``found``.
        buffers: "mean", "first" or "local".

    Attributes:
        agreed: hyper-parameters that all step with, as JSON.
    """

    def __init__(self, found: Members, optimizer: torch.optim.Optimizer, buffers: str) -> None:
        self._members = found
        self.optimizer = optimizer
        self.trained = {n: p for n, p in found.named if p.requires_grad}
        # Gradients appear from the last layer to the first.
        self._steps = pack("step", dict(reversed(self.trained.items())))
        rule: Rule = "first" if buffers == "first" else "mean"
        floats = {n: b for n, b in found.buffers.items() if b.is_floating_point()}
        others = {n: b for n, b in found.buffers.items() if n not in floats}
        self._buffers = [*pack(rule, floats), *pack("maximum", others)]
        self.agreed = self.options(optimizer)

    def options(self, optimizer: torch.optim.Optimizer) -> str:
        """The hyper-parameters in the param groups of an optimizer, as JSON."""
        names = self.optimizer.defaults
        return json.dumps([hyper_parameters(group, names) for group in optimizer.param_groups])

    def _agree(self, text: str) -> None:
        self.agreed = text
        for group, options in zip(self.optimizer.param_groups, json.loads(text), strict=True):
            group.update(options)

    @property
    def nbytes(self) -> int:
        """Bytes that one step reduces."""
        return sum(bucket.nbytes for bucket in (*self._steps, *self._buffers))

    def pack(self, gradients: Mapping[str, Tensor], weight: float, check: bool = True) -> None:
        """Fills the buckets with what this replica contributes; nothing, at weight 0.

        Args:
            check: for NaN and infinity.

        Raises:
            NonFiniteError: NaN or infinity in a gradient.
        """
        for bucket in self._steps:
            bucket.fill(gradients if weight else {})
            if check and not bucket.is_finite():
                bad = next(n for n in bucket.names if not bucket.views[n].isfinite().all())
                raise NonFiniteError(
                    f"the gradient of {bad!r} has NaN or infinity: nothing was sent, the clock "
                    "stays; skip the step, or lower the learning rate"
                )
        for bucket in self._buffers:
            values = weight or bucket.rule == "maximum"
            bucket.fill({n: self._members.buffers[n] for n in bucket.names} if values else {})

    def reduce(
        self, ring: Ring, given: Sequence[Header], present: Mapping[str, Tensor] | None, wait: Wait
    ) -> frozenset[str]:
        """Reduces what was packed over all replicas.

        Args:
            given: the header of each replica; their weights do not sum to 0.
            present: this replica's gradients, if it contributes.

        Returns:
            The parameters that somebody has a gradient of.
        """
        own = given[ring.index].weight
        share = own / sum(h.weight for h in given)
        leading = next(i for i, h in enumerate(given) if h.contributes) == ring.index
        works = []
        for bucket in (*self._steps, *self._buffers):
            if bucket.rule == "maximum":
                works.append(ring.maximum(bucket.flat))
                continue
            factor = float(leading) if bucket.rule == "first" else share
            if factor != 1 and bucket.flat.is_floating_point():
                bucket.flat.mul_(factor)
            works.append(ring.sum(bucket.flat))
        stepped = frozenset(self.trained)
        if any(h.partial for h in given):
            stepped = self._present(ring, present or {}, wait)
        for work in works:
            wait(work)
        return stepped

    def _present(self, ring: Ring, present: Mapping[str, Tensor], wait: Wait) -> frozenset[str]:
        marks = torch.tensor([name in present for name in self.trained], dtype=torch.uint8)
        wait(ring.maximum(marks))
        return frozenset(n for n, mark in zip(self.trained, marks.tolist(), strict=True) if mark)

    @torch.no_grad()
    def step(self, stepped: frozenset[str]) -> None:
        """Steps on what was reduced; ``grad`` of every parameter stays as it was."""
        reduced = {n: v for bucket in self._steps for n, v in bucket.views.items()}
        kept = {name: parameter.grad for name, parameter in self.trained.items()}
        for name, parameter in self.trained.items():
            parameter.grad = reduced[name].to(parameter) if name in stepped else None
        try:
            self.optimizer.step()
        finally:
            for name, parameter in self.trained.items():
                parameter.grad = kept[name]
        for bucket in self._buffers:
            for name, view in bucket.views.items():
                self._members.buffers[name].copy_(view)

    def agree(self, ring: Ring, leader: int, text: str, wait: Wait) -> None:
        """The hyper-parameters of replica ``leader`` hold from now on; ``text``: this one's."""
        self._agree(self._say(ring, leader, text, wait))

    def _say(self, ring: Ring, leader: int, text: str, wait: Wait) -> str:
        size = torch.tensor([len(text.encode())])
        wait(ring.broadcast(size, leader))
        content = torch.zeros(int(size), dtype=torch.uint8)
        if ring.index == leader:
            content = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        wait(ring.broadcast(content, leader))
        return bytes(content.tolist()).decode()

    @torch.no_grad()
    def spread(self, ring: Ring, root: int, clock: int, wait: Wait) -> int:
        """All take the values, optimizer state, hyper-parameters and clock of replica ``root``."""
        state = self._state() if ring.index == root else {}
        said = json.loads(self._say(ring, root, json.dumps([clock, self.agreed, state]), wait))
        clock, agreed, state = said
        fresh: dict[str, dict[str, Any]] = {}
        values = dict(self._members.tensors)
        for name, entries in state.items():
            own = self.optimizer.state.get(self.trained[name], {}) if ring.index == root else {}
            for key, entry in entries.items():
                described = isinstance(entry, dict)
                if ring.index != root:
                    own[key] = _empty(entry, self.trained[name]) if described else entry
                if described:
                    values[f"{key} of {name}"] = own[key]
            fresh[name] = own
        self._copy(ring, root, values, wait)
        # Only now, so that a copy that breaks off changes nothing.
        for name, own in fresh.items():
            self.optimizer.state[self.trained[name]] = own
        self._agree(agreed)
        return int(clock)

    def _state(self) -> dict[str, dict[str, Any]]:
        """The optimizer state by parameter: numbers, and the types and shapes of tensors."""
        found = {}
        for name, parameter in self.trained.items():
            entries = self.optimizer.state.get(parameter, {})
            if entries:
                found[name] = {key: _described(value) for key, value in entries.items()}
        return found

    def _copy(self, ring: Ring, root: int, values: Mapping[str, Tensor], wait: Wait) -> None:
        """Through contiguous copies on the CPU: all at once, then into place."""
        flats = {name: value.detach().cpu().contiguous() for name, value in values.items()}
        copies = {
            name: (flat.clone() if ring.index != root else flat).view(-1).view(torch.uint8)
            for name, flat in flats.items()
            if flat.numel()
        }
        works = [ring.broadcast(copy, root) for copy in copies.values()]
        for work in works:
            wait(work)
        if ring.index != root:
            for name, copy in copies.items():
                flat = flats[name]
                values[name].copy_(copy.view(flat.dtype).view(flat.shape))

    def renew(self) -> None:
        """The ring was left: reductions that were given up may still write to the buckets."""
        for bucket in (*self._steps, *self._buffers):
            bucket.renew()


def _described(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return {"dtype": NAMES[value.dtype], "shape": list(value.shape), "cpu": not value.is_cuda}


def _empty(entry: Mapping[str, Any], parameter: Tensor) -> Tensor:
    device = "cpu" if entry["cpu"] else parameter.device
    return torch.empty(entry["shape"], dtype=DTYPES[entry["dtype"]], device=device)
