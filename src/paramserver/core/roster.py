"""The members of one job by name: who is who among them, and who may speak."""

from __future__ import annotations

from paramserver.core.members import Caller, Member, Role, State, rolled_back, view_order
from paramserver.errors import FencedError, InvalidRequestError, RolledBackError


class Roster:
    """What is known of each member, and when it was last heard.

    Attributes:
        number: of the view.
        job: its number.
        origin: the job that this one goes on with after roll-backs; itself without any.
    """

    def __init__(self, first_incarnation: int) -> None:
        self.number = self.job = self.origin = 1
        self._first = first_incarnation
        self._incarnation = first_incarnation - 1
        self._members: dict[str, Member] = {}
        self._heard: dict[str, float] = {}

    @property
    def incarnation(self) -> int:
        """The newest that was given."""
        return self._incarnation

    def find(self, name: str) -> Member | None:
        return self._members.get(name)

    def live(self, role: Role) -> list[Member]:
        """Members of a role that have neither finished nor been lost, in the order of a view."""
        return sorted(
            (m for m in self._members.values() if m.role is role and m.live), key=view_order
        )

    def heard(self, name: str) -> float:
        """When a member was last heard."""
        return self._heard[name]

    def chief(self) -> Member | None:
        """The worker of the lowest rank that is not lost; a finished one stays chief."""
        workers = (m for m in self._members.values() if m.role is Role.WORKER)
        return min((m for m in workers if m.state is not State.LOST), key=view_order, default=None)

    def first(self, parties: int = 1, party: int = 0) -> Member | None:
        """The live worker of the lowest rank in a party: the one that stores first values."""
        return next((m for m in self.live(Role.WORKER) if m.rank % parties == party), None)

    def forgive(self, seconds: float) -> None:
        """Leases stood still for so long: this process itself had stopped."""
        for name in self._heard:
            self._heard[name] += seconds

    def renew_all(self, now: float) -> None:
        """Every lease begins anew: nobody could be heard."""
        self._heard = dict.fromkeys(self._heard, now)

    def _worker(self, name: str) -> Member:
        member = self._members.get(name)
        if member is None or member.role is not Role.WORKER or not member.live:
            state = "unknown" if member is None else f"a {member.state.value} {member.role.value}"
            raise InvalidRequestError(f"{name!r} is {state}: only a live worker can do this")
        return member

    def _is_live_server(self, name: str) -> bool:
        member = self._members.get(name)
        return member is not None and member.role is Role.SERVER and member.live

    def renew(self, caller: Caller, now: float) -> Member:
        """A member was heard: its lease begins anew. Raises as ``check``."""
        member = self.check(caller, finished=True)
        self._heard[caller.name] = now
        return member

    def check(self, caller: Caller, *, finished: bool = False, lost: bool = False) -> Member:
        """The member that speaks.

        Args:
            finished, lost: whether a worker that has finished, or was lost, may still say this.

        Raises:
            FencedError: of an ended job, an older incarnation, or a lost lease.
            InvalidRequestError: unknown, or finished.
        """
        member = self._members.get(caller.name)
        if member is None or member.role is not Role.SERVER:
            self.check_job(caller.job, caller.name or "the caller")
        if self.has_left(caller):
            raise FencedError(f"{caller.name!r} has left or was not heard; register again")
        if member is None:
            raise InvalidRequestError(f"{caller.name!r} is not registered; register first")
        if member.incarnation != caller.incarnation:
            self._refuse_incarnation(member, caller)
        if member.state is State.LOST and not lost:
            raise FencedError(f"{member.name} was lost: {member.reason}; register again")
        if member.state is State.FINISHED and not finished:
            raise InvalidRequestError(f"{member.name} has finished; register again to go on")
        return member

    def _refuse_incarnation(self, member: Member, caller: Caller) -> None:
        if caller.incarnation > member.incarnation:
            raise InvalidRequestError(
                f"incarnation {caller.incarnation} of {member.name} was never given; register first"
            )
        raise FencedError(
            f"incarnation {caller.incarnation} of {member.name} is fenced: "
            f"incarnation {member.incarnation} has registered (host {member.host or 'unknown'}, "
            f"pid {member.pid})"
        )

    def has_left(self, caller: Caller) -> bool:
        """Whether this was a member that nobody needs to know of any more."""
        given = self._first <= caller.incarnation <= self._incarnation
        return given and caller.name not in self._members and not self._undone(caller.job)

    def check_job(self, job: int, who: str) -> None:
        """What somebody of another job holds is nothing here.

        Raises:
            RolledBackError: the job of ``who`` went back to a snapshot.
            FencedError: it has ended.
        """
        if job == self.job:
            return
        if self._undone(job):
            raise RolledBackError(rolled_back(job, self.job))
        raise FencedError(f"{who} belongs to job {job}; this is job {self.job}; connect again")

    def _undone(self, job: int) -> bool:
        """Whether this job went back to a snapshot."""
        return self.origin <= job < self.job
