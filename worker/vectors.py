"""Vectors on the servers, laid out like a group: arithmetic there, scalars back."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from torch import Tensor

from paramserver.errors import (
    ConnectionLostError,
    InternalError,
    MovedError,
    UnsupportedError,
)
from paramserver.types import FLOATING
from paramserver.v1 import server_pb2 as pb
from paramserver.wire.transport import Transport
from paramserver.worker.link import Links, Part
from paramserver.worker.operation import Operation, ServerAnswers
from paramserver.worker.parts import data_record
from paramserver.worker.plan import Plan, Shard, empty_like, pieces_of
from paramserver.worker.session import Session
from paramserver.worker.values import Held, Landing

logger = logging.getLogger("paramserver")

VALUES = "values"  # the group's own
CALL_S = 30.0

Terms: TypeAlias = Mapping[str, float] | Iterable[tuple[float, str]]
Pairs: TypeAlias = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Tally:
    """What was added to a vector so far.

    Attributes:
        samples: of all parts.
        total: sum of their totals, whatever the order in which they came.
    """

    samples: int
    total: float


class Reply(NamedTuple):
    """Answer to an operation: dot products, tallies, names, in the order asked."""

    dots: list[float]
    tallies: list[Tally]
    names: list[str]


class VectorSpace:
    """The vectors of one group, as a client reaches them. Thread-safe."""

    def __init__(self, session: Session, transport: Transport, links: Links, plan: Plan) -> None:
        self._session = session
        self._transport = transport
        self._links = links
        self._plan = plan
        self._operating, self._adding = threading.Lock(), threading.Lock()
        self._operations = self._additions = 0
        self.tensors = [
            t.name for t in plan.spec.tensors if t.dtype in FLOATING and t.rule in ("step", "add")
        ]

    def operate(
        self,
        lin: Sequence[tuple[str, Terms]] = (),
        dots: Pairs = (),
        tallies: Sequence[str] = (),
        drop: Iterable[str] = (),
        names: bool = False,
    ) -> Reply:
        """In one request to every server: sums in order, then products, tallies, drops."""
        self._session.check()
        self._session.refuse_reader("vectors")
        with self._operating:
            self._operations += 1
            request = pb.VectorsRequest(
                worker=self._session.identity(),
                group=self._plan.spec.name,
                map_version=self._plan.map.version,
                operation=self._operations,
                lin=[_lin(out, terms) for out, terms in lin],
                dots=[pb.Dot(left=a or VALUES, right=b or VALUES) for a, b in dots],
                tallies=tallies,
                drop=drop,
                names=names,
            )
            replies = self._ask_all(request)
        return Reply(
            [math.fsum(each) for each in zip(*(r.dots for r in replies), strict=True)],
            [_agreed(each) for each in zip(*(r.tallies for r in replies), strict=True)],
            sorted({name for reply in replies for name in reply.names}),
        )

    def _ask_all(self, request: pb.VectorsRequest) -> list[pb.VectorsReply]:
        """The replies, in server order."""
        shards = self._plan.shards
        if len(shards) == 1:
            return [self._ask(shards[0], request)]
        with ThreadPoolExecutor(len(shards), thread_name_prefix="paramserver vectors") as pool:
            return list(pool.map(lambda shard: self._ask(shard, request), shards))

    def _ask(self, shard: Shard, request: pb.VectorsRequest) -> pb.VectorsReply:
        """Asks one server until it answers: the same operation is not carried out twice."""
        deadline = time.monotonic() + self._session.config.wait_timeout
        while True:
            try:
                reply: pb.VectorsReply = self._session.directory.call(
                    self._transport, shard.address, "Vectors", request, timeout=CALL_S
                )
                return reply
            except (ConnectionLostError, MovedError) as error:
                self._session.check()
                if time.monotonic() > deadline:
                    raise
                logger.warning("vectors of %s: asking again: %s", self._plan.spec.name, error)

    def add(
        self,
        name: str,
        tensors: Mapping[str, Tensor],
        part: tuple[int, int] | None = None,
        total: float = 0.0,
    ) -> bool:
        """See ``Vector.add``."""
        self._session.check()
        self._session.refuse_reader("vectors")
        self._check(tensors)
        flat = self._plan.outgoing(tensors, "", 0)
        with self._adding:
            self._additions += 1
            operation = Operation(len(self._plan.shards))
            for shard in self._plan.shards:
                parts = _AddParts(self._plan, shard, flat)
                start, stop = part or (0, 0)
                parts.record.MergeFrom(
                    pb.AddVector(
                        worker=self._session.identity(),
                        vector=name,
                        number=self._additions,
                        start=start,
                        stop=stop,
                        total=total,
                    )
                )
                answers = ServerAnswers(operation, shard.index, None, parts.some)
                operation.submit(self._links.to(shard.address), answers, parts.all)
            self._wait(operation, f"adding to vector {name!r} of group {self._plan.spec.name!r}")
        # Without a part, what was counted before is this very addition, sent again after a break.
        return part is None or not all(done.dropped for done in operation.dones.values())

    def pull_into(self, name: str, into: Mapping[str, Tensor]) -> None:
        """Copies a vector to tensors, in place."""
        self._session.check()
        self._check(into)
        for tensor_name, tensor in into.items():
            self._plan.check_shape(tensor_name, tensor)
        wanted = {self._plan.number[tensor_name] for tensor_name in into}
        landing = Landing(self._plan, Held(self._plan), into, "")
        shards = [
            (shard, [s.index for s in shard.slices if s.tensor in wanted])
            for shard in self._plan.shards
        ]
        operation = Operation(sum(bool(slices) for _, slices in shards))
        for shard, slices in shards:
            if slices:
                pull = pb.PullVector(
                    group=self._plan.spec.name,
                    map_version=self._plan.map.version,
                    vector=name,
                    slices=slices,
                )
                answers = ServerAnswers(operation, shard.index, landing.take)
                operation.submit(self._links.to(shard.address), answers, _only(pull))
        self._wait(operation, f"pull of vector {name!r} of group {self._plan.spec.name!r}")
        landing.finish()

    def empty(self) -> dict[str, Tensor]:
        """New tensors of the shapes that a vector has."""
        return empty_like(self._plan.spec, self.tensors, self._plan)

    def _check(self, tensors: Iterable[str]) -> None:
        self._plan.check_names(tensors)
        for name in tensors:
            if name not in self.tensors:
                raise UnsupportedError(
                    f"tensor {name!r} has no part in vectors: only floating tensors that pushes "
                    "change have"
                )

    def _wait(self, operation: Operation, what: str) -> None:
        session = self._session
        operation.wait(operation.done, session.config.wait_timeout, session.check, what)


class _AddParts:
    """One server's share of an addition."""

    def __init__(self, plan: Plan, shard: Shard, flat: Mapping[int, Tensor]) -> None:
        self._shard = shard
        self._flat = flat
        self.record = pb.AddVector(
            group=plan.spec.name,
            map_version=plan.map.version,
            slices=[s.index for s in shard.slices if s.tensor in flat],
        )

    def all(self) -> Iterable[tuple[pb.Record, Sequence[bytes | memoryview]]]:
        """The declaration, then the bytes, a bucket at a time."""
        yield pb.Record(add_vector=self.record), ()
        for bucket in self._shard.buckets:
            if found := pieces_of(bucket, self._flat):
                yield data_record(found)

    def some(self, slices: Iterable[int]) -> Part:
        """The bytes of refused slices."""
        wanted = frozenset(slices)
        chosen = [s for s in self._shard.slices if s.index in wanted]
        return lambda: [data_record(pieces_of(chosen, self._flat))]


def _only(pull: pb.PullVector) -> Part:
    return lambda: [(pb.Record(pull_vector=pull), ())]


def _lin(out: str, terms: Terms) -> pb.Lin:
    pairs = [(c, n) for n, c in terms.items()] if isinstance(terms, Mapping) else list(terms)
    made = [pb.Term(coefficient=c, vector=name or VALUES) for c, name in pairs]
    return pb.Lin(out=out or VALUES, terms=made)


def _agreed(tallies: Sequence[pb.Tally]) -> Tally:
    """The first server's; all count the same samples."""
    if len({tally.samples for tally in tallies}) > 1:
        counts = [tally.samples for tally in tallies]
        raise InternalError(f"servers counted different samples of one vector: {counts}")
    return Tally(tallies[0].samples, tallies[0].total)


class Vector:
    """One vector of a group, by name; made by ``Group.vector``."""

    def __init__(self, space: VectorSpace, name: str) -> None:
        self._space = space
        self.name = name

    def pull(self) -> dict[str, Tensor]:
        """Its values now, as new tensors by name; without waiting for anybody.

        Raises:
            NotFoundError: it was never made, or was dropped.
        """
        into = self._space.empty()
        self._space.pull_into(self.name, into)
        return into

    def add(
        self,
        tensors: Mapping[str, Tensor],
        *,
        part: tuple[int, int] | None = None,
        total: float = 0.0,
    ) -> bool:
        """Adds tensors to it on the servers; returns once every server has counted them.

        Args:
            tensors: by name, in the registered shapes; absent ones count as zero.
            part: the samples [start, stop) that this is a sum over. A part counts once on each
                server, whoever adds it and however often.
            total: a number to be added up beside the vector, such as the loss of these samples.

        Returns:
            Whether it counted; False: the part had been added before.

        Raises:
            NotFoundError: the vector was never made, or was dropped.
            NonFiniteError: NaN or infinity; nothing was sent.
        """
        return self._space.add(self.name, tensors, part, total)

    def tally(self) -> Tally:
        """The samples and totals of the parts that were added, once each.

        Raises:
            NotFoundError: it was never made, or was dropped.
        """
        return self._space.operate(tallies=[self.name]).tallies[0]


class VectorMethods:
    """Methods of ``Group``: vectors on the servers, laid out like the group."""

    vectors: VectorSpace

    def vector(self, name: str) -> Vector:
        """A vector by name; ``lin`` makes it. "values", or "", are the group's own values."""
        return Vector(self.vectors, name or VALUES)

    def lin(self, out: str, terms: Terms) -> None:
        """out = the sum of the terms, on the servers: in float64, rounded once.

        Args:
            out: a vector, made anew; may be among the terms. "values" sets the group's own.
            terms: {name: coefficient}, or (coefficient, name) pairs; none at all makes zeros.

        Raises:
            NotFoundError: an unknown vector; nothing changed.
            ResourceError: more vectors, or bytes of them, than a server keeps.
        """
        self.vectors.operate(lin=[(out, terms)])

    def dots(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """The dot product of each pair of vectors, over all tensors, in float64.

        Raises:
            NotFoundError: an unknown vector.
        """
        return self.vectors.operate(dots=pairs).dots

    def drop(self, *names: str) -> None:
        """Frees vectors on the servers; one that is not there is not missed."""
        self.vectors.operate(drop=names)
