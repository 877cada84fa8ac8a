"""Groups that the chief trains alone for a while, and who waits for it meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from paramserver.core.members import Member, Role, State
from paramserver.core.membership import Membership
from paramserver.errors import InvalidRequestError
from paramserver.scheduler.datasets import Datasets
from paramserver.scheduler.journal import Journal
from paramserver.scheduler.topics import warm_start_topic
from paramserver.scheduler.words import words


@dataclass(frozen=True, slots=True)
class Warmth:
    """What a worker is told: it is ``over``, or it is the ``chief`` and begins, or it waits."""

    over: bool = False
    chief: bool = False
    pending: str = ""


class WarmStarts:
    """The warm starts of one job, by group.

    The chief is the lowest rank that is not lost: if it is lost before its steps are done, the next
    one begins in its place. A chief that has finished leaves nothing to wait for.
    """

    def __init__(
        self,
        members: Membership,
        data: Datasets,
        journal: Journal,
        wake: Callable[[str], None],
    ) -> None:
        self._members = members
        self._data = data
        self._journal = journal
        self._wake = wake
        self._over: set[str] = set()
        self._asked: set[str] = set()

    def ask(self, member: Member, group: str, over: bool, now: float) -> Warmth:
        """A worker asks whether it may train; idle while it may not.

        Args:
            over: it has taken the first steps: all who wait become active together. Idempotent.

        Raises:
            InvalidRequestError: it has not registered the group.
        """
        if group not in member.groups:
            raise InvalidRequestError(f"{member.name} has not registered group {group!r}")
        self._asked.add(group)
        if over and group not in self._over:
            self._over.add(group)
            self._journal.say(f"{member.name} has ended the warm start of group {group}", now)
        chief = self._members.chief()
        if group in self._over or chief is None or chief.state is State.FINISHED:
            self._release(group, self._members.live(Role.WORKER))
            return Warmth(over=True)
        if chief.name == member.name:
            self._release(group, [member])  # it may have waited for a chief that was lost
            return Warmth(chief=True)
        self._data.withdraw(member.name)
        self._members.move([member.name], State.IDLE, _reason(group))
        whom = words(self._members, [chief], now)
        return Warmth(pending=f"the warm start of group {group!r} waits for {whom}")

    def over(self) -> tuple[str, ...]:
        """Groups whose warm start is over."""
        return tuple(sorted(self._over))

    def resume(self, groups: Iterable[str]) -> None:
        """The warm start of these groups was over in the snapshot that the job goes on from."""
        self._over.update(groups)

    def _release(self, group: str, workers: Sequence[Member]) -> None:
        """Those of the workers that wait become active, in one view."""
        waiting = [m.name for m in workers if m.state is State.IDLE and m.reason == _reason(group)]
        if waiting:
            self._members.move(waiting, State.ACTIVE)
            self._wake(warm_start_topic(group))

    def look_again(self) -> None:
        """Somebody has left, who may have been the chief."""
        for group in self._asked:
            self._wake(warm_start_topic(group))


def _reason(group: str) -> str:
    return f"waits for the warm start of {group!r}"
