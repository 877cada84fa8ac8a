"""A. Payloads and keys: rows 1 to 30."""

from __future__ import annotations

import gzip
import logging
import struct
import threading

import grpc
import numpy as np
import pytest
import torch

import paramserver as ps
from paramserver.errors import InvalidRequestError
from paramserver.v1 import common_pb2, scheduler_pb2
from paramserver.v1 import server_pb2 as pb
from paramserver.wire.methods import SCHEDULER_METHODS
from paramserver.wire.rows import INVERSE
from tests.catalogue.desk import (
    SIZE,
    Desk,
    frame,
    mark,
    neighbours,
    table_spec,
    varint,
)
from tests.cluster import cluster
from tests.stock import Stream

ONES = np.ones(SIZE, np.float32)
LIMIT = 16 << 20


def client(at: Desk) -> ps.Client:
    return at.cluster.connect(reader=True)


def test_row_01_wrong_shape(at: Desk) -> None:
    short = np.ones(SIZE - 1, np.float32)
    records = [at.push(), *at.worker.data(7, short)]
    at.refuse(records, short.tobytes(), reason="INVALID_REQUEST", words="bytes, must be")


def test_row_02_as_many_elements_in_another_shape() -> None:
    """Shapes are of the specification: who registers another one is told, and who pushes one."""

    def work(worker: ps.Client) -> None:
        group = worker.register("g", {"w": torch.zeros(3, 2)})
        with pytest.raises(InvalidRequestError, match=r"shape"):
            group.push({"w": torch.zeros(2, 3)})
        assert torch.equal(group.read()["w"], torch.zeros(3, 2))

    with cluster() as c:
        c.workers(work)


def test_row_02_and_50_registered_in_another_shape(at: Desk) -> None:
    at.register(at_spec("twice"))
    at.register(at_spec("twice"))
    request = scheduler_pb2.RegisterGroupRequest(
        member=at.identity, spec=at_spec("twice", {"shape": [1, 3]})
    )
    call, code = at.worker.scheduler.RegisterGroup, grpc.StatusCode.ALREADY_EXISTS
    said = at.refuse_call(call, request, code, "shape")
    assert "(3,)" in said or "[3]" in said


def test_row_03_wrong_type(at: Desk) -> None:
    for dtype in (common_pb2.DTYPE_INT64, common_pb2.DTYPE_BOOL, 99):
        push = at.push(wire_dtype=dtype)
        at.refuse([push], reason="INVALID_REQUEST", words="dtype")
    for dtype in (common_pb2.DTYPE_UNSPECIFIED, 99):
        spec = at_spec(tensor={"dtype": dtype})
        refuse_spec(at, spec, "dtype")


def at_spec(
    name: str = "new", tensor: dict[str, object] | None = None, **fields: object
) -> common_pb2.GroupSpec:
    made = {"name": "w", "shape": [3], "dtype": 1, "rule": common_pb2.RULE_ADD} | (tensor or {})
    return common_pb2.GroupSpec(
        name=name,
        tensors=[common_pb2.TensorSpec(**made)],  # type: ignore[arg-type]
        consistency=common_pb2.Consistency(kind="async", scale_lr="none"),
        **fields,  # type: ignore[arg-type]
    )


def refuse_spec(at: Desk, spec: common_pb2.GroupSpec, words: str = "") -> str:
    request = scheduler_pb2.RegisterGroupRequest(member=at.identity, spec=spec)
    call = at.worker.scheduler.RegisterGroup
    return at.refuse_call(call, request, grpc.StatusCode.INVALID_ARGUMENT, words)


def test_row_04_order_of_bytes_and_elements() -> None:
    """The wire knows little endian, row by row, only; the client brings every tensor into it."""

    def work(worker: ps.Client) -> None:
        group = worker.register("g", {"w": torch.zeros(2, 3)})
        turned = torch.arange(6.0).view(3, 2).t()
        assert not turned.is_contiguous()
        assert torch.equal(group.push_pull({"w": turned})["w"], turned)

    with cluster() as c:
        c.workers(work)


def test_row_05_unknown_name(at: Desk) -> None:
    pull = pb.Pull(worker=at.identity, group="nowhere", map_version=1, latest=True)
    for record in (at.push(group="nowhere"), pb.Record(request=7, pull=pull)):
        at.refuse([record], reason="NOT_FOUND", words="'nowhere'")
    request = scheduler_pb2.GetGroupRequest(group="nowhere")
    at.refuse_call(at.worker.scheduler.GetGroup, request, grpc.StatusCode.NOT_FOUND, "'nowhere'")


def test_row_06_a_map_of_yesterday(at: Desk) -> None:
    version = at.worker.map.version
    at.refuse([at.push(map_version=version + 1)], reason="MOVED", words="slice map")
    at.pushed()  # with the right one the same clock counts


def test_row_07_a_range_twice(at: Desk) -> None:
    at.refuse([at.push(slices=[0, 0])], reason="INVALID_REQUEST", words="named twice")


@pytest.mark.parametrize("index", [2, 99, (1 << 32) - 1])
def test_row_08_a_range_that_is_not_there(at: Desk, index: int) -> None:
    assert at.refuse_reason([at.push(slices=[index])]) in ("INVALID_REQUEST", "MOVED")


@pytest.mark.parametrize(("start", "stop"), [(5, 3), (-1, 2), (0, 1 << 62), (-(1 << 63), 1)])
def test_row_08_spans_that_cannot_be(start: int, stop: int) -> None:
    with cluster(lease_s=600) as c:
        at = Desk(c)
        scheduler, member = at.worker.scheduler, at.identity
        spec = scheduler_pb2.DatasetSpec(name="d", size=10, batch_size=2)
        scheduler.OpenDataset(scheduler_pb2.OpenDatasetRequest(member=member, spec=spec))
        lease = scheduler.NextShard(
            scheduler_pb2.NextShardRequest(member=member, dataset="d", sequence=1)
        ).shard.lease
        span = common_pb2.Span(lease=lease, start=start, stop=stop)
        request = scheduler_pb2.ReportSamplesRequest(member=member, dataset="d", done=[span])
        at.refuse_call(scheduler.ReportSamples, request, grpc.StatusCode.INVALID_ARGUMENT)
        at.worker.close()


def test_row_09_nothing_is_fine_and_ticks(at: Desk) -> None:
    before = at.worker.pull()
    answers = at.worker.ask([at.push(slices=[])])
    assert [r.WhichOneof("body") for r in answers] == ["accepted", "done"]
    at.clock += 1
    assert np.array_equal(at.worker.pull(), before)


@pytest.mark.parametrize("ids", [[-1], [-(1 << 63)], [1000], [(1 << 63) - 1]])
def test_rows_10_and_11_ids_outside_the_table(at: Desk, ids: list[int]) -> None:
    records, payload = at.rows(ids)
    at.refuse(records, payload, reason="INVALID_REQUEST", words="rows")


def test_row_10_and_11_ids_outside_the_table_are_refused_here_too() -> None:
    def work(worker: ps.Client) -> None:
        table = worker.table("t", 2, rows=10, optimizer=torch.optim.SGD, lr=1.0)
        for bad in (-1, 10, (1 << 63) - 1):
            with pytest.raises(InvalidRequestError, match=r"0 to 9"):
                table.pull(torch.tensor([0, bad]))
            with pytest.raises(InvalidRequestError, match=r"0 to 9"):
                table.push(torch.tensor([0, bad]), torch.ones(2, 2))

    with cluster() as c:
        c.workers(work)


def test_row_12_ids_twice_are_summed() -> None:
    def work(worker: ps.Client) -> None:
        table = worker.table("t", 2, init=ps.Zeros(), optimizer=torch.optim.SGD, lr=1.0)
        table.push(torch.tensor([3, 3, 4]), torch.ones(3, 2))
        found = table.pull(torch.tensor([3, 4]))
        assert torch.equal(found, torch.tensor([[-2.0, -2.0], [-1.0, -1.0]]))

    with cluster() as c:
        c.workers(work)


def test_row_12_the_wire_knows_no_id_twice(at: Desk) -> None:
    records, payload = at.rows([3, 3])
    at.refuse(records, payload, reason="INVALID_REQUEST", words="sum duplicates")


def test_row_13_ids_out_of_order(at: Desk) -> None:
    first, second = neighbours(2)
    for ids in ([first, second], [second, first]):
        records, payload = at.rows(ids, sort=False)
        keys = np.frombuffer(payload[:16], np.uint64)
        if keys[0] > keys[1]:
            at.refuse(records, payload, reason="INVALID_REQUEST", words="not ascending")


def test_row_13_keys_of_another_sub_table(at: Desk) -> None:
    (one,) = neighbours(1)
    records, payload = at.rows([one])
    other = (records[1].data.slices[0] + 1) % 64
    records = at.raw_rows(other, payload)
    at.refuse(records, payload, reason="INVALID_REQUEST", words="another sub-table")


def test_row_14_more_ids_than_rows(at: Desk) -> None:
    (one,) = neighbours(1)
    for values in (np.ones((1, 1), np.float32), np.ones((1, 3), np.float32)):
        records, payload = at.rows([one], values)
        at.refuse(records, payload, reason="INVALID_REQUEST", words="must be a multiple of 16")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_row_15_nan_and_infinity(at: Desk, bad: float) -> None:
    values = ONES.copy()
    values[SIZE - 1] = bad
    records = [at.push(), *at.worker.data(7, values)]
    answers = at.worker.ask(records, values.tobytes())
    failure = answers[-1].failure
    assert failure.reason == "NON_FINITE"
    for word in ("rank 0", f"clock {at.clock}", "'w'"):
        assert word in failure.message


def test_row_15_minus_zero_and_denormals_are_numbers() -> None:
    with cluster(lease_s=600) as c:
        at = Desk(c)
        values = np.full(SIZE, np.float32(1e-45))
        values[0] = -0.0
        at.pushed(values)
        assert np.array_equal(at.worker.pull(), values)
        at.worker.close()


def test_row_15_what_is_refused_is_counted(at: Desk) -> None:
    """Guarantee G29: `paramserver status` shows it."""
    before = at.worker.server.Describe(pb.DescribeRequest())
    bad = ONES.copy()
    bad[1] = np.nan
    at.refuse([at.push(), *at.worker.data(7, bad)], bad.tobytes(), reason="NON_FINITE")
    at.refuse([at.push(group="nobody")], reason="NOT_FOUND")
    after = at.worker.server.Describe(pb.DescribeRequest())
    counted = (after.non_finite - before.non_finite, after.refusals - before.refusals)
    assert counted == (1, 2)


def test_row_17_payload_cut_off(at: Desk) -> None:
    header = pb.Header(records=[at.push(), *at.worker.data(7, ONES)]).SerializeToString()
    at.refuse_bytes(frame(header, ONES.tobytes()[:-1]))


@pytest.mark.parametrize("claims", [0, 10, 1 << 32, (1 << 63) - 1, (1 << 64) - 1])
def test_row_18_lengths_that_lie(at: Desk, claims: int) -> None:
    header = pb.Header(records=[at.push(), *at.worker.data(7, ONES)]).SerializeToString()
    at.refuse_bytes(frame(header, b"x" * 100, claims=claims), "frame")
    at.refuse_bytes(b"\x0a" + varint(claims or 1), "frame")


def test_row_18_a_length_longer_than_a_number(at: Desk) -> None:
    at.refuse_bytes(b"\x0a" + b"\xff" * 20, "longer than 64 bits")
    at.refuse_bytes(b"\x0a\xff", "cut off")
    at.refuse_bytes(b"\x08\x01", "wire type 0")


def test_row_18_sizes_that_overflow(at: Desk) -> None:
    data = pb.Data(slices=[0, 1], sizes=[(1 << 32) - 1] * 2, checksums=[0, 0])
    header = pb.Header(records=[at.push(), pb.Record(request=7, data=data)])
    at.refuse_bytes(frame(header.SerializeToString(), b"x" * 8))


def test_row_19_bytes_behind_the_payload(at: Desk) -> None:
    header = pb.Header(records=[at.push(), *at.worker.data(7, ONES)]).SerializeToString()
    at.refuse_bytes(frame(header, ONES.tobytes() + b"more"))


def test_row_19_arrays_of_different_lengths(at: Desk) -> None:
    data = pb.Data(slices=[0], sizes=[4, 4], checksums=[0])
    header = pb.Header(records=[at.push(), pb.Record(request=7, data=data)])
    at.refuse_bytes(frame(header.SerializeToString(), b"x" * 8))


def test_row_20_bytes_that_changed_on_the_way(at: Desk) -> None:
    """Asked for again, and then counted once."""
    before = at.worker.pull()
    good = at.worker.data(7, ONES)
    bad = pb.Record(request=7, data=pb.Data())
    bad.data.CopyFrom(good[0].data)
    bad.data.checksums[0] ^= 1
    stream = Stream(at.worker.server)
    stream.send([at.push(), bad], ONES.tobytes())
    refused = [r for f in stream.until_done() for r in f.header.records]
    assert refused[-1].accepted.refused == [0]
    part = ONES[at.worker.bounds(0)].tobytes()
    again = pb.Data(slices=[0], sizes=[len(part)], checksums=[mark(part)])
    stream.send([pb.Record(request=7, data=again)], part)
    kinds = [r.WhichOneof("body") for f in stream.until_done() for r in f.header.records]
    assert kinds == ["accepted", "done"]
    stream.close()
    at.clock += 1
    assert np.array_equal(at.worker.pull(), before + 1)


def test_row_21_a_message_over_the_limit(at: Desk) -> None:
    with at.unchanged(), grpc.insecure_channel(at.server_address) as channel:
        call = channel.stream_stream("/paramserver.v1.Server/Exchange")
        with pytest.raises(grpc.RpcError) as error:
            list(call(iter([bytes(LIMIT + 1)]), timeout=20))
    assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(LIMIT) in error.value.details()


def test_row_22_pieces_twice_missing_or_never_declared(at: Desk) -> None:
    both = at.worker.data(7, ONES)[0].data
    first = pb.Data(slices=[0], sizes=both.sizes[:1], checksums=both.checksums[:1])
    part = ONES[at.worker.bounds(0)].tobytes()
    at.refuse(
        [at.push(slices=[1]), pb.Record(request=7, data=first)],
        part,
        reason="INVALID_REQUEST",
        words="was not declared",
    )
    twice = [pb.Record(request=7, data=first)] * 2
    second = pb.Data(slices=[1], sizes=both.sizes[1:], checksums=both.checksums[1:])
    rest = ONES[at.worker.bounds(1)].tobytes()
    before = at.worker.pull()
    answers = at.worker.ask(
        [at.push(), *twice, pb.Record(request=7, data=second)], part + part + rest
    )
    assert answers[0].accepted.applied
    at.clock += 1
    assert np.array_equal(at.worker.pull(), before + 1), "a piece that came twice counts once"


def test_row_22_a_hundred_thousand_tiny_pieces(at: Desk) -> None:
    """Data for a push that nobody opened is dropped as it comes."""
    stray = [pb.Record(request=99, data=pb.Data()) for _ in range(1000)]
    with at.unchanged():
        stream = Stream(at.worker.server)
        for _ in range(100):
            stream.send(stray)
        pull = pb.Pull(worker=at.identity, group="g", map_version=at.worker.map.version)
        pull.latest = True
        stream.send([pb.Record(request=9, pull=pull)])
        assert list(stream.until_done())
        stream.close()


def test_row_23_a_stream_left_half_way() -> None:
    """Under Sync nothing of a push counts before all of it is here, and what came is freed."""
    with cluster(lease_s=600) as c:
        at = Desk(c)
        spec = at_spec("s")
        spec.consistency.kind = "sync"
        spec.consistency.scale_lr = ""
        at.register(spec)
        with at.unchanged():
            stream = Stream(at.worker.server)
            data = at.worker.data(7, ONES)[0].data
            first = pb.Data(slices=[0], sizes=data.sizes[:1], checksums=data.checksums[:1])
            part = ONES[at.worker.bounds(0)].tobytes()
            stream.send([at.push(deferred=True), pb.Record(request=7, data=first)], part)
            stream.answers.cancel()
            pause = threading.Event()
            for _ in range(500):
                if not c.servers[0].sessions:
                    break
                pause.wait(0.02)
            assert not c.servers[0].sessions
        at.pushed()
        at.worker.close()


def test_row_24_a_bomb_in_gzip(at: Desk) -> None:
    """200 MiB that travel as 200 KB are not unpacked beyond the limit."""
    bomb = bytes(200 << 20)
    assert len(gzip.compress(bomb[: 1 << 20])) < 2000
    big = [("grpc.max_send_message_length", -1)]
    with at.unchanged(), grpc.insecure_channel(at.server_address, options=big) as channel:
        call = channel.stream_stream("/paramserver.v1.Server/Exchange")
        with pytest.raises(grpc.RpcError) as error:
            list(call(iter([bomb]), timeout=60, compression=grpc.Compression.Gzip))
    assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("scale", [np.nan, np.inf])
def test_row_25_blocks_with_a_scale_that_is_no_number(at: Desk, scale: float) -> None:
    records, payload = blocks(at, scale)
    at.refuse(records, payload, reason="NON_FINITE")


def blocks(at: Desk, scale: float, cut: int = 0) -> tuple[list[pb.Record], bytes]:
    """The first slice in int8 blocks that all have one scale."""
    elements = at.worker.bounds(0).stop
    count = -(-elements // 256)
    payload = struct.pack("<f", scale) * count + b"\x01" * (elements - cut)
    data = pb.Data(slices=[0], sizes=[len(payload)], checksums=[mark(payload)])
    push = at.push(wire_dtype=common_pb2.DTYPE_INT8_BLOCK, slices=[0])
    return [push, pb.Record(request=7, data=data)], payload


def test_row_25_blocks_cut_off(at: Desk) -> None:
    records, payload = blocks(at, 1.0, cut=1)
    at.refuse(records, payload, reason="INVALID_REQUEST", words="bytes, must be")


@pytest.mark.parametrize(
    "body", [b"\xff" * 9, b"\x0a\x05ab", b"\x1a\x02\xff\xfe", b"\x0a" * 400 + b"\x00"]
)
def test_row_26_garbage_for_a_message(at: Desk, body: bytes) -> None:
    method = SCHEDULER_METHODS["Register"]
    with grpc.insecure_channel(at.cluster.address) as channel:
        at.refuse_call(
            channel.unary_unary(method.path),
            body,
            grpc.StatusCode.INVALID_ARGUMENT,
            "not a RegisterRequest",
        )


def test_row_27_unknown_fields_are_for_the_future(at: Desk) -> None:
    request = scheduler_pb2.HeartbeatRequest(member=at.identity).SerializeToString()
    with grpc.insecure_channel(at.cluster.address) as channel:
        beat = channel.unary_unary(SCHEDULER_METHODS["Heartbeat"].path)
        assert beat(request + b"\xfa\x3e\x03new", timeout=10)


NAMES = ["", "a/../b", "..", "a\0b", "a\nb", "x" * 10_000, "a\u202eb", "a b", "ä"]


@pytest.mark.parametrize("name", NAMES)
def test_row_28_names(at: Desk, name: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        said = refuse_spec(at, at_spec(name), "name")
        refuse_spec(at, at_spec("new", {"name": name}), "name")
        spec = scheduler_pb2.DatasetSpec(name=name, size=10, batch_size=2)
        request = scheduler_pb2.OpenDatasetRequest(member=at.identity, spec=spec)
        call = at.worker.scheduler.OpenDataset
        at.refuse_call(call, request, grpc.StatusCode.INVALID_ARGUMENT, "name")
    assert "\n" not in said
    assert not any("a\nb" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("name", ["a\nb", "x" * 10_000, "a\u202eb", "a\0b"])
def test_row_28_names_of_members(at: Desk, name: str) -> None:
    request = scheduler_pb2.RegisterRequest(protocol=1, role=scheduler_pb2.ROLE_READER, name=name)
    at.refuse_call(at.worker.scheduler.Register, request, grpc.StatusCode.INVALID_ARGUMENT, "name")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": -1.0}, "lr"),
        ({"lr": float("nan")}, "finite"),
        ({"lr": float("inf")}, "finite"),
        ({"lr": 1.0, "momentum": -0.5}, "momentum"),
    ],
)
def test_row_29_hyper_parameters(at: Desk, options: dict[str, float], words: str) -> None:
    values = {name: common_pb2.Value(number=value) for name, value in options.items()}
    spec = at_spec(
        "bad",
        {"rule": common_pb2.RULE_STEP},
        optimizer="SGD",
        param_groups=[common_pb2.Options(values=values)],
    )
    refuse_spec(at, spec, words)


def test_row_29_hyper_parameters_that_the_optimizer_does_not_have(at: Desk) -> None:
    """The scheduler knows no optimizers; the servers do, and refuse the group."""
    values = {"lr": common_pb2.Value(number=1.0), "nonsense": common_pb2.Value(number=1.0)}
    spec = at_spec(
        "odd",
        {"rule": common_pb2.RULE_STEP},
        optimizer="SGD",
        param_groups=[common_pb2.Options(values=values)],
    )
    version = at.register(spec).map.version
    request = pb.ActivateRequest(worker=at.identity, group="odd", map_version=version)
    call, code = at.worker.server.Activate, grpc.StatusCode.INVALID_ARGUMENT
    at.refuse_call(call, request, code, "nonsense")


def test_row_29_hyper_parameters_of_a_push(at: Desk) -> None:
    (one,) = neighbours(1)
    records, payload = at.rows([one])
    records[0].push.options.add().values["lr"].number = -1.0
    assert "lr" in at.refuse(records, payload, reason="CONFIGURATION")


def test_row_30_a_pull_of_a_million_ids() -> None:
    """It travels in many frames, each below the limit."""
    count = 1_000_000

    def work(worker: ps.Client) -> None:
        table = worker.table("t", 2, init=ps.Zeros(), optimizer=torch.optim.SGD, lr=1.0)
        assert table.pull(torch.arange(count)).shape == (count, 2)

    with cluster() as c:
        c.workers(work)


def test_ids_have_one_key_each() -> None:
    assert (table_spec().table.rows, INVERSE * 0x9E3779B97F4A7C15 % (1 << 64)) == (1000, 1)
