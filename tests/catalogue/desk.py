"""A cluster, one worker with stock stubs, and a look at what a refused request must not change."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
import pytest
import torch
import xxhash

from paramserver.v1 import common_pb2, scheduler_pb2
from paramserver.v1 import server_pb2 as pb
from paramserver.wire.rows import keys_of
from tests.cluster import Cluster, cluster
from tests.stock import Floats, StockWorker

SIZE = 300_000  # two slices
DIM, ROWS = 2, 1000  # of the table


class Desk:
    """One worker of an additive group "g" (async, float32) and a table "t" of 1000 rows.

    Attributes:
        clock: of the next push to "g".
        table_clock: of the next push to "t".
    """

    def __init__(self, c: Cluster) -> None:
        self.cluster = c
        self.worker = StockWorker(c.address, SIZE)
        self.clock = self.worker.clock
        self.table_map = self.register(table_spec()).map
        self.stored("t")
        activate = pb.ActivateRequest(
            worker=self.worker.identity, group="t", map_version=self.table_map.version
        )
        self.table_clock = self.worker.server.Activate(activate).clock

    @property
    def identity(self) -> common_pb2.Identity:
        who: common_pb2.Identity = self.worker.identity
        return who

    def register(self, spec: common_pb2.GroupSpec) -> scheduler_pb2.RegisterGroupReply:
        """Registers a group; the worker's view is the newest afterwards."""
        request = scheduler_pb2.RegisterGroupRequest(member=self.identity, spec=spec)
        reply: scheduler_pb2.RegisterGroupReply = self.worker.scheduler.RegisterGroup(request)
        self.identity.view = max(self.identity.view, reply.view)
        return reply

    def stored(self, group: str) -> None:
        """The first values of a group are there."""
        request = scheduler_pb2.GroupStoredRequest(member=self.identity, group=group)
        self.worker.scheduler.GroupStored(request)

    # What must not change

    def state(self) -> Any:
        """Values, optimizer state, exactly-once records, staged pushes, clocks, members, leases."""

        async def look() -> Any:
            found: list[Any] = []
            for service in self.cluster.servers:
                for group in sorted(service.fetched(), key=lambda group: group.spec.name):
                    ledger = group.ledger.dump()
                    ledger.pop("duplicates")
                    cells = [_plain(cell.bucket.dump()) for cell in group.cells]
                    staged = sorted((w, clock) for w, clock in group.staged)
                    found.append(
                        (
                            group.spec.name,
                            cells,
                            ledger,
                            staged,
                            group.version,
                            group.frontier.value,
                        )
                    )
                    lead = service.lead_of(group.spec.name)
                    found.append(lead and lead.clock.dump())
            state = self.cluster.scheduler.state
            found.append(state.members.number)
            found.append(sorted(group.spec.name for group in state.groups))
            found.append([queue.counts() for queue in state.data])
            return found

        return self.cluster.run(look())

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """Inside, nothing of all that changes."""
        before = self.state()
        yield
        assert self.state() == before

    def refuse(
        self, records: Iterable[pb.Record], payload: bytes = b"", *, reason: str, words: str = ""
    ) -> str:
        """A frame gets this Failure, whose message has these words, and changes nothing."""
        with self.unchanged():
            answers = self.worker.ask(records, payload)
            failures = [r.failure for r in answers if r.HasField("failure")]
            assert [f.reason for f in failures] == [reason], answers
            assert words in failures[0].message
        return failures[0].message

    def refuse_reason(self, records: Iterable[pb.Record], payload: bytes = b"") -> str:
        """A frame gets one Failure and changes nothing; its reason."""
        with self.unchanged():
            answers = self.worker.ask(records, payload)
            (failure,) = [r.failure for r in answers if r.HasField("failure")]
        return str(failure.reason)

    def refuse_call(
        self, call: Any, request: Any, code: grpc.StatusCode, words: str = "", **how: Any
    ) -> str:
        """A call gets this status, with these words, and changes nothing."""
        with self.unchanged(), pytest.raises(grpc.RpcError) as error:
            call(request, **{"timeout": 10, **how})
        assert error.value.code() is code, error.value
        assert words in error.value.details()
        return str(error.value.details())

    def refuse_bytes(self, message: bytes, words: str = "") -> None:
        """A stream that begins with these bytes ends with INVALID_ARGUMENT and changes nothing."""
        with self.unchanged(), grpc.insecure_channel(self.server_address) as channel:
            call = channel.stream_stream("/paramserver.v1.Server/Exchange")
            with pytest.raises(grpc.RpcError) as error:
                list(call(iter([message]), timeout=10))
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT, error.value
        assert words in error.value.details()

    @property
    def server_address(self) -> str:
        return str(self.worker.map.addresses[0])

    # What is sent

    def push(self, **fields: Any) -> pb.Record:
        """The declaration of the next push to "g"."""
        return pb.Record(request=7, push=self.worker.push(self.clock, **fields))

    def pushed(self, values: Floats | None = None) -> list[pb.Record]:
        """The next push to "g", sent and applied."""
        values = np.ones(SIZE, np.float32) if values is None else values
        answers = self.worker.add(self.clock, values)
        assert answers[0].accepted.applied, answers
        self.clock += 1
        return answers

    def rows(
        self, ids: Sequence[int], values: Floats | None = None, *, sort: bool = True
    ) -> tuple[list[pb.Record], bytes]:
        """The next push to "t": records and payload, for ids of one sub-table."""
        keys = keys_of(np.array(ids, np.int64))
        keys = np.sort(keys) if sort else keys
        rows = np.ones((len(ids), DIM), np.float32) if values is None else values
        payload = keys.tobytes() + rows.tobytes()
        return self.raw_rows(int(keys[0]) >> 58 if len(ids) else 0, payload), payload

    def raw_rows(self, sub_table: int, payload: bytes) -> list[pb.Record]:
        """The next push to "t": any bytes for one sub-table."""
        push = pb.Push(
            worker=self.identity,
            group="t",
            map_version=self.table_map.version,
            clock=self.table_clock,
            weight=1.0,
            slices=[sub_table],
        )
        data = pb.Data(slices=[sub_table], sizes=[len(payload)], checksums=[mark(payload)])
        return [pb.Record(request=7, push=push), pb.Record(request=7, data=data)]


def table_spec(**change: Any) -> common_pb2.GroupSpec:
    """A table "t" of rows of two floats, stepped by SGD, async."""
    spec = common_pb2.GroupSpec(
        name="t",
        tensors=[
            common_pb2.TensorSpec(
                name="rows",
                shape=[ROWS, DIM],
                dtype=common_pb2.DTYPE_FLOAT32,
                rule=common_pb2.RULE_ROWS,
            )
        ],
        optimizer="SGD",
        param_groups=[common_pb2.Options(values={"lr": common_pb2.Value(number=1.0)})],
        consistency=common_pb2.Consistency(kind="async", scale_lr="none", deterministic=True),
        table=common_pb2.TableSpec(dim=DIM, rows=ROWS, initial="zeros"),
    )
    spec.MergeFrom(common_pb2.GroupSpec(**change))
    return spec


def mark(data: bytes) -> int:
    """The checksum of bytes."""
    return int(xxhash.xxh3_64_intdigest(data))


def neighbours(count: int) -> list[int]:
    """Ids of the table that share a sub-table."""
    by_slice: dict[int, list[int]] = {}
    for i in range(ROWS):
        key = int(keys_of(np.array([i], np.int64))[0])
        by_slice.setdefault(key >> 58, []).append(i)
    most = max(by_slice.values(), key=len)
    assert len(most) >= count, by_slice
    return most[:count]


def varint(value: int) -> bytes:
    """A number as protobuf writes it."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def frame(header: bytes, payload: bytes = b"", claims: int | None = None) -> bytes:
    """A frame with any header, and a payload that may claim to be of another size."""
    size = len(payload) if claims is None else claims
    return b"\x0a" + varint(len(header)) + header + b"\x7a" + varint(size) + payload


def _plain(states: Any) -> Any:
    return {
        index: ({n: _bytes(t) for n, t in state.tensors.items()}, state.numbers)
        for index, state in states.items()
    }


def _bytes(value: torch.Tensor) -> tuple[str, tuple[int, ...], bytes]:
    return str(value.dtype), tuple(value.shape), value.detach().numpy().tobytes()


@contextmanager
def desk() -> Iterator[Desk]:
    """A desk on a cluster of its own."""
    with cluster(lease_s=600) as c:  # its worker sends no heartbeats
        made = Desk(c)
        try:
            yield made
        finally:
            made.worker.close()
