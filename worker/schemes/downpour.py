"""Downpour SGD: many steps on a local copy between two pushes, and between two pulls."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from paramserver.errors import NonFiniteError, UnsupportedError
from paramserver.schemes import Downpour
from paramserver.types import Async, StepResult
from paramserver.v1 import scheduler_pb2
from paramserver.wire.tensors import is_finite
from paramserver.worker.group import Group
from paramserver.worker.optimizer import ServerOptimizer, changes, wire_name
from paramserver.worker.parameters import Members, Model, check_class, members
from paramserver.worker.registry import Registry
from paramserver.worker.session import Session


class WarmStart:
    """The chief's first steps alone, and the others' wait for them."""

    def __init__(self, session: Session, registry: Registry, group: str) -> None:
        self._session = session
        self._registry = registry
        self._group = group

    def wait(self) -> bool:
        """Whether this worker is to take the first steps; else returns when they are taken."""
        reply = self._ask(0.0)
        if reply.pending:
            what = f"warm start of group {self._group!r}"
            reply = self._session.poll("WarmStart", self._request, _answers, what)
            self._registry.became_active(reply.view, True)
        return bool(reply.chief)

    def end(self) -> None:
        """The first steps are taken, or this worker is about to wait for others."""
        self._ask(0.0, over=True)

    def _ask(self, wait_s: float, *, over: bool = False) -> scheduler_pb2.WarmStartReply:
        request = self._request(wait_s)
        request.over = over
        reply: scheduler_pb2.WarmStartReply = self._session.scheduler.call("WarmStart", request)
        self._session.saw_view(reply.view)
        return reply

    def _request(self, wait_s: float) -> scheduler_pb2.WarmStartRequest:
        return scheduler_pb2.WarmStartRequest(
            member=self._session.identity(), group=self._group, wait_s=wait_s
        )


def _answers(reply: scheduler_pb2.WarmStartReply) -> bool:
    return reply.over or reply.chief


class DownpourOptimizer(ServerOptimizer):
    """Pushes the sum of ``n_push`` gradients, pulls every ``n_fetch`` steps.

    A step that does not pull moves the local copy by -lr * gradient, with the learning rate of its
    param group and nothing else of the rule that the servers run. What is summed up is pushed
    before this worker waits for others, at the end of a pass and at ``client.finish()``. Samples
    that go back to the queue before their push take the whole sum with them.
    """

    def __init__(
        self,
        found: Members,
        optimizer_class: type[torch.optim.Optimizer],
        hyperparameters: Mapping[str, Any],
        scheme: Downpour,
    ) -> None:
        """As for ``ServerOptimizer``."""
        super().__init__(found, optimizer_class, hyperparameters)
        self._scheme = scheme
        self._sums: dict[str, Tensor] = {}
        self._unpushed = self._unfetched = 0  # steps
        self._returned = 0
        self._staleness = 0.0  # of the last push
        self._since = {n: b.clone() for n, b in found.buffers.items()}  # of buffers, last pushed
        self._alone: WarmStart | None = None
        self._alone_for = scheme.warm_start

    def bind(self, group: Group, *, overlap: bool) -> None:
        """As for ``ServerOptimizer``; what is summed up is pushed before anything is settled."""
        super().bind(group, overlap=overlap)
        group.session.before_settle(self.flush)

    def train_alone(self, warm_start: WarmStart) -> None:
        """This worker takes the first steps; the others wait."""
        self._alone = warm_start

    @torch.no_grad()
    def flush(self) -> None:
        """Pushes what is summed up, and ends a warm start: nothing waits for a step to come."""
        self._forget_returned()
        if self._unpushed:
            self._push({})
        if self._alone is not None:
            self._alone.end()
            self._alone = None

    def _work(self, weight: float | None) -> StepResult:
        group, scheme = self.group, self._scheme
        group.session.batches.use(group.name)
        self._forget_returned()
        gradients = {} if weight == 0 else self._finite(self._unscaled_gradients() or {})
        pushes = self._unpushed + 1 >= scheme.n_push
        fetches = self._unfetched + 1 >= scheme.n_fetch
        if pushes:
            result = self._push(gradients, fetches=fetches)
        else:
            self._add(gradients)
            result = self._stay(fetches=fetches)
        if fetches:
            self._unfetched = 0
            self._take_buffers()
        else:
            self._unfetched += 1
            self._move(gradients)
        if self._alone is not None:
            self._alone_for -= 1
            if not self._alone_for:
                self.flush()
        return result

    def _push(self, gradients: Mapping[str, Tensor], *, fetches: bool = False) -> StepResult:
        """Pushes the sum with these gradients, and pulls if that is due as well."""
        total = {n: g + self._sums[n] if n in self._sums else g for n, g in gradients.items()}
        pushed = {**self._sums, **total, **self._deltas()}
        options = self._changed_options()
        if fetches:
            result = self.group.exchange(pushed, self._into(), options=options)
        else:
            result = self.group.push(pushed, options=options)
            self.group.held.own += 1
        self._sums, self._unpushed, self._staleness = {}, 0, result.staleness
        self._since = {n: b.clone() for n, b in self.members.buffers.items()}
        return result

    def _stay(self, *, fetches: bool) -> StepResult:
        """A step without a push."""
        self._unpushed += 1
        began = time.monotonic()
        received = self.group.pull_into(self._into()) if fetches else 0
        waited = time.monotonic() - began if fetches else 0.0
        result = StepResult(self.group.clock, None, self._staleness, waited, 0, received)
        self.group.session.count(result)
        return result

    def _add(self, gradients: Mapping[str, Tensor]) -> None:
        """Adds to the sums, all gradients or none; half precision in float32."""
        for name, gradient in gradients.items():
            if name in self._sums:
                self._sums[name].add_(gradient)
            else:
                wide = torch.float32 if gradient.dtype.itemsize == 2 else gradient.dtype
                self._sums[name] = gradient.to(wide, copy=True)

    def _finite(self, gradients: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What may be added to the sums, or pushed with them; nothing of a step to be skipped."""
        policy = self.group.spec.on_nonfinite
        bad = next((n for n, g in gradients.items() if not is_finite(g)), None)
        if bad is None or policy == "apply":
            return gradients
        if policy == "skip":
            return {}
        raise NonFiniteError(
            f"NaN or infinity in {bad!r}, {self._unpushed} steps after the last push; "
            "nothing was added to its sum. Lower the learning rate, clip gradients, or "
            "use a GradScaler"
        )

    def _move(self, gradients: Mapping[str, Tensor]) -> None:
        """The local copy goes on by itself: plain SGD."""
        for (pairs, _), options in zip(self.members.param_groups, self.param_groups, strict=True):
            rate = float(options["lr"]) * (1 if options.get("maximize") else -1)
            for name, parameter in pairs:
                if name in gradients:
                    parameter.add_(gradients[name], alpha=rate)

    def _forget_returned(self) -> None:
        """Gradients of samples that others will draw again are not pushed."""
        returned = self.group.session.batches.returned(self.group.name)
        if returned != self._returned:
            self._returned, self._sums, self._unpushed = returned, {}, 0

    def _deltas(self) -> dict[str, Tensor]:
        return changes(self.members.buffers, self._since)

    def _take_buffers(self) -> None:
        """Pulled statistics, with what changed here and has not been pushed."""
        for name, buffer in self.members.buffers.items():
            pulled, since = self._pulled[name], self._since[name]
            if buffer.is_floating_point():
                buffer.copy_(pulled + (buffer - since))
            else:
                buffer.copy_(torch.maximum(buffer, pulled))
            since.copy_(pulled)


def open_downpour_optimizer(
    registry: Registry,
    model: Model,
    optimizer_class: type[torch.optim.Optimizer],
    hyperparameters: Mapping[str, Any],
    *,
    consistency: Downpour,
    group: str,
    buffers: str,
    wire_dtype: str | None,
    overlap: bool,
    on_nonfinite: str,
) -> DownpourOptimizer:
    """Registers a model as a group; see ``Client.optimizer``."""
    if overlap:
        raise UnsupportedError(
            "overlap=True with Downpour: gradients are summed up before they leave; leave it out"
        )
    wire = wire_name(wire_dtype)
    check_class(optimizer_class)
    made = DownpourOptimizer(members(model, buffers), optimizer_class, hyperparameters, consistency)
    spec = made.spec(group, buffers, Async(consistency.scale_lr))
    spec = replace(spec, on_nonfinite=on_nonfinite)
    opened = registry.open(spec, made.members.tensors, wire)
    made.bind(opened, overlap=False)
    if consistency.warm_start:
        warm_start = WarmStart(opened.session, registry, group)
        if warm_start.wait():
            made.train_alone(warm_start)
    made.load_newest()
    registry.add(opened, made.refresh)
    return made
