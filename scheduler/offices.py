"""Who coordinates what, and what it announced last: any worker can take over from there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from paramserver.config import Limits
from paramserver.core.members import Caller, Member
from paramserver.core.membership import Membership
from paramserver.core.placement import check_name
from paramserver.errors import InvalidRequestError, ResourceError
from paramserver.scheduler.events import event
from paramserver.scheduler.parts import Parts
from paramserver.scheduler.topics import announcement_topic
from paramserver.scheduler.words import words

TEXT_BYTES = 1 << 20  # of one announcement


@dataclass(slots=True)
class Office:
    """One coordinated thing.

    Attributes:
        holder, incarnation: the worker that coordinates it.
        number, text: the newest announcement; 0: none yet, and the text is that of a snapshot,
            which only the coordinator is told.
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
        self._offices: dict[str, Office] = {}

    def texts(self) -> dict[str, str]:
        """The newest announcements by name."""
        return {name: office.text for name, office in self._offices.items() if office.text}

    def resume(self, texts: Mapping[str, str]) -> None:
        """Whoever coordinates next goes on from these."""
        self._offices = {name: Office(text=text) for name, text in texts.items()}

    def get(self, name: str) -> Office:
        """The office of that name; an empty one if nobody asked before.

        Raises:
            InvalidRequestError: a bad name.
        """
        check_name(name, "coordination", self._limits)
        return self._offices.get(name, Office())

    def _open(self, name: str) -> Office:
        office = self.get(name)
        if name not in self._offices and len(self._offices) >= self._limits.groups:
            raise ResourceError(f"coordination {name!r}: at most {self._limits.groups} in a job")
        return self._offices.setdefault(name, office)

    def holder(self, office: Office) -> Member | None:
        """The coordinator, while it is there."""
        found = self._members.find(office.holder)
        if found is None or found.incarnation != office.incarnation:
            return None
        return found if found.live else None

    def take(self, name: str, caller: Caller) -> bool:
        """Whether the caller coordinates from now on, or did already.

        Raises:
            ResourceError: too many coordinated things.
        """
        office = self._open(name)
        if self.holder(office) is None:
            office.holder, office.incarnation = caller.name, caller.incarnation
        return (office.holder, office.incarnation) == (caller.name, caller.incarnation)

    def announce(self, name: str, caller: Caller, number: int, text: str) -> int:
        """Keeps an announcement; its number.

        Raises:
            InvalidRequestError: from another worker than the coordinator, or out of turn.
            ResourceError: too long, or too many coordinated things.
        """
        office = self._open(name)
        if len(text) > TEXT_BYTES:
            raise ResourceError(f"announcement of {len(text)} characters: at most {TEXT_BYTES}")
        if number and (office.holder, office.incarnation) != (caller.name, caller.incarnation):
            raise InvalidRequestError(
                f"{caller.name} announces under {name!r}, which {office.holder or 'nobody'} "
                "coordinates; ask for Coordinate first"
            )
        if office.number and number in (0, office.number) and text == office.text:
            return office.number  # said again, as the answer was lost
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


class OfficeEvents(Parts):
    """Methods of ``SchedulerState``."""

    offices: Offices

    @event
    def coordinate(self, caller: Caller, name: str, now: float) -> bool:
        """As ``Offices.take``."""
        self.worker(caller)
        before = self.offices.get(name).holder
        mine = self.offices.take(name, caller)
        if mine and before != caller.name:
            self.journal.say(f"{caller.name} coordinates {name}", now)
        return mine

    @event
    def announce(self, caller: Caller, name: str, number: int, text: str, now: float) -> int:
        """As ``Offices.announce``."""
        self.worker(caller)
        made = self.offices.announce(name, caller, number, text)
        self._after(now, announcement_topic(name))
        return made
