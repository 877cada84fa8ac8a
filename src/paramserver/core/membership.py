"""Who is in the job: names, incarnations, ranks, leases, states, and the number of the view.

    JOINED ──> ACTIVE <──> IDLE        any of these ──> FINISHED
       ^─────────┴───────────┘                      ──> LOST

A name that registers again gets a higher incarnation and keeps its rank; the older one is fenced.
An illegal event raises and changes nothing. The view number grows with every visible change.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from paramserver.core.members import (
    LIVE,
    MOVES,
    JobState,
    Member,
    Registered,
    Role,
    State,
    View,
    few,
    free_rank,
    view_order,
)
from paramserver.core.roster import Roster
from paramserver.errors import (
    InvalidRequestError,
    JobFailedError,
    ResourceError,
)

MAX_MEMBERS = 10_000
DESERTED_LEASES = 3
DESERTED_S = 30.0
_PREFIXES = {Role.SERVER: "ps", Role.WORKER: "worker", Role.READER: "reader"}


class Membership(Roster):
    """The members and the state of one job at a time.

    Args:
        workers, servers: how many must register before the job runs; a job that was rolled back
            waits for fewer workers if some had finished.
        lease_s: seconds without a word after which a member is lost.
        first_incarnation: incarnations grow from here.
    """

    def __init__(
        self, workers: int, servers: int, lease_s: float, first_incarnation: int = 1
    ) -> None:
        super().__init__(first_incarnation)
        self.mends = False  # whether others decide what becomes of a job that lost a server
        self.workers, self.servers, self.lease_s = workers, servers, lease_s
        self._expected = workers
        self.state = JobState.WAITING
        self.message = ""
        self.started = False
        self.can_roll_back = False
        self.waits = ""  # why the job may not start yet, though all are there
        self.arrivals = 0
        self._ranks: dict[str, int] = {}
        self._holders: set[str] = set()  # servers with slices of this job
        self._live_workers = 0
        self._live_servers = 0
        self._unbeen = 0  # live workers that were never active or idle
        self._deserted: float | None = None
        self._view: View | None = None

    def view(self) -> View:
        """The newest view; the same object until something changes."""
        if self._view is None or self._view.number != self.number:
            members = sorted(self._members.values(), key=view_order)
            self._view = View(
                self.number, self.job, self.state, self.message, tuple(members), self.started,
                self.origin,
            )  # fmt: skip
        return self._view

    def ended(self) -> bool:
        return self.state in (JobState.DONE, JobState.FAILED)

    def missing(self) -> str:
        """Whom the start of the job waits for, in words; empty: for nobody."""
        absent = []
        if self._live_servers < self.servers:
            absent.append(few(self.servers - self._live_servers, self.servers, "server"))
        if self._live_workers < self.workers and self.state is JobState.WAITING:
            absent.append(few(self.workers - self._live_workers, self.workers, "worker"))
        return f"waiting for {' and '.join(absent)}" if absent else self.waits

    def require_job(self) -> None:
        """Raises JobFailedError when the job has failed: nobody should go on working."""
        if self.state is JobState.FAILED:
            raise JobFailedError(self.message)

    # -- events

    def register(
        self,
        role: Role,
        name: str,
        now: float,
        *,
        address: str = "",
        host: str = "",
        pid: int = 0,
        attempt: str = "",
    ) -> Registered:
        """A process joins; a worker after the end of a job begins the next one.

        Args:
            attempt: whoever sends it again, as the answer was lost, is who it was.

        Raises:
            InvalidRequestError: the name belongs to another role.
            ResourceError: too many members.
        """
        for member in self._members.values():
            if attempt and member.live and member.attempt == attempt:
                return Registered(member, None, False)
        new_job = role is Role.WORKER and self.ended()
        self._check_register(role, name, new_job)
        if new_job:
            self._begin_job()
        name = name or self._free_name(role, address)
        old = self._members.get(name)
        replaced = self._leave(old, State.LOST, "a newer incarnation registered") if old else None
        self._incarnation += 1
        member = Member(
            name, role, self._rank_of(role, name), self._incarnation,
            address=address, host=host, pid=pid, attempt=attempt,
        )  # fmt: skip
        self._members[name] = member
        self._heard[name] = now
        self.arrivals += 1
        self._deserted = None if role is Role.WORKER else self._deserted
        self._count(member, +1)
        if replaced and name in self._holders:
            self._server_gone(f"server {name} restarted")
        self.changed()
        return Registered(member, replaced, new_job)

    def _check_register(self, role: Role, name: str, new_job: bool) -> None:
        old = self._members.get(name)
        dropped = new_job and old is not None and old.role is not Role.SERVER
        if old is not None and old.role is not role and not dropped:
            raise InvalidRequestError(f"name {name!r} belongs to a {old.role.value}; take another")
        if old is None and len(self._members) >= MAX_MEMBERS and not new_job:
            raise ResourceError(f"the job has {len(self._members)} members: no more are admitted")

    def resume(self, job: int, incarnation: int) -> None:
        """Nothing of this job has the number or an incarnation of one that went before.

        Args:
            job, incarnation: the newest ones of a snapshot.
        """
        if self.job <= job:
            self.job = self.origin = job + 1
        self._incarnation = max(self._incarnation, incarnation)
        self.waits = ""
        self.changed()

    def begin_job(self) -> None:
        """The next job begins, without a worker."""
        self._begin_job()
        self.changed()

    def _begin_job(self, origin: int | None = None) -> None:
        self.job += 1
        self.origin = self.job if origin is None else origin
        self.state, self.message, self.started = JobState.WAITING, "", False
        self.can_roll_back, self.waits, self.workers = False, "", self._expected
        self._deserted = None
        self._ranks.clear()
        self._holders.clear()
        for name in self._members.keys() - {m.name for m in self.live(Role.SERVER)}:
            del self._members[name], self._heard[name]
        self._live_workers = self._unbeen = 0

    def _free_name(self, role: Role, address: str) -> str:
        # A server whose answer was lost asks again: it must not count twice.
        if role is Role.SERVER and address:
            for member in self._members.values():
                if member.role is role and member.live and member.address == address:
                    return member.name
        number = 0
        while (old := self._members.get(f"{_PREFIXES[role]}-{number}")) and not (
            old.role is role and old.state is State.LOST
        ):
            number += 1
        return f"{_PREFIXES[role]}-{number}"

    def _rank_of(self, role: Role, name: str) -> int:
        if role is not Role.WORKER:
            return -1
        if name not in self._ranks:  # never given back: bound for the job
            taken = self._ranks.values()
            self._ranks[name] = free_rank(name, _PREFIXES[role], taken, self.workers)
        return self._ranks[name]

    def join_group(self, name: str, group: str) -> None:
        """A clock of that group may wait for this worker from now on."""
        member = self._worker(name)
        if group not in member.groups:
            self._members[name] = replace(member, groups=(*member.groups, group))
            self.changed()

    def hold(self, servers: Iterable[str], *, only: bool = False) -> None:
        """These servers hold slices from now on: the job fails when one of them restarts."""
        self._holders = set(servers) if only else self._holders.union(servers)

    def awaits(self, server: str) -> bool:
        """Whether a server is here, or holds slices that the job cannot go on without."""
        return server in self._holders or self._is_live_server(server)

    def move(self, names: Iterable[str], state: State, reason: str = "") -> None:
        """Workers become joined, active or idle, all in one view; all or none.

        Raises:
            InvalidRequestError: a member that is no live worker.
        """
        if state not in LIVE:
            raise InvalidRequestError(f"a worker does not move to {state.value} by itself")
        members = [self._worker(name) for name in names]
        for member in members:
            if member.state is not state and state not in MOVES[member.state]:
                raise InvalidRequestError(
                    f"{member.name} is {member.state.value}: it cannot become {state.value}"
                )
        changed = [m for m in members if m.state is not state or m.reason != reason]
        for member in changed:
            been = member.been or state is not State.JOINED
            self._unbeen -= been and not member.been
            self._members[member.name] = replace(member, state=state, reason=reason, been=been)
        if changed:
            self.changed()

    def finish(self, name: str) -> Member | None:
        """A member leaves of its own will; returns it as it was, None if it had left before.
        The job is done when its last worker has, and fails without a server it needs."""
        member = self._members.get(name)
        if member is None or member.state is State.FINISHED:
            return None
        if not self._leave(member, State.FINISHED, ""):  # lost: its last word came late
            self._members[name] = replace(member, state=State.FINISHED, reason="")
        if member.role is Role.SERVER and self._needs(name):
            self._server_gone(f"server {name} was stopped while the job ran")
        elif member.role is Role.WORKER and not self._live_workers:
            self._end()
        self.changed()
        return member

    def _needs(self, server: str) -> bool:
        """Whether the job cannot go on without a server that has left: spare ones may."""
        holds = server in self._holders or self._live_servers < self.servers
        return holds and self.state is JobState.RUNNING

    def _end(self) -> None:
        if self.state is JobState.RUNNING:
            self.state = JobState.DONE
        elif self.state is JobState.WAITING:
            self._fail(f"the last worker left before the job started: {self.missing()}")

    def lose(self, name: str, reason: str, now: float) -> Member | None:
        """A member is gone without a word of its own; returns it as it was, None if it had left."""
        member = self._members.get(name)
        if member is None or not member.live:
            return None
        self._leave(member, State.LOST, reason)
        if member.role is Role.SERVER and self._needs(name):
            self._server_gone(f"server {name} was lost: {reason}")
        elif member.role is Role.WORKER and not self._live_workers:
            self._deserted = now
        self.changed()
        return member

    def fail(self, message: str) -> bool:
        """The job fails; the first cause stays. Returns whether this was it."""
        first = not self.ended()
        if first:
            self._fail(message)
            self.changed()
        return first

    def silent(self, now: float) -> dict[str, str]:
        """Why members are to be lost, by name: those whose lease has lapsed."""
        quiet = {m.name: now - self._heard[m.name] for m in self._members.values() if m.live}
        return {n: f"not heard for {s:.1f} s" for n, s in quiet.items() if s > self.lease_s}

    def deserted(self, now: float) -> bool:
        """Whether a job that runs has been without any worker for too long."""
        running = self.state is JobState.RUNNING and self._deserted is not None
        return running and now - (self._deserted or 0.0) > self._grace_s

    @property
    def _grace_s(self) -> float:
        return max(DESERTED_S, DESERTED_LEASES * self.lease_s)

    def give_up(self) -> None:
        """A job that nobody came back to fails."""
        self._deserted = None
        self.fail(f"no worker is left, and none came back within {self._grace_s:.0f} s")

    def _leave(self, member: Member, state: State, reason: str) -> Member | None:
        if not member.live:
            return None
        self._count(member, -1)
        if member.role is Role.WORKER or (member.role is Role.SERVER and state is State.LOST):
            self._members[member.name] = replace(member, state=state, reason=reason)
        else:  # nobody needs to know of it any more
            del self._members[member.name], self._heard[member.name]
        return member

    def _count(self, member: Member, change: int) -> None:
        if member.role is Role.SERVER:
            self._live_servers += change
        elif member.role is Role.WORKER:
            self._live_workers += change
            self._unbeen += change if not member.been else 0

    def _server_gone(self, text: str) -> None:
        """The slices of a server are gone, where nobody keeps them."""
        if self.mends:
            return
        if self.can_roll_back and self.state is JobState.RUNNING:
            self.roll_back(text)
        else:
            self._fail(f"{text}; the slices it held are gone, and there is no snapshot")

    def roll_back(self, why: str) -> None:
        """The job begins anew, with the state of a snapshot: what was there is fenced.

        It waits until ``waits`` is empty, and for as many workers as had not finished.
        """
        workers = [m for m in self._members.values() if m.role is Role.WORKER]
        left = sum(member.state is not State.FINISHED for member in workers)
        self._begin_job(self.origin)
        self.workers = min(self.workers, max(1, left))
        self.waits = f"{why}: rolling back to the newest snapshot"
        self.changed()

    def _fail(self, message: str) -> None:
        if not self.ended():
            self.state, self.message = JobState.FAILED, message

    def changed(self) -> None:
        """A new view: something that members see is different."""
        full = self._live_workers >= self.workers and self._live_servers >= self.servers
        full = full and not self.waits
        if self.state is JobState.WAITING and full:
            self.state = JobState.RUNNING
        if self.state is JobState.RUNNING and not self._unbeen and self._live_workers:
            self.started = True
        self.number += 1

    def check_invariants(self) -> None:
        """Raises AssertionError when the parts disagree."""
        workers = [m for m in self._members.values() if m.role is Role.WORKER]
        assert len({m.rank for m in workers}) == len(workers), "two names share a rank"
        assert all(self._ranks[m.name] == m.rank for m in workers)
        incarnations = [m.incarnation for m in self._members.values()]
        assert len(set(incarnations)) == len(incarnations), "two members share an incarnation"
        assert self._live_workers == sum(m.live for m in workers)
        assert self._live_servers == len(self.live(Role.SERVER))
        assert self._unbeen == sum(m.live and not m.been for m in workers)
        assert self._heard.keys() == self._members.keys()
        assert not (self.started and self.state is JobState.WAITING)
        assert self.state is not JobState.DONE or not self._live_workers
