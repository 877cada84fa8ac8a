"""The events of the scheduler's state by which workers agree on the values of a group."""

from __future__ import annotations

from paramserver.core.members import Caller, Role
from paramserver.core.placement import Group, GroupSpec
from paramserver.core.replicas import Formed, Offer
from paramserver.errors import InvalidRequestError, ResourceError
from paramserver.scheduler.events import event
from paramserver.scheduler.facts import Storing
from paramserver.scheduler.parts import Parts
from paramserver.scheduler.replicas import replicated
from paramserver.scheduler.topics import group_topic
from paramserver.scheduler.warm_start import Warmth
from paramserver.scheduler.words import words
from paramserver.types import Adaptive


class GroupEvents(Parts):
    """Methods of ``SchedulerState``."""

    @event
    def register_group(self, caller: Caller, spec: GroupSpec, now: float) -> Group:
        """Makes a group known, or joins it.

        Raises:
            InvalidRequestError, MismatchError: as ``Groups.register``.
            ResourceError: servers are missing, or too many groups.
        """
        member = self.worker(caller)
        servers = self._servers()
        if len(servers) < min(self.config.servers, self.members.servers):
            raise ResourceError(self.members.missing())
        group, new = self.groups.register(spec, servers, self.map_version + 1)
        if new:
            self._next_map_version()
            if not replicated(spec):
                self.hold([name for name, _ in servers])
            if isinstance(spec.consistency, Adaptive):
                self.adaptation.open(spec.name, spec.consistency.max_bound, now)
            where = f"{len(servers)} servers" if len(servers) > 1 else "1 server"
            self.journal.say(
                f"{member.name} registered group {spec.name}: {spec.elements} parameters, "
                f"{len(group.map.owners)} slices on {where}",
                now,
            )
        self.members.join_group(member.name, spec.name)
        self._after(now, group_topic(spec.name))
        return group

    def await_group(self, caller: Caller, name: str, now: float) -> Storing:
        """Whether first values are stored; the live worker of the lowest rank stores them."""
        member = self.members.check(caller, finished=True)
        self.members.require_job()
        group = self.groups.find(name)
        if group is None and member.role is not Role.WORKER:
            return Storing(pending=f"group {name!r} is not registered yet")
        if self.groups.get(name).stored:
            return Storing(stored=True)
        parties = self.config.parties
        first = self.members.first(parties, max(member.rank, 0) % parties)
        if first is not None and first.name == member.name and name in first.groups:
            return Storing(initialize=True)
        whom = words(self.members, [first] if first else [], now)
        return Storing(pending=f"group {name!r} waits for first values of {whom}")

    @event
    def group_stored(self, caller: Caller, name: str, now: float) -> None:
        """First values are on all servers. Idempotent."""
        member = self.worker(caller)
        group = self.groups.get(name)
        if name not in member.groups:
            raise InvalidRequestError(f"{member.name} has not registered group {name!r}")
        if not group.stored:
            group.stored = True
            self.journal.say(f"{member.name} stored first values of group {name}", now)
        self._after(now, group_topic(name))

    @event
    def form_replicas(self, caller: Caller, name: str, offer: Offer, now: float) -> Formed | str:
        """As ``ReplicaGroups.form``."""
        found = self.replicas.form(self.worker(caller), name, offer, now)
        self._after(now, *([] if isinstance(found, str) else [group_topic(name)]))
        return found

    @event
    def warm_start(self, caller: Caller, group: str, over: bool, now: float) -> Warmth:
        """As ``WarmStarts.ask``."""
        return self.warm.ask(self.worker(caller), group, over, now)
