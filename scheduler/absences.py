"""Durability "wal": a server that is lost is waited for; it brings its slices back."""

from __future__ import annotations

from collections.abc import Iterable

from paramserver.core.members import JobState, Member, Role
from paramserver.core.membership import Membership
from paramserver.core.placement import Group
from paramserver.scheduler.journal import Journal


class Absences:
    """The servers of a job that hold slices and are away.

    Args:
        timeout_s: seconds that each is waited for.
    """

    def __init__(self, members: Membership, journal: Journal, timeout_s: float) -> None:
        self._members, self._journal, self._timeout_s = members, journal, timeout_s
        self._seen: dict[str, set[int]] = {}  # incarnations that kept a journal, by name
        self._addresses: dict[str, str] = {}
        self._holders: set[str] = set()
        self._away: dict[str, float] = {}  # since when
        self._groups: Iterable[Group] = ()

    def begin_job(self, groups: Iterable[Group]) -> None:
        """Nobody is waited for; who was seen may come back. ``groups``: of this job."""
        self._groups = groups
        self._holders.clear()
        self._away.clear()

    def hold(self, servers: Iterable[str], *, only: bool = False) -> None:
        """These servers hold slices of the job from now on; ``only``: and no others."""
        self._holders = set(servers) if only else self._holders.union(servers)
        if only:
            self._away = {n: since for n, since in self._away.items() if n in self._holders}

    def come(self, member: Member, resumes: int, now: float) -> bool:
        """A server registered; whether the slices it held are there again.

        One that comes back without them fails the job. Before first values are on all servers, its
        slices held nothing that anybody counts on: they are stored again.
        """
        seen = self._seen.setdefault(member.name, set())
        resumed = resumes in seen
        if member.name in self._holders and not resumed and self._has_values(member.name):
            self._members.fail(
                f"server {member.name} came back without its journal; the slices it held are gone. "
                "Start it again with the --state-dir that it had, or restore a snapshot"
            )
        elif member.name in self._away:
            seconds = now - self._away.pop(member.name)
            self._journal.say(f"{member.name} is back after {seconds:.1f} s", now)
        if not resumed:
            seen.clear()
        seen.add(member.incarnation)
        self._addresses[member.name] = member.address
        return resumed

    def _has_values(self, server: str) -> bool:
        return any(group.stored and server in group.map.servers for group in self._groups)

    def look(self, now: float) -> None:
        """Sees who is away; one that stays away fails the job."""
        if self._members.state is not JobState.RUNNING:
            return
        live = {m.name for m in self._members.live(Role.SERVER)}
        for name in sorted(self._holders - live - self._away.keys()):
            self._away[name] = now
            self._journal.say(
                f"waiting for {name} to come back with its journal, at most {self._timeout_s:g} s",
                now,
            )
        for name in [n for n in self._away if n in live]:
            del self._away[name]
        late = self._late(now)
        if late:
            self._members.fail(
                f"server {late[0]} was lost and did not come back within {self._timeout_s:g} s; "
                "start it with the --state-dir that it had, or restore a snapshot"
            )

    def _late(self, now: float) -> list[str]:
        return [n for n, since in self._away.items() if now - since > self._timeout_s]

    def due(self, now: float) -> bool:
        """Whether it is time to ``look``."""
        return self._members.state is JobState.RUNNING and bool(self._late(now))

    def servers(self) -> list[tuple[str, str]]:
        """Names and addresses of the servers that are here or waited for, by name."""
        found = {m.name: m.address for m in self._members.live(Role.SERVER)}
        found |= {name: self._addresses[name] for name in self._away}
        return sorted(found.items(), key=lambda known: (len(known[0]), known[0]))

    def reason(self) -> str:
        """Whom the job waits for, in words; empty: nobody."""
        return f"{', '.join(sorted(self._away))} to come back" if self._away else ""
