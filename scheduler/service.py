"""The Scheduler service of the protocol: decode, one decision, encode. No gRPC here.

Every method takes and returns messages of scheduler.proto and raises ``paramserver.errors``.
For one event loop; waiting calls are parked coroutines.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

from paramserver.config import SchedulerConfig
from paramserver.core.members import Caller, Role
from paramserver.core.replicas import Formed
from paramserver.core.rounds import Released, Waiting
from paramserver.errors import InvalidRequestError, VersionError
from paramserver.scheduler.convert import (
    arrival_to_proto,
    caller_from_proto,
    formed_to_proto,
    identity_to_proto,
    job_state_to_proto,
    offer_from_proto,
    recall_to_proto,
    role_from_proto,
    role_to_proto,
    view_to_proto,
)
from paramserver.scheduler.coordination import CoordinationMethods
from paramserver.scheduler.data_methods import DataMethods
from paramserver.scheduler.durable import remembered
from paramserver.scheduler.event_log import EventLog
from paramserver.scheduler.facts import Storing
from paramserver.scheduler.parking import Parking
from paramserver.scheduler.recovery import AsyncServerChannel, Recovery
from paramserver.scheduler.report import status
from paramserver.scheduler.reshaping import Reshaping
from paramserver.scheduler.snapshot_methods import SnapshotMethods
from paramserver.scheduler.snapshots import Snapshots
from paramserver.scheduler.state import SchedulerState
from paramserver.scheduler.topics import (
    START,
    VIEW,
    group_topic,
    round_topic,
    warm_start_topic,
)
from paramserver.scheduler.warm_start import Warmth
from paramserver.types import PROTOCOL_VERSION
from paramserver.v1 import common_pb2
from paramserver.v1 import scheduler_pb2 as pb
from paramserver.wire.convert import group_from_proto, map_to_proto
from paramserver.wire.guard import SPEAKER
from paramserver.wire.permissions import check_kind

T = TypeVar("T")


class SchedulerService(CoordinationMethods, DataMethods, SnapshotMethods):
    """One scheduler.

    Args:
        now: seconds on a monotonic clock; leases run by it.
        connect: a channel to the server at an address.
        first_incarnation: incarnations grow from here; by default the seconds since 1970, so
            that no process of an earlier scheduler is taken for one of this.
        log: what an earlier scheduler left, and where this one writes down what happens.

    Attributes:
        ended: set while the job is done or has failed.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        *,
        now: Callable[[], float] = time.monotonic,
        connect: Callable[[str], AsyncServerChannel],
        first_incarnation: int | None = None,
        log: EventLog | None = None,
    ) -> None:
        first = int(time.time()) if first_incarnation is None else first_incarnation
        self._config = config
        self._now = now
        if log is None:
            self.state = SchedulerState(config, now(), first)
        else:
            self.state, self._now = remembered(log, config, now, first)
        self.parking = Parking(config.limits.parked_calls)
        now, state = self._now, self.state
        self.recovery = Recovery(state, now, connect, self._after)
        kept = log.durable if log is not None else None
        self.reshaping = Reshaping(state, now, connect, self._after, kept)
        self.snapshots = Snapshots(state, now, connect, self.parking.wait, self._after)
        self.ended = asyncio.Event()
        self._view: pb.View | None = None
        self._job = self.state.members.job

    # -- the shell of every call

    def _enter(self, identity: common_pb2.Identity) -> Caller:
        """Who speaks; its lease is renewed. The one place where identities are checked first."""
        caller = self._speaker(identity)
        self.state.members.renew(caller, self._now())
        return caller

    def _speaker(self, identity: common_pb2.Identity) -> Caller:
        """Who says that it speaks, with a credential of such a member's role."""
        member = self.state.members.find(identity.name)
        if member is not None:
            check_kind(SPEAKER.get().role, role_to_proto(member.role), "speak")
        return caller_from_proto(identity)

    def _after(self) -> None:
        """Does what the state asks for after an event."""
        members = self.state.members
        ended = members.ended()
        if ended or members.job != self._job:
            self.recovery.stop()
            self.reshaping.stop()
            self._job = members.job
        if not ended:
            self.reshaping.look()
        for loss in self.state.take_losses():
            if not ended:
                self.recovery.start(loss)
        wakes = self.state.take_wakes()
        if self._view is None or self._view.number != members.number:
            wakes.add(VIEW)
        self.parking.wake(wakes)
        if ended:
            self.ended.set()
        else:
            self.ended.clear()

    def _current(self) -> pb.View:
        view = self.state.members.view()
        if self._view is None or self._view.number != view.number:
            state = self.state
            self._view = view_to_proto(
                view, state.adaptation.bounds, state.shape.reducers, state.places.all
            )
        return self._view

    async def _poll(
        self, topic: str, wait_s: float, attempt: Callable[[], T], pending: Callable[[T], bool]
    ) -> T:
        def look() -> T:
            try:
                return attempt()
            finally:
                self._after()

        if not wait_s >= 0:
            raise InvalidRequestError(f"wait_s={wait_s}: must be >= 0 (0 = answer at once)")
        return await self.parking.poll(topic, wait_s, look, pending)

    async def run(self) -> None:
        """Lets leases lapse, until cancelled."""
        loop = asyncio.get_running_loop()
        interval = self._config.heartbeat_s / 2
        self._after()  # what an earlier scheduler did not come to
        try:
            while True:
                begun = loop.time()
                await asyncio.sleep(interval)
                late = loop.time() - begun - interval
                # Nobody could be heard while this process stood still.
                if late > self._config.heartbeat_s:
                    self.state.members.forgive(late)
                self.tick()
        finally:
            self.recovery.stop()
            self.reshaping.stop()
            await self.snapshots.close()

    def tick(self) -> None:
        """Looks once at all leases."""
        self.state.tick(self._now())
        self.snapshots.tick()
        self._after()

    # -- members

    async def Register(self, request: pb.RegisterRequest) -> pb.RegisterReply:
        if request.protocol != PROTOCOL_VERSION:
            raise VersionError(
                f"protocol {request.protocol}: this scheduler speaks {PROTOCOL_VERSION}; "
                "install the same version of paramserver everywhere"
            )
        role = role_from_proto(request.role)
        if role is Role.SERVER and not request.address:
            raise InvalidRequestError("a server must say at which address it can be reached")
        done = self.state.register(
            role,
            request.name,
            self._now(),
            address=request.address,
            host=request.host,
            pid=request.pid,
            resumes=request.resumes,
            attempt=request.attempt[: self._config.limits.name_length],
        )
        self._after()
        members = self.state.members
        replica, party = divmod(max(done.member.rank, 0), self._config.parties)
        return pb.RegisterReply(
            identity=identity_to_proto(done.member, members.number, members.job),
            lease_s=self._config.lease_s,
            heartbeat_s=self._config.heartbeat_s,
            protocol=PROTOCOL_VERSION,
            workers=self._config.workers,
            servers=self._config.servers,
            party=party,
            parties=self._config.parties,
            replica=replica,
            snapshots=self.snapshots.on,
            goes_on=self.state.resumed is not None or self.state.wants_snapshot,
            durability=self._config.durability,
            resumed=done.resumed,
        )

    async def AwaitStart(self, request: pb.AwaitStartRequest) -> pb.AwaitStartReply:
        caller = self._enter(request.member)

        def attempt() -> str:
            self.state.members.check(caller, finished=True)
            self.state.members.require_job()
            return self.state.start_reason()

        pending = await self._poll(START, request.wait_s, attempt, bool)
        return pb.AwaitStartReply(
            pending=pending, view=self._current(), arrivals=self.state.members.arrivals
        )

    async def Heartbeat(self, request: pb.HeartbeatRequest) -> pb.HeartbeatReply:
        caller = self._speaker(request.member)
        clocks = {c.group: c.clock for c in request.clocks}
        recalls = self.state.heartbeat(caller, clocks, request.stats, self._now())
        members, wanted = self.state.members, self.state.wanted_schedule
        leave = self.state.shape.may_leave(caller.name)
        if leave:
            self.state.dismiss(caller.name)
            self._after()
        return pb.HeartbeatReply(
            leave=leave,
            view=members.number,
            state=job_state_to_proto(members.state),
            message=members.message,
            fastest=self.state.fastest(),
            recalls=[recall_to_proto(name, span) for name, span in recalls],
            schedule_wanted=wanted is not None,
            schedule_clock=wanted or 0,
        )

    async def Watch(self, request: pb.WatchRequest) -> AsyncIterator[pb.View]:
        """Every view from now on; ends with FencedError when the member is gone."""
        caller = self._enter(request.member)
        seen = 0
        while True:
            view = self._current()
            if view.number != seen:
                seen = view.number
                yield view
            else:
                await self.parking.wait(VIEW, None)
                self.state.members.check(caller, finished=True)

    async def GetView(self, request: pb.GetViewRequest) -> pb.View:
        return self._current()

    async def SetActive(self, request: pb.SetActiveRequest) -> pb.SetActiveReply:
        view = self.state.set_active(self._enter(request.member), request.active, self._now())
        self._after()
        return pb.SetActiveReply(view=view)

    async def Finish(self, request: pb.FinishRequest) -> pb.FinishReply:
        self.state.finish(self._speaker(request.member), self._now())
        self._after()
        return pb.FinishReply()

    async def Fail(self, request: pb.FailRequest) -> pb.FailReply:
        caller = self._speaker(request.member)
        self.state.fail(caller, request.reason, request.fatal, request.exit_code, self._now())
        self._after()
        return pb.FailReply()

    async def BackupReady(self, request: pb.BackupReadyRequest) -> pb.BackupReadyReply:
        caller = self._enter(request.member)
        self.state.backup_ready(caller, request.server, request.epoch, self._now())
        self._after()
        return pb.BackupReadyReply()

    # -- groups

    async def RegisterGroup(self, request: pb.RegisterGroupRequest) -> pb.RegisterGroupReply:
        caller = self._enter(request.member)
        spec = group_from_proto(request.spec)
        group = self.state.register_group(caller, spec, self._now())
        self._after()
        return pb.RegisterGroupReply(map=map_to_proto(group.map), view=self.state.members.number)

    async def AwaitGroup(self, request: pb.AwaitGroupRequest) -> pb.AwaitGroupReply:
        caller = self._enter(request.member)

        def attempt() -> Storing:
            return self.state.await_group(caller, request.group, self._now())

        found = await self._poll(
            group_topic(request.group), request.wait_s, attempt, lambda s: bool(s.pending)
        )
        return pb.AwaitGroupReply(
            stored=found.stored, initialize=found.initialize, pending=found.pending
        )

    async def GroupStored(self, request: pb.GroupStoredRequest) -> pb.GroupStoredReply:
        self.state.group_stored(self._enter(request.member), request.group, self._now())
        self._after()
        return pb.GroupStoredReply()

    async def WarmStart(self, request: pb.WarmStartRequest) -> pb.WarmStartReply:
        caller = self._enter(request.member)

        def attempt() -> Warmth:
            return self.state.warm_start(caller, request.group, request.over, self._now())

        found = await self._poll(
            warm_start_topic(request.group), request.wait_s, attempt, lambda w: bool(w.pending)
        )
        return pb.WarmStartReply(
            over=found.over,
            chief=found.chief,
            pending=found.pending,
            view=self.state.members.number,
        )

    async def FormReplicas(self, request: pb.FormReplicasRequest) -> pb.FormReplicasReply:
        caller = self._enter(request.member)
        offer = offer_from_proto(request)

        def attempt() -> Formed | str:
            return self.state.form_replicas(caller, request.group, offer, self._now())

        topic = group_topic(request.group)
        found = await self._poll(topic, request.wait_s, attempt, lambda f: isinstance(f, str))
        return formed_to_proto(found, self.state.members.number)

    # -- rounds

    async def Join(self, request: pb.JoinRequest) -> pb.JoinReply:
        caller = self._enter(request.member)

        def attempt() -> Released | Waiting:
            return self.state.join_round(caller, request.name, request.sequence, self._now())

        found = await self._poll(
            round_topic(request.name),
            request.wait_s,
            attempt,
            lambda f: isinstance(f, Waiting),
        )
        view = self.state.members.number
        if isinstance(found, Waiting):
            reason = self.state.round_reason(found, self._now())
            return pb.JoinReply(round=found.number, pending=reason, view=view)
        arrivals = [arrival_to_proto(a) for a in found.arrivals]
        return pb.JoinReply(released=True, round=found.number, arrivals=arrivals, view=view)

    # -- schedules, scalars, status

    async def Log(self, request: pb.LogRequest) -> pb.LogReply:
        self.state.log(self._enter(request.member), request.scalars)
        return pb.LogReply()

    async def Scale(self, request: pb.ScaleRequest) -> pb.ScaleReply:
        shape = self.state.shape
        if request.servers:
            if self._config.durability == "replica":
                raise InvalidRequestError(
                    "scale: not with --durability replica, whose backups do not follow slices that "
                    "move; take a snapshot, and restore it on other servers"
                )
            self.state.scale(request.servers, self._now())
            self._after()
        return pb.ScaleReply(
            pending=shape.pending(),
            servers=self.state.members.servers,
            moved=shape.moved,
            total=shape.total,
        )

    async def Status(self, request: pb.StatusRequest) -> pb.StatusReply:
        return status(self.state, self._now())
