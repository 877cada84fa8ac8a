"""Which groups a server leads, and which leads it follows in the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from paramserver.ps.group import GroupState
from paramserver.ps.lead import Following, Leadership, Notices, reports_of
from paramserver.ps.views import Views
from paramserver.v1 import server_pb2 as pb
from paramserver.wire.transport import AsyncChannel


class Leads:
    """The leads of one server's groups.

    Args:
        server: its name, known once it has registered.
        connect: opens a channel to another server.
    """

    def __init__(
        self,
        server: Callable[[], str],
        views: Views,
        connect: Callable[[str], AsyncChannel],
    ) -> None:
        self._server, self._views, self._connect = server, views, connect
        self._leads: dict[str, Leadership] = {}
        self._followings: dict[str, Following] = {}  # by the server that leads
        self._followed: dict[str, str] = {}  # by group: that server

    def of(self, group: str) -> Leadership | None:
        """What decides for a group, if this server leads it."""
        return self._leads.get(group)

    def open(self, group: GroupState) -> None:
        """A group was fetched, or has its state again."""
        if group.leads:
            self.begin(group).observe(self._views)
        elif group.slices:
            self.follow(group, reports_of(group))

    def begin(self, group: GroupState) -> Leadership:
        """This server leads a group that goes on where it is; it hears of no view yet."""
        lead = self.take(group)
        lead.clock.resume(group.frontier.value)
        return lead

    def take(self, group: GroupState) -> Leadership:
        """This server leads the group from now on."""
        self._leave(group.spec.name)
        lead = self._leads[group.spec.name] = Leadership(group)
        return lead

    def resume(self, group: GroupState) -> None:
        """All that a journal told of a group is here again."""
        if group.leads:
            self._leads[group.spec.name].resume()
        elif group.slices:
            self.follow(group, reports_of(group))

    def drop(self, group: str) -> None:
        """Another server leads, as a journal tells."""
        self._leads.pop(group, None)

    def follow(self, group: GroupState, reports: Sequence[pb.Staged]) -> None:
        """Another server leads the group; nobody does for one that has no slices here.

        Args:
            reports: what it is told, if it did not lead before.
        """
        name, lead, address = group.spec.name, group.lead, group.map.addresses[group.map.lead]
        self._leads.pop(name, None)
        if group.slices and self._followed.get(name) == lead:
            return
        self._leave(name)
        if not group.slices:
            return
        if lead not in self._followings:
            self._followings[lead] = Following(
                self._server(),
                self._views,
                lambda: self._views.locate(lead, address),
                self._connect,
            )
        self._followed[name] = lead
        self._followings[lead].add(group, reports)

    def _leave(self, group: str) -> None:
        lead = self._followed.pop(group, None)
        if lead is not None and self._followings[lead].remove(group):
            self._followings.pop(lead).close()

    def report(self, group: GroupState, staged: pb.Staged) -> None:
        """A push is complete here."""
        name = group.spec.name
        lead = self._leads.get(name)
        if lead is not None:
            lead.staged(self._server(), staged)
        else:
            self._followings[self._followed[name]].report(group, staged)

    def observe(self) -> None:
        """The membership, or where servers are, has changed."""
        for lead in self._leads.values():
            lead.observe(self._views)
        for following in self._followings.values():
            following.look()

    def unfollow(self, notices: Notices) -> None:
        """The stream of a server that follows has ended."""
        for lead in self._leads.values():
            lead.unfollow(notices)

    def clear(self) -> None:
        """Forgets everything (a new job)."""
        for following in self._followings.values():
            following.close()
        for held in (self._leads, self._followings, self._followed):
            held.clear()
