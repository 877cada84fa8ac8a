"""Members of a job, their states, and which state may follow which."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from paramserver.types import WorkerId


class Role(Enum):
    SERVER = "server"
    WORKER = "worker"
    READER = "reader"


class State(Enum):
    JOINED = "joined"
    ACTIVE = "active"
    IDLE = "idle"
    FINISHED = "finished"
    LOST = "lost"


class JobState(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


_ORDER = {Role.SERVER: 0, Role.WORKER: 1, Role.READER: 2}
LIVE = frozenset({State.JOINED, State.ACTIVE, State.IDLE})
MOVES = {
    State.JOINED: frozenset({State.ACTIVE, State.IDLE, State.FINISHED, State.LOST}),
    State.ACTIVE: frozenset({State.JOINED, State.IDLE, State.FINISHED, State.LOST}),
    State.IDLE: frozenset({State.JOINED, State.ACTIVE, State.FINISHED, State.LOST}),
    State.FINISHED: frozenset[State](),
    State.LOST: frozenset[State](),
}


@dataclass(frozen=True, slots=True)
class Member:
    """One process. ``groups``: those in which a clock may wait for it; ``been``: it has been
    active or idle; ``reason``: why it is idle, or was lost; ``attempt``: how it registered."""

    name: str
    role: Role
    rank: int
    incarnation: int
    state: State = State.JOINED
    address: str = ""
    host: str = ""
    pid: int = 0
    groups: tuple[str, ...] = ()
    reason: str = ""
    been: bool = False
    attempt: str = ""

    @property
    def live(self) -> bool:
        return self.state in LIVE

    @property
    def preparing(self) -> bool:
        """It was active, and opened a data set before its first step: it will be again."""
        return self.state is State.JOINED and self.been


@dataclass(frozen=True, slots=True)
class View:
    """All members at one moment; servers first, then workers by rank, then readers.

    ``origin``: the job that this one goes on with after roll-backs; itself without any.
    """

    number: int
    job: int
    state: JobState
    message: str
    members: tuple[Member, ...]
    started: bool
    origin: int = 0


@dataclass(frozen=True, slots=True)
class Registered:
    """``replaced``: the older incarnation of the name, lost by this; ``new_job``: all state of
    the job before is void; ``resumed``: a server brings back the slices it held."""

    member: Member
    replaced: Member | None
    new_job: bool
    resumed: bool = False


@dataclass(frozen=True, slots=True)
class Caller:
    """Who says that it speaks."""

    name: str
    incarnation: int
    job: int


def worker_id(member: Member) -> WorkerId:
    """A worker as clocks, rounds and leases know it."""
    return WorkerId(member.rank, member.incarnation)


def rolled_back(job: int, now: int) -> str:
    """What a worker of job ``job`` is told once it has become job ``now``."""
    return (
        f"job {job} went back to a snapshot, as job {now}: what this process holds is of steps "
        "that were undone; start it again (`paramserver worker` and `run` do) and it goes on from "
        "the snapshot"
    )


def view_order(member: Member) -> tuple[int, int, int, str]:
    """Sorts servers before workers before readers; by length first, so ps-10 is behind ps-9."""
    return _ORDER[member.role], member.rank, len(member.name), member.name


def free_rank(name: str, prefix: str, taken: Iterable[int], expected: int) -> int:
    """3 for "worker-3", if that is free and such a rank expected; else the lowest free one."""
    used = set(taken)
    head, _, number = name.rpartition("-")
    if head == prefix and number.isascii() and number.isdecimal():
        wanted = int(number)
        if wanted < expected and wanted not in used:
            return wanted
    return next(rank for rank in itertools.count() if rank not in used)


def few(count: int, of: int, what: str) -> str:
    """``1 of 2 servers``; ``1 server`` where there is but one."""
    return f"{count} of {of} {what}s" if of > 1 else f"1 {what}"
