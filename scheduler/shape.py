"""How many servers there are to be, which slices are to move for that, and which servers may go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from paramserver.core.members import JobState, Role
from paramserver.core.membership import Membership
from paramserver.core.placement import Group, Groups, SliceMap, slices_of
from paramserver.core.reshape import Move, batches, holders, moved, redeal
from paramserver.errors import ConfigurationError, InvalidRequestError
from paramserver.scheduler.journal import Journal
from paramserver.scheduler.replicas import replicated

MOVE_BYTES = 4 << 20  # that move at once: a group stands still for as long
MAX_SERVERS = 1024


@dataclass(frozen=True, slots=True)
class Moving:
    """One move under way.

    Attributes:
        number: grows with every move.
        job: whose slices move.
        old, new: the group's map before and after it.
    """

    number: int
    job: int
    group: str
    move: Move
    old: SliceMap
    new: SliceMap

    @property
    def addresses(self) -> dict[str, str]:
        """Of all servers that have a part in it."""
        known = dict(zip(self.old.servers, self.old.addresses, strict=True))
        return {**known, **dict(zip(self.new.servers, self.new.addresses, strict=True))}


class Holds(Protocol):
    """Notes which servers hold slices."""

    def __call__(self, servers: Sequence[str], *, only: bool = False) -> None: ...


class Shape:
    """The servers of one job, and the moves towards as many as were asked for.

    Args:
        version: the next version of a slice map.
        servers: names and addresses of all that can hold slices, the first to stay first.
        unready: why no slice can move now, in words; empty: it can.
        hold: told which servers hold slices.

    Attributes:
        reducers: servers through which workers reduce tensors: those that were there when the job
            began, so that all workers mean the same ones.
        reduces: whether workers do, or may at any time without asking; then these servers stay.
    """

    def __init__(
        self,
        members: Membership,
        groups: Groups,
        journal: Journal,
        *,
        version: Callable[[], int],
        servers: Callable[[], list[tuple[str, str]]],
        unready: Callable[[], str],
        hold: Holds,
    ) -> None:
        self._members, self._groups, self._journal = members, groups, journal
        self._version, self._servers, self._unready, self._hold = version, servers, unready, hold
        self._number = 0
        self._moving: Moving | None = None
        self._asked = False
        self.reducers: list[str] = []
        self.reduces = False
        self.moved = self.total = 0

    def started(self, *, reduces: bool) -> None:
        """The job has begun; ``reduces``: parties sum without asking."""
        self.reduces |= reduces
        self.reducers = [m.name for m in self._members.live(Role.SERVER)]

    def left(self, name: str) -> None:
        """A server that was not needed any more is gone."""
        self.reducers = [n for n in self.reducers if n != name]

    def scale(self, servers: int, now: float) -> None:
        """So many servers are to hold slices. Idempotent.

        Raises:
            InvalidRequestError: no such number of servers.
            ConfigurationError: no job runs.
        """
        if not 1 <= servers <= MAX_SERVERS:
            raise InvalidRequestError(f"servers={servers}: must be 1 to {MAX_SERVERS}")
        if self._members.state is not JobState.RUNNING:
            raise ConfigurationError(
                f"servers={servers}: no job is running; start the scheduler with --servers "
                f"{servers}, or wait until the job has started"
            )
        if servers != self._members.servers:
            self._journal.say(f"{self._members.servers} servers are to be {servers}", now)
            self._members.servers = servers
            self._members.changed()
            self.moved = 0
        self._asked = True
        self.total = self.moved + len(self._moves())

    @property
    def staying(self) -> list[tuple[str, str]]:
        """Names and addresses of the servers that hold slices, or are to: the first ones."""
        return self._servers()[: self._members.servers]

    def _moves(self) -> list[tuple[Group, Move]]:
        """All that is left to move, slice by slice."""
        found = []
        servers = [name for name, _ in self.staying]
        for group in self._groups:
            if not replicated(group.spec):
                owners = [group.map.servers[o] for o in group.map.owners]
                found += [(group, m) for m in redeal(owners, _sizes(group), servers)]
        return found

    def begin(self) -> Moving | None:
        """The next move; None: nothing can move now."""
        enough = len(self.staying) == self._members.servers
        running = self._members.state is JobState.RUNNING
        if not self._asked or not enough or not running or self._unready():
            return None
        for group in self._groups:
            moves = [m for g, m in self._moves() if g is group and g.stored]
            if not moves:
                continue
            move = next(batches(moves, _sizes(group), MOVE_BYTES))
            self._number += 1
            new = moved(group.map, move, self._version(), dict(self.staying))
            self._moving = Moving(
                self._number, self._members.job, group.spec.name, move, group.map, new
            )
            group.moving = self._number
            self._hold([move.destination])
            return self._moving
        return None

    def commit(self, moving: Moving, now: float) -> None:
        """The slices have moved: the new map is the group's. Idempotent."""
        if self._moving != moving:
            return
        group = self._groups.get(moving.group)
        sizes = _sizes(group)
        group.map, group.reshaped = moving.new, True
        loads = [0] * len(moving.new.servers)
        if group.spec.table is None:
            for slice_, owner in enumerate(moving.new.owners):
                loads[owner] += sizes[slice_]
        group.server_bytes = tuple(loads)
        self.moved += len(moving.move.slices)
        self._over(group)
        left = len(self._moves())
        self.total = self.moved + left
        if not left:
            self._journal.say(
                f"{self.moved} slices have moved, to {self._members.servers} servers", now
            )

    def abort(self, moving: Moving, reason: str, now: float) -> None:
        """Nothing has moved. Idempotent."""
        if self._moving == moving:
            self._journal.say(f"move of group {moving.group} was given up: {reason}", now)
            self._over(self._groups.get(moving.group))

    def _over(self, group: Group) -> None:
        self._moving, group.moving = None, 0
        used = {name for g in self._groups if not replicated(g.spec) for name in holders(g.map)}
        self._hold(sorted(used), only=True)

    @property
    def under_way(self) -> Moving | None:
        """The move that was begun and has not ended."""
        return self._moving

    @property
    def moving(self) -> bool:
        """Whether slices are on their way."""
        return self._moving is not None

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return not self._asked or not self.pending()

    def pending(self) -> str:
        """What is left to do, in words; empty: nothing."""
        if self._members.ended():
            return ""
        missing = self._members.servers - len(self.staying)
        if missing > 0:
            return f"waiting for {missing} of {self._members.servers} servers to register"
        left = len(self._moves())
        if left:
            why = self._unready()
            return f"{left} slices are to move" + (f"; waiting for {why}" if why else "")
        leaving = [m.name for m in self._members.live(Role.SERVER) if self.may_leave(m.name)]
        return f"{', '.join(leaving)} may leave" if leaving and self._asked else ""

    def may_leave(self, name: str) -> bool:
        """Whether a server is not needed any more: others were to stay, and it has no slices."""
        member = self._members.find(name)
        if not self._asked or self._moving is not None or name in dict(self.staying):
            return False
        if member is None or member.role is not Role.SERVER:
            return False
        if self.reduces and name in self.reducers:
            return False
        return all(name not in holders(g.map) for g in self._groups if not replicated(g.spec))


def _sizes(group: Group) -> list[int]:
    """Bytes of each slice; sub-tables count alike: only servers know how many rows they have."""
    slices = slices_of(group.spec, group.map)
    return [1 if group.spec.table is not None else s.bytes for s in slices]
