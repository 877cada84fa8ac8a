"""One cut over all servers: holds what has no clocks, picks the clock of the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, TypeVar

from paramserver.core.placement import Group
from paramserver.core.spans import common
from paramserver.errors import ClockError, InternalError, ParameterServerError
from paramserver.scheduler.recovery import AsyncServerChannel
from paramserver.snapshot_files import ServerFile
from paramserver.types import Span, Sync, canonical
from paramserver.v1 import server_pb2 as pb
from paramserver.wire.convert import spans_from_proto

MARGINS = (0, 2, 8, 32, 128, 512)  # clocks by which a cut is ahead, where the first ones had closed
PATIENCE_S = 10.0  # for a Sync group that does not come to its clock
ASK_S = 10.0
WRITE_S = 3600.0

T = TypeVar("T")
_Clocks = dict[str, dict[tuple[int, int], int]]  # by group and worker


@dataclass(frozen=True, slots=True)
class Servers:
    """Those that hold slices: address by name."""

    addresses: Mapping[str, str]
    channel: Callable[[str], AsyncServerChannel]

    async def ask(self, method: str, request: Any, names: Iterable[str], timeout: float) -> Any:
        """The replies by name, to the same request or to one for each name.

        Raises:
            ParameterServerError: the first that a server answers; the others are given up.
        """
        tasks = {
            name: asyncio.ensure_future(self._one(name, method, request, timeout)) for name in names
        }
        try:
            await asyncio.gather(*tasks.values())
        finally:
            for task in tasks.values():
                task.cancel()
        return {name: task.result() for name, task in tasks.items()}

    async def _one(self, name: str, method: str, request: Any, timeout: float) -> Any:
        channel = self.channel(self.addresses[name])
        return await channel.call(method, request, timeout=timeout)


@dataclass(slots=True)
class Taken:
    """What servers have written.

    Attributes:
        files: one per server.
        clocks: by group, the clock and version at which it goes on.
        applied: samples.
        cut_clock: of the groups under Sync; None without any.
        workers: of held groups, by rank and incarnation: how many pushes are in the cut.
        held_s: for how long pushes of held groups waited.
    """

    files: tuple[ServerFile, ...] = ()
    clocks: dict[str, tuple[int, int]] = field(default_factory=dict)
    applied: set[Span] = field(default_factory=set)
    cut_clock: int | None = None
    workers: dict[tuple[int, int], int] = field(default_factory=dict)
    held_s: float = 0.0


class Cutter:
    """Takes one cut of the groups of a job.

    Args:
        numbers: gives every attempt its number; they grow.
        chosen: told the clock of each attempt, before servers are.
    """

    def __init__(
        self,
        job: int,
        groups: Sequence[Group],
        channel: Callable[[str], AsyncServerChannel],
        numbers: Callable[[], int],
        chosen: Callable[[int], None],
    ) -> None:
        self._job, self._numbers, self._chosen = job, numbers, chosen
        self._sync = [g for g in groups if isinstance(canonical(g.spec.consistency), Sync)]
        self._free = [g for g in groups if g not in self._sync]
        addresses = {}
        for group in groups:
            for owner in set(group.map.owners):
                addresses[group.map.servers[owner]] = group.map.addresses[owner]
        self._servers = Servers(addresses, channel)

    async def take(self, directory: str, name: str, running: bool) -> Taken:
        """Has every server write its file.

        Args:
            directory: of all snapshots; ``name``: of the folder in it.
            running: whether clocks may close meanwhile.

        Raises:
            ParameterServerError: of the first server that could not.
        """
        for margin in MARGINS if running else MARGINS[:1]:
            try:
                return await self._attempt(directory, name, margin)
            except ClockError as error:
                last = error
        raise last

    async def _attempt(self, directory: str, name: str, margin: int) -> Taken:
        number = self._numbers()
        taken = Taken()
        held = _holders(self._free)
        try:
            drained = await self._hold(number, held) if held else {}
            for clocks in drained.values():
                for worker, clock in clocks.items():
                    taken.workers[worker] = max(clock, taken.workers.get(worker, 0))
            clock = await self._next_clock() + margin if self._sync else 0
            taken.cut_clock = clock if self._sync else None
            self._chosen(clock if self._sync else max(taken.workers.values(), default=0))
            request = pb.SnapshotRequest(
                job=self._job,
                id=number,
                directory=directory,
                name=name,
                cuts=[_cut(g, clock) for g in self._sync] + [_cut(g, 0) for g in self._free],
                hold=number if held else 0,
                patience_s=PATIENCE_S,
            )
            replies = await self._servers.ask("Snapshot", request, self._servers.addresses, WRITE_S)
        except BaseException:
            if held:
                await self._release(number, held)
            raise
        _merge(taken, replies)
        self._look_at_clock(taken)
        return taken

    def _look_at_clock(self, taken: Taken) -> None:
        """A group that nobody steps any more is cut where it stands, before the clock chosen."""
        reached = max((taken.clocks.get(g.spec.name, (0, 0))[0] for g in self._sync), default=None)
        if reached is not None and reached != taken.cut_clock:
            taken.cut_clock = reached
            self._chosen(reached)

    async def _release(self, number: int, held: Iterable[str]) -> None:
        request = pb.ReleaseRequest(job=self._job, hold=number)
        with suppress(ParameterServerError):  # then it ends by itself
            await self._servers.ask("Release", request, held, ASK_S)

    async def _next_clock(self) -> int:
        """The first clock that no group under Sync has closed."""
        leads = {g.map.servers[g.map.lead] for g in self._sync}
        replies = await self._servers.ask("Describe", pb.DescribeRequest(), leads, ASK_S)
        names = {g.spec.name for g in self._sync}
        return max(
            (
                s.min_clock
                for r in replies.values()
                for s in r.groups
                if s.lead and s.group in names
            ),
            default=0,
        )

    async def _hold(self, number: int, held: list[str]) -> _Clocks:
        """Holds groups without closing clocks until all servers have applied the same pushes."""
        groups = [pb.GroupClocks(group=g.spec.name, map_version=g.map.version) for g in self._free]
        request = pb.HoldRequest(job=self._job, hold=number, groups=groups)
        replies = await self._servers.ask("Hold", request, held, ASK_S)
        opened = _furthest(replies.values())
        drain = pb.DrainRequest(
            job=self._job,
            hold=number,
            groups=[
                pb.GroupClocks(
                    group=g.spec.name,
                    map_version=g.map.version,
                    workers=[
                        pb.WorkerClock(rank=rank, incarnation=incarnation, clock=clock)
                        for (rank, incarnation), clock in opened.get(g.spec.name, {}).items()
                    ],
                )
                for g in self._free
            ],
        )
        drained = await self._servers.ask("Drain", drain, held, ASK_S)
        found = [_furthest([reply]) for reply in drained.values()]
        for name in {name for clocks in found for name in clocks}:
            told = [clocks[name] for clocks in found if name in clocks]
            if any(clocks != told[0] for clocks in told):
                raise InternalError(f"servers disagree on the pushes of group {name!r}: {told}")
        return _furthest(drained.values())


def _holders(groups: Iterable[Group]) -> list[str]:
    return sorted({g.map.servers[owner] for g in groups for owner in set(g.map.owners)})


def _cut(group: Group, clock: int) -> pb.GroupCut:
    return pb.GroupCut(group=group.spec.name, map_version=group.map.version, clock=clock)


def _furthest(replies: Iterable[Any]) -> _Clocks:
    """The largest clock of each worker, in each group."""
    found: _Clocks = {}
    for reply in replies:
        for group in reply.groups:
            clocks = found.setdefault(group.group, {})
            for told in group.workers:
                worker = (told.rank, told.incarnation)
                clocks[worker] = max(told.clock, clocks.get(worker, 0))
    return found


def _merge(taken: Taken, replies: Mapping[str, pb.SnapshotReply]) -> None:
    spans: dict[str, list[frozenset[Span]]] = {}
    for reply in replies.values():
        taken.held_s = max(taken.held_s, reply.held_s)
        for group in reply.groups:
            clock, version = taken.clocks.get(group.group, (0, 0))
            taken.clocks[group.group] = (max(clock, group.clock), max(version, group.version))
            spans.setdefault(group.group, []).append(frozenset(spans_from_proto(group.spans)))
    for told in spans.values():
        taken.applied |= reduce(common, told)
    taken.files = tuple(
        ServerFile(
            file=reply.file,
            server=name,
            bytes=reply.bytes,
            sha256=reply.sha256,
            slices={g.group: list(g.slices) for g in reply.groups},
            versions={g.group: list(g.versions) for g in reply.groups},
        )
        for name, reply in sorted(replies.items())
        if reply.file
    )
