"""Parties of one replica: sums of their tensors on the servers, and names of what is their own."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from paramserver.errors import ConfigurationError, UnsupportedError
from paramserver.schemes import Downpour, Scheme
from paramserver.types import AllReduce, Sync
from paramserver.v1 import server_pb2 as pb
from paramserver.worker.collective import Pieces
from paramserver.worker.link import Links, Part
from paramserver.worker.operation import Operation, ServerAnswers
from paramserver.worker.registry import Registry
from paramserver.worker.session import Session

LABEL = 0  # the party that has the labels


def own_name(session: Session, group: str) -> str:
    """The name of this party's group on the servers; without parties, its own name."""
    return f"{group}/party-{session.party}" if session.parties > 1 else group


def check_scheme(session: Session, scheme: Scheme) -> None:
    """Raises UnsupportedError for a scheme in which parties would learn from different batches."""
    if session.parties == 1:
        return
    base = getattr(scheme, "base", scheme)
    if isinstance(base, Sync) and base.backup:
        raise UnsupportedError(
            f"backup={base.backup} with {session.parties} parties: each party would leave out "
            "another batch; use backup=0"
        )
    if isinstance(scheme, Downpour) and scheme.warm_start:
        raise UnsupportedError(
            f"warm_start={scheme.warm_start} with {session.parties} parties: no party can train "
            "alone; use warm_start=0"
        )
    if isinstance(scheme, AllReduce):
        raise UnsupportedError(
            f"AllReduce with {session.parties} parties: replicas of a part of the model are kept "
            "on the servers; use Sync()"
        )


class PartySums:
    """This party's part in the sums of its replica."""

    def __init__(self, session: Session, links: Links) -> None:
        self._session = session
        self._links = links

    def reduce(
        self, name: str, key: int | str, tensor: Tensor, contributors: Sequence[int] | None = None
    ) -> Tensor:
        """The sum of the contributors' tensors, in party order, as a new tensor.

        Args:
            name, key: which sum; every party asks for the keys of a name in the same order.
            tensor: the shape and type of the sum, of a contributor also its part.
            contributors: parties whose tensors count, ascending; None: all.

        Raises:
            ConfigurationError: a name or key that cannot be.
            MismatchError: parties disagree in shape or type; names the difference.
            FencedError: a party was lost.
            WaitTimeoutError: names the party that did not come.
        """
        session = self._session
        session.check()
        session.refuse_reader("client.reduce")
        limit = session.config.limits.name_length
        if not 1 <= len(name) <= limit or not 1 <= len(str(key)) <= limit:
            raise ConfigurationError(
                f"reduce {name[:40]!r}, key {str(key)[:40]!r}: name and key must have 1 to {limit} "
                "characters"
            )
        cut = Pieces(session, tensor, "reduce", zlib.crc32(f"{name}/{key}".encode()))
        result = torch.empty_like(cut.flat)
        asked = pb.Reduce(
            worker=session.identity(),
            name=name,
            key=str(key),
            party=session.party,
            parties=session.parties,
            replica=session.replica,
            contributors=range(session.parties) if contributors is None else contributors,
            dtype=cut.dtype,
            shape=tensor.shape,
            timeout=session.config.wait_timeout,
        )
        operation = Operation(len(cut.shares))
        for server, pieces in cut.shares.items():
            answers = ServerAnswers(
                operation, server, cut.landing(result), lambda wanted: cut.data(list(wanted))
            )
            link = self._links.to(cut.addresses[server])
            operation.submit(link, answers, _open(asked, cut, pieces))
        what = f"reduce {name!r}, key {key}"
        operation.wait(operation.done, session.config.wait_timeout, session.check, what)
        return result.view(tensor.shape).to(tensor.device)

    def fall_in(self, registry: Registry, key: str) -> None:
        """The parties of this replica begin a shard at one clock.

        They became active one after the other, and the other replicas may have gone on in between:
        a batch would count for one clock in one party's group and for the next in another's. Such
        clocks are at most one apart: nobody passes two while a party is waited for.
        """
        session = self._session
        clocks = torch.zeros(session.parties, dtype=torch.int64)
        clocks[session.party] = registry.sync_clock()
        registry.skip_to(int(self.reduce("fall in", key, clocks).max()))


def _open(asked: pb.Reduce, cut: Pieces, pieces: list[int]) -> Part:
    record = pb.Reduce()
    record.CopyFrom(asked)
    record.pieces.extend(pieces)
    record.sizes.extend(len(cut.piece(i)) for i in pieces)
    gives = asked.party in asked.contributors
    data = cut.data(pieces if gives else [])
    return lambda: [(pb.Record(reduce=record), ()), *data()]
