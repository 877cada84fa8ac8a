"""Exactly once on the wire, spoken with stock stubs: duplicates, retries, stale and bad pushes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from paramserver.v1 import server_pb2 as pb
from tests.cluster import Cluster, cluster
from tests.stock import StockWorker, Stream

SIZE = 300_000  # two slices


@pytest.fixture
def one_server() -> Iterator[Cluster]:
    with cluster() as made:
        yield made


@pytest.fixture
def worker(one_server: Cluster) -> Iterator[StockWorker]:
    made = StockWorker(one_server.address, SIZE)
    yield made
    made.close()


def ones(value: float = 1.0) -> np.ndarray:
    return np.full(SIZE, value, np.float32)


def failure(answers: list[pb.Record]) -> str:
    (found,) = [r.failure.reason for r in answers if r.HasField("failure")]
    return found


def test_a_stock_client_pushes_and_pulls(worker: StockWorker) -> None:
    assert worker.slices == 2
    answers = worker.add(0, ones())
    assert [r.WhichOneof("body") for r in answers] == ["accepted", "done"]
    assert answers[0].accepted.applied
    assert np.array_equal(worker.pull(), ones())


def test_a_duplicated_push_is_acknowledged_not_applied(worker: StockWorker) -> None:
    first = worker.add(0, ones())
    again = worker.add(0, ones())
    assert again[0].accepted == first[0].accepted
    assert np.array_equal(worker.pull(), ones())


def test_a_torn_push_is_finished_by_its_retry(worker: StockWorker) -> None:
    """The first stream breaks after one of two slices; the retry applies only the other."""
    stream = Stream(worker.server)
    (both,) = worker.data(7, ones())
    half = pb.Data(
        slices=both.data.slices[:1], sizes=both.data.sizes[:1], checksums=both.data.checksums[:1]
    )
    stream.send(
        [pb.Record(request=7, push=worker.push(0)), pb.Record(request=7, data=half)],
        ones().tobytes()[: both.data.sizes[0]],
    )
    while not np.array_equal(
        worker.pull()[: worker.map.slice_elements], ones()[: worker.map.slice_elements]
    ):
        pass  # until the first slice is applied
    stream.answers.cancel()
    worker.add(0, ones())
    assert np.array_equal(worker.pull(), ones())


def test_a_clock_that_skips_is_refused(worker: StockWorker) -> None:
    worker.add(0, ones())
    assert failure(worker.add(2, ones())) == "CLOCK"
    assert np.array_equal(worker.pull(), ones())


def test_the_same_clock_with_other_bytes_changes_nothing(worker: StockWorker) -> None:
    first = worker.add(0, ones())
    assert failure(worker.add(0, ones(5.0))) == "SEQ_REUSED"
    assert worker.add(0, ones())[0].accepted == first[0].accepted
    assert np.array_equal(worker.pull(), ones())


def test_a_slice_map_from_yesterday_is_refused(worker: StockWorker) -> None:
    assert failure(worker.add(0, ones(), map_version=worker.map.version + 1)) == "MOVED"
    assert not worker.pull().any()
    worker.add(0, ones())
    assert np.array_equal(worker.pull(), ones())


def test_a_fenced_incarnation_is_refused(worker: StockWorker) -> None:
    worker.identity.incarnation -= 1
    assert failure(worker.add(0, ones())) == "FENCED"


def test_a_restarted_worker_fences_the_one_before_it(
    one_server: Cluster, worker: StockWorker
) -> None:
    worker.add(0, ones())
    successor = StockWorker(one_server.address, SIZE, name=worker.identity.name)
    assert successor.identity.rank == worker.identity.rank
    assert failure(worker.add(1, ones())) == "FENCED"
    successor.add(successor.clock, ones(), activated=True)
    assert np.array_equal(successor.pull(), ones(2.0))
    successor.close()


def test_bytes_that_changed_on_the_way_are_asked_for_again(worker: StockWorker) -> None:
    values = ones()
    stream = Stream(worker.server)
    stream.send(
        [pb.Record(request=7, push=worker.push(0)), *worker.data(7, values)],
        values.tobytes()[:-1] + b"\x01",
    )
    frames = list(stream.until_done())
    assert list(frames[-1].header.records[-1].accepted.refused) == [1]
    (both,) = worker.data(7, values)
    again = pb.Data(
        slices=both.data.slices[1:], sizes=both.data.sizes[1:], checksums=both.data.checksums[1:]
    )
    stream.send([pb.Record(request=7, data=again)], values.tobytes()[both.data.sizes[0] :])
    answers = [r for f in stream.until_done() for r in f.header.records]
    assert [r.WhichOneof("body") for r in answers] == ["accepted", "done"]
    stream.close()
    assert np.array_equal(worker.pull(), values)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_gradients_change_nothing(worker: StockWorker, bad: float) -> None:
    values = ones()
    values[-1] = bad
    assert failure(worker.add(0, values)) == "NON_FINITE"
    assert not worker.pull()[worker.map.slice_elements :].any()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"group": "other"}, "NOT_FOUND"),
        ({"slices": [0, 99]}, "MOVED"),
        ({"slices": [0, 0]}, "INVALID_REQUEST"),
        ({"weight": -1.0}, "INVALID_REQUEST"),
        ({"weight": float("nan")}, "INVALID_REQUEST"),
    ],
    ids=str,
)
def test_a_bad_declaration_is_refused_whole(
    worker: StockWorker, change: dict[str, object], reason: str
) -> None:
    assert failure(worker.add(0, ones(), **change)) == reason
    assert not worker.pull().any()
    worker.add(0, ones())
    assert np.array_equal(worker.pull(), ones())


def test_a_slice_of_the_wrong_size_is_refused(worker: StockWorker) -> None:
    data = pb.Data(slices=[0], sizes=[4], checksums=[0])
    push = pb.Record(request=7, push=worker.push(0))
    answers = worker.ask([push, pb.Record(request=7, data=data)], b"1234")
    assert failure(answers) == "INVALID_REQUEST"
    assert "must be" in answers[-1].failure.message


def test_an_undeclared_slice_is_refused(worker: StockWorker) -> None:
    push = pb.Record(request=7, push=worker.push(0, slices=[0]))
    answers = worker.ask([push, *worker.data(7, ones())], ones().tobytes())
    assert failure(answers) == "INVALID_REQUEST"


def test_a_push_of_nothing_ticks_the_clock(worker: StockWorker) -> None:
    push = pb.Record(request=7, push=worker.push(0, slices=[]))
    assert worker.ask([push])[0].accepted.applied
    worker.add(1, ones())
    assert np.array_equal(worker.pull(), ones())


def test_a_sync_push_is_applied_once_however_often_it_comes(one_server: Cluster) -> None:
    worker = StockWorker(one_server.address, SIZE, "sync")
    for clock in range(3):
        for _ in range(3):
            assert worker.add(clock, ones())[-1].HasField("done")
    assert np.array_equal(worker.pull(), ones(3.0))
    worker.close()
