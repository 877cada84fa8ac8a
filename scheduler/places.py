"""Durability "replica": where each server is, as the scheduler decides it."""

from __future__ import annotations

from collections.abc import Sequence

from paramserver.core.members import Caller, JobState, Member, Role
from paramserver.core.membership import Membership
from paramserver.core.placement import Groups
from paramserver.core.replication import Host, Place, Replication
from paramserver.errors import FencedError
from paramserver.scheduler.journal import Journal


class Places:
    """The places of one job; none while every server is on the process of its name.

    Args:
        members: their ``mends`` says whether there are places.
    """

    def __init__(self, members: Membership, groups: Groups, journal: Journal) -> None:
        self._members, self._groups, self._journal = members, groups, journal
        self._state: Replication | None = None
        self._said: dict[str, str] = {}  # of each server

    @property
    def all(self) -> Sequence[Place]:
        """In ring order; none until the job runs."""
        return self._state.places if self._state is not None else ()

    def servers(self) -> list[tuple[str, str]]:
        """Names and addresses of the servers that slices can be placed on."""
        if self._state is not None:
            return [(p.server, p.address) for p in self.all]
        return [(s.name, s.address) for s in self._members.live(Role.SERVER)]

    def missing(self) -> str:
        """Whom the start of a job waits for, in words; empty: nobody. Backups belong to it."""
        if self._members.state is JobState.WAITING:
            return self._members.missing()
        return self._state.missing() if self._state is not None and not any(self._groups) else ""

    def come(self, member: Member) -> None:
        """A process registered."""
        if self._state is not None and member.role is Role.SERVER:
            self._moved(self._state.join(_host(member)))

    def go(self, member: Member) -> None:
        """A process was lost or has left."""
        if self._state is not None and member.role is Role.SERVER:
            self._moved(self._state.lose(member.name, member.incarnation))

    def look(self, now: float) -> None:
        """Begins once the job runs; tells the journal what has changed."""
        members = self._members
        if members.mends and self._state is None and members.state is JobState.RUNNING:
            self._state = Replication()
            self._state.begin(map(_host, members.live(Role.SERVER)))
            members.changed()
        for place in self.all:
            if self._said.get(place.server) != (words := _words(place)):
                self._said[place.server] = words
                self._journal.say(words, now)

    def filled(self, caller: Caller, server: str, epoch: int) -> None:
        """The primary of a server says that its backup is complete.

        Raises:
            FencedError: it is not the primary, or of an older epoch.
        """
        place = self._state.place(server) if self._state is not None else None
        host = place.primary if place is not None else None
        if host is None or (host.name, host.incarnation) != (caller.name, caller.incarnation):
            raise FencedError(f"{caller.name} does not serve {server}; stop serving it")
        assert self._state is not None
        if self._state.filled(server, epoch):
            self._members.changed()

    def _moved(self, gone: Sequence[str]) -> None:
        if gone:
            message = (
                f"server {' and '.join(gone)} was lost, and its backup was not complete; "
                "the slices it held are gone"
            )
            self._members.fail(message)
        for place in self.all:
            self._groups.relocate(place.server, place.address)
        self._members.changed()


def _host(member: Member) -> Host:
    return Host(member.name, member.address, member.incarnation)


def _words(place: Place) -> str:
    if place.backup is None:
        kept = "without a backup: no other server is left"
    else:
        kept = f"its backup {'is on' if place.ready else 'is being filled on'} {place.backup.name}"
    return f"{place.primary.name} serves {place.server}, {kept}"
