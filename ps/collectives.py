"""Tensors contributed to collectives, reduced over one closed list, in rank order."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from paramserver.config import Limits
from paramserver.errors import InvalidRequestError, ResourceError
from paramserver.ps import records
from paramserver.ps.journal import Journal
from paramserver.ps.workshop import Workshop
from paramserver.types import WorkerId
from paramserver.v1 import server_pb2 as pb
from paramserver.wire.convert import dtype_from_proto
from paramserver.wire.frames import Piece
from paramserver.wire.tensors import DTYPES, NAMES, as_bytes, checksum, from_bytes

OPERATIONS = ("mean", "sum", "max", "min")
KEPT_ROUNDS = 64  # results that a slow collector may still ask for

_Key = tuple[str, WorkerId, int]


class Collectives:
    """Contributions until their round is collected; the newest results for a while longer."""

    def __init__(self, limits: Limits) -> None:
        self.journal: Journal | None = None
        self._limit = limits.collective_bytes
        self._bytes = 0
        self.reducing = asyncio.Lock()
        self._contributions: dict[_Key, tuple[str, dict[int, Piece]]] = {}
        self._results: OrderedDict[tuple[str, int], dict[int, Tensor]] = OrderedDict()

    def clear(self) -> None:
        """Forgets everything (a new job)."""
        self._bytes = 0
        self._contributions.clear()
        self._results.clear()

    def check(
        self, record: pb.Contribute, data: pb.Data, pieces: Sequence[Piece]
    ) -> dict[int, Piece]:
        """The pieces whose checksums match.

        Raises:
            InvalidRequestError: undeclared pieces, or of another size than declared.
            ResourceError: too many bytes wait for their rounds.
        """
        good = intact(record, data, pieces)
        if self._bytes + sum(len(p) for p in good.values()) > self._limit:
            raise ResourceError(
                f"collectives hold {self._bytes} bytes, the limit is {self._limit}; "
                "reduce smaller tensors, or collect the open rounds first"
            )
        return good

    def add(self, record: pb.Contribute, pieces: Mapping[int, Piece]) -> None:
        """Keeps a whole contribution; one sent again takes the place of the first."""
        worker = WorkerId(record.worker.rank, record.worker.incarnation)
        key = (record.name, worker, record.sequence)
        self._release(key)
        self._contributions[key] = (dtype_from_proto(record.dtype), dict(pieces))
        self._bytes += sum(len(p) for p in pieces.values())
        if self.journal is not None:
            records.request(self.journal, "", pieces, contributed=record)

    async def collect(self, record: pb.Collect, workshop: Workshop) -> list[tuple[pb.Data, Piece]]:
        """The reduced pieces of a round, computed once, in a thread.

        Raises:
            InvalidRequestError: an unknown operation, contributions that are not here or differ.
        """
        if record.op not in OPERATIONS:
            raise InvalidRequestError(f"op={record.op!r}: must be one of {', '.join(OPERATIONS)}")
        key = (record.name, record.round)
        async with self.reducing:
            if key not in self._results:
                self._results[key] = await workshop.offload(self._bytes, self.reduce, record)
                if self.journal is not None:
                    records.request(self.journal, "", {}, collected=record)
                self._forget()
            return [
                answer_piece(index, value) for index, value in sorted(self._results[key].items())
            ]

    def replay(self, record: pb.Collect) -> None:
        """A round that was reduced is reduced again."""
        self._results[record.name, record.round] = self.reduce(record)
        self._forget()

    def dump(self) -> tuple[list[Any], list[Piece]]:
        """All that is kept, as JSON-able values and bytes."""
        numbers: list[Any] = []
        pieces: list[Piece] = []
        for (name, worker, sequence), (dtype, parts) in self._contributions.items():
            numbers.append(["contribution", name, *worker, sequence, dtype, list(parts)])
            pieces += parts.values()
        for (name, round_), result in self._results.items():
            dtypes = [NAMES[value.dtype] for value in result.values()]
            numbers.append(["result", name, round_, dtypes, list(result)])
            pieces += [as_bytes(value) for value in result.values()]
        return numbers, pieces

    def load(self, numbers: Sequence[Any], pieces: Sequence[Piece]) -> None:
        """What another has dumped; the pieces must stay as they are."""
        self.clear()
        left = iter(pieces)
        for kind, name, *rest, indices in numbers:
            if kind == "contribution":
                rank, incarnation, sequence, dtype = rest
                parts = {i: next(left) for i in indices}
                self._contributions[name, WorkerId(rank, incarnation), sequence] = (dtype, parts)
                self._bytes += sum(len(p) for p in parts.values())
            else:
                round_, dtypes = rest
                self._results[name, round_] = {
                    i: from_bytes(next(left), DTYPES[dtype])
                    for i, dtype in zip(indices, dtypes, strict=True)
                }

    def reduce(self, record: pb.Collect) -> dict[int, Tensor]:
        """The pieces of a round, whose contributions are freed."""
        keys = [
            (record.name, WorkerId(c.rank, c.incarnation), c.sequence)
            for c in sorted(record.contributions, key=lambda c: (c.rank, c.incarnation))
        ]
        missing = [k[1].rank for k in keys if k not in self._contributions]
        if missing or not keys:
            raise InvalidRequestError(
                f"collective {record.name!r}, round {record.round}: no contribution of ranks "
                f"{missing} on this server"
            )
        parts = [self._contributions[k] for k in keys]
        shapes = {(dtype, tuple((i, len(p)) for i, p in sorted(x.items()))) for dtype, x in parts}
        if len(shapes) > 1:
            raise InvalidRequestError(
                f"collective {record.name!r}: the tensors of its workers differ in size or type"
            )
        dtype = DTYPES[parts[0][0]]
        result = {
            i: combine([from_bytes(x[i], dtype) for _, x in parts], record.op) for i in parts[0][1]
        }
        for key in keys:
            self._release(key)
        return result

    def _forget(self) -> None:
        """Drops old results beyond a number, or beyond the bytes that collectives may hold."""
        held = sum(v.nbytes for result in self._results.values() for v in result.values())
        while len(self._results) > 1 and (len(self._results) > KEPT_ROUNDS or held > self._limit):
            _, oldest = self._results.popitem(last=False)
            held -= sum(v.nbytes for v in oldest.values())

    def _release(self, key: _Key) -> None:
        held = self._contributions.pop(key, None)
        if held is not None:
            self._bytes -= sum(len(p) for p in held[1].values())


def intact(
    record: pb.Contribute | pb.Reduce, data: pb.Data, pieces: Sequence[Piece]
) -> dict[int, Piece]:
    """The pieces whose checksums match.

    Raises:
        InvalidRequestError: undeclared pieces, or of another size than declared.
    """
    sizes = dict(zip(record.pieces, record.sizes, strict=True))
    good: dict[int, Piece] = {}
    for index, piece, mark in zip(data.slices, pieces, data.checksums, strict=True):
        if sizes.get(index) != len(piece):
            raise InvalidRequestError(
                f"collective {record.name!r}: piece {index} has {len(piece)} bytes, "
                f"declared were {sizes.get(index)}"
            )
        if checksum(piece) == mark:
            good[index] = piece
    return good


def answer_piece(index: int, value: Tensor) -> tuple[pb.Data, Piece]:
    """One piece of a result as it travels."""
    piece = as_bytes(value)
    return pb.Data(slices=[index], sizes=[len(piece)], checksums=[checksum(piece)]), piece


def combine(values: Sequence[Tensor], op: str) -> Tensor:
    """One reduction, in the order given; 16-bit floats in float32, rounded once."""
    dtype = values[0].dtype
    wide = torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype
    total = values[0].to(wide, copy=True)
    for value in values[1:]:
        if op == "max":
            total = torch.maximum(total, value.to(wide))
        elif op == "min":
            total = torch.minimum(total, value.to(wide))
        else:
            total += value.to(wide)
    if op == "mean":
        total = total / len(values)
    return total.to(dtype)
