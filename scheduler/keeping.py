"""The part of the scheduler's state that keeps the slices of lost servers within reach."""

from __future__ import annotations

from collections.abc import Sequence

from paramserver.core.members import Caller
from paramserver.scheduler.absences import Absences
from paramserver.scheduler.events import event
from paramserver.scheduler.parts import Parts
from paramserver.scheduler.places import Places
from paramserver.scheduler.topics import EVERYTHING


class Keeping(Parts):
    """Methods of ``SchedulerState``."""

    absences: Absences
    places: Places

    def _look(self, now: float) -> None:
        """Sees which servers are away, and where each is served."""
        if self.config.durability == "replica":
            self.places.look(now)
        elif self.config.durability == "wal":
            self.absences.look(now)

    def _servers(self) -> list[tuple[str, str]]:
        """Names and addresses of the servers that slices can be placed on."""
        if self.config.durability == "replica":
            return self.places.servers()
        return self.shape.staying

    def _known_servers(self) -> list[tuple[str, str]]:
        """Names and addresses of all that can hold slices, in the order in which they stay."""
        if self.config.durability == "wal":
            return self.absences.servers()
        return self.places.servers()

    def _unready(self) -> str:
        """Why no slice can move now, in words; empty: it can."""
        return self.absences.reason()

    def _next_map_version(self) -> int:
        self.map_version += 1
        return self.map_version

    def hold(self, servers: Sequence[str], *, only: bool = False) -> None:
        """These servers hold slices from now on; ``only``: and no others."""
        self.members.hold(servers, only=only)
        self.absences.hold(servers, only=only)

    @event
    def backup_ready(self, caller: Caller, server: str, epoch: int, now: float) -> None:
        """As ``Places.filled``."""
        self.members.check(caller)
        self.places.filled(caller, server, epoch)
        self._after(now, EVERYTHING)
