"""Tensors reduced through the servers: contributed in pieces, collected over one closed list."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from paramserver.errors import ChecksumError, InvalidRequestError
from paramserver.v1 import common_pb2, scheduler_pb2
from paramserver.v1 import server_pb2 as pb
from paramserver.wire.convert import dtype_to_proto
from paramserver.wire.frames import Piece
from paramserver.wire.tensors import NAMES, as_bytes, checksum, flat_host, from_bytes
from paramserver.worker.link import Links, Part
from paramserver.worker.operation import Operation, ServerAnswers
from paramserver.worker.session import Session

PIECE_BYTES = 1 << 20


class Pieces:
    """A tensor cut for the wire, and dealt over the servers.

    Args:
        tensor: any shape.
        first: the server that gets the first piece, modulo their number.

    Attributes:
        flat: its elements on the CPU, one dimension.
        addresses: of the servers.
        shares: piece numbers by server.
    """

    def __init__(self, session: Session, tensor: Tensor, what: str, first: int = 0) -> None:
        if tensor.dtype not in NAMES:
            raise InvalidRequestError(f"{what} of {tensor.dtype}: convert the tensor first")
        self.flat = flat_host(tensor)
        step = PIECE_BYTES // self.flat.itemsize
        size = self.flat.numel()
        self._ranges = [(i, min(i + step, size)) for i in range(0, max(size, 1), step)]
        self.addresses = _addresses(session.view())
        self.shares: dict[int, list[int]] = {}
        for index in range(len(self._ranges)):
            self.shares.setdefault((first + index) % len(self.addresses), []).append(index)

    @property
    def dtype(self) -> common_pb2.DType:
        """As the protocol numbers it."""
        return dtype_to_proto(NAMES[self.flat.dtype])

    def piece(self, index: int) -> Piece:
        """The bytes of one piece."""
        start, stop = self._ranges[index]
        return as_bytes(self.flat[start:stop])

    def data(self, pieces: Sequence[int]) -> Part:
        """The records that carry some pieces."""

        def record(index: int) -> tuple[pb.Record, Sequence[Piece]]:
            piece = self.piece(index)
            data = pb.Data(slices=[index], sizes=[len(piece)], checksums=[checksum(piece)])
            return pb.Record(data=data), [piece]

        return lambda: [record(index) for index in pieces]

    def landing(self, result: Tensor) -> Callable[[pb.Data, Sequence[Piece]], None]:
        """Copies pieces that arrive to their places in ``result``, flat like ``flat``."""

        def take(data: pb.Data, pieces: Sequence[Piece]) -> None:
            for index, mark, piece in zip(data.slices, data.checksums, pieces, strict=True):
                if checksum(piece) != mark:
                    raise ChecksumError(f"piece {index}: bytes changed on the way here")
                start, stop = self._ranges[index]
                result[start:stop] = from_bytes(piece, result.dtype)

        return take


def _addresses(view: scheduler_pb2.View) -> list[str]:
    """Of the servers, in an order in which all workers have them."""
    if view.places:  # where a process was lost, another one has its server
        return [p.address for p in sorted(view.places, key=lambda p: p.server)]
    return [
        m.address
        for m in sorted(view.members, key=lambda m: m.name)
        if m.role == scheduler_pb2.ROLE_SERVER
        and (m.name in view.reducers or not view.reducers)  # others came while the job ran
    ]


class Collective:
    """One worker's part in the reduction of one tensor.

    Args:
        tensor: any shape; the result has its shape, type and device.
        name, sequence: of the round this worker is about to join.
    """

    def __init__(
        self, session: Session, links: Links, tensor: Tensor, name: str, sequence: int
    ) -> None:
        self._session = session
        self._links = links
        self._tensor = tensor
        self._pieces = Pieces(session, tensor, "all_reduce")
        self._name = name
        self._sequence = sequence

    def contribute(self) -> None:
        """Sends this worker's tensor; returns when the servers have it."""
        cut = self._pieces
        operation = Operation(len(cut.shares))
        for server, pieces in cut.shares.items():
            answers = ServerAnswers(operation, server, None, lambda wanted: cut.data(list(wanted)))
            operation.submit(self._links.to(cut.addresses[server]), answers, self._open(pieces))
        self._wait(operation)

    def collect(self, round_: int, op: str, arrivals: Sequence[scheduler_pb2.Arrival]) -> Tensor:
        """The reduction over the arrivals of the released round, the same for all of them."""
        cut = self._pieces
        result = torch.empty_like(cut.flat)
        collect = pb.Collect(worker=self._session.identity(), name=self._name, round=round_, op=op)
        for a in arrivals:
            collect.contributions.add(rank=a.rank, incarnation=a.incarnation, sequence=a.sequence)
        operation = Operation(len(cut.shares))
        for server in cut.shares:
            answers = ServerAnswers(operation, server, cut.landing(result))
            link = self._links.to(cut.addresses[server])
            operation.submit(link, answers, lambda: [(pb.Record(collect=collect), ())])
        self._wait(operation)
        return result.view(self._tensor.shape).to(self._tensor.device)

    def _open(self, pieces: list[int]) -> Part:
        contribute = pb.Contribute(
            worker=self._session.identity(),
            name=self._name,
            sequence=self._sequence,
            dtype=self._pieces.dtype,
            pieces=pieces,
            sizes=[len(self._pieces.piece(i)) for i in pieces],
        )
        return lambda: [(pb.Record(contribute=contribute), ()), *self._pieces.data(pieces)()]

    def _wait(self, operation: Operation) -> None:
        session = self._session
        what = f"all_reduce {self._name!r}"
        with session.speed.waiting():
            operation.wait(operation.done, session.config.wait_timeout, session.check, what)
