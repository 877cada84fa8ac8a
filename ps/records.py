"""What is written into the journal: one function for each kind of change.

To be called where the change is made, under the lock of what changes (a bucket's, or the event
loop), so that entries have the order of the changes. Each takes the journal first; where there is
none, the caller does not call.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from paramserver.core.ledger import Receipt
from paramserver.core.placement import SliceMap
from paramserver.ps.journal import Journal
from paramserver.ps.state import SliceState
from paramserver.ps.tables.store import Rows
from paramserver.types import Consistency, Span, WorkerId
from paramserver.v1 import journal_pb2, scheduler_pb2, server_pb2
from paramserver.v1.journal_pb2 import Entry, Part
from paramserver.wire.convert import (
    consistency_to_proto,
    dtype_to_proto,
    map_to_proto,
    options_to_proto,
    spans_to_proto,
)
from paramserver.wire.frames import Piece
from paramserver.wire.tensors import NAMES, as_bytes

FORMAT = 1
_Options = Sequence[Mapping[str, Any]]


class Parts:
    """The tensors of one entry."""

    def __init__(self) -> None:
        self.heads: list[Part] = []
        self.pieces: list[Piece] = []

    def add(self, slice_: int, kind: journal_pb2.PartKind, value: Tensor) -> None:
        """One tensor, flat."""
        piece = as_bytes(value.detach().contiguous().view(-1))
        self._add(slice_, kind, piece, NAMES[value.dtype])

    def state(self, slice_: int, tensors: Mapping[str, Tensor]) -> None:
        """Tensors by name, with their shapes."""
        for name, tensor in tensors.items():
            self.add(slice_, journal_pb2.PART_STATE, tensor.reshape(-1))
            self.heads[-1].name = name
            self.heads[-1].shape.extend(tensor.shape)

    def raw(self, slice_: int, kind: journal_pb2.PartKind, piece: Piece) -> None:
        """Bytes that are no tensor."""
        self._add(slice_, kind, piece, "uint8")

    def gradient(self, slice_: int, gradient: Tensor | Rows) -> None:
        """A gradient, or rows with theirs."""
        if isinstance(gradient, Tensor):
            self.add(slice_, journal_pb2.PART_GRADIENT, gradient)
            return
        self.raw(slice_, journal_pb2.PART_KEYS, gradient.keys.tobytes())
        self.add(slice_, journal_pb2.PART_GRADIENT, gradient.grads)
        if gradient.times is not None:
            self.raw(slice_, journal_pb2.PART_TIMES, gradient.times.tobytes())

    def _add(self, slice_: int, kind: journal_pb2.PartKind, piece: Piece, dtype: str) -> None:
        self.heads.append(
            Part(slice=slice_, kind=kind, dtype=dtype_to_proto(dtype), bytes=len(piece))
        )
        self.pieces.append(piece)


def begun(journal: Journal, server: str, job: int) -> None:
    """A journal begins."""
    journal.append(Entry(begun=journal_pb2.Begun(format=FORMAT, server=server, job=job)))


def made(journal: Journal, reply: scheduler_pb2.GetGroupReply) -> None:
    """A group is here from now on."""
    journal.append(Entry(group=reply.spec.name, made=reply))


# Buckets: under their locks, in any thread


def stored(journal: Journal, group: str, slice_: int, value: Tensor) -> None:
    """A first value."""
    parts = Parts()
    parts.add(slice_, journal_pb2.PART_VALUE, value)
    entry = Entry(group=group, stored=journal_pb2.Stored(), parts=parts.heads)
    journal.append(entry, parts.pieces)


def stepped(
    journal: Journal,
    group: str,
    clock: int,
    slices: Iterable[int],
    options: _Options,
    means: Mapping[int, Tensor | Rows],
    values: Mapping[int, Tensor],
    now: float = 0.0,
) -> None:
    """A clock of Sync closes on a bucket.

    Args:
        means: what the optimizer is about to step on.
        values: of the slices that no optimizer steps, as they are now.
        now: seconds, where rows are forgotten by time.
    """
    parts = Parts()
    for index, mean in means.items():
        parts.gradient(index, mean)
    for index, value in values.items():
        parts.add(index, journal_pb2.PART_VALUE, value)
    body = journal_pb2.Stepped(
        clock=clock, options=[options_to_proto(o) for o in options], slices=slices, now=now
    )
    journal.append(Entry(group=group, stepped=body, parts=parts.heads), parts.pieces)


def arrived(
    journal: Journal,
    group: str,
    worker: WorkerId,
    clock: int,
    options: _Options,
    gradients: Mapping[int, Tensor | Rows],
    checksums: Mapping[int, int],
    bases: Mapping[int, int],
    now: float,
    note: Callable[[], None],
) -> None:
    """Slices of a push are about to be applied (Stale, Async)."""
    parts = Parts()
    for index, gradient in gradients.items():
        parts.gradient(index, gradient)
    body = journal_pb2.Arrived(
        rank=worker.rank,
        incarnation=worker.incarnation,
        clock=clock,
        options=[options_to_proto(o) for o in options],
        slices=gradients,
        checksums=[checksums[i] for i in gradients],
        bases=[bases[i] for i in gradients] if bases else [],
        now=now,
    )
    journal.append(Entry(group=group, arrived=body, parts=parts.heads), parts.pieces, note)


def ticked(journal: Journal, group: str, slices: Sequence[int]) -> None:
    """A completed push had no gradient for these."""
    journal.append(Entry(group=group, ticked=journal_pb2.Ticked(slices=slices)))


def shrunk(journal: Journal, group: str, slice_: int, now: float) -> None:
    """Rows are about to be forgotten."""
    journal.append(Entry(group=group, shrunk=journal_pb2.Shrunk(slice=slice_, now=now)))


def loaded(
    journal: Journal, group: str, slice_: int, state: SliceState, closed: int, now: float = 0.0
) -> None:
    """A slice was loaded as it was elsewhere, under its bucket's lock."""
    entry, pieces = dumped_slice(0, group, slice_, state, closed, now)
    journal.append(entry, pieces)


def dumped_slice(
    position: int, group: str, slice_: int, state: SliceState, closed: int, now: float
) -> tuple[Entry, list[Piece]]:
    """A slice as it was when the journal was at ``position``; 0: now.

    Args:
        closed: clocks closed on its bucket.
        now: as in ``stepped``.
    """
    parts = Parts()
    parts.state(slice_, state.tensors)
    body = journal_pb2.DumpedSlice(
        position=position,
        slice=slice_,
        numbers=json.dumps(state.numbers).encode(),
        closed=closed,
        now=now,
    )
    return Entry(group=group, dumped_slice=body, parts=parts.heads), parts.pieces


# Ledger and lead: on the event loop


def closed(
    journal: Journal, group: str, clock: int, version: int, pushes: Iterable[journal_pb2.Settled]
) -> None:
    """A clock of Sync has closed on all buckets of this server."""
    body = journal_pb2.Closed(clock=clock, version=version, pushes=pushes)
    journal.append(Entry(group=group, closed=body))


def settled(
    worker: WorkerId,
    clock: int,
    samples: Sequence[Span] = (),
    *,
    digest: int | None = None,
    dropped: bool = False,
) -> journal_pb2.Settled:
    """What became of a push of a closed clock."""
    return journal_pb2.Settled(
        rank=worker.rank,
        incarnation=worker.incarnation,
        clock=clock,
        dropped=dropped,
        samples=spans_to_proto(samples),
        digest=digest,
    )


def opened(
    journal: Journal, group: str, worker: WorkerId, clock: int, slices: Iterable[int]
) -> None:
    """A push begins (Stale, Async)."""
    body = journal_pb2.Opened(
        rank=worker.rank, incarnation=worker.incarnation, clock=clock, slices=slices
    )
    journal.append(Entry(group=group, opened=body))


def completed(
    journal: Journal,
    group: str,
    worker: WorkerId,
    receipt: Receipt,
    samples: Sequence[Span],
    digest: int | None,
) -> None:
    """A push is complete (Stale, Async)."""
    body = journal_pb2.Completed(
        rank=worker.rank,
        incarnation=worker.incarnation,
        clock=receipt.clock,
        version=receipt.version,
        staleness=receipt.staleness,
        samples=spans_to_proto(samples),
        digest=digest,
    )
    journal.append(Entry(group=group, completed=body))


def abandoned(journal: Journal, group: str, worker: WorkerId, clock: int) -> None:
    """A push was freed; it may be sent again whole."""
    body = journal_pb2.Abandoned(rank=worker.rank, incarnation=worker.incarnation, clock=clock)
    journal.append(Entry(group=group, abandoned=body))


def expected(journal: Journal, group: str, worker: WorkerId, clock: int) -> None:
    """The clock that a worker's next push carries."""
    body = journal_pb2.Expected(rank=worker.rank, incarnation=worker.incarnation, clock=clock)
    journal.append(Entry(group=group, expected=body))


def lead(journal: Journal, group: str, event: journal_pb2.LeadEvent) -> None:
    """The lead heard something."""
    journal.append(Entry(group=group, lead=event))


def observed(
    started: bool,
    active: Iterable[WorkerId],
    lost: Iterable[WorkerId],
    present: Iterable[WorkerId],
    consistency: Consistency,
) -> journal_pb2.LeadEvent:
    """The lead took a view."""
    body = journal_pb2.Observed(
        started=started,
        active=_identities(active),
        lost=_identities(lost),
        present=_identities(present),
        consistency=consistency_to_proto(consistency),
    )
    return journal_pb2.LeadEvent(observed=body)


def _identities(workers: Iterable[WorkerId]) -> list[server_pb2.Staged]:
    return [server_pb2.Staged(rank=w.rank, incarnation=w.incarnation) for w in sorted(workers)]


# Moves of slices: on the event loop


def came(journal: Journal, group: str, slice_: int, state: SliceState) -> None:
    """A slice came, and is kept ready for a new map."""
    entry, pieces = dumped_slice(0, group, slice_, state, 0, 0.0)
    moved = Entry(group=group, came=entry.dumped_slice, parts=entry.parts)
    journal.append(moved, pieces)


def bound(
    journal: Journal,
    group: str,
    move: int,
    new: SliceMap | None = None,
    told: server_pb2.MovedGroup | None = None,
) -> None:
    """A part in a move that ends by the scheduler's word only.

    Args:
        new: on the destination, the map by which what came is here.
        told: and the state of the group on the source.
    """
    slice_map = None if new is None else map_to_proto(new)
    body = journal_pb2.Bound(move=move, map=slice_map, group=told)
    journal.append(Entry(group=group, bound=body))


def followed(journal: Journal, group: str, new: SliceMap, now: float) -> None:
    """A new map holds."""
    body = journal_pb2.Followed(map=map_to_proto(new), now=now)
    journal.append(Entry(group=group, followed=body))


def released(journal: Journal, group: str, move: int) -> None:
    """A move is off."""
    journal.append(Entry(group=group, released=move))


# Requests that are kept as they came


def request(journal: Journal, group: str, pieces: Mapping[int, Piece], **body: Any) -> None:
    """A request with its bytes: ``contributed=``, ``reduced=``, ``collected=`` or ``vectors=``."""
    parts = Parts()
    for index, piece in pieces.items():
        parts.raw(index, journal_pb2.PART_BYTES, piece)
    journal.append(Entry(group=group, parts=parts.heads, **body), parts.pieces)


def added(journal: Journal, record: server_pb2.AddVector, given: Mapping[int, Tensor]) -> None:
    """An addition to a vector counts."""
    parts = Parts()
    for index, value in given.items():
        parts.add(index, journal_pb2.PART_VALUE, value)
    journal.append(Entry(group=record.group, added=record, parts=parts.heads), parts.pieces)
