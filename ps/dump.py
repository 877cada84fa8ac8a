"""A server's whole state as journal entries, written while it goes on working.

Each part is copied by itself, with the position of the journal at that moment; what comes after on
top of it is in the journal.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from paramserver.ps.group import Cell, GroupState
from paramserver.ps.journal import Journal
from paramserver.ps.lead import Leadership
from paramserver.ps.records import FORMAT, Parts, dumped_slice
from paramserver.ps.state import SliceState
from paramserver.ps.vectors import Vectors, VectorSpace
from paramserver.types import WorkerId
from paramserver.v1 import journal_pb2 as pb
from paramserver.v1 import scheduler_pb2
from paramserver.wire.convert import group_to_proto, map_to_proto
from paramserver.wire.entries import encode_entry
from paramserver.wire.frames import Piece

if TYPE_CHECKING:
    from paramserver.ps.service import ServerService


async def dump(service: ServerService) -> AsyncIterator[bytes]:
    """Encoded entries; with those of the journal from the first of these calls on, they make a
    server what this one is. To be read to the end."""
    journal = service.journal
    assert journal is not None
    begun = pb.Begun(format=FORMAT, server=service.name, job=service.views.current.job)
    yield encode_entry(pb.Entry(begun=begun))
    for group in await service.all_groups():
        reply = scheduler_pb2.GetGroupReply(
            spec=group_to_proto(group.spec), map=map_to_proto(group.map), stored=group.stored
        )
        buckets = [pb.Bucket(slices=cell.slices) for cell in group.cells]
        yield encode_entry(pb.Entry(group=group.spec.name, made=reply, buckets=buckets))
        lead = service.lead_of(group.spec.name)
        async for data in dump_group(journal, group, lead, service.vectors):
            yield data
    async with service.collectives.reducing:
        yield _rest(journal.position, "collectives", *service.collectives.dump())
    yield _rest(journal.position, "reduces", *service.reduces.dump())


async def dump_group(
    journal: Journal, group: GroupState, lead: Leadership | None, vectors: Vectors
) -> AsyncIterator[bytes]:
    """As ``dump``, of one group that has been made."""
    space = vectors.of(group)
    async with space.turn:  # an operation on vectors may change values too
        for cell in group.cells:
            position, closed, now, states = await group.workshop.run(
                cell.lock, cell.size, _copy, journal, cell
            )
            for index, state in states.items():
                entry, pieces = dumped_slice(position, group.spec.name, index, state, closed, now)
                yield encode_entry(entry, pieces)
        yield _vectors(journal, space)
    yield encode_entry(_group(journal, group, lead))


def _copy(journal: Journal, cell: Cell) -> tuple[int, int, float, dict[int, SliceState]]:
    now = cell.rows.moment() if cell.rows is not None else 0.0
    return journal.position, cell.stepped, now, cell.bucket.dump()


def _group(journal: Journal, group: GroupState, lead: Leadership | None) -> pb.Entry:
    def look() -> dict[str, Any]:
        ledger = group.ledger.dump(settled=group.sync)
        for rank, incarnation, known in ledger["workers"]:
            for push in known["open"]:  # what is claimed is not applied yet
                kept = group.kept.get((WorkerId(rank, incarnation), push[0]), {})
                push[2] = sorted(kept.items())
        return ledger

    position, ledger = journal.at_once(look)
    numbers = {
        "ledger": ledger,
        "version": group.version,
        "frontier": group.frontier.value,
        "settled": group.settled.value,
        "lead": lead.clock.dump() if lead is not None else None,
    }
    body = pb.DumpedGroup(position=position, numbers=json.dumps(numbers).encode())
    return pb.Entry(group=group.spec.name, dumped_group=body)


def _vectors(journal: Journal, space: VectorSpace) -> bytes:
    position = journal.position
    numbers, replies = space.counts()
    vectors = space.dump()
    parts = Parts()
    for name, vector in vectors.items():
        for index, value in vector.values.items():
            parts.state(index, {name: value})
    for number, reply in enumerate(replies):
        parts.raw(number, pb.PART_BYTES, reply)
    numbers["vectors"] = [
        [name, [[*part, total] for part, total in vector.parts.items()]]
        for name, vector in vectors.items()
    ]
    body = pb.DumpedRest(position=position, kind="vectors", numbers=json.dumps(numbers).encode())
    entry = pb.Entry(group=space.group.spec.name, dumped_rest=body, parts=parts.heads)
    return encode_entry(entry, parts.pieces)


def _rest(position: int, kind: str, numbers: Any, pieces: Sequence[Piece]) -> bytes:
    parts = Parts()
    for number, piece in enumerate(pieces):
        parts.raw(number, pb.PART_BYTES, piece)
    body = pb.DumpedRest(position=position, kind=kind, numbers=json.dumps(numbers).encode())
    return encode_entry(pb.Entry(dumped_rest=body, parts=parts.heads), parts.pieces)
