"""One cut over all servers: they stand still for a moment, agree on it, and write their files."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

from google.protobuf.message import Message

from paramserver.core.placement import Group
from paramserver.core.spans import common
from paramserver.errors import InternalError, ParameterServerError
from paramserver.scheduler.recovery import AsyncServerChannel
from paramserver.scheduler.snapshot_choice import Base
from paramserver.snapshot_files import ServerFile
from paramserver.types import Span
from paramserver.v1 import server_pb2 as pb
from paramserver.wire.convert import spans_from_proto

PATIENCE_S = 10.0  # for a Sync group that does not come to its clock
ASK_S = 10.0
WRITE_S = 3600.0

_Clocks = dict[tuple[int, int], int]  # by rank and incarnation


@dataclass(slots=True)
class Taken:
    """What servers have written.

    Attributes:
        files: one per server.
        clocks: by group, the clock and version at which it goes on.
        applied: samples.
        held_s: for how long servers stood still.
    """

    files: tuple[ServerFile, ...] = ()
    clocks: dict[str, tuple[int, int]] = field(default_factory=dict)
    applied: set[Span] = field(default_factory=set)
    held_s: float = 0.0


class Cutter:
    """Takes one cut of the groups of a job.

    Args:
        connect: a channel to the server at an address.
        number: of the cut and of the hold; larger than any before it.
        base: what it is to build on: of its tables only changes are written.
        chosen: told the clock of the cut as soon as it is known, and again if it changes.
    """

    def __init__(
        self,
        job: int,
        groups: Sequence[Group],
        connect: Callable[[str], AsyncServerChannel],
        number: int,
        chosen: Callable[[int], None],
        base: Base | None = None,
    ) -> None:
        self._job, self._groups, self._connect = job, groups, connect
        self._number, self._chosen = number, chosen
        self._base = base
        self._addresses: dict[str, str] = {}
        for group in groups:
            for owner in set(group.map.owners):
                self._addresses[group.map.servers[owner]] = group.map.addresses[owner]

    async def take(self, directory: str, name: str) -> Taken:
        """Has every server write its file.

        Args:
            directory: of all snapshots.
            name: of the folder in it.

        Raises:
            ParameterServerError: of the first server that could not.
        """
        try:
            clock, led = await self._stand_still()
            self._chosen(clock)
            request = pb.SnapshotRequest(
                job=self._job,
                id=self._number,
                directory=directory,
                name=name,
                cuts=[
                    pb.GroupCut(
                        group=g.spec.name,
                        map_version=g.map.version,
                        clock=clock,
                        since=self._since(g),
                    )
                    for g in self._groups
                ],
                hold=self._number,
                patience_s=PATIENCE_S,
            )
            replies = await self._ask("Snapshot", request, WRITE_S)
        except BaseException:
            with suppress(ParameterServerError):  # then it ends by itself
                release = pb.ReleaseRequest(job=self._job, hold=self._number)
                await self._ask("Release", release, ASK_S)
            raise
        taken = self._merged(replies)
        reached = max((taken.clocks[name][0] for name in led & taken.clocks.keys()), default=clock)
        if reached != clock:  # nobody steps any more: it was cut where it stands
            self._chosen(reached)
        return taken

    def _since(self, group: Group) -> Mapping[int, int]:
        """By sub-table the version whose changes are wanted; of other groups all is."""
        if self._base is None or group.spec.table is None:
            return {}
        return self._base.since.get(group.spec.name, {})

    def _merged(self, replies: Mapping[str, pb.SnapshotReply]) -> Taken:
        taken = _merged(replies)
        changed = {group.spec.name for group in self._groups if self._since(group)}
        if self._base is not None:
            taken.files = tuple(
                replace(file, base=self._base.name) if changed & file.slices.keys() else file
                for file in taken.files
            )
        return taken

    async def _ask(self, method: str, request: Message, timeout: float) -> dict[str, Any]:
        """The replies of all servers by name.

        Raises:
            ParameterServerError: the first that a server answers; the others are given up.
        """
        calls = {
            name: asyncio.ensure_future(
                self._connect(address).call(method, request, timeout=timeout)
            )
            for name, address in self._addresses.items()
        }
        try:
            await asyncio.gather(*calls.values())
        finally:
            for call in calls.values():
                call.cancel()
        return {name: call.result() for name, call in calls.items()}

    async def _stand_still(self) -> tuple[int, set[str]]:
        """Holds all groups, until all servers have applied the same pushes.

        Returns:
            The clock of the cut: the largest next one of groups under Sync, so that groups stepped
            together are cut together; without any, of a worker. And which groups are under Sync.
        """
        request = pb.HoldRequest(job=self._job, hold=self._number, groups=self._named({}))
        held = (await self._ask("Hold", request, ASK_S)).values()
        led = {g.group: g.next_clock for reply in held for g in reply.groups if g.lead}
        opened = _furthest(held)
        drain = pb.DrainRequest(job=self._job, hold=self._number, groups=self._named(opened))
        drained = (await self._ask("Drain", drain, ASK_S)).values()
        _check_agreement(drained)
        others = (clock for clocks in opened.values() for clock in clocks.values())
        return max(led.values() if led else others, default=0), set(led)

    def _named(self, clocks: Mapping[str, _Clocks]) -> list[pb.GroupClocks]:
        return [
            pb.GroupClocks(
                group=group.spec.name,
                map_version=group.map.version,
                workers=[
                    pb.WorkerClock(rank=rank, incarnation=incarnation, clock=clock)
                    for (rank, incarnation), clock in clocks.get(group.spec.name, {}).items()
                ],
            )
            for group in self._groups
        ]


def _furthest(replies: Iterable[Any]) -> dict[str, _Clocks]:
    """By group the largest clock of each worker."""
    found: dict[str, _Clocks] = {}
    for reply in replies:
        for group in reply.groups:
            clocks = found.setdefault(group.group, {})
            for told in group.workers:
                worker = (told.rank, told.incarnation)
                clocks[worker] = max(told.clock, clocks.get(worker, 0))
    return found


def _check_agreement(replies: Iterable[Any]) -> None:
    """Raises InternalError where servers do not say the same of a group."""
    known: dict[str, _Clocks] = {}
    for reply in replies:
        for name, clocks in _furthest([reply]).items():
            if known.setdefault(name, clocks) != clocks:
                raise InternalError(
                    f"servers disagree on the pushes of group {name!r}: {known[name]}, {clocks}"
                )


def _merged(replies: Mapping[str, pb.SnapshotReply]) -> Taken:
    taken = Taken()
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
    return taken
