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
class Kept:
    """A snapshot that is complete.

    Attributes:
        clock: the furthest at which a group goes on.
        created: seconds since 1970.
        base: the snapshot that it builds on; empty: it is whole.
        held_s, took_s: seconds that pushes waited, and that it took.
    """

    name: str
    clock: int
    created: float
    bytes: int = 0
    base: str = ""
    held_s: float = 0.0
    took_s: float = 0.0


@dataclass(slots=True)
class Asked:
    """A snapshot that somebody asked for under a key of their own; ``kept`` once it is complete."""

    name: str
    kept: Kept | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """Where the values of a snapshot lie.

    Attributes:
        name: of the snapshot.
        directory: path or URL of all snapshots.
        files: by group, FOLDER/FILE and the slices in it; a later file replaces what an earlier one
            has of a slice.
        kept: the snapshot.
    """

    name: str
    directory: str
    files: Mapping[str, Sequence[tuple[str, Sequence[int]]]]
    kept: Kept | None = None
