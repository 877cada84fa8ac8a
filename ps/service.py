"""The rpcs of a server: each decodes, asks the group, encodes. No gRPC in here."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

from paramserver.config import ServerConfig
from paramserver.core.ledger import Receipt
from paramserver.core.reshape import holders
from paramserver.errors import (
    ConnectionLostError,
    InvalidRequestError,
    MovedError,
    ParameterServerError,
)
from paramserver.ps import records
from paramserver.ps.collectives import Collectives
from paramserver.ps.describe import describe
from paramserver.ps.exchange import Session
from paramserver.ps.group import GroupState, Staged
from paramserver.ps.inflow import Inflow
from paramserver.ps.lead import Notices
from paramserver.ps.leads import Leads
from paramserver.ps.push import Incoming, Parcel
from paramserver.ps.reduces import Reduces
from paramserver.ps.reshape import Reshape
from paramserver.ps.restorable import Restorable
from paramserver.ps.restore import restore
from paramserver.ps.snapshots import Snapshots
from paramserver.ps.tables.shrink import shrink
from paramserver.ps.vectors import Vectors
from paramserver.ps.views import Views
from paramserver.ps.workshop import Workshop
from paramserver.types import WorkerId
from paramserver.v1 import scheduler_pb2
from paramserver.v1 import server_pb2 as pb
from paramserver.wire.convert import group_from_proto, map_from_proto, spans_to_proto
from paramserver.wire.transport import AsyncChannel

log = logging.getLogger("paramserver")

_Key = tuple[str, WorkerId, int]


class ServerService(Restorable):
    """A server: its groups, its streams, its place in the job.

    Args:
        config: of this server.
        name: given by the scheduler.
        scheduler: the channel to it.
        connect: opens a channel to another server.
    """

    def __init__(
        self,
        config: ServerConfig,
        name: str,
        scheduler: AsyncChannel,
        connect: Callable[[str], AsyncChannel],
    ) -> None:
        self.config = config
        self.name = name
        self.views = Views()
        self.workshop = Workshop(config.threads)
        self.collectives = Collectives(config.limits)
        self.vectors = Vectors(config.limits, self.workshop)
        self.reduces = Reduces(config.limits)
        self.snapshots = made = Snapshots(self)
        self.Hold, self.Drain, self.Release = made.hold, made.drain, made.release
        self.Snapshot = made.snapshot
        self.received_bytes = self.sent_bytes = self.refusals = self.non_finite = 0
        self.reshape = Reshape(self)
        self.Move, self.FetchSlices = self.reshape.move, self.reshape.fetch
        self.leads = Leads(lambda: self.name, self.views, connect)
        self.sessions: set[Session] = set()
        self.connect = connect
        self._scheduler = scheduler
        self._groups: dict[str, asyncio.Future[GroupState]] = {}
        self._owners: dict[_Key, Session] = {}
        self.inflow = Inflow(config.limits)

    # What the streams ask for

    async def group(self, name: str, map_version: int) -> GroupState:
        """The group, fetched from the scheduler when a request names it for the first time.

        Raises:
            NotFoundError: the scheduler does not know it.
            MovedError: the request has another slice map.
        """
        if name not in self._groups:
            self._groups[name] = asyncio.create_task(self._fetch(name))
        task = self._groups[name]
        try:
            group = await asyncio.shield(task)
        except ParameterServerError:
            self._groups.pop(name, None)
            raise
        if map_version > group.map.version:
            group = await self.reshape.catch_up(name, map_version)
        group.check_map(map_version)
        return group

    async def _fetch(self, name: str) -> GroupState:
        reply = await self.ask_for(name)
        slice_map = map_from_proto(reply.map)
        if reply.reshaped and self.name in holders(slice_map):
            raise MovedError(f"slices of group {name!r} have not come to {self.name} yet")
        if self.journal is not None:
            records.made(self.journal, reply)
        group = self.make(group_from_proto(reply.spec), slice_map)
        if reply.HasField("restore"):
            await restore(group, reply.restore, self.vectors)
            await self.note_restored(group)
        self.leads.open(group)
        return group

    async def ask_for(self, group: str) -> scheduler_pb2.GetGroupReply:
        """What the scheduler knows of a group of this server's job."""
        request = scheduler_pb2.GetGroupRequest(group=group, job=self.views.current.job)
        reply: scheduler_pb2.GetGroupReply = await self._scheduler.call("GetGroup", request)
        return reply

    def sent(self, size: int) -> None:
        """Bytes went out to a client."""
        self.sent_bytes += size

    async def begin(self, push: Incoming, session: Session, activated: bool) -> Receipt | None:
        """Opens a push in the ledger; a receipt if it is over already."""
        group, worker, clock = push.group, push.worker, push.clock
        key = (group.spec.name, worker, clock)
        if group.journal is not None and group.ledger.receipt(worker, clock) is None:
            await session.outbox.may_begin(push.request)
        over = ConnectionLostError("this stream is over: its client has opened a newer one")
        while True:
            while (owner := self._owners.get(key)) is not None and owner is not session:
                if owner.number > session.number:
                    raise over
                await owner.close()  # the client has a new stream; the old one frees or finishes
            if session.closed:
                raise over
            if group.hold is None or not group.hold.stops(worker, clock):
                break
            await group.hold.changed()
        group.check_map(push.map_version)  # slices may have moved meanwhile
        ledger = group.ledger
        if activated and ledger.receipt(worker, clock) is None:
            group.expect(worker, clock)
        late = group.sync and clock < group.frontier.value
        if late and ledger.receipt(worker, clock) is None:  # the clock closed without it
            ledger.abandon(worker, clock)
            group.expect(worker, group.frontier.value)
            return Receipt(clock, group.version, 0.0, applied=False, dropped=True)
        receipt = ledger.open(worker, clock, sorted(push.declared))
        if receipt is not None:
            return receipt
        if group.journal is not None and not group.sync:
            records.opened(
                group.journal, push.group.spec.name, worker, clock, sorted(push.declared)
            )
        self._owners[key] = session
        return None

    def claim(self, push: Incoming, session: Session, parcel: Parcel) -> Parcel:
        """The slices that were not taken before; they count as taken from now on.

        Raises:
            ConnectionLostError: a newer stream of the client has taken over the push.
        """
        if self._owners.get((push.group.spec.name, push.worker, push.clock)) is not session:
            raise ConnectionLostError("this stream is over: its client has opened a newer one")
        take = push.group.ledger.take
        marks = zip(parcel.slices, parcel.checksums, strict=True)
        return parcel.only({i for i, mark in marks if take(push.worker, push.clock, i, mark)})

    async def complete(self, push: Incoming, session: Session) -> Receipt:
        """All slices are here: the push is staged, or applied, and the lead hears of it."""
        group, worker, clock = push.group, push.worker, push.clock
        key = (group.spec.name, worker, clock)
        if group.sync and clock < group.frontier.value:  # it closed while the bytes came in
            receipt = Receipt(clock, group.version, 0.0, applied=False, dropped=True)
            group.ledger.complete(worker, clock, receipt, push.samples)
            group.expect(worker, group.frontier.value)
            self._owners.pop(key, None)
            return receipt
        if group.sync:
            receipt = Receipt(clock, 0, 0.0, applied=False)
            group.ledger.complete(worker, clock, receipt, push.samples)
            staged = Staged(worker, clock, push.weight, push.options, push.samples, push.gradients)
            staged.nbytes = sum(g.nbytes for g in push.gradients.values())
            group.stage(staged)
        else:
            await group.tick_others(push.declared if push.counts else set())
            group.version += 1
            staleness = push.staleness / max(1, len(push.declared))
            receipt = Receipt(clock, group.version, staleness, applied=True)
            group.ledger.complete(worker, clock, receipt, push.samples)
            if group.journal is not None:
                digest, name = group.ledger.digest(worker, clock), group.spec.name
                records.completed(group.journal, name, worker, receipt, push.samples, digest)
                group.kept.pop((worker, clock), None)
        self._owners.pop(key, None)
        if group.hold is not None:
            group.hold.stir()
        self._report(group, worker, clock, push.weight)
        return receipt

    def release(self, push: Incoming, session: Session, *, rejected: bool = False) -> None:
        """A push ends unfinished; what is staged is freed, what is applied stays known."""
        key = (push.group.spec.name, push.worker, push.clock)
        if self._owners.get(key) is session:
            del self._owners[key]
            if push.group.sync or rejected:
                push.group.ledger.abandon(push.worker, push.clock)
                journal = push.group.journal
                if journal is not None and not push.group.sync:
                    records.abandoned(journal, push.group.spec.name, push.worker, push.clock)
                    push.group.kept.pop((push.worker, push.clock), None)

    def _report(self, group: GroupState, worker: WorkerId, clock: int, weight: float) -> None:
        staged = pb.Staged(
            rank=worker.rank, incarnation=worker.incarnation, clock=clock, weight=weight
        )
        self.leads.report(group, staged)

    async def explain(self, group: GroupState) -> str:
        """Whom the open clock of a group waits for, in words."""
        lead = self.leads.of(group.spec.name)
        if lead is not None:
            return lead.clock.waiting_for(self.views.names) or "nobody; the clock is closing"
        lead_at = self.views.locate(group.lead, group.map.addresses[group.map.lead])
        channel = self.connect(lead_at)
        try:
            request = pb.ExplainRequest(group=group.spec.name)
            reason: str = (await channel.call("Explain", request, timeout=2.0)).reason
        except ParameterServerError as error:
            return f"the lead {group.lead}, which cannot be reached: {error}"
        finally:
            await channel.close()
        return reason

    # The rpcs

    async def Exchange(
        self, frames: AsyncIterator[bytes], send: Callable[[bytes], Awaitable[None]]
    ) -> None:
        """Pushes and pulls of one client."""
        await Session(self, send).run(frames)

    async def Activate(self, request: pb.ActivateRequest) -> pb.ActivateReply:
        """The clock of a worker that has become active."""
        worker = await self.views.admit(request.worker)
        group = await self.group(request.group, request.map_version)
        while group.hold is not None:  # who leads may be about to change
            await group.hold.changed()
        group.check_map(request.map_version)
        lead = self.leads.of(request.group)
        if lead is None:
            raise MovedError(
                f"{self.name} does not lead group {request.group!r}: {group.lead} does"
            )
        if request.skip:
            lead.skip(worker)
        clock = lead.clock.activate(worker)
        group.expect(worker, clock)
        await self.durable()
        return pb.ActivateReply(clock=clock)

    async def Follow(self, reports: AsyncIterator[pb.Report]) -> AsyncIterator[pb.Notice]:
        """Reports of another server, notices to it."""
        notices: Notices = asyncio.Queue()
        reader = asyncio.create_task(self._read_reports(reports, notices))
        getter: asyncio.Future[pb.Notice | None] | None = None
        try:
            while True:
                getter = asyncio.ensure_future(notices.get())
                await asyncio.wait({getter, reader}, return_when=asyncio.FIRST_COMPLETED)
                if not getter.done():
                    reader.result()
                    return
                notice = getter.result()
                if notice is None:
                    return
                await self.durable()
                yield notice
        finally:
            reader.cancel()
            if getter is not None:
                getter.cancel()
            self.leads.unfollow(notices)

    async def _read_reports(self, reports: AsyncIterator[pb.Report], notices: Notices) -> None:
        async for report in reports:
            await self.views.reach(report.view)  # else a new job's view would undo this
            known = self.held(report.group)
            version = known.map.version if known is not None else 0
            await self.group(report.group, max(report.map_version, version))
            lead = self.leads.of(report.group)
            if lead is None:
                raise MovedError(f"{self.name} does not lead group {report.group!r}")
            lead.hear(report, self.views.lost(), notices)

    async def Explain(self, request: pb.ExplainRequest) -> pb.ExplainReply:
        """Whom a group's clock waits for."""
        lead = self.leads.of(request.group)
        if lead is None:
            raise InvalidRequestError(f"{self.name} does not lead a group {request.group!r}")
        return pb.ExplainReply(reason=lead.clock.waiting_for(self.views.names))

    async def Vectors(self, request: pb.VectorsRequest) -> pb.VectorsReply:
        """Linear algebra on the vectors of a group."""
        worker = await self.views.admit(request.worker)
        group = await self.group(request.group, request.map_version)
        job = request.worker.job
        space = self.vectors.of(group)
        reply = await space.operate(worker, request, lambda: self.views.check(worker, job))
        await self.durable()
        return reply

    async def AppliedSpans(self, request: pb.AppliedSpansRequest) -> pb.AppliedSpansReply:
        """What a lost worker's pushes were computed on, as far as they were applied."""
        await self.views.reach(request.view)
        worker = WorkerId(request.rank, request.incarnation)
        for key, session in list(self._owners.items()):
            if key[1] == worker:
                await session.close()
        groups = []
        for task in list(self._groups.values()):
            group = await asyncio.shield(task)
            await group.drained()
            spans = spans_to_proto(group.ledger.applied_spans(worker))
            groups.append(pb.GroupSpans(group=group.spec.name, spans=spans))
        await self.durable()
        return pb.AppliedSpansReply(groups=groups)

    async def Shrink(self, request: pb.ShrinkRequest) -> pb.ShrinkReply:
        """Rows of a table whose time has come are forgotten."""
        await self.views.admit(request.worker)
        group = await self.group(request.group, request.map_version)
        evicted = await shrink(group, self.workshop, request.clock, request.park_seconds)
        if evicted is None:
            return pb.ShrinkReply(pending=await self.explain(group))
        await self.durable()
        return pb.ShrinkReply(evicted=evicted)

    async def Describe(self, request: pb.DescribeRequest) -> pb.DescribeReply:
        """What status shows of this server."""
        return describe(self, self.fetched())

    def fetched(self) -> list[GroupState]:
        """The groups that are here."""
        return [
            t.result()
            for t in self._groups.values()
            if t.done() and not t.cancelled() and not t.exception()
        ]

    # The job

    def on_view(self, view: scheduler_pb2.View) -> None:
        """Takes a newer view; a new job begins empty."""
        if self.views.current.job and view.job != self.views.current.job:
            self.reset()
            if self.journal is not None:
                records.begun(self.journal, self.name, view.job)
        if self.views.update(view):
            self.snapshots.stir()
            for task in self._groups.values():
                if task.done() and not task.exception():
                    task.result().follow_bounds(view.bounds)
                    task.result().stir()
            self.leads.observe()
            self.reduces.observe(self.views)

    def reset(self) -> None:
        """Drops everything that belongs to a job."""
        self.reshape.clear()
        self.leads.clear()
        for group in self.fetched():
            group.close()
        for held in (self._groups, self._owners):
            held.clear()
        self.collectives.clear()
        self.vectors.clear()
        self.reduces.clear()
        self.snapshots.clear()

    def close(self) -> None:
        """Ends threads and streams."""
        self.reset()
        self.snapshots.close()
        self.workshop.close()
