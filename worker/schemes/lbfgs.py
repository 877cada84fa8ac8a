"""``paramserver.minimize``: batch optimization by L-BFGS, its vectors on the servers.

Sandblaster (Dean et al.: Large Scale Distributed Deep Networks, 2012): workers compute gradients of
small portions of the data, one of them also coordinates, and no worker does vector arithmetic.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from paramserver.core.dataset import default_portion
from paramserver.core.lbfgs import Progress, Settings, total, x
from paramserver.errors import (
    ConfigurationError,
    JobFailedError,
    MismatchError,
    NotFoundError,
    ParameterServerError,
    UnsupportedError,
)
from paramserver.types import Async, Span, StepResult
from paramserver.v1 import common_pb2, scheduler_pb2
from paramserver.worker.client import Client
from paramserver.worker.coordination import Coordination
from paramserver.worker.data import check_options
from paramserver.worker.parameters import Model, members, plain_spec
from paramserver.worker.schemes.coordinator import Coordinator

METHODS = ("l-bfgs",)
SWEEP_S = 30.0


@dataclass(frozen=True, slots=True)
class MinimizeResult:
    """How a minimization ended; the same on every worker.

    Attributes:
        loss: of the parameters that the model has now, l2 term included.
        iterations: steps taken.
        evaluations: passes over the data set, one loss and gradient each.
        converged: whether ``gtol`` or ``ftol`` was reached.
        message: why it ended.
        losses: at the start, and after every iteration.
    """

    loss: float
    iterations: int
    evaluations: int
    converged: bool
    message: str
    losses: tuple[float, ...]


class Objective:
    """The sum of a data set's losses, a portion at a time.

    Args:
        fn: losses of a batch: one per sample, or their mean.
        named: parameters to differentiate by.
    """

    def __init__(
        self,
        fn: Callable[..., Tensor],
        named: Mapping[str, Tensor],
        dataset: Dataset[Any],
        batch_size: int,
    ) -> None:
        self._fn = fn
        self._named = named
        self._dataset = dataset
        self._batch_size = batch_size

    def of(self, start: int, stop: int) -> tuple[dict[str, Tensor], float]:
        """The summed gradients and the summed loss of samples [start, stop).

        An infinite or NaN sum has no gradients: a line search steps back from such a point.
        """
        sums = {name: torch.zeros_like(p) for name, p in self._named.items()}
        loss = 0.0
        for count, batch in self._batches(start, stop):
            with torch.enable_grad():
                value = self._sum(self._call(batch), count)
                found = torch.autograd.grad(value, list(self._named.values()), allow_unused=True)
            loss += float(value.detach())
            for into, gradient in zip(sums.values(), found, strict=True):
                if gradient is not None:
                    into += gradient
        finite = math.isfinite(loss) and all(bool(v.isfinite().all()) for v in sums.values())
        return (sums, loss) if finite else ({}, math.inf)

    def _batches(self, start: int, stop: int) -> Iterator[tuple[int, Any]]:
        step = self._batch_size
        ranges = [range(i, min(i + step, stop)) for i in range(start, stop, step)]
        loader: DataLoader[Any] = DataLoader(self._dataset, batch_sampler=[list(r) for r in ranges])
        return zip(map(len, ranges), loader, strict=True)

    def _call(self, batch: Any) -> Tensor:
        arguments = batch if isinstance(batch, (list, tuple)) else (batch,)
        return self._fn(*arguments)

    def _sum(self, losses: Tensor, count: int) -> Tensor:
        if not isinstance(losses, Tensor) or not losses.requires_grad:
            raise ConfigurationError(
                f"fn returned {type(losses).__name__} that does not depend on the parameters; "
                "return the losses as a tensor, and give the model whose parameters they depend on"
            )
        if losses.dim() == 0:
            return losses.double() * count
        if losses.shape == (count,):
            return losses.double().sum()
        raise ConfigurationError(
            f"fn returned losses of shape {tuple(losses.shape)} for a batch of {count}: must be "
            "their mean, a scalar, or one loss per sample"
        )


class Minimization:
    """One worker's part: portions of every evaluation, and the coordinator's thread."""

    def __init__(
        self,
        client: Client,
        objective: Objective,
        named: Mapping[str, Tensor],
        settings: Settings,
        name: str,
        portion: int | None,
        backups: bool,
    ) -> None:
        self._client = client
        self._session = client._session
        self._objective = objective
        self._named = named
        self._settings = settings
        spec = plain_spec(name, named, None, Async("none"), {})
        self._group = client._registry.open(spec, named, "")
        self._source = client._sources.open(
            name,
            settings.size,
            1,
            shuffle=False,
            seed=0,
            shard_size=default_portion(settings.size, self._session.workers)
            if portion is None
            else portion,
            assign="dynamic",
            backups=backups,
        )
        self._coordination = Coordination(self._session, name)
        self._stop = threading.Event()
        self._coordinator = Coordinator(
            self._session, self._group.vectors, self._coordination, name, settings, self._stop
        )
        self._pulled = -1  # the evaluation whose point the parameters have
        self._versions: list[int] = []  # of the parameters, as torch counts writes to them

    def run(self) -> MinimizeResult:
        """Works on every evaluation until the minimization has ended."""
        thread = threading.Thread(target=self._coordinate, name="paramserver l-bfgs", daemon=True)
        thread.start()
        try:
            progress = self._work()
        except BaseException as error:
            self._stop.set()
            self._fail(error)
            raise
        self._stop.set()
        if self._coordinator.working:  # it frees the vectors now
            thread.join(SWEEP_S)
        self._pull("values")
        return MinimizeResult(
            progress.losses[-1],
            progress.iterations,
            progress.evaluation + 1,
            progress.converged,
            progress.message,
            progress.losses,
        )

    def _work(self) -> Progress:
        number, logged = 0, -1
        while True:
            number, text = self._coordination.hear(number)
            progress = Progress.parse(text)
            if progress.failure:
                raise JobFailedError(f"minimize {self._group.name!r}: {progress.failure}")
            if differs := progress.settings.difference(self._settings):
                raise MismatchError(
                    f"minimize {self._group.name!r}: {differs}; all workers must say the same"
                )
            if self._client.is_chief and progress.iterations > logged:
                logged = progress.iterations
                self._client.log(loss=progress.losses[-1])
            if progress.ended:
                return progress
            self._evaluate(progress.evaluation, progress.epoch)

    def _evaluate(self, evaluation: int, epoch: int) -> None:
        """Portions of one evaluation, until every sample of it is done by somebody."""
        self._source.epoch = epoch
        while (shard := self._source.next_shard(wait=True)) is not None:
            span = Span(shard.lease, shard.start, shard.stop)
            shard.start = shard.stop  # nothing of it is left to give back
            try:
                over = not self._portion(evaluation, span)
            except BaseException:
                with suppress(ParameterServerError):
                    self._report(returned=[span])
                raise
            if over:
                return

    def _portion(self, evaluation: int, span: Span) -> bool:
        """One portion's gradient, added once; False: the evaluation is over without this."""
        try:
            if self._pulled != evaluation or self._versions != self._written():
                self._pull(x(evaluation))
                self._pulled, self._versions = evaluation, self._written()
            gradients, loss = self._objective.of(span.start, span.stop)
            part = (span.start, span.stop)
            self._group.vectors.add(total(evaluation), gradients, part, loss)
        except NotFoundError:  # dropped: a backup of this portion was faster
            self._report(returned=[span])
            return False
        self._report(done=[span])
        samples = span.stop - span.start
        size = sum(value.nbytes for value in gradients.values())
        self._session.count(StepResult(evaluation, None, 0.0, 0.0, size, 0), samples)
        return True

    def _report(self, *, done: Sequence[Span] = (), returned: Sequence[Span] = ()) -> None:
        """What became of a portion; that a backup was faster is no news."""
        request = scheduler_pb2.ReportSamplesRequest(
            member=self._session.identity(),
            dataset=self._source.name,
            done=map(_span, done),
            returned=map(_span, returned),
        )
        self._session.scheduler.call("ReportSamples", request)

    def _pull(self, vector: str) -> None:
        self._pulled = -1  # until all of it is here
        with torch.no_grad():
            self._group.vectors.pull_into(vector, self._named)

    def _written(self) -> list[int]:
        return [parameter._version for parameter in self._named.values()]

    def _coordinate(self) -> None:
        try:
            self._coordinator.run()
        except Exception as error:
            if not self._stop.is_set():
                self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Tells the others that this worker cannot go on; one that is lost tells nothing."""
        said = f"{self._session.name}: {type(error).__name__}: {error}"
        failed = Progress(self._settings, failure=said)
        with suppress(Exception):
            _, newest = self._coordination.newest()
            if not newest or not Progress.parse(newest).ended:  # the first cause stays
                self._coordination.announce(0, failed.text())


def minimize(
    client: Client,
    fn: Callable[..., Tensor],
    dataset: Dataset[Any],
    method: str,
    *,
    model: Model | None,
    l2: float,
    history: int,
    max_iter: int,
    gtol: float,
    ftol: float,
    portion: int | None,
    batch_size: int,
    backups: bool,
    name: str,
) -> MinimizeResult:
    """See ``paramserver.minimize``."""
    if method not in METHODS:
        raise ConfigurationError(f"method={method!r}: must be one of {', '.join(METHODS)}")
    if batch_size < 1:
        raise ConfigurationError(f"batch_size={batch_size}: must be >= 1")
    client._session.check()
    client._session.refuse_reader("minimize")
    if model is None and not isinstance(fn, nn.Module):
        raise ConfigurationError(
            "model=None: give the module whose parameters are to be found, or one as fn"
        )
    given: Any = fn if model is None else model
    found = members(given, "local")
    if found.module is not None:
        _refuse_noise(found.module)
    named = {name: p for name, p in found.named if p.requires_grad}
    size = check_options(dataset, {})
    settings = Settings(size, l2, history, max_iter, gtol, ftol)
    objective = Objective(fn, named, dataset, batch_size)
    part = Minimization(client, objective, named, settings, name, portion, backups)
    return part.run()


def _refuse_noise(model: nn.Module) -> None:
    """Raises UnsupportedError where the loss of a sample would not be a function of parameters."""
    for name, module in model.named_modules():
        kind = type(module).__name__
        noisy = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
        if module.training and (noisy or isinstance(module, nn.modules.batchnorm._BatchNorm)):
            raise UnsupportedError(
                f"{kind} {name!r} in training mode: its loss differs from call to call or batch to "
                "batch, and L-BFGS needs a function; call eval() on it, or leave it out"
            )


def _span(span: Span) -> common_pb2.Span:
    return common_pb2.Span(lease=span.lease, start=span.start, stop=span.stop)
