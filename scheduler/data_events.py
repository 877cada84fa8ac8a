"""The events of the scheduler's state that have to do with data sets."""

from __future__ import annotations

from collections.abc import Sequence

from paramserver.core.dataset import DatasetSpec, Drained, Empty, Leased
from paramserver.core.members import Caller, Member
from paramserver.scheduler.datasets import Datasets, Queue
from paramserver.scheduler.figures import Figures
from paramserver.types import Span


class DataEvents:
    """Methods of ``SchedulerState``."""

    data: Datasets
    figures: Figures

    def worker(self, caller: Caller) -> Member:
        raise NotImplementedError

    def _after(self, now: float, *topics: str) -> None:
        raise NotImplementedError

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
        member = self.worker(caller)
        if speed:
            self.figures.set_speed(member.name, speed)
        found = self.data.next(member, name, epoch, sequence, waits, now, clock)
        self._after(now)
        return found

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
