"""What the scheduler's state hands to its shell."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from paramserver.core.members import Member


class Numbers:
    """Numbers from 1 on, each once; ``last``: the newest."""

    def __init__(self) -> None:
        self.last = 0

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        self.last += 1
        return self.last


@dataclass(frozen=True, slots=True)
class Loss:
    """A worker that left with leases: servers know what was applied. It is gone in ``view``.

    ``failed``: it was lost, or came again; it did not finish.
    """

    member: Member
    view: int
    job: int
    failed: bool = True


@dataclass(frozen=True, slots=True)
class Schedule:
    """State of learning-rate schedules, as JSON, and when it was taken."""

    epoch: int
    clock: int
    state: str


@dataclass(frozen=True, slots=True)
class Storing:
    """Whether first values are stored, and if not, whether the caller is to store them."""

    stored: bool = False
    initialize: bool = False
    pending: str = ""
