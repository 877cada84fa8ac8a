"""The newest view of the job, and who may act in it."""

from __future__ import annotations

from paramserver.core.members import rolled_back
from paramserver.errors import FencedError, RolledBackError, WaitTimeoutError
from paramserver.ps.gate import Gate
from paramserver.types import WorkerId
from paramserver.v1 import common_pb2, scheduler_pb2
from paramserver.wire.guard import SPEAKER
from paramserver.wire.permissions import check_name

VIEW_PATIENCE = 15.0  # seconds that a request may park until its view has arrived here

_GONE = frozenset({scheduler_pb2.MEMBER_LOST, scheduler_pb2.MEMBER_STATE_UNSPECIFIED})


class Views:
    """What this server knows of the membership; grows by ``update`` only.

    Attributes:
        away: no scheduler answers: views come once it is back.
    """

    def __init__(self) -> None:
        self.current = scheduler_pb2.View()
        self.names: dict[WorkerId, str] = {}
        self._states: dict[WorkerId, int] = {}
        self._gate = Gate()
        self.away = False

    def forget(self) -> None:
        """The scheduler may be another one, which counts its views from the start."""
        self.current = scheduler_pb2.View()
        self.names, self._states = {}, {}
        self._gate = Gate()

    def update(self, view: scheduler_pb2.View) -> bool:
        """Takes a newer view; False for one that is known."""
        if view.number <= self.current.number:
            return False
        self.current = view
        workers = [m for m in view.members if m.role == scheduler_pb2.ROLE_WORKER]
        self.names = {WorkerId(m.rank, m.incarnation): m.name for m in workers}
        self._states = {WorkerId(m.rank, m.incarnation): m.state for m in workers}
        self._gate.advance(view.number)
        return True

    async def reach(self, number: int) -> None:
        """Parks until view ``number`` is here; for as long as the scheduler is away.

        Raises:
            WaitTimeoutError: it did not come; the scheduler may be out of reach.
        """
        while not await self._gate.reach(number, VIEW_PATIENCE):
            if self.away:
                continue
            raise WaitTimeoutError(
                f"view {number} has not reached this server (it has {self.current.number}); "
                "is the scheduler reachable from it?"
            )

    async def admit(self, identity: common_pb2.Identity) -> WorkerId:
        """The worker, if it may act in the newest view.

        Raises:
            FencedError: lost, replaced by a newer incarnation, unknown, or of another job.
            PermissionDeniedError: the certificate of who calls is for another worker.
        """
        if identity.view > self.current.number:
            await self.reach(identity.view)
        worker = WorkerId(identity.rank, identity.incarnation)
        self.check(worker, identity.job)
        check_name(SPEAKER.get().name, self.names[worker])
        return worker

    def check(self, worker: WorkerId, job: int) -> None:
        """As ``admit``, for a view that is here already."""
        if job != self.current.job:
            if self.current.origin <= job < self.current.job and self.current.origin:
                raise RolledBackError(rolled_back(job, self.current.job))
            raise FencedError(
                f"rank {worker.rank} speaks of job {job}, this is job {self.current.job}; "
                "connect again"
            )
        if self.gone(worker):
            raise FencedError(
                f"rank {worker.rank}, incarnation {worker.incarnation}, is not a member of view "
                f"{self.current.number}: {self._why_gone(worker)}; connect again"
            )

    def gone(self, worker: WorkerId) -> bool:
        """Whether nothing of this incarnation is to be expected any more."""
        return self._states.get(worker, scheduler_pb2.MEMBER_STATE_UNSPECIFIED) in _GONE

    def _why_gone(self, worker: WorkerId) -> str:
        for member in self.current.members:
            if (member.rank, member.incarnation) == worker and member.reason:
                return member.reason
        return "its lease was lost or a newer incarnation has its name"

    def active(self, group: str, *, first: bool = False) -> set[WorkerId]:
        """The workers that a clock of ``group`` waits for.

        Args:
            first: it is the first clock, which waits for those that prepare their data too.
        """
        return {
            WorkerId(m.rank, m.incarnation)
            for m in self.current.members
            if (m.state == scheduler_pb2.MEMBER_ACTIVE or (first and m.preparing))
            and group in m.groups
        }

    def locate(self, server: str, address: str) -> str:
        """Where a server is now.

        Args:
            address: where it is if no view has told of another place.
        """
        return next((p.address for p in self.current.places if p.server == server), address)

    def lost(self) -> set[WorkerId]:
        """The incarnations of the view that were lost."""
        return {w for w, s in self._states.items() if s == scheduler_pb2.MEMBER_LOST}
