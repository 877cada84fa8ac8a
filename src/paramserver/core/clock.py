"""When a clock closes, and for whom it waits: the lead of a group decides here, for all servers."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from operator import itemgetter
from typing import Any

from paramserver.core.cuts import Cuts
from paramserver.core.decisions import (
    Advance,
    Close,
    Contribution,
    Cut,
    Decision,
    Drop,
    may_read,
)
from paramserver.core.marks import Mark, Progress
from paramserver.errors import ClockError, ConfigurationError, FencedError, InvalidRequestError
from paramserver.types import Async, Consistency, Sync, WorkerId, canonical

__all__ = [
    "KEPT_CLOSES",
    "Advance",
    "Close",
    "Contribution",
    "Cut",
    "Decision",
    "Drop",
    "GroupClock",
    "may_read",
]

KEPT_CLOSES = 64


class GroupClock:
    """The clocks of one group, kept by its lead.

    Events go in (a view, a push staged or applied on a server), decisions come out, to be carried
    out by every server in the order given. Not thread-safe; never blocks.

    Args:
        consistency: the group's; ``Stale(0)`` counts as ``Sync()``.
        servers: names of all servers that hold slices of the group, the lead among them.

    Attributes:
        servers: those that hold slices.
        next_clock: Sync: the first clock that has not closed.
        consistency: canonical; the bound of ``Stale`` may be changed at any time.
    """

    def __init__(self, consistency: Consistency, servers: Sequence[str]) -> None:
        if not servers or len(set(servers)) != len(servers):
            raise ConfigurationError(f"servers={list(servers)}: at least one, each named once")
        self.consistency = canonical(consistency)
        self._sync = isinstance(self.consistency, Sync)
        self.servers = frozenset(servers)
        self._workers: dict[WorkerId, Progress] = {}
        self._active: frozenset[WorkerId] = frozenset()
        self._fence: dict[int, int] = {}  # rank: newest incarnation that is lost
        self._started = False
        self._min = 0
        self._closes: deque[Close] = deque(maxlen=KEPT_CLOSES)
        self.cuts = Cuts()
        self.next_clock = 0

    @property
    def min_clock(self) -> int:
        """Clocks that count as complete: the ``frontier`` of ``may_read``."""
        return self.next_clock if self._sync else self._min

    @property
    def workers(self) -> dict[WorkerId, int]:
        """The clock of every worker known here, lost ones left out."""
        return {worker: known.clock for worker, known in self._workers.items()}

    def observe(
        self,
        *,
        started: bool,
        active: Collection[WorkerId],
        lost: Collection[WorkerId],
        present: Collection[WorkerId] = (),
    ) -> list[Decision]:
        """Takes the newest view.

        Args:
            started: all expected workers have been active or idle once; until then nothing closes.
            active: workers that clocks of this group wait for.
            lost: incarnations that are lost, in this view or an earlier one.
            present: incarnations of the view, active or not: the older ones of their ranks are
                lost too, as are those of ``active``. What they staged may have gone back to the
                queue already, and must be in no clock from now on.
        """
        self._started = self._started or started
        decisions: list[Decision] = []
        for worker in sorted(lost):
            decisions += self._lose(worker.rank, worker.incarnation, named=worker)
        for worker in sorted({*active, *present}):
            decisions += self._lose(worker.rank, worker.incarnation - 1)
        live = frozenset(w for w in active if not self._fenced(w))
        for worker in live - self._active:
            self._raise_to(worker, self.min_clock)
        self._active = live
        return decisions + self._proceed()

    def staged(self, server: str, worker: WorkerId, clock: int, weight: float) -> list[Decision]:
        """A push is complete on one server: staged under Sync, applied otherwise.

        Reports heard before, of closed clocks and of lost workers change nothing.
        """
        if server not in self.servers:
            raise InvalidRequestError(
                f"server {server!r} holds no slice of this group; "
                f"its servers are {', '.join(sorted(self.servers))}"
            )
        if self._fenced(worker):
            return []
        known = self._workers.setdefault(worker, Progress(self.min_clock))
        if clock < (self.next_clock if self._sync else known.clock):
            return []
        known.marks.setdefault(clock, Mark(weight)).servers.add(server)
        self._advance(known)
        return self._proceed()

    def activate(self, worker: WorkerId) -> int:
        """The clock that an active worker is on: max(its own, min_clock). Idempotent.

        Raises:
            FencedError: this incarnation is lost.
            ClockError: it is not active in the newest view observed.
        """
        if self._fenced(worker):
            raise FencedError(
                f"rank {worker.rank}, incarnation {worker.incarnation}: lost, or a newer one came"
            )
        if worker not in self._active:
            raise ClockError(
                f"rank {worker.rank} is not active in this group: no clock waits for it; "
                "set it active at the scheduler first"
            )
        return self._workers[worker].clock

    def skip(self, worker: WorkerId) -> list[Decision]:
        """A worker that has just become active leaves the open clock to the others (Sync).

        It does so where another of its groups is a step ahead: the others are between the two, and
        would wait for it here while it waits for them there.
        """
        if self._sync and worker in self._active:
            self._raise_to(worker, self.next_clock + 1)
        return self._proceed()

    def cut(self, id_: int, clock: int) -> list[Decision]:
        """Cuts the group once all clocks below this one have closed; ends a hold.

        Raises:
            InvalidRequestError: the group has no clocks that close (Stale, Async).
            ClockError: the clock has closed.
        """
        if not self._sync:
            raise InvalidRequestError("only Sync groups are cut at a clock; hold the others")
        if clock < self.next_clock:
            raise ClockError(f"cut at clock {clock}: it has closed, {self.next_clock} is the next")
        self.cuts.ask(id_, clock)
        return [*self.cuts.at(self.next_clock), *self._proceed()]

    def cut_now(self, id_: int) -> list[Decision]:
        """A cut that is still due is made where the group stands."""
        return self.cut(id_, self.next_clock) if self.cuts.due(id_) else []

    def hold(self) -> int:
        """No clock closes until ``cut`` or ``go_on``; the next one."""
        self.cuts.limit = self.next_clock
        return self.next_clock

    def go_on(self) -> list[Decision]:
        """A hold ends."""
        self.cuts.limit = None
        return self._proceed()

    def resume(self, clock: int) -> None:
        """A restored group goes on at this clock; to be called before anything else."""
        self.next_clock = clock if self._sync else 0
        self._min = 0 if self._sync else clock

    def reshape(self, servers: Sequence[str]) -> list[Decision]:
        """Slices have moved: these hold some now; what a new one has of pushes it tells itself."""
        self.servers = frozenset(servers)
        self._recount(self.servers)
        return self._proceed()

    def restate(self, server: str) -> None:
        """A server says anew what it has staged: its process may have ended, and lost some."""
        if self._sync:
            self._recount(self.servers - {server})

    def _recount(self, told: frozenset[str]) -> None:
        """What other servers than these have said of pushes under way is void."""
        for known in self._workers.values():
            for mark in known.marks.values():
                mark.servers &= told
            # Sync keeps marks until their clock closes; clocks that were skipped have none.
            known.clock = min(
                (c for c in known.marks if c < known.clock and not self._complete(known, c)),
                default=known.clock,
            )
            self._advance(known)

    def enter(self, close: Close) -> None:
        """The open clock has closed like this: decided here, or before a restart."""
        self._closes.append(close)
        self.next_clock = close.clock + 1
        for known in self._workers.values():
            known.marks.pop(close.clock, None)
        for worker in self._active:
            self._raise_to(worker, self.next_clock)

    def worker_clock(self, worker: WorkerId) -> int:
        """The first clock of the worker that is not complete on every server."""
        known = self._workers.get(worker)
        return self.min_clock if known is None else known.clock

    def waiting_for(self, names: Mapping[WorkerId, str]) -> str:
        """Whom the open clock waits for, in words; empty when nobody is waited for."""
        if isinstance(self.consistency, Async):
            return ""
        clock = self.min_clock
        if not self._started:
            return f"clock {clock} waits for all expected workers to have been active or idle"
        missing = sorted(w for w in self._active if self._workers[w].clock <= clock)
        if not missing or not self._someone_waits():
            return ""
        spare = self.consistency.backup if isinstance(self.consistency, Sync) else 0
        count = f"{max(1, len(missing) - spare)} of " if spare else ""
        told = ", ".join(f"{names.get(w, f'rank {w.rank}')} ({self._progress(w)})" for w in missing)
        return f"clock {clock} waits for {count}{told}"

    def closes_from(self, clock: int) -> list[Decision]:
        """The closes of ``clock`` and later, and the newest cut, for a server that follows again.

        Raises:
            ClockError: they are not kept any more.
        """
        oldest = self.next_clock - len(self._closes)
        if clock < oldest:
            raise ClockError(f"close of clock {clock} is gone: the oldest kept is {oldest}")
        decided: list[Decision] = [close for close in self._closes if close.clock >= clock]
        cut = self.cuts.newest
        if cut is not None and cut.clock >= clock:
            decided.insert(cut.clock - clock, cut)
        return decided

    def dump(self) -> dict[str, Any]:
        """All of it as JSON-able values; cuts that are due are left out."""
        return {
            "next_clock": self.next_clock,
            "min": self._min,
            "started": self._started,
            "active": sorted(self._active),
            "fence": sorted(self._fence.items()),
            "workers": [
                [
                    *worker,
                    known.clock,
                    [[c, mark.weight, sorted(mark.servers)] for c, mark in known.marks.items()],
                ]
                for worker, known in sorted(self._workers.items())
            ],
            "closes": [
                [close.clock, [[*c.worker, c.weight] for c in close.contributors]]
                for close in self._closes
            ],
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Becomes what another of the same consistency and servers has dumped."""
        self.next_clock, self._min = state["next_clock"], state["min"]
        self._started = state["started"]
        self._active = frozenset(WorkerId(*worker) for worker in state["active"])
        self._fence = dict(state["fence"])
        self._workers = {
            WorkerId(rank, incarnation): Progress(
                clock, {c: Mark(weight, set(servers)) for c, weight, servers in marks}
            )
            for rank, incarnation, clock, marks in state["workers"]
        }
        self._closes.clear()
        for clock, listed in state["closes"]:
            contributors = (Contribution(WorkerId(r, i), weight) for r, i, weight in listed)
            self._closes.append(Close(clock, tuple(contributors)))

    def check_invariants(self) -> None:
        """Raises AssertionError where the state cannot be."""
        for worker, known in self._workers.items():
            assert not self._fenced(worker), f"{worker} is lost but has a clock"
            floor = self.next_clock if self._sync else known.clock
            assert all(clock >= floor for clock in known.marks), f"{worker} has passed marks"
            assert all(m.servers <= self.servers for m in known.marks.values())
            assert not self._complete(known, known.clock), f"{worker} should have advanced"
            if self._sync:
                done = range(self.next_clock, known.clock)
                assert all(self._complete(known, c) for c in done), f"{worker} skipped a clock"
        for worker in self._active:
            assert self._workers[worker].clock >= self.min_clock, f"{worker} is below min_clock"
        clocks = [close.clock for close in self._closes]
        assert clocks == list(range(self.next_clock - len(clocks), self.next_clock))
        for close in self._closes:
            assert close.contributors, f"clock {close.clock} closed without a push"
            ranks = [c.worker.rank for c in close.contributors]
            assert ranks == sorted(set(ranks)), f"clock {close.clock}: not one push per rank"

    def _fenced(self, worker: WorkerId) -> bool:
        return worker.incarnation <= self._fence.get(worker.rank, -1)

    def _lose(self, rank: int, newest: int, named: WorkerId | None = None) -> list[Decision]:
        """Incarnations of a rank up to ``newest`` are lost; each is dropped once."""
        if newest <= self._fence.get(rank, -1):
            return []
        gone = {w for w in self._workers if w.rank == rank and w.incarnation <= newest}
        if named is not None:  # followers may hold pushes of which nothing was reported
            gone.add(named)
        self._fence[rank] = newest
        for worker in gone:
            self._workers.pop(worker, None)
        self._active -= gone
        return [Drop(worker) for worker in sorted(gone)]

    def _raise_to(self, worker: WorkerId, clock: int) -> None:
        known = self._workers.setdefault(worker, Progress(clock))
        known.clock = max(known.clock, clock)
        self._advance(known)

    def _advance(self, known: Progress) -> None:
        """Moves a worker past the clocks it has completed everywhere."""
        while self._complete(known, known.clock):
            if not self._sync:
                del known.marks[known.clock]
            known.clock += 1
        if not self._sync:
            for clock in [c for c in known.marks if c < known.clock]:
                del known.marks[clock]

    def _complete(self, known: Progress, clock: int) -> bool:
        mark = known.marks.get(clock)
        return mark is not None and len(mark.servers) == len(self.servers)

    def _proceed(self) -> list[Decision]:
        if not self._started:
            return []
        decisions: list[Decision] = []
        if self._sync:
            while (close := self._close()) is not None:
                decisions += [close, *self.cuts.at(self.next_clock)]
        else:
            lowest = min((self._workers[w].clock for w in self._active), default=self._min)
            if lowest > self._min:
                self._min = lowest
                decisions.append(Advance(lowest))
        return decisions

    def _close(self) -> Close | None:
        """Closes the open clock if nobody that counts is missing."""
        assert isinstance(self.consistency, Sync)
        clock = self.next_clock
        if clock == self.cuts.limit:
            return None
        missing = sum(self._workers[w].clock <= clock for w in self._active)
        if missing > self.consistency.backup:
            return None
        contributors = tuple(
            Contribution(worker, known.marks[clock].weight)
            for worker, known in sorted(self._workers.items(), key=itemgetter(0))
            if self._complete(known, clock)
        )
        if not contributors:
            return None
        close = Close(clock, contributors)
        self.enter(close)
        return close

    def _someone_waits(self) -> bool:
        """Whether a worker is so far ahead that its next read has to wait."""
        clocks = [known.clock for known in self._workers.values()]
        return self._sync or not all(
            may_read(self.consistency, clock, self._min) for clock in clocks
        )

    def _progress(self, worker: WorkerId) -> str:
        known = self._workers[worker]
        mark = known.marks.get(known.clock)
        if mark is None:
            return f"at clock {known.clock}, nothing pushed"
        word = "staged" if self._sync else "applied"
        return f"{word} on {len(mark.servers)} of {len(self.servers)} servers"
