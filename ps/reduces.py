"""Sums over the parties of a replica: each complete when all its contributors have come."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from paramserver.config import Limits
from paramserver.errors import (
    FencedError,
    InvalidRequestError,
    MismatchError,
    ParameterServerError,
    ResourceError,
)
from paramserver.ps import records
from paramserver.ps.collectives import combine
from paramserver.ps.journal import Journal
from paramserver.ps.views import Views
from paramserver.ps.workshop import Workshop
from paramserver.types import WorkerId
from paramserver.v1 import scheduler_pb2
from paramserver.v1 import server_pb2 as pb
from paramserver.wire.convert import dtype_from_proto
from paramserver.wire.frames import Piece
from paramserver.wire.tensors import DTYPES, NAMES, as_bytes, from_bytes

ENTRY_BYTES = 1 << 10  # a sum of nothing costs memory too: every name keeps its last
_Key = tuple[int, str, str]  # replica, name, key
_Pieces = Mapping[int, Piece]


def _key(record: pb.Reduce) -> _Key:
    return record.replica, record.name, record.key


def _worker(record: pb.Reduce) -> WorkerId:
    return WorkerId(record.worker.rank, record.worker.incarnation)


@dataclass(slots=True, eq=False)
class Sum:
    """One key of one name: what has come, and the sum once all has.

    Attributes:
        first: what the first party to come declared; the others must agree.
        came: the parties that asked for it.
        tensors: of the contributors, by party; empty once they are summed.
        collected: parties that have the sum, as their newer keys tell.
        over: the sum, or the error, is there.
        summing: the sum is being made, once.
    """

    first: pb.Reduce
    came: dict[int, WorkerId] = field(default_factory=dict)
    tensors: dict[int, _Pieces] = field(default_factory=dict)
    collected: set[int] = field(default_factory=set)
    result: dict[int, Tensor] = field(default_factory=dict)
    error: ParameterServerError | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)
    summing: bool = False

    def fail(self, error: ParameterServerError) -> None:
        """The same error for every party, those that come later too."""
        if not self.over.is_set():
            self.error = error
            self.tensors = {}
            self.over.set()

    def missing(self) -> list[int]:
        """Parties whose tensors are awaited."""
        return [p for p in self.first.contributors if p not in self.tensors]

    @property
    def bytes(self) -> int:
        waiting = sum(len(p) for pieces in self.tensors.values() for p in pieces.values())
        return ENTRY_BYTES + waiting + sum(value.nbytes for value in self.result.values())


class Reduces:
    """The sums of one server, each kept until every party has collected it."""

    def __init__(self, limits: Limits) -> None:
        self.journal: Journal | None = None
        self._limit = limits.collective_bytes
        self._sums: dict[_Key, Sum] = {}
        self._newest: dict[tuple[int, str, int], str] = {}  # replica, name, party: its last key

    def clear(self) -> None:
        """Forgets everything (a new job)."""
        self._sums.clear()
        self._newest.clear()

    def open(self, record: pb.Reduce, views: Views) -> Sum:
        """The sum that a party asks for.

        Raises:
            InvalidRequestError: a party, contributor or size that cannot be.
            MismatchError: another tensor than other parties gave; names the difference.
            ResourceError: too many bytes are kept already.
        """
        _check(record)
        self._collect(record)
        made = self._sums.get(_key(record))
        if made is None or record.party not in made.came:
            self._check_room(record, ENTRY_BYTES + sum(record.sizes))
        if made is None:
            made = self._sums[_key(record)] = Sum(record)
        made.came[record.party] = _worker(record)
        differs = _difference(made.first, record)
        if differs:
            made.fail(MismatchError(f"{_named(record)}: {differs}; all parties must agree"))
        self._check_parties(made, views)
        return made

    def _collect(self, record: pb.Reduce) -> None:
        """A newer key tells that its party has the sum of the older one."""
        place = (record.replica, record.name, record.party)
        older = self._newest.get(place, record.key)
        self._newest[place] = record.key
        made = self._sums.get((record.replica, record.name, older))
        if older == record.key or made is None:
            return
        made.collected.add(record.party)
        if len(made.collected) == record.parties:
            del self._sums[record.replica, record.name, older]

    def _check_room(self, record: pb.Reduce, size: int) -> None:
        held = sum(made.bytes for made in self._sums.values())
        if held + size > self._limit:
            raise ResourceError(
                f"{_named(record)}: sums hold {held} bytes, {size} more would exceed the limit of "
                f"{self._limit}; reduce smaller tensors, or let all parties collect each key"
            )

    async def add(self, record: pb.Reduce, made: Sum, pieces: _Pieces, workshop: Workshop) -> None:
        """A whole tensor is here; the last one makes the sum. One sent again takes its place."""
        if made.summing or made.over.is_set() or record.party not in record.contributors:
            return
        made.tensors[record.party] = dict(pieces)
        if self.journal is not None:
            records.request(self.journal, "", pieces, reduced=record)
        if made.missing():
            return
        made.summing = True
        size = sum(len(p) for p in pieces.values())
        result = await workshop.offload(size * len(made.tensors), _sum, made)
        made.result, made.tensors = result, {}
        made.over.set()

    def replay(self, record: pb.Reduce, pieces: _Pieces) -> None:
        """A part that was given is given again."""
        self._collect(record)
        made = self._sums.setdefault(_key(record), Sum(record))
        made.came[record.party] = _worker(record)
        if not made.over.is_set():
            made.tensors[record.party] = dict(pieces)
            self._finish(made)

    @staticmethod
    def _finish(made: Sum) -> None:
        if not made.missing():
            made.result, made.tensors = _sum(made), {}
            made.over.set()

    def dump(self) -> tuple[list[Any], list[Piece]]:
        """All that is kept, as JSON-able values and bytes; sums that failed are left out."""
        numbers: list[Any] = []
        pieces: list[Piece] = []
        for made in self._sums.values():
            if made.error is not None:
                continue
            numbers.append(
                [
                    [*made.came.items()],
                    [[party, list(parts)] for party, parts in made.tensors.items()],
                    sorted(made.collected),
                    [[i, NAMES[value.dtype]] for i, value in made.result.items()],
                ]
            )
            pieces.append(made.first.SerializeToString())
            pieces += [p for parts in made.tensors.values() for p in parts.values()]
            pieces += [as_bytes(value) for value in made.result.values()]
        return [numbers, [[*place, key] for place, key in self._newest.items()]], pieces

    def load(self, numbers: Sequence[Any], pieces: Sequence[Piece]) -> None:
        """What another has dumped; the pieces must stay as they are."""
        self.clear()
        left = iter(pieces)
        sums, newest = numbers
        for came, tensors, collected, results in sums:
            made = Sum(pb.Reduce.FromString(bytes(next(left))), collected=set(collected))
            made.came = {party: WorkerId(*worker) for party, worker in came}
            made.tensors = {party: {i: next(left) for i in parts} for party, parts in tensors}
            made.result = {i: from_bytes(next(left), DTYPES[dtype]) for i, dtype in results}
            self._sums[_key(made.first)] = made
            if results:
                made.over.set()
            else:
                self._finish(made)
        self._newest = {(replica, name, party): key for replica, name, party, key in newest}

    def observe(self, views: Views) -> None:
        """A newer view: who waits for a party that is gone must hear of it at once."""
        lost = views.lost()
        for key, made in list(self._sums.items()):
            self._check_parties(made, views)
            if any(who in lost for who in made.came.values()):
                del self._sums[key]  # the replica begins anew, if it does, with the same keys
        for place in [p for p in self._newest if not any(k[:2] == p[:2] for k in self._sums)]:
            del self._newest[place]

    def _check_parties(self, made: Sum, views: Views) -> None:
        if made.over.is_set():
            return
        for party in made.missing():
            member = self.find(made.first, party, views)
            if member is None:
                continue
            whom = f"{_named(made.first)}: party {party} ({member.name})"
            if member.state == scheduler_pb2.MEMBER_LOST:
                made.fail(FencedError(f"{whom} was lost: {member.reason}; connect again"))
            elif member.state == scheduler_pb2.MEMBER_FINISHED:
                made.fail(InvalidRequestError(f"{whom} has finished and gives nothing any more"))

    @staticmethod
    def find(record: pb.Reduce, party: int, views: Views) -> scheduler_pb2.Member | None:
        """The member that is a party of the replica; None if there was none yet."""
        rank = record.replica * record.parties + party
        workers = (m for m in views.current.members if m.role == scheduler_pb2.ROLE_WORKER)
        return next((m for m in workers if m.rank == rank), None)

    def waiting_for(self, made: Sum, views: Views) -> str:
        """Whom a sum waits for, and what is known of them, in words."""
        said = []
        for party in made.missing():
            member = self.find(made.first, party, views)
            if member is None:
                said.append(f"party {party}, which has not registered")
                continue
            state = scheduler_pb2.MemberState.Name(member.state).removeprefix("MEMBER_").lower()
            why = f", {member.reason}" if member.reason else ""
            where = f" on {member.host}" if member.host else ""
            said.append(f"party {party} ({member.name}{where}: {state}{why})")
        return f"{_named(made.first)} waits for {' and '.join(said)}"


def _check(record: pb.Reduce) -> None:
    rank = record.replica * record.parties + record.party
    contributors = list(record.contributors)
    known = contributors == sorted(set(contributors)) and contributors
    if not known or contributors[-1] >= record.parties or record.worker.rank != rank:
        raise InvalidRequestError(
            f"{_named(record)}: rank {record.worker.rank} as party {record.party} of "
            f"{record.parties} with contributors {contributors}: must be the parties of one "
            "replica, ascending"
        )
    if len(record.pieces) != len(record.sizes):
        raise InvalidRequestError(f"{_named(record)}: every piece needs a size")


def _difference(first: pb.Reduce, other: pb.Reduce) -> str:
    """In which two parties disagree, in words; empty: in nothing."""
    for what in ("dtype", "shape", "contributors", "pieces", "sizes"):
        left, right = getattr(first, what), getattr(other, what)
        if left != right:
            if what == "dtype":
                left, right = dtype_from_proto(left), dtype_from_proto(right)
            else:
                left, right = list(left), list(right)
            return f"party {first.party} gave {what} {left}, party {other.party} {right}"
    return ""


def _named(record: pb.Reduce) -> str:
    return f"reduce {record.name!r}, key {record.key}, of replica {record.replica}"


def _sum(made: Sum) -> dict[int, Tensor]:
    dtype = DTYPES[dtype_from_proto(made.first.dtype)]
    parts: Sequence[_Pieces] = [made.tensors[party] for party in sorted(made.tensors)]
    return {
        piece: combine([from_bytes(part[piece], dtype) for part in parts], "sum")
        for piece in made.first.pieces
    }
