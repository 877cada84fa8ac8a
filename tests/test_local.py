"""Functions in spawned workers, and the cluster on loopback around them."""

from __future__ import annotations

import operator
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from paramserver.errors import ConfigurationError, JobFailedError, WaitTimeoutError
from paramserver.local import local_cluster
from paramserver.local_job import LocalJob, SpawnedWorker, replaced_environment

Start = Callable[..., LocalJob]


@pytest.fixture
def start() -> Iterator[Start]:
    """Jobs of functions of the standard library, ended with the test."""
    jobs: list[LocalJob] = []

    def begin(*tasks: tuple[Any, ...], max_restarts: int = 0) -> LocalJob:
        workers = [
            SpawnedWorker(f"worker-{i}", function, args, {"PARAMSERVER_NAME": f"worker-{i}"})
            for i, (function, *args) in enumerate(tasks)
        ]
        jobs.append(LocalJob(workers, max_restarts))
        return jobs[-1]

    yield begin
    for job in jobs:
        job.stop()


def test_results_come_in_the_order_of_the_workers(start: Start) -> None:
    job = start((os.getenv, "PARAMSERVER_NAME"), (os.getenv, "PARAMSERVER_NAME"))
    assert job.wait(60) == ["worker-0", "worker-1"]
    assert not job.disturbed
    assert "PARAMSERVER_NAME" not in os.environ


def test_a_large_tensor_outlives_its_worker(start: Start) -> None:
    [value] = start((torch.arange, 1 << 20)).wait(60)
    assert torch.equal(value, torch.arange(1 << 20))


def test_a_failing_worker_raises_with_its_traceback(start: Start) -> None:
    job = start((os.getpid,), (operator.truediv, 1, 0))
    with pytest.raises(JobFailedError, match=r"worker-1 failed: exit code 1\n") as caught:
        job.wait(60)
    assert "ZeroDivisionError: division by zero" in str(caught.value)
    assert caught.value.details == {"worker": "worker-1", "exit_code": "1"}
    assert job.disturbed


def test_a_killed_worker_leaves_the_others_alone(start: Start) -> None:
    job = start((os._exit, 137), (os.getenv, "PARAMSERVER_NAME"))
    found = job.outcomes(60)
    assert (found["worker-0"].code, found["worker-0"].value) == (137, None)
    assert (found["worker-1"].code, found["worker-1"].value) == (0, "worker-1")
    with pytest.raises(JobFailedError, match=r"worker-0 failed: exit code 137 \(SIGKILL\)"):
        job.wait(60)


def test_a_real_kill(start: Start) -> None:
    job = start((signal.pause,))
    os.kill(job.processes["worker-0"], signal.SIGKILL)
    assert job.outcomes(60)["worker-0"].code == 137
    assert job.processes == {}


def test_a_killed_worker_starts_again_when_told(start: Start) -> None:
    job = start((os.getppid,), max_restarts=1)
    os.kill(job.processes["worker-0"], signal.SIGKILL)
    assert job.wait(60) == [os.getpid()]


def test_a_worker_that_exits_by_itself(start: Start) -> None:
    assert start((os._exit, 3)).outcomes(60)["worker-0"].code == 3


def test_waiting_has_a_deadline(start: Start) -> None:
    job = start((signal.pause,))
    with pytest.raises(WaitTimeoutError, match=r"still running after 0.01 s: worker-0"):
        job.wait(0.01)
    job.stop()
    assert job.outcomes(60)["worker-0"].code == 143


def test_replaced_environment_is_restored() -> None:
    os.environ["PARAMSERVER_TEST_A"] = "1"
    try:
        with replaced_environment({"PARAMSERVER_TEST_A": "2", "PARAMSERVER_TEST_B": "3"}):
            assert os.environ["PARAMSERVER_TEST_A"] == "2"
            assert os.environ["PARAMSERVER_TEST_B"] == "3"
        assert os.environ["PARAMSERVER_TEST_A"] == "1"
        assert "PARAMSERVER_TEST_B" not in os.environ
    finally:
        del os.environ["PARAMSERVER_TEST_A"]


@pytest.mark.parametrize(
    "options", [{"servers": 0}, {"servers": -1}, {"workers": 0}, {"assign": "best"}]
)
def test_values_that_cannot_work(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=str(next(iter(options)))):
        local_cluster(**options)


def test_a_cluster_starts_nothing_before_it_is_needed() -> None:
    with local_cluster() as cluster:
        assert cluster.processes == {}
        with pytest.raises(ConfigurationError, match="workers=0"):
            cluster.run(os.getpid, workers=0)
