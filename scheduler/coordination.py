"""Who coordinates what, and what it announced last: any worker can take over from there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from paramserver.config import Limits
from paramserver.core.members import Caller, Member, Role
from paramserver.core.membership import Membership
from paramserver.core.placement import check_name
from paramserver.errors import InvalidRequestError, ResourceError
from paramserver.scheduler.parking import Parking
from paramserver.scheduler.shell import Shell
from paramserver.scheduler.topics import announcement_topic, data_topic
from paramserver.scheduler.words import words
from paramserver.v1 import common_pb2
from paramserver.v1 import scheduler_pb2 as pb

T = TypeVar("T")

TEXT_BYTES = 1 << 20  # of one announcement


@dataclass(slots=True)
class Office:
    """One coordinated thing.

    Attributes:
        holder, incarnation: the worker that coordinates it.
        number, text: the newest announcement; 0: none yet.
    """

    holder: str = ""
    incarnation: int = 0
    number: int = 0
    text: str = ""


class Offices:
    """The coordinated things of one job, by name."""

    def __init__(self, members: Membership, limits: Limits) -> None:
        self._members = members
        self._limits = limits
        self._job = members.job
        self._offices: dict[str, Office] = {}

    def get(self, name: str) -> Office:
        """The office of that name; a new one if nobody asked before.

        Raises:
            InvalidRequestError: a bad name.
            ResourceError: too many.
        """
        if self._job != self._members.job:
            self._job, self._offices = self._members.job, {}
        if name not in self._offices:
            check_name(name, "coordination", self._limits)
            if len(self._offices) >= self._limits.groups:
                raise ResourceError(
                    f"coordination {name!r}: at most {self._limits.groups} in a job"
                )
            self._offices[name] = Office()
        return self._offices[name]

    def holder(self, office: Office) -> Member | None:
        """The coordinator, while it is there."""
        found = self._members.find(office.holder)
        if found is None or found.incarnation != office.incarnation:
            return None
        return found if found.live else None

    def take(self, name: str, caller: Caller) -> bool:
        """Whether the caller coordinates from now on, or did already."""
        office = self.get(name)
        if self.holder(office) is None:
            office.holder, office.incarnation = caller.name, caller.incarnation
        return (office.holder, office.incarnation) == (caller.name, caller.incarnation)

    def announce(self, name: str, caller: Caller, number: int, text: str) -> int:
        """Keeps an announcement; its number.

        Raises:
            InvalidRequestError: from another worker than the coordinator, or out of turn.
            ResourceError: too long.
        """
        office = self.get(name)
        if len(text) > TEXT_BYTES:
            raise ResourceError(f"announcement of {len(text)} characters: at most {TEXT_BYTES}")
        if number and (office.holder, office.incarnation) != (caller.name, caller.incarnation):
            raise InvalidRequestError(
                f"{caller.name} announces under {name!r}, which {office.holder or 'nobody'} "
                "coordinates; ask for Coordinate first"
            )
        if number and (number, text) == (office.number, office.text):
            return number
        if number not in (0, office.number + 1):
            raise InvalidRequestError(
                f"announcement {number} under {name!r}: the newest is {office.number}, "
                f"the next must be {office.number + 1}"
            )
        office.number, office.text = office.number + 1, text
        return office.number

    def reason(self, name: str, what: str, now: float) -> str:
        """Whom a wait is for, in words."""
        holder = self.holder(self.get(name))
        if holder is None:
            return f"{what} {name!r}: nobody coordinates it"
        return f"{what} {name!r} waits for {words(self._members, [holder], now)}, its coordinator"


class CoordinationMethods(Shell):
    """Methods of ``SchedulerService``."""

    offices: Offices
    parking: Parking

    def _worker(self, identity: common_pb2.Identity) -> Caller:
        caller = self._enter(identity)
        member = self.state.members.check(caller)
        if member.role is not Role.WORKER:
            raise InvalidRequestError(f"{caller.name} is no worker: only workers coordinate")
        return caller

    async def AwaitEpoch(self, request: pb.AwaitEpochRequest) -> pb.AwaitEpochReply:
        self._enter(request.member)

        def attempt() -> str:
            return self.state.data.unfinished(request.dataset, request.epoch, self._now())

        topic = data_topic(request.dataset)
        pending = await self._poll(topic, request.wait_s, attempt, bool)
        done = self.state.data.get(request.dataset).counts().samples_done
        return pb.AwaitEpochReply(drained=not pending, pending=pending, samples_done=done)

    async def Coordinate(self, request: pb.CoordinateRequest) -> pb.CoordinateReply:
        caller, name = self._worker(request.member), request.name

        def attempt() -> bool:
            self.state.members.check(caller)
            return self.offices.take(name, caller)

        before = self.offices.get(name).holder
        topic = announcement_topic(name)
        mine = await self._poll(topic, request.wait_s, attempt, lambda taken: not taken)
        office = self.offices.get(name)
        if mine and before != caller.name:
            self.state.journal.say(f"{caller.name} coordinates {name}", self._now())
        return pb.CoordinateReply(
            coordinates=mine,
            number=office.number,
            text=office.text if mine else "",
            pending="" if mine else self.offices.reason(name, "coordination of", self._now()),
            view=self.state.members.number,
        )

    async def Announce(self, request: pb.AnnounceRequest) -> pb.AnnounceReply:
        caller = self._worker(request.member)
        number = self.offices.announce(request.name, caller, request.number, request.text)
        self.parking.wake([announcement_topic(request.name)])
        return pb.AnnounceReply(number=number)

    async def Announced(self, request: pb.AnnouncedRequest) -> pb.AnnouncedReply:
        self._enter(request.member)
        name = request.name

        def attempt() -> Office:
            return self.offices.get(name)

        topic = announcement_topic(name)
        found = await self._poll(
            topic, request.wait_s, attempt, lambda office: office.number <= request.after
        )
        if found.number <= request.after:
            reason = self.offices.reason(name, f"announcement {request.after + 1} of", self._now())
            return pb.AnnouncedReply(number=found.number, pending=reason)
        return pb.AnnouncedReply(number=found.number, text=found.text)
