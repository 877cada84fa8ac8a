"""The all-reduce groups of one job: their replicas form through the scheduler."""

from __future__ import annotations

from paramserver.core.members import Member, Role, worker_id
from paramserver.core.membership import Membership
from paramserver.core.placement import Groups, GroupSpec
from paramserver.core.replicas import Formed, Missing, Offer, Replicas
from paramserver.errors import InvalidRequestError
from paramserver.scheduler.journal import Journal
from paramserver.scheduler.words import words
from paramserver.types import AllReduce, Span, WorkerId


def replicated(spec: GroupSpec) -> bool:
    """Whether workers hold the group, and servers nothing of it."""
    return isinstance(spec.consistency, AllReduce)


class ReplicaGroups:
    """``Replicas`` by group."""

    def __init__(self, members: Membership, groups: Groups, journal: Journal) -> None:
        self._members, self._groups, self._journal = members, groups, journal
        self._replicas: dict[str, Replicas] = {}

    def form(self, member: Member, name: str, offer: Offer, now: float) -> Formed | str:
        """Takes part in the open formation of a group; text: whom it waits for.

        Raises:
            InvalidRequestError: not an all-reduce group, or one that the member did not register.
            NotFoundError: an unknown group, or one whose values are gone.
        """
        if not replicated(self._groups.get(name).spec):
            raise InvalidRequestError(f"group {name!r} lives on servers: it has no replicas")
        if name not in member.groups:
            raise InvalidRequestError(f"{member.name} has not registered group {name!r}")
        replicas = self._replicas.setdefault(name, Replicas(name))
        live = {worker_id(m): m for m in self._members.live(Role.WORKER)}
        # The first time all must come: afterwards the first values are settled.
        needed = [w for w, m in live.items() if not replicas.number or name in m.groups]
        before = replicas.number
        found = replicas.form(worker_id(member), offer, needed)
        if isinstance(found, Missing):
            whom = words(self._members, [live[w] for w in found.workers if w in live], now)
            return f"group {name!r} waits for {whom}"
        if replicas.number > before:
            self._groups.get(name).stored = True
            self._journal.say(f"group {name}: {len(found.replicas)} replicas formed", now)
        return found

    def leave(self, who: WorkerId) -> None:
        """A worker has finished or was lost."""
        for replicas in self._replicas.values():
            replicas.leave(who)

    def untold(self, who: WorkerId) -> bool:
        """Whether replicas are still to tell what a worker that left had contributed."""
        return any(replicas.untold(who) for replicas in self._replicas.values())

    def told(self, who: WorkerId) -> frozenset[Span]:
        """What replicas of all groups told of a worker that left."""
        return frozenset().union(*(r.told(who) for r in self._replicas.values()))

    def forget(self, who: WorkerId) -> None:
        """The leases of a worker that left are settled."""
        for replicas in self._replicas.values():
            replicas.forget(who)

    def check_invariants(self) -> None:
        """Raises AssertionError when the parts disagree."""
        for replicas in self._replicas.values():
            replicas.check_invariants()
