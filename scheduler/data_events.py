"""The events of the scheduler's state that have to do with data sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from paramserver.core.dataset import DatasetSpec, Drained, Empty, Leased
from paramserver.core.members import Caller
from paramserver.scheduler.datasets import Queue
from paramserver.scheduler.events import event, event_unless
from paramserver.scheduler.parts import Parts
from paramserver.types import Span, WorkerId


class DataEvents(Parts):
    """Methods of ``SchedulerState``."""

    @event
    def open_dataset(self, caller: Caller, spec: DatasetSpec, now: float) -> Queue:
        """As ``Datasets.open``."""
        return self.data.open(self.worker(caller), spec, now)

    def next_shard(
        self,
        caller: Caller,
        name: str,
        epoch: int,
        sequence: int,
        waits: bool,
        now: float,
        clock: int = 0,
        speed: float = 0.0,
    ) -> Leased | Drained | Empty:
        """As ``Datasets.next``; ``speed``: of the caller."""
        if speed:
            self.figures.set_speed(self.worker(caller).name, speed)
        speeds = self.speeds() if self.data.balanced(name) else {}
        return self.lease(caller, name, epoch, sequence, waits, now, clock, speeds)

    @event
    def lease(
        self,
        caller: Caller,
        name: str,
        epoch: int,
        sequence: int,
        waits: bool,
        now: float,
        clock: int,
        speeds: Mapping[int, float],
    ) -> Leased | Drained | Empty:
        """As ``Datasets.next``."""
        found = self.data.next(
            self.worker(caller), name, epoch, sequence, waits, now, clock, speeds
        )
        self._after(now)
        return found

    @event_unless(lambda asked: asked is None)
    def recall(
        self, name: str, speeds: Mapping[int, float], patience: float, now: float
    ) -> tuple[WorkerId, int] | None:
        """As ``Datasets.steal``."""
        return self.data.steal(name, speeds, patience, now)

    @event
    def report(
        self,
        caller: Caller,
        name: str,
        done: Sequence[Span],
        returned: Sequence[Span],
        unpushed: int,
        now: float,
    ) -> tuple[int, ...]:
        """As ``Datasets.report``."""
        return self.data.report(self.worker(caller), name, done, returned, unpushed, now)
