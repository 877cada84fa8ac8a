"""B. Protocol, time and identity: rows 31 to 52."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from paramserver.config import Limits
from paramserver.v1 import common_pb2, scheduler_pb2
from paramserver.v1 import server_pb2 as pb
from paramserver.wire.methods import SCHEDULER_METHODS
from tests.catalogue.desk import SIZE, Desk, desk
from tests.cluster import cluster, in_threads
from tests.stock import StockWorker, Stream

ROOT = Path(__file__).resolve().parents[2]
ONES = np.ones(SIZE, np.float32)
FAILED = grpc.StatusCode.FAILED_PRECONDITION
INVALID = grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture
def own() -> Iterator[Desk]:
    """A desk that a test may spoil."""
    with desk() as made:
        yield made


def changed(identity: common_pb2.Identity, **fields: Any) -> common_pb2.Identity:
    other = common_pb2.Identity()
    other.CopyFrom(identity)
    for name, value in fields.items():
        setattr(other, name, value)
    return other


def refuse_identity(
    at: Desk, who: common_pb2.Identity, words: str, code: grpc.StatusCode = FAILED
) -> None:
    """Neither a call to the scheduler nor a push to a server passes with this identity."""
    beat = scheduler_pb2.HeartbeatRequest(member=who)
    at.refuse_call(at.worker.scheduler.Heartbeat, beat, code, words)
    push = at.push()
    push.push.worker.CopyFrom(who)
    at.refuse([push, *at.worker.data(7, ONES)], ONES.tobytes(), reason="FENCED")


@pytest.mark.parametrize("protocol", [0, 2, 1 << 31])
def test_row_31_another_protocol(at: Desk, protocol: int) -> None:
    request = scheduler_pb2.RegisterRequest(protocol=protocol, role=scheduler_pb2.ROLE_WORKER)
    said = at.refuse_call(at.worker.scheduler.Register, request, FAILED, str(protocol))
    assert "same version" in said


def test_row_32_a_call_before_register(at: Desk) -> None:
    refuse_identity(at, common_pb2.Identity(name="nobody", rank=7, job=1), "register", INVALID)


def test_row_33_a_push_again(at: Desk) -> None:
    first = at.pushed()
    at.clock -= 1
    with at.unchanged():
        again = at.worker.add(at.clock, ONES)
    at.clock += 1
    assert again[0].accepted == first[0].accepted


def test_row_34_the_same_clock_with_other_bytes(at: Desk) -> None:
    at.pushed()
    records = [pb.Record(request=7, push=at.worker.push(at.clock - 1))]
    other = ONES * 2
    records += at.worker.data(7, other)
    at.refuse(records, other.tobytes(), reason="SEQ_REUSED", words="came before with other bytes")


@pytest.mark.parametrize("ahead", [1, 65, 1 << 40, (1 << 63) - 1])
def test_rows_35_36_and_38_clocks_ahead(at: Desk, ahead: int) -> None:
    clock = min(at.clock + ahead, (1 << 64) - 1)
    push = pb.Record(request=7, push=at.worker.push(clock))
    at.refuse([push], reason="CLOCK", words=f"expected clock {at.clock}")


def test_row_36_the_largest_clock(at: Desk) -> None:
    push = pb.Record(request=7, push=at.worker.push((1 << 64) - 1))
    at.refuse([push], reason="CLOCK")


def test_row_37_a_clock_long_gone(own: Desk) -> None:
    for _ in range(140):  # more than receipts are kept
        assert own.worker.ask([own.push(slices=[])])[0].accepted.applied
        own.clock += 1
    push = pb.Record(request=7, push=own.worker.push(0))
    own.refuse([push], reason="CLOCK", words="expected clock 140")


def test_row_39_an_older_incarnation(own: Desk) -> None:
    before = own.worker
    after = StockWorker(own.cluster.address, SIZE, name=before.identity.name)
    own.worker.clock = after.clock
    refuse_identity(own, before.identity, "is fenced")
    after.close()


def test_row_40_an_incarnation_never_granted(at: Desk) -> None:
    who = changed(at.identity, incarnation=at.identity.incarnation + 1000)
    refuse_identity(at, who, "was never given", INVALID)


def test_row_41_two_processes_of_one_name(own: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """The newer one counts; the older one is told at its next call, and the log tells."""
    with caplog.at_level("INFO"):
        after = StockWorker(own.cluster.address, SIZE, name=own.identity.name)
    assert after.identity.incarnation > own.identity.incarnation
    assert "takes the place of incarnation" in caplog.text
    refuse_identity(own, own.identity, "is fenced")
    after.close()


def open_dataset(at: Desk, name: str) -> int:
    """A data set of ten samples; the lease of its first shard."""
    scheduler = at.worker.scheduler
    spec = scheduler_pb2.DatasetSpec(name=name, size=10, batch_size=2, shard_size=4)
    scheduler.OpenDataset(scheduler_pb2.OpenDatasetRequest(member=at.identity, spec=spec))
    request = scheduler_pb2.NextShardRequest(member=at.identity, dataset=name, sequence=1)
    reply = scheduler.NextShard(request)
    at.identity.view = max(at.identity.view, reply.view)
    return int(reply.shard.lease)


def report(at: Desk, name: str, *spans: tuple[int, int, int]) -> Any:
    done = [common_pb2.Span(lease=lease, start=start, stop=stop) for lease, start, stop in spans]
    request = scheduler_pb2.ReportSamplesRequest(member=at.identity, dataset=name, done=done)
    return at.worker.scheduler.ReportSamples(request, timeout=10)


def test_row_42_a_shard_of_nobody(at: Desk) -> None:
    lease = open_dataset(at, "d42")
    with at.unchanged():
        reply = report(at, "d42", (lease + 1000, 0, 2))
    assert list(reply.lost_leases) == [lease + 1000]


def test_row_42_a_shard_done_twice(at: Desk) -> None:
    lease = open_dataset(at, "d42-again")
    report(at, "d42-again", (lease, 0, 2))
    with at.unchanged():
        report(at, "d42-again", (lease, 0, 2))


def test_row_44_twice_to_a_barrier_and_twice_out(own: Desk) -> None:
    scheduler = own.worker.scheduler
    join = scheduler_pb2.JoinRequest(member=own.identity, name="b", sequence=1, wait_s=5)
    first = scheduler.Join(join)
    assert first.released
    assert scheduler.Join(join).round == first.round
    for _ in range(2):
        scheduler.Finish(scheduler_pb2.FinishRequest(member=own.identity))


def test_row_45_a_parked_call_that_is_cancelled(own: Desk) -> None:
    """It takes no place afterwards."""
    open_dataset(own, "d")
    parking = own.cluster.scheduler.parking
    before = len(parking)
    request = scheduler_pb2.AwaitEpochRequest(member=own.identity, dataset="d", wait_s=10)
    parked = own.worker.scheduler.AwaitEpoch.future(request)
    until(lambda: len(parking) == before + 1)
    parked.cancel()
    until(lambda: len(parking) == before)


def until(condition: Any) -> None:
    pause = threading.Event()
    for _ in range(500):
        if condition():
            return
        pause.wait(0.02)
    raise AssertionError("the condition did not come true")


def test_row_46_one_push_on_many_streams_at_a_time(own: Desk) -> None:
    """Whatever overtakes what, it counts once."""
    before = own.worker.pull()

    def send() -> None:
        with suppress(grpc.RpcError):  # a newer stream has taken over
            own.worker.add(own.clock, ONES)

    in_threads([send] * 6)
    assert own.worker.add(own.clock, ONES)[0].accepted.applied
    assert np.array_equal(own.worker.pull(), before + 1)


# A wall clock is read where people read it: names, logs, figures of benchmarks.
WALL_CLOCK = {
    "scheduler/service.py",  # the first incarnation of a scheduler, above those of the one before
    "src/paramserver/cli/certs.py",  # dates of certificates
    "scheduler/snapshots.py",  # the date of a snapshot, for people
    "scheduler/report.py",  # the age of the newest snapshot, for people
    "src/paramserver/cli/snapshots.py",  # its age, for people
    "src/paramserver/cli/comparison.py",  # a budget over run files, which have dates
}


def test_two_requests_of_one_number(own: Desk) -> None:
    """The open one ends, so that the same push on another stream does not wait for it for ever."""
    whole = own.worker.data(7, ONES)[0].data
    first = pb.Data(slices=[0], sizes=whole.sizes[:1], checksums=whole.checksums[:1])
    part = ONES[own.worker.bounds(0)].tobytes()
    stream = Stream(own.worker.server)
    stream.send([own.push(), pb.Record(request=7, data=first)], part)
    stream.send(*own.rows([1]))
    answers = [r for frame in stream.until_done() for r in frame.header.records]
    assert "request 7 is open already" in answers[-1].failure.message
    stream.close()
    own.pushed()


def test_requests_without_end_on_one_stream() -> None:
    with cluster(lease_s=600, limits=Limits(parked_calls=8)) as c:
        at = Desk(c)
        records = [pb.Record(request=n, lookup=keys_to_come(at)) for n in range(9)]
        answers = at.worker.ask(records)
        assert [r.request for r in answers] == [8]
        assert answers[0].failure.reason == "RESOURCE"
        assert "8 requests of this stream are open" in answers[0].failure.message
        at.worker.close()


def keys_to_come(at: Desk) -> pb.Lookup:
    """A lookup that waits for its keys."""
    return pb.Lookup(
        worker=at.identity, group="t", map_version=at.table_map.version, slices=[0], latest=True
    )


@pytest.mark.parametrize("timeout", [float("nan"), float("inf"), -1.0])
def test_row_48_times_that_are_none(at: Desk, timeout: float) -> None:
    """What is no number is never reached: the server would look at it without end."""
    pull = pb.Pull(worker=at.identity, group="g", map_version=at.worker.map.version)
    lookup = keys_to_come(at)
    pull.timeout = lookup.timeout = timeout
    words = f"timeout={timeout}: must be"
    at.refuse([pb.Record(request=9, pull=pull)], reason="INVALID_REQUEST", words=words)
    at.refuse([pb.Record(request=9, lookup=lookup)], reason="INVALID_REQUEST", words=words)


def test_row_47_no_decision_reads_the_wall_clock() -> None:
    reads = re.compile(r"\btime\.time(?:_ns)?\(|datetime\.now\(|utcnow\(")
    found = set()
    for folder in ("ps", "worker", "scheduler", "src/paramserver"):
        for path in (ROOT / folder).rglob("*.py"):
            relative = str(path.resolve().relative_to(ROOT))
            if reads.search(path.read_text()) and "/bench/" not in relative:
                found.add(relative)
    assert found <= WALL_CLOCK, found - WALL_CLOCK


def test_row_48_a_call_without_a_deadline(own: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scheduler answers by itself after a while, however long the caller would wait."""
    monkeypatch.setattr("paramserver.scheduler.parking.CAP_S", 0.2)
    open_dataset(own, "d")
    for wait in (1e9, float("inf")):
        request = scheduler_pb2.AwaitEpochRequest(member=own.identity, dataset="d", wait_s=wait)
        assert own.worker.scheduler.AwaitEpoch(request).pending


def test_row_49_no_time_at_all(at: Desk) -> None:
    at.refuse_call(
        at.worker.scheduler.Heartbeat,
        scheduler_pb2.HeartbeatRequest(member=at.identity),
        grpc.StatusCode.DEADLINE_EXCEEDED,
        timeout=-1,
    )
    at.pushed()


def test_row_51_a_push_to_a_job_that_is_over(own: Desk) -> None:
    old = own.push()
    own.worker.scheduler.Finish(scheduler_pb2.FinishRequest(member=own.identity))
    after = Desk(own.cluster)
    with after.unchanged():
        answers = after.worker.ask([old, *own.worker.data(7, ONES)], ONES.tobytes())
        assert answers[-1].failure.reason == "FENCED"
    assert np.array_equal(after.worker.pull(), np.zeros(SIZE, np.float32))
    after.worker.close()


def test_row_52_unknown_methods_and_no_reflection(at: Desk) -> None:
    paths = ["/paramserver.v1.Scheduler/Nothing", "/no.Service/Call"]
    paths.append("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")
    with grpc.insecure_channel(at.cluster.address) as channel:
        for path in paths:
            code = grpc.StatusCode.UNIMPLEMENTED
            at.refuse_call(channel.unary_unary(path), b"", code)


def test_a_stream_of_no_frames_is_fine(at: Desk) -> None:
    with at.unchanged():
        stream = Stream(at.worker.server)
        stream.close()
        assert list(stream.answers) == []


def test_a_role_that_is_none(at: Desk) -> None:
    for role in (0, 99):
        request = scheduler_pb2.RegisterRequest(protocol=1, role=role)  # type: ignore[arg-type]
        call, code = at.worker.scheduler.Register, grpc.StatusCode.INVALID_ARGUMENT
        at.refuse_call(call, request, code, "role")


def test_every_call_needs_a_member(at: Desk) -> None:
    """An empty request of a member is refused, or only reads."""
    reads = {"GetView", "Status", "Watch", "Register", "Fail"}  # Fail: of one who is gone already
    with grpc.insecure_channel(at.cluster.address) as channel:
        for name, method in SCHEDULER_METHODS.items():
            spoken = "member" in method.request.DESCRIPTOR.fields_by_name
            if spoken and name not in reads and not method.server_streams:
                with at.unchanged(), pytest.raises(grpc.RpcError) as error:
                    channel.unary_unary(method.path)(b"", timeout=10)
                assert error.value.code() in (
                    FAILED,
                    grpc.StatusCode.INVALID_ARGUMENT,
                    grpc.StatusCode.NOT_FOUND,
                ), name


def test_a_cluster_without_a_job_refuses_workers_calls() -> None:
    with cluster() as c, grpc.insecure_channel(c.address) as channel:
        beat = channel.unary_unary(SCHEDULER_METHODS["Heartbeat"].path)
        with pytest.raises(grpc.RpcError) as error:
            beat(b"", timeout=10)
        assert error.value.code() is FAILED
