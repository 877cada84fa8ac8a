"""A push on its way in: declared, its slices taken one by one, then staged or applied."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from paramserver.core.ledger import Receipt
from paramserver.core.slices import Slice
from paramserver.errors import InvalidRequestError, NonFiniteError
from paramserver.failpoints import failpoint
from paramserver.ps import records
from paramserver.ps.group import Cell, GroupState
from paramserver.ps.optimizers import check_push_options
from paramserver.ps.tables.rules import complete
from paramserver.ps.tables.store import Rows
from paramserver.ps.workshop import INLINE_BYTES, Workshop
from paramserver.types import Span, WorkerId
from paramserver.v1 import common_pb2
from paramserver.v1 import server_pb2 as pb
from paramserver.wire.blocks import LEVELS, unpack, wire_bytes
from paramserver.wire.convert import options_from_proto, spans_from_proto, wire_from_proto
from paramserver.wire.frames import Piece
from paramserver.wire.rows import KEY_BYTES, decode_keys, decode_rows, ids_of, row_bytes
from paramserver.wire.tensors import DTYPES, checksum, from_bytes, is_finite

PUSHABLE = frozenset({"step", "add", "delta", "maximum", "first", "rows"})


@dataclass(eq=False, slots=True)
class Incoming:
    """A push of one stream.

    Attributes:
        waiting: declared slices whose bytes have not been seen on this stream.
        refused: slices whose bytes did not match their checksum.
        gradients: staged (sync).
        held: slices of a deferred push.
        known: what the push did when it came before; its bytes are compared, not applied.
        digest: of the bytes of a push that came before.
        pull: to be answered once the push is complete.
        progress: set whenever ``waiting`` shrinks.
        size: bytes that it takes here until its clock closes.
    """

    request: int
    group: GroupState
    worker: WorkerId
    job: int
    map_version: int
    clock: int
    weight: float
    wire: str
    options: Sequence[Mapping[str, Any]]
    samples: Sequence[Span]
    bases: dict[int, int]
    deferred: bool
    declared: set[int]
    waiting: set[int]
    refused: list[int] = field(default_factory=list)
    gradients: dict[int, Tensor] = field(default_factory=dict)
    held: dict[int, Parcel] = field(default_factory=dict)
    known: Receipt | None = None
    digest: int = 0
    staleness: float = 0.0
    size: int = 0
    pull: pb.Pull | None = None
    open: bool = True
    complete: bool = False
    progress: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def counts(self) -> bool:
        """Whether it changes values: not with weight 0, which additive groups ignore."""
        return self.weight > 0 or not self.group.spec.optimizer

    def seen(self, slices: Sequence[int]) -> None:
        """Bytes of these slices have been dealt with."""
        self.waiting.difference_update(slices)
        self.progress.set()

    async def completed(self) -> None:
        """Waits until the push is staged or applied whole."""
        while not self.complete:
            self.progress.clear()
            await self.progress.wait()

    async def through(self, cell: Cell) -> None:
        """Waits until the bytes of all declared slices of a bucket have been dealt with."""
        while self.open and not self.waiting.isdisjoint(cell.slices):
            self.progress.clear()
            await self.progress.wait()


def checked_weight(weight: float) -> float:
    """The weight of a push; raises InvalidRequestError for what cannot be one."""
    if not 0 <= weight < float("inf"):
        raise InvalidRequestError(
            f"weight={weight}: must be finite and >= 0 (samples in the batch)"
        )
    return weight


def read_options(
    group: GroupState, options: Sequence[common_pb2.Options]
) -> Sequence[Mapping[str, Any]]:
    """The hyper-parameters that travel with a push; none: as registered.

    Raises:
        ConfigurationError: a value that the group's optimizer cannot work with.
    """
    read = [options_from_proto(o) for o in options]
    if read and group.spec.table is not None:
        return [complete(group.spec.optimizer, options) for options in read]
    if read:
        check_push_options(group.spec.optimizer, group.spec.param_groups, read)
    return read


def wire_of(group: GroupState, dtype: int) -> str:
    """The name of the data type in which a push or lookup travels; "" when none is asked for.

    Raises:
        InvalidRequestError: nothing of this group can travel in this type.
    """
    name = wire_from_proto(dtype, blocks=True)
    if group.spec.table is not None and name == "int4":
        raise InvalidRequestError("wire_dtype int4: rows travel as bfloat16, float16 or int8")
    return name


def check_payload(records: Sequence[pb.Record], payload: memoryview) -> None:
    """Raises InvalidRequestError unless the records speak of the whole payload and no more.

    To be called before the first record of a frame is handled.
    """
    claimed = 0
    for record in records:
        if record.HasField("data"):
            data = record.data
            if not len(data.slices) == len(data.sizes) == len(data.checksums):
                raise InvalidRequestError(
                    f"data: {len(data.slices)} slices, {len(data.sizes)} sizes, "
                    f"{len(data.checksums)} checksums; must be as many of each"
                )
            claimed += sum(data.sizes)
    if claimed != len(payload):
        raise InvalidRequestError(
            f"frame: its records claim {claimed} bytes of payload, it has {len(payload)}"
        )


def split(data: pb.Data, payload: memoryview, at: int) -> tuple[list[Piece], int]:
    """The bytes of each slice of a checked Data record, and where the next record's begin."""
    pieces: list[Piece] = []
    for size in data.sizes:
        pieces.append(payload[at : at + size])
        at += size
    return pieces, at


def beside(slices: Sequence[int], numbers: Sequence[int]) -> dict[int, int]:
    """Numbers by slice; none at all may be given.

    Raises:
        InvalidRequestError: they are not as many.
    """
    if len(numbers) not in (0, len(slices)):
        raise InvalidRequestError(
            f"{len(slices)} slices with {len(numbers)} versions beside them: as many, or none"
        )
    return dict(zip(slices, numbers, strict=False))


def incoming_push(request: int, push: pb.Push, group: GroupState, worker: WorkerId) -> Incoming:
    """A push as it declares itself.

    Raises:
        ConfigurationError: hyper-parameters that the group's optimizer cannot work with.
        InvalidRequestError: a weight, data type or number of versions that cannot be.
    """
    return Incoming(
        request,
        group,
        worker,
        push.worker.job,
        push.map_version,
        push.clock,
        checked_weight(push.weight),
        wire_of(group, push.wire_dtype),
        read_options(group, push.options),
        spans_from_proto(push.samples),
        beside(push.slices, push.bases),
        push.deferred,
        set(push.slices),
        set(push.slices),
    )


def check_sizes(
    group: GroupState, slices: Sequence[int], pieces: Sequence[Piece], wire: str
) -> list[str]:
    """The data type of each slice's bytes.

    Raises:
        InvalidRequestError: a slice has another number of bytes than its type and range say.
    """
    dtypes = []
    if group.spec.table is not None:
        check_rows(group, slices, pieces, wire)
        return [wire or group.spec.tensors[0].dtype] * len(pieces)
    for index, piece in zip(slices, pieces, strict=True):
        part = group.slices[index]
        dtype = group.wire_dtype(part, wire)
        wanted = wire_bytes(part.elements, dtype)
        if len(piece) != wanted:
            raise InvalidRequestError(
                f"slice {index} of group {group.spec.name!r}: {len(piece)} bytes, must be {wanted} "
                f"({part.elements} x {dtype})"
            )
        dtypes.append(dtype)
    return dtypes


def check_rows(
    group: GroupState, slices: Sequence[int], pieces: Sequence[Piece], wire: str
) -> None:
    """Raises InvalidRequestError unless each piece is a whole number of keys with their rows."""
    assert group.spec.table is not None
    size = KEY_BYTES + row_bytes(group.spec.table.dim, wire or group.spec.tensors[0].dtype)
    for index, piece in zip(slices, pieces, strict=True):
        if len(piece) % size:
            raise InvalidRequestError(
                f"sub-table {index} of {group.spec.name!r}: {len(piece)} bytes, must be a multiple "
                f"of {size}: a key of 8 and a row of {size - KEY_BYTES}"
            )


class Parcel(NamedTuple):
    """Slices as they came in one frame, side by side."""

    slices: Sequence[int]
    pieces: Sequence[Piece]
    checksums: Sequence[int]
    dtypes: Sequence[str]

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(len(p) for p in self.pieces)

    def only(self, chosen: Collection[int]) -> Parcel:
        """Some of the slices."""
        if all(index in chosen for index in self.slices):
            return self
        rows = [row for row in zip(*self, strict=True) if row[0] in chosen]
        return Parcel(*(list(column) for column in zip(*rows, strict=True))) if rows else EMPTY

    def open(self) -> tuple[dict[int, Tensor], list[int]]:
        """Tensors over the bytes, and the slices whose checksum does not match. Any thread.

        Blocks are bytes still.
        """
        good: dict[int, Tensor] = {}
        bad: list[int] = []
        for index, piece, mark, dtype in zip(*self, strict=True):
            if checksum(piece) == mark:
                good[index] = from_bytes(piece, DTYPES.get(dtype, torch.uint8))
            else:
                bad.append(index)
        return good, bad


EMPTY = Parcel((), (), (), ())


def open_gradients(push: Incoming, parcel: Parcel) -> tuple[dict[int, Any], list[int]]:
    """As ``parcel.open``, blocks unpacked.

    Raises:
        NonFiniteError: names worker, tensor and clock.
    """
    if push.group.spec.table is not None:
        return _open_rows(push, push.group.spec.table.dim, parcel)
    good, bad = parcel.open()
    check = push.group.spec.on_nonfinite != "apply"
    for index, gradient in good.items():
        piece: Slice = push.group.slices[index]
        dtype = push.group.wire_dtype(piece, push.wire)
        if dtype in LEVELS:
            gradient = good[index] = unpack(gradient, dtype, piece.elements)
        if check and not is_finite(gradient):
            raise NonFiniteError(
                f"NaN or infinity from rank {push.worker.rank} at clock {push.clock} in tensor "
                f"{push.group.spec.tensors[piece.tensor].name!r}, elements {piece.start} to "
                f"{piece.stop}; nothing of this slice was applied"
            )
    return good, bad


def _open_rows(push: Incoming, dim: int, parcel: Parcel) -> tuple[dict[int, Any], list[int]]:
    """As ``open_gradients``, for a table."""
    table = push.group.spec.table
    assert table is not None
    good: dict[int, Any] = {}
    bad: list[int] = []
    for index, piece, mark, wire in zip(*parcel, strict=True):
        if checksum(piece) != mark:
            bad.append(index)
            continue
        at = len(piece) // (KEY_BYTES + row_bytes(dim, wire)) * KEY_BYTES
        keys = decode_keys(piece[:at], index, table.rows)
        rows = decode_rows(piece[at:], dim, wire, DTYPES[push.group.spec.tensors[0].dtype])
        if push.group.spec.on_nonfinite != "apply" and not is_finite(rows):
            worst = ids_of(keys)[int((~torch.isfinite(rows)).any(dim=1).nonzero()[0])]
            raise NonFiniteError(
                f"NaN or infinity from rank {push.worker.rank} at clock {push.clock} in row "
                f"{worst} of table {push.group.spec.name!r}; nothing of this sub-table was applied"
            )
        good[index] = Rows(keys, rows)
    return good, bad


def arrive(push: Incoming, cell: Cell, parcel: Parcel) -> tuple[float, list[int]]:
    """Applies one bucket's slices (stale, async), under its lock, in any thread.

    Returns:
        The sum of their stalenesses, and the slices whose checksum does not match.
    """
    good, bad = open_gradients(push, parcel)
    if not good:
        return 0.0, bad
    now, group = cell.look(), push.group
    if group.journal is not None:
        marks = dict(zip(parcel.slices, parcel.checksums, strict=True))
        records.arrived(
            group.journal,
            group.spec.name,
            push.worker,
            push.clock,
            push.options,
            good,
            marks,
            {i: push.bases[i] for i in good} if push.bases else {},
            now,
            lambda: group.keep(push.worker, push.clock, {i: marks[i] for i in good}),
        )
    mean = cell.bucket.arrive(good, push.options, push.bases, push.group.scale)
    return mean * len(good), bad


async def arrive_all(workshop: Workshop, push: Incoming, parcel: Parcel) -> tuple[float, list[int]]:
    """As ``arrive``, for all that came in one frame, bucket by bucket."""
    cells = list({push.group.cell_of[i]: None for i in parcel.slices})
    if push.group.spec.table is not None and parcel.size > INLINE_BYTES:
        # Sub-tables are small: a change of threads for each would cost as much as its rows.
        return await workshop.offload(parcel.size, _arrive_rows, push, cells, parcel)
    total, refused = 0.0, []
    for cell in cells:
        part = parcel.only(cell.slices)
        staleness, bad = await cell.change(workshop, part.size, arrive, push, cell, part)
        failpoint("ps.after_apply")
        total += staleness
        refused += bad
    return total, refused


def _arrive_rows(push: Incoming, cells: Sequence[Cell], parcel: Parcel) -> tuple[float, list[int]]:
    """Applies some sub-tables, each under its lock. Any thread."""
    total, refused = 0.0, []
    for cell in cells:
        part = parcel.only(cell.slices)
        with cell.lock:
            staleness, bad = cell.change_locked(arrive, push, cell, part)
        failpoint("ps.after_apply")
        total += staleness
        refused += bad
    return total, refused
