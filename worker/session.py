"""This process as a member of the job: its identity, its lease, and how it leaves."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from paramserver.config import ClientConfig
from paramserver.errors import (
    ConnectionLostError,
    FencedError,
    JobFailedError,
    ParameterServerError,
    RolledBackError,
    UsageError,
)
from paramserver.types import PROTOCOL_VERSION, StepResult
from paramserver.v1 import common_pb2, scheduler_pb2
from paramserver.wire.transport import Channel
from paramserver.worker.batches import Batches, Ticket
from paramserver.worker.directory import Directory
from paramserver.worker.drain import Drain
from paramserver.worker.figures import Figures
from paramserver.worker.identity import check_version, farewell, forked_error, write_identity
from paramserver.worker.lookahead import Lookahead
from paramserver.worker.newest_view import NewestView
from paramserver.worker.patience import PatientChannel
from paramserver.worker.run_file import RunFile
from paramserver.worker.speed import Speed
from paramserver.worker.start import await_start
from paramserver.worker.substitutes import Substitutes
from paramserver.worker.waiting import long_poll

logger = logging.getLogger("paramserver")

LEAVE_S = 5.0


class Session:
    """Membership of one client, shared by everything the client hands out; thread-safe.

    Attributes:
        config: what the client was told.
        scheduler: the channel to the scheduler; it outlasts one that is started again.
        name, rank, incarnation, job: who this is; rank -1 for a reader. workers: expected.
        party, parties, replica: its features, and the replica whose samples it works on.
        launched, snapshots: a launcher started this; snapshots are taken. epoch: of its loop.
        goes_on: the job began from a snapshot, or is about to.
        identity_file: where the launcher looks for who this is, and then says how it ended.
        batches, speed: samples handed out, and their pushes; how fast this worker computes.
        substitutes: what acts for this worker while it waits for others.
        run_file, lookahead: what is written down of the run; the batch that comes next.
        directory, drain: where servers are now; whether this worker was asked to end.
    """

    def __init__(
        self,
        config: ClientConfig,
        scheduler: Channel,
        *,
        launched: bool = False,
        identity_file: Path | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.name = config.name or ""
        self.rank, self.parties = -1, 1
        self.incarnation = self.job = self.workers = self.party = self.replica = self.epoch = 0
        self.directory = Directory(scheduler, self._check_over)
        self.batches = Batches()
        self.drain = Drain()
        self.substitutes = Substitutes()
        self.lookahead = Lookahead()
        self.launched, self.snapshots, self.goes_on = launched, False, False
        self.identity_file = identity_file
        self._now = now
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._newest = NewestView(self._fetch_view, lambda view: self.directory.learn(view))
        self._end: ParameterServerError | None = None
        self._left = self._away = False
        self._heartbeat_s, self._lease_s = 1.0, 10.0
        self._clocks: dict[str, Callable[[], int]] = {}
        self._settles: list[Callable[[], None]] = []
        self._chores: list[Callable[[], None]] = []
        self._listeners: list[Callable[[scheduler_pb2.HeartbeatReply], None]] = []
        self._figures = Figures()
        self._fastest = 0.0
        self._stop = threading.Event()
        self.scheduler = PatientChannel(
            scheduler, config.wait_timeout, self._check_over, self._stop.wait, now
        )
        self.run_file = RunFile()
        self.speed = Speed(now, self._stop.wait, config.emulation)
        self._thread: threading.Thread | None = None

    def open(self) -> None:
        """Registers, keeps the lease from then on, and returns when the job may start.

        Raises:
            ConnectionLostError: no scheduler answered within ``config.timeout`` seconds.
            WaitTimeoutError: no role arrived for ``config.timeout`` seconds, and some are missing.
            VersionError: the scheduler speaks another protocol version.
        """
        self._register()
        self._thread = threading.Thread(target=self._keep, name="paramserver lease", daemon=True)
        self._thread.start()
        try:
            self._newest.learn(await_start(self, self._now))
            self.run_file.open(self.config, self)
        except BaseException:
            self.leave()
            raise

    def _register(self) -> None:
        reader = self.config.reader
        request = scheduler_pb2.RegisterRequest(
            protocol=PROTOCOL_VERSION,
            role=scheduler_pb2.ROLE_READER if reader else scheduler_pb2.ROLE_WORKER,
            name=self.name,
            host=socket.gethostname(),
            pid=self._pid,
            attempt=uuid.uuid4().hex,
        )
        reply = self.scheduler.call("Register", request, timeout=self.config.timeout)
        check_version(reply.protocol)
        who = reply.identity
        self.name, self.rank = who.name, who.rank
        self.incarnation, self.job, self.workers = who.incarnation, who.job, reply.workers
        self.party, self.parties, self.replica = reply.party, max(reply.parties, 1), reply.replica
        self._heartbeat_s, self._lease_s = reply.heartbeat_s, reply.lease_s
        self.snapshots, self.goes_on = reply.snapshots, reply.goes_on
        self.saw_view(who.view)
        if self.identity_file is not None:
            write_identity(self.identity_file, self)

    def identity(self) -> common_pb2.Identity:
        """Who speaks, with the newest view seen."""
        name, rank, view = self.name, self.rank, self._newest.number
        return common_pb2.Identity(
            name=name, incarnation=self.incarnation, rank=rank, view=view, job=self.job
        )

    def saw_view(self, number: int) -> None:
        """A reply named this view; later requests carry it."""
        self._newest.saw(number)

    def view(self) -> scheduler_pb2.View:
        """The newest view, fetched if another reply named a newer one; else the last one known."""
        return self._newest.get()

    def _fetch_view(self) -> scheduler_pb2.View | None:
        if self._away:
            return None
        view: scheduler_pb2.View = self.scheduler.call(
            "GetView", scheduler_pb2.GetViewRequest(), timeout=self._lease_s / 3
        )
        return view

    @property
    def forked(self) -> bool:
        """Whether this is a forked child of the process that connected."""
        return os.getpid() != self._pid

    def check(self) -> None:
        """Raises if this client must not go on; cheap.

        Raises:
            ForkedClientError: called in a forked child.
            FencedError: another process has this name now, or the lease was lost.
            JobFailedError: the job failed elsewhere.
            UsageError: this client has finished.
        """
        if self.forked:
            raise forked_error(self.name, self._pid)
        self._check_over()
        if self._left:
            raise UsageError(f"client {self.name!r} has finished; call paramserver.connect again")

    def _check_over(self) -> None:
        if self._end is not None:
            raise type(self._end)(str(self._end))

    def refuse_reader(self, what: str) -> None:
        """Raises UsageError in a reader."""
        if self.config.reader:
            raise UsageError(f"{what}: a reader may only read; connect without reader=True")

    def poll(
        self,
        method: str,
        make_request: Callable[[float], Message],
        done: Callable[[Any], bool],
        what: str,
        *,
        substitute: bool = True,
    ) -> Any:
        """Asks until ``done(reply)``; the reply.

        Args:
            method: rpc of the scheduler whose reply has ``pending``.
            make_request: from the seconds that the scheduler may park the call.
            what: what is waited for, in words.
            substitute: let replicas of this worker take part in others' steps meanwhile.

        Raises:
            WaitTimeoutError: after ``config.wait_timeout`` seconds; says whom it waited for.
        """

        def ask(wait_s: float) -> Any:
            self.check()
            self.substitutes.check()
            return self.scheduler.call(method, make_request(wait_s))

        waits = self.speed.waiting(), self.run_file.waiting(what), self.drain.interruptible()
        with waits[0], waits[1], self.substitutes.standing_in(substitute), waits[2]:
            return long_poll(ask, done, what, self.config.wait_timeout, self._now)

    def add_group(self, name: str, clock: Callable[[], int], settle: Callable[[], None]) -> None:
        """A group was opened.

        Args:
            clock: its clock, for heartbeats.
            settle: returns when every push it issued is applied or dropped.
        """
        self._clocks[name] = clock
        self._settles.append(settle)
        self.batches.add_group(name)

    @property
    def clock(self) -> int:
        """The furthest clock of the groups that were opened; 0 without one."""
        return max((clock() for clock in list(self._clocks.values())), default=0)

    def add_chore(self, chore: Callable[[], None]) -> None:
        """Something small to do with every heartbeat, in the heartbeat's thread."""
        self._chores.append(chore)

    def add_listener(self, hear: Callable[[scheduler_pb2.HeartbeatReply], None]) -> None:
        """Told every answer to a heartbeat, in the heartbeat's thread; must not wait."""
        self._listeners.append(hear)

    def before_settle(self, flush: Callable[[], None]) -> None:
        """Something to push before all is settled: before waits for others, ends of passes."""
        self._settles.insert(0, flush)

    def settle(self) -> None:
        """Returns when every push of every group is applied or dropped, and none is kept back."""
        for settle in self._settles:
            settle()

    def samples_since(self, group: str) -> int | None:
        """Samples handed out since the last push of a group; None if none ever were."""
        return self.batches.samples_since(group)

    def begin_push(self, group: str) -> Ticket:
        """A push starts; its ticket has the sample spans to declare. To be settled or aborted."""
        self.drain.push_begins()
        ticket = self.batches.begin(group)
        drawn = sum(b.samples for b in ticket.carried if self.batches.is_automatic(b.dataset))
        if drawn:
            self.speed.lap(self.rank, drawn)
        return ticket

    def settle_push(self, ticket: Ticket, *, dropped: bool = False) -> None:
        """The push was applied, or dropped; once. Thread-safe, no I/O."""
        self.batches.settle(ticket, dropped=dropped)
        if not dropped:
            self._figures.samples(sum(span.stop - span.start for span in ticket.spans))

    def abort_push(self, ticket: Ticket) -> None:
        """The push was refused or failed: the next push carries its batches."""
        self.batches.abort(ticket)

    def count(self, result: StepResult, samples: float = 0.0) -> None:
        """Adds a push, and samples that no loader handed out, to the heartbeat's figures."""
        self.run_file.step(result, self._figures.step(result, samples))

    def _keep(self) -> None:
        while not self._stop.wait(self._heartbeat_s):
            self.beat()

    def beat(self) -> None:
        """One heartbeat and the chores; raises nothing, what it learns is for ``check``."""
        stats = self._figures.now()
        if speed := self.speed.per_second:
            stats["speed"] = speed
        clocks = [
            scheduler_pb2.GroupClock(group=name, clock=clock())
            for name, clock in list(self._clocks.items())
        ]
        request = scheduler_pb2.HeartbeatRequest(member=self.identity(), clocks=clocks, stats=stats)
        try:
            reply = self.scheduler.call("Heartbeat", request, timeout=self._lease_s / 3)
            self._heard(reply)
        except FencedError as error:
            self._end = error
            self._stop.set()
        except ConnectionLostError as error:
            if not self._away:
                logger.warning("scheduler away, going on without it: %s", error)
            self._away = True
        except Exception:
            logger.exception("heartbeat of %s", self.name)
        else:
            self._do_chores()

    def _do_chores(self) -> None:
        for chore in list(self._chores):
            try:
                chore()
            except ParameterServerError as error:
                logger.warning("with the heartbeat of %s: %s", self.name, error)
            except Exception:
                logger.exception("with the heartbeat of %s", self.name)

    def _heard(self, reply: scheduler_pb2.HeartbeatReply) -> None:
        if self._away:
            logger.warning("scheduler is back")
        self._away = False
        self._fastest = reply.fastest
        for listen in list(self._listeners):
            listen(reply)
        self.saw_view(reply.view)
        if reply.state == scheduler_pb2.JOB_FAILED:
            self._end = JobFailedError(reply.message or "the job failed")
        self.view()

    def pace(self) -> float:
        """This worker's measured speed as a share of the fastest's, in (0, 1]; 1.0 at first."""
        own = self.speed.per_second
        return min(1.0, own / self._fastest) if own and self._fastest else 1.0

    @property
    def over(self) -> bool:
        """Whether the job failed or this member was fenced: there is nobody to tell anything."""
        return self._end is not None

    def stop(self) -> None:
        """Ends the heartbeat; nothing more can be done with this session."""
        self._left = True
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=LEAVE_S)
        self.run_file.close()

    def leave(self, failure: str | None = None, *, fatal: bool = False, code: int = 0) -> None:
        """Tells the scheduler that this member goes, and stops the heartbeat; at most once.

        Args:
            failure: why it failed; None: it has finished.
            fatal: the whole job fails with this cause.
            code: exit code of the process, with ``failure``.
        """
        if self.forked:
            return
        with self._lock:
            if self._left:
                return
            self._left = True
        try:
            if self._end is None:
                method, request = farewell(self.identity(), failure, fatal=fatal, code=code)
                self.scheduler.call(method, request, timeout=LEAVE_S)
        except FencedError as error:
            self._end = error
            logger.warning("left already: %s", error)
        finally:
            self.stop()
        if failure is None and isinstance(self._end, RolledBackError):
            raise self._end  # what was finished was undone

    @property
    def left(self) -> bool:
        """Whether this member has finished or failed."""
        return self._left
