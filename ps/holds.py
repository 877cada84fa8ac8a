"""Holds: groups stand still for a moment, until all servers agree on what has been pushed."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping

from paramserver.errors import FencedError
from paramserver.ps.group import GroupState
from paramserver.ps.lead import Leadership
from paramserver.types import WorkerId

log = logging.getLogger("paramserver")

LIMIT_S = 10.0  # training must not stand still because a scheduler is lost


class GroupHold:
    """What waits in one group whose pushes are applied on arrival.

    Attributes:
        limits: by worker the first clock that is held back; of others all are.
    """

    def __init__(self, group: GroupState) -> None:
        self.limits: dict[WorkerId, int] = group.ledger.opened()
        self.drained = False
        self._group = group
        self._stirred = asyncio.Event()

    def stops(self, worker: WorkerId, clock: int) -> bool:
        """Whether a push has to wait."""
        return clock >= self.limits.get(worker, 0)

    def let_through(self, limits: Mapping[WorkerId, int]) -> None:
        """Pushes of smaller clocks than these go on."""
        for worker, limit in limits.items():
            self.limits[worker] = max(limit, self.limits.get(worker, 0))
        self.stir()

    def complete(self, gone: Callable[[WorkerId], bool]) -> bool:
        """Whether all that was let through is complete, or its worker is gone."""
        through = self._group.ledger.through
        return all(gone(w) or through(w, limit) for w, limit in self.limits.items())

    def stir(self) -> None:
        """Everybody who waits looks again."""
        self._stirred.set()
        self._stirred = asyncio.Event()

    async def changed(self) -> None:
        """Returns at the next ``stir``."""
        await self._stirred.wait()


class Hold:
    """One hold of some groups of this server. It ends by itself after a while.

    Attributes:
        number: of the hold, given by the scheduler.
        held_s: seconds that it lasted, once it is over.
    """

    def __init__(
        self,
        number: int,
        groups: Iterable[tuple[GroupState, Leadership | None]],
        limit_s: float,
    ) -> None:
        self.number = number
        self.held_s = 0.0
        self.over = False
        self.opened: dict[str, dict[WorkerId, int]] = {}
        self.next_clocks: dict[str, int] = {}
        self._began = time.monotonic()
        self._groups: dict[str, GroupHold] = {}
        self._held: list[GroupState] = []
        self._leads: list[Leadership] = []
        for group, lead in groups:
            name = group.spec.name
            if not group.sync:
                group.hold = self._groups[name] = GroupHold(group)
                self.opened[name] = dict(group.hold.limits)
                self._held.append(group)
            elif lead is not None:
                self.next_clocks[name] = lead.hold()
                self._leads.append(lead)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(limit_s or LIMIT_S, self._give_up)

    def group(self, name: str) -> GroupHold:
        """The hold of one group.

        Raises:
            FencedError: it is over, or never held that group.
        """
        if self.over or name not in self._groups:
            raise FencedError(f"hold {self.number} of group {name!r} is over; hold it again")
        return self._groups[name]

    async def drain(
        self, name: str, limits: Mapping[WorkerId, int], gone: Callable[[WorkerId], bool]
    ) -> dict[WorkerId, int]:
        """Lets pushes through and returns once they are complete: by worker the next clock.

        Raises:
            FencedError: the hold gave up first.
        """
        hold = self.group(name)
        hold.let_through(limits)
        while not hold.complete(gone):
            await hold.changed()
            self.group(name)
        hold.drained = True
        return dict(hold.limits)

    def stir(self) -> None:
        """The membership has changed."""
        for hold in self._groups.values():
            hold.stir()

    def end(self) -> None:
        """What waits goes on."""
        if self.over:
            return
        self.over = True
        self.held_s = time.monotonic() - self._began
        self._timer.cancel()
        for group in self._held:
            group.hold = None
        self.stir()
        for lead in self._leads:
            lead.go_on()

    def _give_up(self) -> None:
        log.warning("hold %d was not released in time; training goes on", self.number)
        self.end()
