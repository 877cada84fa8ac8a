"""The coordinator of a minimization: it sees scalars, never a parameter."""

from __future__ import annotations

import logging
import math
import threading
from dataclasses import replace

from paramserver.core import lbfgs
from paramserver.core.lbfgs import VALUES, Products, Progress, Settings, d, g, s, total, x, y
from paramserver.errors import InternalError, WaitTimeoutError
from paramserver.v1 import scheduler_pb2
from paramserver.worker.coordination import Coordination
from paramserver.worker.session import Session
from paramserver.worker.vectors import VectorSpace

logger = logging.getLogger("paramserver")


class Coordinator:
    """Turns the losses and dot products of one evaluation into the point of the next.

    Every vector is written under a name of its own before the announcement that speaks of it, and
    dropped after the one that does not: whoever takes over repeats what was under way, with the
    history as it was.

    Args:
        vectors: of the group; used for arithmetic only.
        dataset: whose epochs are the evaluations.
        stop: set when this worker leaves the minimization.

    Attributes:
        working: it is this worker's turn.
    """

    def __init__(
        self,
        session: Session,
        vectors: VectorSpace,
        coordination: Coordination,
        dataset: str,
        settings: Settings,
        stop: threading.Event,
    ) -> None:
        self._session = session
        self._vectors = vectors
        self._coordination = coordination
        self._dataset = dataset
        self._settings = settings
        self._stop = stop
        self._products = Products()
        self.working = False

    def run(self) -> None:
        """Coordinates, once it is this worker's turn, until the minimization has ended."""
        newest = self._coordination.take(self._stop)
        if newest is None:
            return
        self.working = True
        number, text = newest
        if number:
            progress = Progress.parse(text)
            logger.info("minimize %s: taking over at %d", self._dataset, progress.evaluation)
        else:
            progress = self.resume(Progress.parse(text)) if text else self.begin()
            number = self._coordination.announce(1, progress.text())
        while not progress.ended and self._await(progress.epoch):
            progress = self.advance(progress)
            number = self._coordination.announce(number + 1, progress.text())
            self.sweep(progress)

    def resume(self, saved: Progress) -> Progress:
        """What a snapshot has; nobody has heard of it yet, so what was summed can be put away.

        Raises:
            MismatchError: the snapshot is of another objective.
        """
        progress = lbfgs.resumed(saved, self._settings)
        if progress is None:
            return self.begin()
        if not progress.ended:
            self._vectors.operate(lin=[(total(progress.evaluation), {})])
        logger.info("minimize %s: going on at %d", self._dataset, progress.evaluation)
        return progress

    def begin(self) -> Progress:
        """The first evaluation is of the group's first values."""
        self._vectors.operate(lin=[(x(0), {VALUES: 1.0}), (total(0), {})])
        return Progress(self._settings)

    def _await(self, epoch: int) -> bool:
        """Waits until every sample of an evaluation is done; False: this worker stops."""

        def request(wait_s: float) -> scheduler_pb2.AwaitEpochRequest:
            return scheduler_pb2.AwaitEpochRequest(
                member=self._session.identity(), dataset=self._dataset, epoch=epoch, wait_s=wait_s
            )

        what = f"evaluation {epoch} of {self._dataset!r}"
        done = -1
        while True:
            try:
                reply = self._session.poll(
                    "AwaitEpoch",
                    request,
                    lambda r: r.drained or self._stop.is_set(),
                    what,
                    substitute=False,  # it is a thread that waits here, the loop may be working
                )
                return bool(reply.drained)
            except WaitTimeoutError:
                now = self._session.scheduler.call("AwaitEpoch", request(0.0)).samples_done
                if now == done:
                    raise
                done = now  # slow, but not standing still

    def sweep(self, progress: Progress) -> None:
        """Drops the vectors that are of no use any more."""
        names = set(self._vectors.operate(names=True).names)
        ours = {
            name for name in names if name.partition("/")[0] in ("x", "sum", "g", "d", "s", "y")
        }
        self._vectors.operate(drop=sorted(ours - progress.kept()))

    def advance(self, progress: Progress) -> Progress:
        """What follows from an evaluation whose samples are all done.

        Raises:
            InternalError: the servers counted other samples than the data set has.
        """
        at, settings = progress.evaluation, progress.settings
        searching = progress.at >= 0
        dots = [(x(at), x(at)), (g(at), g(at))] + [(g(at), d(progress.direction))] * searching
        reply = self._vectors.operate(
            lin=[(g(at), [(1.0 / settings.size, total(at)), (settings.l2, x(at))])],
            dots=dots,
            tallies=[total(at)],
        )
        tally = reply.tallies[0]
        if tally.samples != settings.size:
            raise InternalError(
                f"evaluation {at}: {tally.samples} of {settings.size} samples were counted"
            )
        loss = tally.total / settings.size + settings.l2 / 2 * reply.dots[0]
        if not searching and not math.isfinite(loss):
            return replace(progress, losses=(loss,), message=f"the first loss is {loss}")
        if searching and (trial := lbfgs.judge(progress, loss, reply.dots[2])) is not None:
            return self._search_on(trial)
        return self._accept(progress, loss, math.sqrt(reply.dots[1]))

    def _search_on(self, trial: Progress) -> Progress:
        """The next point on the line; along the gradient instead, where the line is no use."""
        if not lbfgs.exhausted(trial):
            return self._evaluate(trial)
        if trial.pairs:
            return self._direct(replace(trial, pairs=()))
        message = f"no lower loss along the gradient, whose norm is {trial.norm}"
        return self._end(replace(trial, message=f"{message}: precision is used up"))

    def _accept(self, progress: Progress, loss: float, norm: float) -> Progress:
        """The evaluated point becomes the one to go on from."""
        at, pairs = progress.evaluation, progress.pairs
        if progress.at >= 0:
            pairs = self._pair(progress)
        accepted = lbfgs.reached(
            replace(progress, at=at, losses=(*progress.losses, loss), norm=norm, pairs=pairs)
        )
        return self._end(accepted) if accepted.ended else self._direct(accepted)

    def _pair(self, progress: Progress) -> tuple[int, ...]:
        """The history with the newest pair, if that is good."""
        at, before = progress.evaluation, progress.at
        pairs = (*progress.pairs, at)[-progress.settings.history :]
        made = [
            (s(at), {d(progress.direction): progress.step}),
            (y(at), {g(at): 1.0, g(before): -1.0}),
        ]
        names = lbfgs.basis(pairs, at)
        self._products.keep(names)
        wanted = self._products.missing(names)
        self._products.put(wanted, self._vectors.operate(lin=made, dots=wanted).dots)
        return pairs if lbfgs.good_pair(self._products, at) else progress.pairs

    def _direct(self, progress: Progress) -> Progress:
        """A new direction, and the first point along it."""
        at = progress.at
        names = lbfgs.basis(progress.pairs, at)
        wanted = self._products.missing(names)
        if wanted:
            self._products.put(wanted, self._vectors.operate(dots=wanted).dots)
        coefficients = lbfgs.two_loop(self._products, progress.pairs, at)
        slope = lbfgs.slope_of(self._products, coefficients, at)
        if not slope < 0 and progress.pairs:
            return self._direct(replace(progress, pairs=()))
        # Named by the evaluation it follows: what was announced before still has its own.
        self._vectors.operate(lin=[(d(progress.evaluation), coefficients)])
        searching = replace(
            progress,
            direction=progress.evaluation,
            slope=slope,
            step=lbfgs.first_step(progress),
            low=0.0,
            high=0.0,
            trials=0,
        )
        return self._evaluate(searching)

    def _evaluate(self, progress: Progress) -> Progress:
        """Lays the point out for the workers to pull, and zeros for them to add to."""
        following = progress.evaluation + 1
        point = {x(progress.at): 1.0, d(progress.direction): progress.step}
        self._vectors.operate(lin=[(x(following), point), (total(following), {})])
        return replace(progress, evaluation=following)

    def _end(self, progress: Progress) -> Progress:
        """The accepted point becomes the group's values."""
        self._vectors.operate(lin=[(VALUES, {x(progress.at): 1.0})])
        return progress
