"""What members are heard to say: none of it is an event, and only what follows from it may be."""

from __future__ import annotations

from collections.abc import Mapping

from paramserver.core.members import Caller
from paramserver.scheduler.data_events import DataEvents
from paramserver.types import Span

PATIENCE_HEARTBEATS = 2  # what ends sooner would be done before a recall comes back


class Measuring(DataEvents):
    """Methods of ``SchedulerState``."""

    def heartbeat(
        self, caller: Caller, clocks: Mapping[str, int], stats: Mapping[str, float], now: float
    ) -> list[tuple[str, Span]]:
        """Renews the lease and keeps what the member says of itself; what it is to give back."""
        member = self.members.renew(caller, now)
        self.figures.heartbeat(member.name, clocks, stats, self.config.limits.groups)
        self.adaptation.heartbeat(member.name, stats, now)
        for name in self.data.wanting():
            patience = PATIENCE_HEARTBEATS * self.config.heartbeat_s
            self.recall(name, self.speeds(), patience, now)
        return self.data.recalls(member)

    def speeds(self) -> dict[int, float]:
        """Samples per second of the workers by rank; 0.0 where it is not known."""
        return {w.rank: self.figures.speed(name) for w, name in self._names.items()}

    def fastest(self) -> float:
        """Samples per second of the fastest live workers; 0.0 while none has told."""
        return self.figures.fastest(self._names.values())

    def log(self, caller: Caller, scalars: Mapping[str, float]) -> None:
        """Keeps the newest value of each scalar."""
        self.worker(caller)
        self.figures.log(scalars)
        self.adaptation.log(scalars)
