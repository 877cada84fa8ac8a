"""Epochs of the job, and the schedules that travel with them."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from torch.optim import Optimizer

from paramserver.errors import ConfigurationError, ConnectionLostError, MismatchError
from paramserver.v1 import scheduler_pb2
from paramserver.worker import states
from paramserver.worker.schedule_history import History, Moment
from paramserver.worker.session import Session

CAPTURE_S = 1.0
SEND_S = 5.0  # later will do


class Stateful(Protocol):
    """Anything with torch's pair of state methods: a learning-rate scheduler, a GradScaler."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


class Schedule:
    """State of schedules as the chief saves it and joiners load it.

    The param groups of the client's optimizers are part of it: a learning-rate scheduler continues
    from the rate that it finds there.

    Args:
        is_chief: whether this worker saves.
        optimizers: the client's optimizers by group.
        clock: the clock to tag states with.
    """

    def __init__(
        self,
        session: Session,
        is_chief: Callable[[], bool],
        optimizers: Callable[[], Mapping[str, Optimizer]],
        clock: Callable[[], int],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._session = session
        self._is_chief = is_chief
        self._optimizers = optimizers
        self._clock = clock
        self._now = now
        self._stateful: Sequence[Stateful] = ()
        self._epoch: int | None = None
        self._captured = 0.0
        self._lock = threading.Lock()
        self._unsent: scheduler_pb2.SaveScheduleRequest | None = None
        self._history = History()
        self._chief = False
        self._wanted: int | None = None
        self._stands = False
        session.add_listener(self._hear)
        session.add_chore(self.send)

    def epochs(self, n: int, stateful: Sequence[Stateful]) -> Iterator[int]:
        """Epoch numbers from the one that the job is in; see ``Client.epochs``."""
        self._session.check()
        self._stateful = stateful
        start = self._load()
        if start:
            self._warn_of_forgotten(start)
        try:
            for epoch in range(start, n):
                self._save(epoch)
                yield epoch
            self._save(max(start, n))
        finally:
            self._epoch = None

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """While the loop itself waits for a snapshot: a cut ahead of it gets what there is."""
        with self._lock:
            if self._epoch is not None and self._is_chief():
                self._history.note(self._epoch, self._clock(), self._state())
            self._stands = True
        try:
            yield
        finally:
            self._stands = False

    def asked(self) -> None:
        """A loop asked for its next batch: a good moment to see how schedules stand."""
        now = self._now()
        if self._epoch is None:
            return
        if now - self._captured >= CAPTURE_S:
            self._captured = now
            self._capture(self._epoch)
        elif self._session.snapshots and self._chief:
            with self._lock:
                self._history.note(self._epoch, self._clock(), self._state())

    def _save(self, epoch: int) -> None:
        self._session.check()
        self._epoch = self._session.epoch = epoch
        self._captured = self._now()
        self._capture(epoch)
        self.send()

    def _capture(self, epoch: int) -> None:
        self._chief = self._is_chief()
        if not self._chief:
            return
        moment = Moment(epoch, self._clock(), self._state())
        request = self._request(moment)
        with self._lock:
            self._unsent = request
            if self._session.snapshots:
                self._history.note(*moment)

    def _state(self) -> dict[str, Any]:
        return {
            "stateful": [item.state_dict() for item in self._stateful],
            "optimizers": {
                name: [_options(group) for group in optimizer.param_groups]
                for name, optimizer in self._optimizers().items()
            },
        }

    def _request(self, moment: Moment) -> scheduler_pb2.SaveScheduleRequest:
        return scheduler_pb2.SaveScheduleRequest(
            member=self._session.identity(),
            epoch=moment.epoch,
            clock=moment.clock,
            state=states.dumps(moment.state),
        )

    def send(self) -> None:
        """Sends the newest state that was not sent, and what a snapshot wants; later, if the
        scheduler is away."""
        with self._lock:
            request, self._unsent = self._unsent, None
        self._answer()
        if request is None:
            return
        try:
            self._session.scheduler.call("SaveSchedule", request, timeout=SEND_S)
        except ConnectionLostError:
            with self._lock:
                self._unsent = self._unsent or request

    def _hear(self, reply: scheduler_pb2.HeartbeatReply) -> None:
        self._wanted = reply.schedule_clock if reply.schedule_wanted else None

    def _answer(self) -> None:
        """How the schedule stood at the clock of a cut, once this worker has passed it."""
        clock = self._wanted
        with self._lock:
            moment = None if clock is None else self._history.at(clock)
            if moment is None and self._stands:
                moment = self._history.newest()
        if moment is None or clock is None:
            return
        request = self._request(moment)
        request.wanted, request.wanted_clock = True, clock
        self._session.scheduler.call("SaveSchedule", request)
        self._wanted = None

    def _load(self) -> int:
        request = scheduler_pb2.LoadScheduleRequest(member=self._session.identity())
        reply = self._session.scheduler.call("LoadSchedule", request)
        if reply.found:
            self._restore(states.loads(reply.state))
        return int(reply.job_epoch)

    def _restore(self, state: Mapping[str, Any]) -> None:
        saved = state["stateful"]
        if len(saved) != len(self._stateful):
            raise MismatchError(
                f"client.epochs got {len(self._stateful)} objects with state, the chief "
                f"{len(saved)}; give the same ones, in the same order, on every worker"
            )
        for item, content in zip(self._stateful, saved, strict=True):
            item.load_state_dict(content)
        for name, optimizer in self._optimizers().items():
            for group, options in zip(
                optimizer.param_groups, state["optimizers"].get(name, ()), strict=False
            ):
                group.update(options)

    def _warn_of_forgotten(self, start: int) -> None:
        known = [getattr(item, "optimizer", None) for item in self._stateful]
        for name, optimizer in self._optimizers().items():
            scheduled = any("initial_lr" in group for group in optimizer.param_groups)
            if scheduled and optimizer not in known:
                warnings.warn(
                    f"starting at epoch {start}, but the learning-rate scheduler of group "
                    f"{name!r} was not given to client.epochs and starts from the beginning; "
                    "write client.epochs(n, scheduler)",
                    stacklevel=4,
                )


def _options(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}


def check_epochs(n: int, stateful: Sequence[object]) -> None:
    """Raises ConfigurationError for arguments that cannot work."""
    if n < 0:
        raise ConfigurationError(f"epochs({n}): must be >= 0")
    for item in stateful:
        if not (hasattr(item, "state_dict") and hasattr(item, "load_state_dict")):
            raise ConfigurationError(
                f"epochs(..., {type(item).__name__}): needs state_dict and load_state_dict"
            )
