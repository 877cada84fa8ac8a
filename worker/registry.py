"""The groups of one client: opened, given first values, made active."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from torch import Tensor

from paramserver.core.placement import GroupSpec, SliceMap
from paramserver.errors import NotFoundError, UnsupportedError, UsageError
from paramserver.types import AllReduce, Async, Sync
from paramserver.v1 import scheduler_pb2
from paramserver.wire.convert import group_from_proto, group_to_proto, map_from_proto
from paramserver.wire.transport import Transport
from paramserver.worker.group import Group
from paramserver.worker.link import Links
from paramserver.worker.session import Session


class Stepping(Protocol):
    """A group that this worker takes steps in, wherever its values are."""

    @property
    def name(self) -> str: ...

    @property
    def spec(self) -> GroupSpec: ...

    @property
    def clock(self) -> int: ...

    @property
    def fresh(self) -> bool: ...

    def activate(self, *, skip: bool = False) -> None: ...


class Registry:
    """Which groups this worker has, and whether clocks wait for it.

    Attributes:
        session: of the client.
        links: the streams to servers, shared by all groups.
        active: whether clocks wait for this worker.
    """

    def __init__(self, session: Session, transport: Transport) -> None:
        self.session = session
        self._transport = transport
        self.links = Links(transport, session.directory, session.check, session.config.limits)
        self.active = False
        self._data = False
        self._groups: dict[str, Stepping] = {}
        self._held: dict[str, Group] = {}  # on servers, whether registered here or only read
        self._closes: list[Callable[[], None]] = []
        self._refreshes: dict[str, Callable[[], None]] = {}
        self._starts: dict[str, int] = {}

    @property
    def clock(self) -> int:
        """The furthest clock of this worker's groups."""
        return max((group.clock for group in self._groups.values()), default=0)

    def open(self, spec: GroupSpec, values: Mapping[str, Tensor], wire_dtype: str) -> Group:
        """The group, with first values on all servers: ``values``, if this worker is to give them.

        Raises:
            MismatchError: registered otherwise by others; names the difference.
            UsageError: this client has it already.
            UnsupportedError: it would wait for others beside a group that waits at another pace.
        """
        group = self._make(spec, map_from_proto(self.register(spec).map), wire_dtype)
        self.session.add_group(group.name, lambda: group.clock, group.settle)
        while not self._await_first_values(spec.name):
            group.store(values)
            stored = scheduler_pb2.GroupStoredRequest(
                member=self.session.identity(), group=spec.name
            )
            self.session.scheduler.call("GroupStored", stored)
        self._groups[spec.name] = self._held[spec.name] = group
        return group

    def register(self, spec: GroupSpec) -> scheduler_pb2.RegisterGroupReply:
        """Makes the group known to the scheduler; raises as ``open``."""
        if spec.name in self._groups:
            raise UsageError(
                f"group {spec.name!r} is registered by this client already; give another group name"
            )
        self._check_beside(spec)
        request = scheduler_pb2.RegisterGroupRequest(
            member=self.session.identity(), spec=group_to_proto(spec)
        )
        reply: scheduler_pb2.RegisterGroupReply = self.session.scheduler.call(
            "RegisterGroup", request
        )
        self.session.saw_view(reply.view)
        return reply

    def adopt(
        self, group: Stepping, refresh: Callable[[], None], close: Callable[[], None]
    ) -> None:
        """A group that this client registered and holds itself; ``refresh`` as for ``add``."""
        self._groups[group.name] = group
        self._closes.append(close)
        self.add(group, refresh)

    def _check_beside(self, spec: GroupSpec) -> None:
        """Two groups that wait at different paces may each wait for the other's workers."""
        specs = [*(group.spec for group in self._groups.values()), spec]
        waiting = [s for s in specs if not isinstance(s.consistency, Async)]
        rounds = next((s for s in waiting if s.scheme), None)
        if rounds is None or spec not in waiting or len(waiting) == 1:
            return
        raise UnsupportedError(
            f"groups {waiting[0].name!r} and {spec.name!r} both wait for other workers, and "
            f"{rounds.name!r} does so by rounds of local steps: workers between two rounds would "
            "wait for one another; give one of them Async(), or put all parameters into one group"
        )

    def _await_first_values(self, name: str) -> bool:
        """True when they are stored, False when this worker is to store them."""

        def request(wait_s: float) -> scheduler_pb2.AwaitGroupRequest:
            return scheduler_pb2.AwaitGroupRequest(
                member=self.session.identity(), group=name, wait_s=wait_s
            )

        what = f"first values of group {name!r}"
        reply = self.session.poll("AwaitGroup", request, lambda r: r.stored or r.initialize, what)
        return bool(reply.stored)

    def _make(self, spec: GroupSpec, slice_map: SliceMap, wire_dtype: str = "") -> Group:
        return Group(
            self.session, self._transport, self.links, spec, slice_map, wire_dtype=wire_dtype
        )

    def add(self, group: Stepping, refresh: Callable[[], None]) -> None:
        """The group is ready to train: clocks wait for this worker, unless data is to come first.

        Args:
            refresh: activates the group and pulls what is to be held of it.
        """
        self._refreshes[group.name] = refresh
        if self.active or not self._data:
            self._set_active(True)
            self.active = True
            refresh()
            self._fall_in()
        self._starts[group.name] = group.clock

    def expect_data(self) -> None:
        """A data set was opened: before the first step, the first leased shard makes active."""
        self._data = True
        stepped = any(g.clock != self._starts.get(n, 0) for n, g in self._groups.items())
        if self.active and not stepped:
            self._set_active(False)
            self.active = False

    def _set_active(self, active: bool) -> None:
        request = scheduler_pb2.SetActiveRequest(member=self.session.identity(), active=active)
        self.session.saw_view(self.session.scheduler.call("SetActive", request).view)

    def became_active(self, view: int, waited: bool) -> None:
        """The scheduler made this worker active: by its first data shard, or after a wait."""
        self.session.saw_view(view)
        if self.active and not waited:
            return
        self.active = True
        for refresh in self._refreshes.values():
            refresh()
        self._fall_in()
        self._starts = {name: self._groups[name].clock for name in self._refreshes}

    def _fall_in(self) -> None:
        """Starts all groups in lock step at the same step.

        Others may be between the groups of one step: they would wait for this worker in the group
        behind, while it waits for them in the group ahead.
        """
        groups = [group for group in self._sync() if group.fresh]
        ahead = max((group.clock for group in groups), default=0)
        for group in groups:
            if group.clock == ahead - 1:
                group.activate(skip=True)
                self._refreshes[group.name]()

    def sync_clock(self) -> int:
        """The furthest clock of this worker's Sync groups; -1 without any."""
        return max((group.clock for group in self._sync()), default=-1)

    def skip_to(self, clock: int) -> None:
        """Leaves the open clock to the others, in Sync groups that are one behind ``clock``."""
        for group in self._sync():
            if group.clock == clock - 1:
                group.activate(skip=True)
                self._refreshes[group.name]()

    def _sync(self) -> list[Stepping]:
        """Groups in which all workers are at the same step."""
        groups = [self._groups[name] for name in self._refreshes]
        return [g for g in groups if isinstance(g.spec.consistency, (Sync, AllReduce))]

    def has(self, name: str) -> bool:
        """Whether this client registered the group."""
        return name in self._groups

    def find(self, name: str) -> Group:
        """A group to read from, whether this client registered it or not.

        Raises:
            NotFoundError: nobody registered it, or its first values are not stored yet.
            UnsupportedError: its values are on the workers.
        """
        found = self._held.get(name)
        if found is None:
            request = scheduler_pb2.GetGroupRequest(group=name, job=self.session.job)
            reply = self.session.scheduler.call("GetGroup", request)
            spec = group_from_proto(reply.spec)
            if isinstance(spec.consistency, AllReduce):
                raise UnsupportedError(
                    f"group {name!r} is {spec.consistency}: servers hold nothing of it; call "
                    "state_dict in a worker that trains it"
                )
            if not reply.stored:
                raise NotFoundError(f"group {name!r} has no values yet; try again later")
            found = self._make(spec, map_from_proto(reply.map))
            self._held[name] = found
        return found

    def close(self) -> None:
        """Closes the streams, and leaves other replicas."""
        for close in self._closes:
            close()
        self.links.close()
