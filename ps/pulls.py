"""Answers to pulls: bucket by bucket, each as soon as the consistency lets it be read."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from paramserver.core.ledger import Receipt
from paramserver.errors import InvalidRequestError, WaitTimeoutError
from paramserver.ps.group import Cell, GroupState
from paramserver.ps.outbox import Outbox
from paramserver.ps.push import Incoming, beside
from paramserver.ps.workshop import INLINE_BYTES
from paramserver.types import WorkerId
from paramserver.v1 import server_pb2 as pb
from paramserver.wire.convert import wire_from_proto
from paramserver.wire.frames import Piece, encode
from paramserver.wire.tensors import DTYPES, as_bytes, checksum

if TYPE_CHECKING:
    from paramserver.ps.service import ServerService

REASON_EVERY = 5.0  # seconds between words to a client that waits
DEFAULT_TIMEOUT = 1800.0


def deadline_in(timeout: float) -> float:
    """The time on the monotonic clock so many seconds from now; 0: as long as usual.

    Raises:
        InvalidRequestError: no number of seconds.
    """
    if not 0 <= timeout < float("inf"):
        raise InvalidRequestError(f"timeout={timeout}: must be finite and >= 0 (seconds)")
    return time.monotonic() + (timeout or DEFAULT_TIMEOUT)


async def answer_pull(
    service: ServerService,
    outbox: Outbox,
    request: int,
    pull: pb.Pull,
    push: Incoming | None,
    receipt: Receipt | None,
) -> None:
    """Sends the values that a worker may read at the pull's clock, then Done.

    Args:
        push: the push that this pull belongs to, while it is under way.
        receipt: what the push did, if it was completed before.

    Raises:
        WaitTimeoutError: the deadline passed; says whom the clock waits for.
    """
    if push is None and not pull.latest:
        await service.views.admit(pull.worker)
    group = push.group if push else await service.group(pull.group, pull.map_version)
    if group.spec.table is not None:
        raise InvalidRequestError(f"{pull.group!r} is a table: read rows by table.pull(ids)")
    group.check_slices(pull.slices)
    if not group.stored:
        raise InvalidRequestError(f"group {pull.group!r} has no first values yet")
    have = beside(pull.slices, pull.have)
    asked = set(pull.slices) or set(group.slices)
    wire = wire_from_proto(pull.wire_dtype, blocks=False)
    deadline = deadline_in(pull.timeout)
    for cell in group.cells:
        wanted = [i for i in cell.slices if i in asked]
        if not wanted:
            continue
        if push is not None:
            await push.through(cell)
        if not pull.latest:
            await until_readable(service, outbox, request, group, cell, pull.clock, deadline)
        await outbox.room()
        await _send_cell(service, outbox, request, group, cell, wanted, have, wire)
    if push is not None:
        await push.completed()
        receipt = group.ledger.receipt(push.worker, push.clock)
    if receipt is not None and not receipt.settled:  # buckets close before the push is settled
        worker = WorkerId(pull.worker.rank, pull.worker.incarnation)
        await group.settled.reach(receipt.clock + 1, deadline - time.monotonic())
        receipt = group.ledger.receipt(worker, receipt.clock)
    done = _done(group, pull, receipt)
    done.durability = service.durability
    outbox.put(pb.Record(request=request, done=done))


def _done(group: GroupState, pull: pb.Pull, receipt: Receipt | None) -> pb.Done:
    done = pb.Done(clock=pull.clock, version=group.version)
    if group.sync:  # this clock has closed on every bucket, even if the group is not told yet
        done.clock = max(pull.clock, group.frontier.value)
        done.version = max(pull.clock, group.version)
    elif receipt is not None:
        done.version = receipt.version
    if receipt is not None:
        done.dropped, done.staleness = receipt.dropped, receipt.staleness
    return done


async def until_readable(
    service: ServerService,
    outbox: Outbox,
    request: int,
    group: GroupState,
    cell: Cell,
    clock: int,
    deadline: float,
) -> None:
    """Returns when a worker may read a bucket at a clock; tells it now and then why it waits.

    Raises:
        WaitTimeoutError: the deadline passed; says whom the clock waits for.
    """
    while True:
        left = deadline - time.monotonic()
        if await group.readable(cell, clock, max(0.0, min(left, REASON_EVERY))):
            return
        reason = await service.explain(group)
        if left <= REASON_EVERY:
            raise WaitTimeoutError(
                f"group {group.spec.name!r}: values of clock {clock} did not come in time: {reason}"
            )
        outbox.put(pb.Record(request=request, waiting=pb.Waiting(reason=reason)))


async def _send_cell(
    service: ServerService,
    outbox: Outbox,
    request: int,
    group: GroupState,
    cell: Cell,
    wanted: Sequence[int],
    have: Mapping[int, int],
    wire: str,
) -> None:
    """One bucket's slices as one frame, copied under the bucket's lock."""
    dtypes = {i: group.wire_dtype(cell.slices[i], wire) for i in wanted} if wire else {}
    if cell.size <= INLINE_BYTES:
        data, pieces = await service.workshop.run(
            cell.lock, cell.size, _copy_small, cell, wanted, have, dtypes
        )
        if data.slices:
            outbox.put(pb.Record(request=request, data=data), pieces)
        return
    frame = await service.workshop.run(
        cell.lock, cell.size, _encode, request, cell, wanted, have, dtypes
    )
    if frame:
        outbox.put_frame(frame)


def _collect(
    cell: Cell, wanted: Sequence[int], have: Mapping[int, int], dtypes: Mapping[int, str]
) -> tuple[pb.Data, list[Piece]]:
    """Changed slices with their bytes; unchanged ones with none, if their version grew."""
    bucket = cell.dense
    pieces: list[Piece] = []
    slices, sizes, sums, versions = [], [], [], []
    for index in wanted:
        held, version = have.get(index, 0), bucket.versions[index]
        if held == version:
            continue
        piece: Piece = b""
        if bucket.changed[index] > held:
            piece = as_bytes(_cast(bucket.values[index], dtypes.get(index, "")))
            pieces.append(piece)
        slices.append(index)
        sizes.append(len(piece))
        sums.append(checksum(piece))
        versions.append(version)
    return pb.Data(slices=slices, sizes=sizes, checksums=sums, versions=versions), pieces


def _cast(value: Tensor, dtype: str) -> Tensor:
    return value.to(DTYPES[dtype]) if dtype else value


def _copy_small(
    cell: Cell, wanted: Sequence[int], have: Mapping[int, int], dtypes: Mapping[int, str]
) -> tuple[pb.Data, list[Piece]]:
    data, pieces = _collect(cell, wanted, have, dtypes)
    return data, [bytes(p) for p in pieces]


def _encode(
    request: int,
    cell: Cell,
    wanted: Sequence[int],
    have: Mapping[int, int],
    dtypes: Mapping[int, str],
) -> bytes:
    data, pieces = _collect(cell, wanted, have, dtypes)
    return encode([pb.Record(request=request, data=data)], pieces) if data.slices else b""
