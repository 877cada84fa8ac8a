"""The records of pushes, pulls and first values for one server, produced as the stream has room."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from paramserver.core.slices import Slice
from paramserver.v1 import common_pb2
from paramserver.v1 import server_pb2 as pb
from paramserver.wire.convert import wire_to_proto
from paramserver.wire.frames import Piece
from paramserver.wire.tensors import DTYPES, checksum, flat_host
from paramserver.worker.link import Part
from paramserver.worker.plan import Flat, Shard, part_of, pieces_of
from paramserver.worker.values import Held

if TYPE_CHECKING:
    from paramserver.worker.group import Group

Out = tuple[pb.Record, Sequence[Piece]]


class PullPart(NamedTuple):
    """A pull from one server."""

    pull: pb.Pull

    def part(self) -> list[Out]:
        """The record."""
        return [(pb.Record(pull=self.pull), ())]


def pull_record(
    group: Group, slices: Sequence[Slice], held: Held, *, latest: bool = False
) -> PullPart:
    """Asks a server for slices, less what is held already; latest: uncast."""
    wire = common_pb2.DTYPE_UNSPECIFIED if latest else wire_to_proto(group.pull_dtype)
    return PullPart(
        pb.Pull(
            worker=group.identity(),
            group=group.name,
            map_version=group.plan.map.version,
            clock=group.clock,
            slices=[s.index for s in slices],
            have=held.have(slices),
            wire_dtype=wire,
            timeout=group.session.config.wait_timeout,
            latest=latest,
        )
    )


def data_record(found: Sequence[tuple[Slice, Piece]]) -> Out:
    """The bytes of some slices."""
    data = pb.Data(
        slices=[s.index for s, _ in found],
        sizes=[len(p) for _, p in found],
        checksums=[checksum(p) for _, p in found],
    )
    return pb.Record(data=data), [p for _, p in found]


class PushParts:
    """One server's share of a push."""

    def __init__(
        self,
        group: Group,
        shard: Shard,
        push: pb.Push,
        flat: Mapping[int, Flat],
        *,
        pulls: Sequence[Slice] = (),
    ) -> None:
        self._flat = flat
        self._buckets = [
            chosen
            for bucket in shard.buckets
            if (chosen := [s for s in bucket if s.tensor in flat])
        ]
        slices = [s for bucket in self._buckets for s in bucket]
        self.size = sum(part_of(flat[s.tensor], s).nbytes for s in slices)
        self._push = pb.Push()
        self._push.CopyFrom(push)
        self._push.slices.extend(s.index for s in slices)
        self._push.bases.extend(group.held.base(s) for s in slices)
        if pulls:
            pull = pull_record(group, pulls, group.held).pull
            pull.clock = push.clock + 1
            self._push.pull.CopyFrom(pull)

    def all(self) -> Iterator[Out]:
        """The declaration, then the bytes, a bucket at a time."""
        yield pb.Record(push=self._push), ()
        for bucket in self._buckets:
            yield data_record(pieces_of(bucket, self._flat))

    def some(self, slices: Iterable[int]) -> Part:
        """The bytes of refused slices."""
        wanted = frozenset(slices)

        def part() -> Iterator[Out]:
            for bucket in self._buckets:
                chosen = [s for s in bucket if s.index in wanted]
                if chosen:
                    yield data_record(pieces_of(chosen, self._flat))

        return part


class StoreParts:
    """One server's share of first values."""

    def __init__(self, group: Group, shard: Shard, values: Mapping[str, Tensor]) -> None:
        self._shard = shard
        self._flat: dict[int, Tensor] = {}
        for tensor in {s.tensor for s in shard.slices}:
            name = group.spec.tensors[tensor].name
            group.plan.check_shape(name, values[name])
            dtype = DTYPES[group.spec.tensors[tensor].dtype]
            self._flat[tensor] = flat_host(values[name].detach().to(dtype))
        self._store = pb.Store(
            worker=group.identity(),
            group=group.name,
            map_version=group.plan.map.version,
            slices=[s.index for s in shard.slices],
        )

    def all(self) -> Iterator[Out]:
        """The declaration, then the bytes, a bucket at a time."""
        yield pb.Record(store=self._store), ()
        for bucket in self._shard.buckets:
            yield data_record(pieces_of(bucket, self._flat))

    def some(self, slices: Iterable[int]) -> Part:
        """The bytes of refused slices."""
        wanted = frozenset(slices)

        def part() -> Iterator[Out]:
            chosen = [s for s in self._shard.slices if s.index in wanted]
            yield data_record(pieces_of(chosen, self._flat))

        return part
