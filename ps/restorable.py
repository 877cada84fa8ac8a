"""What a server needs to begin again from its journal."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from paramserver.core.placement import GroupSpec, SliceMap
from paramserver.errors import InvalidRequestError
from paramserver.ps.collectives import Collectives
from paramserver.ps.dump import dump_group
from paramserver.ps.group import GroupState
from paramserver.ps.journal import Journal
from paramserver.ps.lead import Leadership
from paramserver.ps.leads import Leads
from paramserver.ps.reduces import Reduces
from paramserver.ps.snapshots import Snapshots
from paramserver.ps.vectors import Vectors
from paramserver.ps.views import Views
from paramserver.ps.workshop import Workshop
from paramserver.types import Durability
from paramserver.v1 import scheduler_pb2
from paramserver.wire.convert import group_from_proto, map_from_proto

if TYPE_CHECKING:
    from paramserver.ps.reshape import Reshape


class Restorable:
    """The part of a server that its journal concerns.

    Attributes:
        journal: None: nothing is written down.
    """

    name: str
    views: Views
    workshop: Workshop
    snapshots: Snapshots
    leads: Leads
    journal: Journal | None = None
    reshape: Reshape
    collectives: Collectives
    reduces: Reduces
    vectors: Vectors
    _groups: dict[str, asyncio.Future[GroupState]]

    def make(
        self, spec: GroupSpec, slice_map: SliceMap, buckets: Sequence[Sequence[int]] = ()
    ) -> GroupState:
        """An empty group."""
        group = GroupState(spec, slice_map, self.name, self.workshop, self.journal, buckets)
        group.follow_bounds(self.views.current.bounds)
        group.is_gone = lambda worker: self.views.current.number > 0 and self.views.gone(worker)
        group.on_cut = lambda cut: self.snapshots.on_cut(group, cut)
        return group

    def install(self, group: GroupState) -> None:
        """Takes the place of what is here under the group's name."""
        made: asyncio.Future[GroupState] = asyncio.get_running_loop().create_future()
        made.set_result(group)
        self._groups[group.spec.name] = made

    def held(self, name: str) -> GroupState | None:
        """A group, if it is here."""
        task = self._groups.get(name)
        if task is None or not task.done() or task.cancelled() or task.exception():
            return None
        return task.result()

    @property
    def durability(self) -> Durability:
        """What an applied push survives."""
        return self.journal.durability if self.journal is not None else "memory"

    async def durable(self) -> None:
        """Returns when all that was done so far is kept; nothing is told to anybody before."""
        if self.journal is not None:
            await self.journal.durable()

    async def restore_group(
        self, reply: scheduler_pb2.GetGroupReply, buckets: Sequence[Sequence[int]]
    ) -> None:
        """A group as the journal describes it; ``resume`` makes it take part."""

        async def made() -> GroupState:
            group = self.make(group_from_proto(reply.spec), map_from_proto(reply.map), buckets)
            if group.leads:
                self.leads.begin(group)
            return group

        task = self._groups[reply.spec.name] = asyncio.create_task(made())
        await task

    def has_group(self, name: str) -> bool:
        """Whether the group is here."""
        return name in self._groups

    async def group_named(self, name: str) -> GroupState:
        """A group that is here.

        Raises:
            InvalidRequestError: it is not.
        """
        if name not in self._groups:
            raise InvalidRequestError(f"{self.name} has no group {name!r}")
        return await asyncio.shield(self._groups[name])

    async def all_groups(self) -> list[GroupState]:
        """The groups that are here; those that could not be fetched are left out."""
        found = await asyncio.gather(*self._groups.values(), return_exceptions=True)
        return [group for group in found if isinstance(group, GroupState)]

    def use(self, journal: Journal | None) -> None:
        """Changes are written there from now on; before the first group is made."""
        self.journal = self.collectives.journal = self.reduces.journal = journal

    def lead_of(self, name: str) -> Leadership | None:
        """What decides for a group, if this server leads it."""
        return self.leads.of(name)

    async def note_restored(self, group: GroupState) -> None:
        """A group began with the state of a snapshot: the journal has all of it too."""
        if self.journal is None:
            return
        lead = Leadership(group) if group.leads else None
        if lead is not None:
            lead.clock.resume(group.frontier.value)
        async for data in dump_group(self.journal, group, lead, self.vectors):
            self.journal.append_encoded(data)

    async def resume(self) -> None:
        """All that the journal tells is here again: leads go on, followers say hello."""
        for task in list(self._groups.values()):
            group = await task
            group.use(self.journal)
            await self.reshape.resume(group)
            self.leads.resume(group)
            self.reshape.hold_lead(group.spec.name)
