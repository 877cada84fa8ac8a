"""What the scheduler's state hands to its shell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from paramserver.core.members import Member


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


@dataclass(frozen=True, slots=True)
class Source:
    """Where the values of a snapshot lie.

    Attributes:
        name: of the snapshot.
        directory: path or URL of all snapshots.
        files: by group, FOLDER/FILE and the slices in it; a later file replaces what an earlier one
            has of a slice.
    """

    name: str
    directory: str
    files: Mapping[str, Sequence[tuple[str, Sequence[int]]]]
