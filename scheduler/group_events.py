"""The events of the scheduler's state by which workers agree on the values of a group."""

from __future__ import annotations

from paramserver.core.members import Caller, Member
from paramserver.core.placement import Groups
from paramserver.core.replicas import Formed, Offer
from paramserver.errors import InvalidRequestError
from paramserver.scheduler.events import Recorded, event
from paramserver.scheduler.journal import Journal
from paramserver.scheduler.replicas import ReplicaGroups
from paramserver.scheduler.topics import group_topic
from paramserver.scheduler.warm_start import WarmStarts, Warmth


class GroupEvents(Recorded):
    """Methods of ``SchedulerState``."""

    groups: Groups
    journal: Journal
    replicas: ReplicaGroups
    warm: WarmStarts

    def worker(self, caller: Caller) -> Member:
        raise NotImplementedError

    def _after(self, now: float, *topics: str) -> None:
        raise NotImplementedError

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
