"""C. Resources and transport: rows 53 to 65."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import grpc
import numpy as np
import psutil
import pytest

from paramserver.config import Limits
from paramserver.ps.push import arrive
from paramserver.v1 import common_pb2, scheduler_pb2
from paramserver.v1 import server_pb2 as pb
from paramserver.wire import options
from tests.catalogue import http2
from tests.catalogue.desk import SIZE, Desk
from tests.cluster import cluster
from tests.stock import StockWorker

PATH = "/paramserver.v1.Scheduler/Status"
ONES = np.ones(SIZE, np.float32)


def answers(at: Desk) -> None:
    """The scheduler and the server answer others at once, and a push counts."""
    at.worker.scheduler.Status(scheduler_pb2.StatusRequest(), timeout=5)
    at.pushed()


def test_row_53_calls_that_are_never_finished(at: Desk) -> None:
    """Three hundred half-sent requests keep nobody from being served."""
    with at.unchanged(), ExitStack() as open_ones:
        for _ in range(300):
            connection = open_ones.enter_context(http2.connect(at.server_address))
            opening = http2.headers("/paramserver.v1.Server/Activate", "x")
            half = b"\x00" + (1 << 20).to_bytes(4, "big") + b"half"
            connection.sendall(
                http2.frame(http2.HEADERS, http2.END_HEADERS, 1, opening)
                + http2.frame(http2.DATA, 0, 1, half)
            )
        at.worker.server.Describe(pb.DescribeRequest(), timeout=5)
    answers(at)


@pytest.mark.slow
def test_row_54_connections_that_say_nothing(at: Desk) -> None:
    """They are closed when the handshake's time is over."""
    with ExitStack() as open_ones:
        idle = [
            open_ones.enter_context(http2.connect(at.cluster.address, preface=False))
            for _ in range(300)
        ]
        answers(at)
        for connection in idle:
            http2.frames_until_closed(connection, 20)
            with suppress(ConnectionError):
                assert connection.recv(1) == b"", "still open"


def test_row_54_no_more_connections_than_files() -> None:
    found = dict(options.server_options(encrypted=False))
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = found["grpc.max_allowed_incoming_connections"]
    assert allowed >= 64
    assert allowed < max(limit, 65)


def test_row_55_requests_that_are_reset_at_once(at: Desk) -> None:
    with http2.connect(at.cluster.address) as connection:
        block = http2.headers(PATH, "x")
        with suppress(ConnectionError):
            for number in range(1, 4000, 2):
                connection.sendall(
                    http2.frame(http2.HEADERS, http2.END_HEADERS, number, block)
                    + http2.frame(http2.RST_STREAM, 0, number, b"\0\0\0\x08")
                )
        answers(at)


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        bytes(range(256)) * 10,
        b"\x16\x03\x01" + bytes(200),
        http2.PREFACE + http2.frame(http2.SETTINGS, 0, 0, b"\xff" * 7),
        http2.PREFACE + http2.frame(http2.DATA, 0, 0, b"x"),
        http2.PREFACE + b"\xff" * 100,
    ],
    ids=["http1", "noise", "tls", "settings", "data", "frames"],
)
def test_row_56_what_is_not_grpc(at: Desk, said: bytes) -> None:
    with http2.connect(at.cluster.address, preface=False) as connection:
        connection.sendall(said)
        http2.frames_until_closed(connection, 15)
        with suppress(ConnectionError):
            assert connection.recv(1) == b"", "still open"
    answers(at)


def test_row_56_a_flood_of_settings(at: Desk) -> None:
    with http2.connect(at.cluster.address) as connection:
        with suppress(OSError):
            for _ in range(20_000):
                connection.sendall(http2.frame(http2.SETTINGS, 0, 0))
        answers(at)


def test_row_57_a_length_of_four_gibibytes(at: Desk) -> None:
    before = psutil.Process().memory_info().rss
    with http2.connect(at.cluster.address) as connection:
        opening = http2.headers(PATH, "x")
        body = b"\x00" + b"\xff\xff\xff\xff" + b"x" * 1000
        connection.sendall(
            http2.frame(http2.HEADERS, http2.END_HEADERS, 1, opening)
            + http2.frame(http2.DATA, 0, 1, body)
        )
        told = b"".join(body for _, body in http2.frames_until_closed(connection, 2))
    assert b"4294967295" in told, "larger than max"
    assert psutil.Process().memory_info().rss - before < 1 << 30
    answers(at)


@pytest.mark.parametrize("size", [20_000, 70_000])
def test_row_58_metadata_without_end(at: Desk, size: int) -> None:
    at.refuse_call(
        at.worker.scheduler.Status,
        scheduler_pb2.StatusRequest(),
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        metadata=[("x", "y" * size)],
    )


def test_row_59_a_flood_of_pings(at: Desk) -> None:
    with http2.connect(at.cluster.address) as connection:
        with suppress(OSError):
            for _ in range(2000):
                connection.sendall(http2.frame(http2.PING, 0, 0, b"12345678"))
        kinds = dict(http2.frames_until_closed(connection, 5))
    assert b"too_many_pings" in kinds[http2.GOAWAY]
    answers(at)


@pytest.fixture
def small() -> Iterator[Desk]:
    """A desk whose scheduler takes two groups and data sets."""
    with cluster(lease_s=600, limits=Limits(groups=2, tensors=3)) as c:
        made = Desk(c)
        yield made
        made.worker.close()


def test_row_61_groups_without_end(small: Desk) -> None:
    spec = common_pb2.GroupSpec(name="third", consistency=common_pb2.Consistency(kind="async"))
    spec.tensors.add(name="w", shape=[1], dtype=1, rule=common_pb2.RULE_ADD)
    request = scheduler_pb2.RegisterGroupRequest(member=small.identity, spec=spec)
    call = small.worker.scheduler.RegisterGroup
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    small.refuse_call(call, request, code, "at most 2")
    for _ in range(3):
        spec.tensors.add(name="more", shape=[1], dtype=1, rule=common_pb2.RULE_ADD)
    request = scheduler_pb2.RegisterGroupRequest(member=small.identity, spec=spec)
    small.refuse_call(call, request, grpc.StatusCode.INVALID_ARGUMENT, "must have 1 to 3")


def test_row_61_data_sets_without_end(small: Desk) -> None:
    call = small.worker.scheduler.OpenDataset
    for n in range(3):
        spec = scheduler_pb2.DatasetSpec(name=f"d{n}", size=4, batch_size=2)
        request = scheduler_pb2.OpenDatasetRequest(member=small.identity, spec=spec)
        if n < 2:
            call(request)
        else:
            small.refuse_call(call, request, grpc.StatusCode.RESOURCE_EXHAUSTED, "at most")


def test_row_61_tensors_too_large(at: Desk) -> None:
    for shape in ([1 << 62], [1 << 31, 1 << 31, 4], [-1], [1 << 40] * 5):
        spec = common_pb2.GroupSpec(name="huge", consistency=common_pb2.Consistency(kind="async"))
        spec.tensors.add(name="w", shape=shape, dtype=2, rule=common_pb2.RULE_ADD)
        request = scheduler_pb2.RegisterGroupRequest(member=at.identity, spec=spec)
        with at.unchanged(), pytest.raises(grpc.RpcError) as error:
            at.worker.scheduler.RegisterGroup(request, timeout=20)
        assert error.value.code() in (
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.RESOURCE_EXHAUSTED,
        )


def test_row_61_scalars_and_figures_without_end(at: Desk) -> None:
    many = {f"scalar-{i}": float(i) for i in range(20_000)}
    log = scheduler_pb2.LogRequest(member=at.identity, scalars=many)
    with suppress(grpc.RpcError):
        at.worker.scheduler.Log(log)
    beat = scheduler_pb2.HeartbeatRequest(member=at.identity, stats=many)
    with suppress(grpc.RpcError):
        at.worker.scheduler.Heartbeat(beat)
    reply = at.worker.scheduler.Status(scheduler_pb2.StatusRequest())
    assert len(reply.scalars) <= 10_000
    assert max((len(w.stats) for w in reply.workers), default=0) <= 1000


@pytest.mark.slow
def test_row_62_six_thousand_calls_at_once(at: Desk) -> None:
    """Some may be shed; those that are answered are right, and the next one is."""
    calls = [at.worker.scheduler.Status.future(scheduler_pb2.StatusRequest()) for _ in range(6000)]
    codes = [call.code() for call in calls]
    shed = {
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
    assert set(codes) <= {grpc.StatusCode.OK, *shed}
    assert codes.count(grpc.StatusCode.OK) > 1000
    answers(at)


@pytest.mark.slow
def test_row_63_no_file_left_to_open() -> None:
    """A scheduler with room for few files goes on serving when the strangers are gone."""
    process = subprocess.Popen(
        [sys.executable, "-m", "paramserver", "scheduler"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100)),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        found = re.search(r"ready at (\S+)", process.stdout.readline())
        assert found is not None
        with ExitStack() as open_ones:
            for _ in range(200):
                with suppress(OSError):
                    open_ones.enter_context(http2.connect(found[1], preface=False))
            threading.Event().wait(0.5)
        with grpc.insecure_channel(found[1]) as channel:
            call: Any = channel.unary_unary(PATH)
            assert call(b"", timeout=30, wait_for_ready=True)
    finally:
        process.terminate()
        assert process.wait(20) == 0
        process.stdout.close()  # type: ignore[union-attr]


def test_row_64_many_on_one_tensor() -> None:
    """Eight clients on one hot tensor: each push counts, and memory stays what it was."""
    with cluster(lease_s=600, limits=Limits(work_bytes=1 << 20)) as c:
        at = Desk(c)
        for clock in range(8):
            records = [pb.Record(request=7, push=at.worker.push(clock))]
            assert at.worker.ask([*records, *at.worker.data(7, ONES)], ONES.tobytes())
        assert np.array_equal(at.worker.pull(), ONES * 8)
        at.worker.close()


def test_row_65_big_frames_leave_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes of gradients are looked at in other threads than the one that answers."""
    seen: list[str] = []

    def watched(*args: Any) -> Any:
        seen.append(threading.current_thread().name)
        return arrive(*args)

    monkeypatch.setattr("paramserver.ps.push.arrive", watched)
    with cluster(lease_s=600) as c:
        worker = StockWorker(c.address, SIZE)
        worker.add(0, ONES)
        loop = c._thread.name
        worker.close()
    assert seen
    assert loop not in seen


def test_files_that_grow_are_few(at: Desk) -> None:
    """After all this, this process holds no crowd of connections."""
    until = threading.Event()
    for _ in range(100):
        if len(os.listdir("/proc/self/fd")) < 600:
            return
        until.wait(0.1)
    raise AssertionError(f"{len(os.listdir('/proc/self/fd'))} files are open")
