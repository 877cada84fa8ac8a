"""The lead of a group decides for all its servers; the others follow it over one stream each."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from typing import TypeAlias

from paramserver.core.clock import Advance, Close, Contribution, Cut, Decision, Drop, GroupClock
from paramserver.errors import ParameterServerError
from paramserver.ps import records
from paramserver.ps.group import GroupState
from paramserver.ps.views import Views
from paramserver.types import WorkerId
from paramserver.v1 import server_pb2 as pb
from paramserver.v1.journal_pb2 import LeadEvent
from paramserver.wire.convert import consistency_from_proto
from paramserver.wire.transport import AsyncChannel

log = logging.getLogger("paramserver")

KEPT_REPORTS = 4096
Notices: TypeAlias = "asyncio.Queue[pb.Notice | None]"  # None: a newer stream has come


def reports_of(group: GroupState) -> list[pb.Staged]:
    """What a lead must know of the pushes that are complete here."""
    if group.sync:
        told = [(s.worker, s.clock, s.weight) for s in group.staged.values()]
    else:
        told = [(worker, clock, 1.0) for worker, clock in group.ledger.applied()]
    return [
        pb.Staged(rank=w.rank, incarnation=w.incarnation, clock=clock, weight=weight)
        for w, clock, weight in told
    ]


def carry_out(group: GroupState, decision: Decision) -> None:
    """Does on this server what the lead decided."""
    if isinstance(decision, Advance):
        group.frontier.advance(decision.min_clock)
    else:
        group.decide(decision)


class Leadership:
    """The clock of a group, on its lead, and the queues to the servers that follow."""

    def __init__(self, group: GroupState) -> None:
        self._group = group
        holders = [group.map.servers[owner] for owner in sorted(set(group.map.owners))]
        self.clock = GroupClock(group.spec.consistency, holders)
        self._followers: dict[str, Notices] = {}

    def observe(self, views: Views) -> None:
        """Takes the newest view."""
        name, consistency = self._group.spec.name, self._group.consistency
        active = views.active(name, first=self.clock.min_clock == 0)
        started, lost, present = views.current.started, views.lost(), views.names
        if self._group.journal is not None:
            self._note(records.observed(started, active, lost, present, consistency))
        self.clock.consistency = consistency
        self._decide(self.clock.observe(started=started, active=active, lost=lost, present=present))

    def skip(self, worker: WorkerId) -> None:
        """A worker leaves the open clock to the others."""
        self._note(LeadEvent(skip=pb.Drop(rank=worker.rank, incarnation=worker.incarnation)))
        self._decide(self.clock.skip(worker))

    def cut(self, id_: int, clock: int) -> None:
        """Cuts the group at a clock, for a snapshot."""
        self._decide(self.clock.cut(id_, clock))

    def hold(self) -> int:
        """No clock closes until ``cut`` or ``go_on``; the next one."""
        return self.clock.hold()

    def go_on(self) -> None:
        """A hold ends."""
        self._decide(self.clock.go_on())

    def cut_now(self, id_: int) -> None:
        """A cut that is still due is made where the group stands."""
        self._decide(self.clock.cut_now(id_))

    def staged(self, server: str, staged: pb.Staged) -> None:
        """A server has a push complete; the word of one that holds no slice any more is late."""
        if server not in self.clock.servers:
            return
        worker = WorkerId(staged.rank, staged.incarnation)
        if self._group.journal is not None:
            self._note(LeadEvent(staged=pb.Report(server=server, staged=[staged])))
        self._decide(self.clock.staged(server, worker, staged.clock, staged.weight))

    def replay(self, event: LeadEvent) -> None:
        """Hears again what it heard before; its decisions were carried out, or will be."""
        kind = event.WhichOneof("kind")
        self.clock.hold()  # what closed is told: it is not decided a second time
        if kind == "closed":
            self.clock.enter(close_of(event.closed))
        elif kind == "observed":
            self.clock.consistency = consistency_from_proto(event.observed.consistency)
            self.clock.observe(
                started=event.observed.started,
                active=_workers(event.observed.active),
                lost=_workers(event.observed.lost),
                present=_workers(event.observed.present),
            )
        elif kind == "skip":
            self.clock.skip(WorkerId(event.skip.rank, event.skip.incarnation))
        elif kind == "restated":
            self.clock.restate(event.restated)
        for s in event.staged.staged:
            worker = WorkerId(s.rank, s.incarnation)
            self.clock.staged(event.staged.server, worker, s.clock, s.weight)

    def resume(self) -> None:
        """After a replay: carries out here what was decided and not done yet."""
        self.restate(self._group.server)
        if not self._group.sync:
            self._group.frontier.advance(self.clock.min_clock)
            return
        for decision in self.clock.closes_from(self._group.frontier.value):
            carry_out(self._group, decision)
        self._decide(self.clock.go_on())

    def restate(self, server: str) -> None:
        """What a server said of its staged pushes is void; it says so anew."""
        self._note(LeadEvent(restated=server))
        self.clock.restate(server)

    def _note(self, event: LeadEvent) -> None:
        if self._group.journal is not None:
            records.lead(self._group.journal, self._group.spec.name, event)

    def follow(
        self, server: str, next_clock: int, lost: Iterable[WorkerId], notices: Notices
    ) -> None:
        """A server follows, from a clock on; it hears of what it missed first.

        Drops come after closes: one of these may list a push of a worker that was lost later.
        """
        name = self._group.spec.name
        before = self._followers.get(server)
        if before is not None and before is not notices:
            before.put_nowait(None)  # whoever is at its other end says hello again
        self._followers[server] = notices
        self.restate(server)
        if self._group.sync:
            for decision in self.clock.closes_from(next_clock):
                notices.put_nowait(_notice(name, decision))
        else:
            notices.put_nowait(pb.Notice(group=name, min_clock=self.clock.min_clock))
        for worker in lost:
            notices.put_nowait(_notice(name, Drop(worker)))

    def hear(self, report: pb.Report, lost: Iterable[WorkerId], notices: Notices) -> None:
        """What a server says on the stream by which it is told ``notices``.

        It counts on the newest stream only: an older one may be that of a process that stood still,
        whose server another one is by now, and has other pushes.
        """
        server = report.server
        if report.hello:
            self.follow(server, report.next_clock, lost, notices)
        elif self._followers.get(server) is not notices:
            return
        for staged in report.staged:
            self.staged(server, staged)

    def reshape(self, servers: Collection[str]) -> None:
        """Slices have moved: these servers hold some now, and are to follow."""
        for server in [s for s in self._followers if s not in servers]:
            del self._followers[server]
        self._decide(self.clock.reshape(sorted(servers)))

    def unfollow(self, notices: Notices) -> None:
        """The stream of a server ended."""
        for server in [s for s, q in self._followers.items() if q is notices]:
            del self._followers[server]

    def _decide(self, decisions: Sequence[Decision]) -> None:
        for decision in decisions:
            if isinstance(decision, Close) and self._group.journal is not None:
                self._note(LeadEvent(closed=close_to(decision)))
            notice = _notice(self._group.spec.name, decision)
            for notices in self._followers.values():
                notices.put_nowait(notice)
            carry_out(self._group, decision)


def staged_of(worker: WorkerId, clock: int, weight: float) -> pb.Staged:
    """What a server says of a complete push."""
    return pb.Staged(rank=worker.rank, incarnation=worker.incarnation, clock=clock, weight=weight)


def _workers(listed: Iterable[pb.Staged]) -> list[WorkerId]:
    return [WorkerId(each.rank, each.incarnation) for each in listed]


def close_to(close: Close) -> pb.Close:
    """A closed clock on the wire."""
    listed = [staged_of(c.worker, close.clock, c.weight) for c in close.contributors]
    return pb.Close(clock=close.clock, contributors=listed)


def close_of(close: pb.Close) -> Close:
    """As ``close_to``, back."""
    listed = (Contribution(WorkerId(s.rank, s.incarnation), s.weight) for s in close.contributors)
    return Close(close.clock, tuple(listed))


def _notice(group: str, decision: Decision) -> pb.Notice:
    if isinstance(decision, Close):
        return pb.Notice(group=group, close=close_to(decision))
    if isinstance(decision, Advance):
        return pb.Notice(group=group, min_clock=decision.min_clock)
    if isinstance(decision, Cut):
        return pb.Notice(group=group, cut=pb.Cut(id=decision.id, clock=decision.clock))
    worker = decision.worker
    return pb.Notice(group=group, drop=pb.Drop(rank=worker.rank, incarnation=worker.incarnation))


def _decision(notice: pb.Notice) -> Decision:
    kind = notice.WhichOneof("kind")
    if kind == "close":
        return close_of(notice.close)
    if kind == "min_clock":
        return Advance(notice.min_clock)
    if kind == "cut":
        return Cut(notice.cut.id, notice.cut.clock)
    return Drop(WorkerId(notice.drop.rank, notice.drop.incarnation))


class Following:
    """This server's stream to one lead: reports up, notices down; made again when it breaks.

    Args:
        locate: the lead's address at the moment.
        connect: opens a channel to an address.
    """

    def __init__(
        self,
        server: str,
        views: Views,
        locate: Callable[[], str],
        connect: Callable[[str], AsyncChannel],
    ) -> None:
        self._server = server
        self._views = views
        self._locate, self._connect = locate, connect
        self._at = ""  # where the present stream goes
        self._reading: asyncio.Future[bool] | None = None
        self._groups: dict[str, GroupState] = {}
        self._sent: dict[str, deque[pb.Staged]] = {}
        self._reports: asyncio.Queue[pb.Report] = asyncio.Queue()
        self._task = asyncio.create_task(self._run())

    def add(self, group: GroupState, reports: Iterable[pb.Staged] = ()) -> None:
        """Follows the lead in one more group; ``reports``: what it may not know."""
        name = group.spec.name
        self._groups[name] = group
        self._sent[name] = deque(reports, maxlen=KEPT_REPORTS)
        self._reports.put_nowait(self._hello(group))

    def remove(self, name: str) -> bool:
        """Follows in one group less; whether it was the last."""
        self._groups.pop(name, None)
        self._sent.pop(name, None)
        return not self._groups

    def report(self, group: GroupState, staged: pb.Staged) -> None:
        """Tells the lead that a push is complete on this server."""
        name = group.spec.name
        if not group.sync:
            self._sent[name].append(staged)
        self._reports.put_nowait(self._report(group, [staged]))

    def look(self) -> None:
        """Leaves a stream to where the lead is no more; it may never break by itself."""
        if self._reading is not None and self._locate() != self._at:
            self._reading.cancel()

    def close(self) -> None:
        """Ends the stream."""
        self._task.cancel()

    def _report(self, group: GroupState, staged: Sequence[pb.Staged]) -> pb.Report:
        return pb.Report(
            server=self._server,
            group=group.spec.name,
            map_version=group.map.version,
            staged=staged,
            view=self._views.current.number,
        )

    def _hello(self, group: GroupState) -> pb.Report:
        """After a break the lead may have missed reports: it hears the kept ones again."""
        name, next_clock = group.spec.name, group.frontier.value
        if group.sync:  # all that is staged now: the lead forgets what it heard before
            staged = [
                staged_of(push.worker, push.clock, push.weight)
                for push in group.staged.values()
                if push.clock >= next_clock
            ]
        else:
            staged = list(self._sent[name])
        report = self._report(group, staged)
        report.hello = True
        report.next_clock = next_clock
        return report

    async def _run(self) -> None:
        pause = 0.05
        while True:
            self._at = self._locate()
            channel = self._connect(self._at)
            self._reading = asyncio.ensure_future(self._read(channel))
            try:
                await asyncio.wait({self._reading})
                if self._reading.cancelled() or self._reading.result():
                    pause = 0.05
            finally:
                self._reading.cancel()
                await channel.close()
            await asyncio.sleep(pause)
            pause = min(2 * pause, 2.0)
            self._reports = asyncio.Queue()
            for group in self._groups.values():
                self._reports.put_nowait(self._hello(group))

    async def _read(self, channel: AsyncChannel) -> bool:
        """Carries out notices until the stream breaks; whether there were any."""
        heard = False
        try:
            async for notice in channel.duplex("Follow", self._outgoing()):
                heard = True
                if notice.group in self._groups:  # else its slices have moved away
                    carry_out(self._groups[notice.group], _decision(notice))
        except ParameterServerError as error:
            log.warning("lost the lead: %s", error)
        return heard

    async def _outgoing(self) -> AsyncIterator[pb.Report]:
        reports = self._reports
        while True:
            report = await reports.get()
            journal = self._groups[report.group].journal
            if journal is not None:  # nobody counts on a push that a restart would lose
                await journal.durable()
            yield report
