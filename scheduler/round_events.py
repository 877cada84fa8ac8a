"""The events of the scheduler's state that have to do with rounds."""

from __future__ import annotations

from paramserver.core.members import Caller, State, worker_id
from paramserver.core.rounds import Released, Waiting
from paramserver.errors import InvalidRequestError
from paramserver.scheduler.events import event
from paramserver.scheduler.parts import Parts
from paramserver.scheduler.topics import round_topic
from paramserver.scheduler.words import words


class RoundEvents(Parts):
    """Methods of ``SchedulerState``."""

    @event
    def join_round(
        self, caller: Caller, name: str, sequence: int, now: float
    ) -> Released | Waiting:
        """Arrives in a round; idle until it is complete.

        Raises:
            InvalidRequestError: as ``Rounds.join``.
        """
        member = self.worker(caller)
        self.data.withdraw(member.name)
        if not (0 < len(name) <= self.config.limits.name_length and name.isprintable()):
            raise InvalidRequestError(
                f"round name of {len(name)} characters: must have 1 to "
                f"{self.config.limits.name_length} printable ones"
            )
        self.shape.reduces |= name.startswith("all_reduce/")
        found = self.rounds.join(name, worker_id(member), sequence, self._names)
        if isinstance(found, Waiting):
            self.members.move([member.name], State.IDLE, f"waits in barrier {name!r}")
            self._after(now)
        elif not found.again:
            self._release(found)
            self._after(now)
        return found

    def _release(self, released: Released) -> None:
        names = [self._names[a.worker] for a in released.arrivals]
        self.members.move(names, State.ACTIVE)
        self.wake(round_topic(released.name))

    def round_reason(self, waiting: Waiting, now: float) -> str:
        """Whom an open round waits for, in words."""
        members = [m for w in waiting.missing if (m := self.members.find(self._names[w]))]
        whom = words(self.members, members, now, waiting.count)
        return f"barrier {waiting.name!r} waits for {whom}"
