"""``local_cluster``: real processes, several jobs, and their ends."""

from __future__ import annotations

import importlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
import torch

from paramserver.errors import ConfigurationError, JobFailedError, ResourceError
from paramserver.local import LocalCluster, local_cluster
from tests.cluster import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The functions that workers run; spawned processes have our import path."""
    monkeypatch.syspath_prepend(Path(__file__).parent / "scripts")
    return importlib.import_module("jobs")


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with local_cluster(servers=2, lease=3.0) as cluster:
        yield cluster


def test_jobs_follow_one_another(cluster: LocalCluster, jobs: ModuleType) -> None:
    expected = [("worker-0", 2, 1), ("worker-1", 2, 1)]
    assert cluster.run(jobs.who, workers=2) == expected
    address = cluster.address
    assert cluster.run(jobs.add, workers=2, args=(3,)) == [6.0, 6.0]
    assert cluster.address == address
    assert cluster.run(jobs.add, workers=1, args=(4,)) == [4.0]
    assert cluster.address != address


def test_a_failure_ends_the_job_at_once(cluster: LocalCluster, jobs: ModuleType) -> None:
    began = time.monotonic()
    with pytest.raises(JobFailedError, match="worker-1 failed: exit code 1") as caught:
        cluster.run(jobs.fails_beside_one_that_waits, workers=2)
    assert "ValueError: told to go wrong" in str(caught.value)
    assert time.monotonic() - began < 100
    assert cluster.run(jobs.add, workers=2, args=(1,)) == [2.0, 2.0]


def test_a_killed_worker_costs_its_lease(cluster: LocalCluster, jobs: ModuleType) -> None:
    job = cluster.start(jobs.dies_beside_one_that_goes_on, workers=2)
    found = job.outcomes(300)
    assert (found["worker-0"].code, found["worker-0"].value) == (0, 1), found["worker-0"].error
    assert found["worker-1"].code == 137


def test_connect_from_this_process(cluster: LocalCluster) -> None:
    with cluster.connect() as client:
        assert (client.rank, client.num_workers) == (0, 1)
        assert client.is_chief
        client.barrier("alone")


def test_all_processes_have_names_and_end() -> None:
    with local_cluster(servers=2) as cluster:
        assert cluster.address.startswith("127.0.0.1:")
        assert sorted(cluster.processes) == ["ps-0", "ps-1", "scheduler"]
        found = [psutil.Process(pid) for pid in cluster.processes.values()]
    assert not any(process.is_running() for process in found)


def test_what_is_killed_starts_again_and_goes_on(tmp_path: Path) -> None:
    """A server and the scheduler under "wal"; then a snapshot, on another number of servers."""
    places: dict[str, Any] = {"snapshot_dir": tmp_path / "s", "state_dir": tmp_path / "state"}
    ones = {"w": torch.ones(2000)}
    with local_cluster(servers=2, durability="wal", **places) as cluster:
        with cluster.connect() as client:
            group = client.register("g", {"w": torch.zeros(2000)})
            group.push_pull(ones)
            for number, name in enumerate(["ps-0", "scheduler"], 2):
                before = cluster.processes[name]
                os.kill(before, signal.SIGKILL)
                until(lambda n=name, b=before: cluster.processes.get(n, b) != b, 60)  # type: ignore[misc]
                assert group.push(ones).durability == "wal"
                assert float(group.pull()["w"].sum()) == 2000.0 * number
            assert client.snapshot("three") == "three"
        assert (tmp_path / "state" / "ps-1" / "server.json").exists()
    again = local_cluster(servers=3, snapshot_dir=tmp_path / "s", resume="three")
    with again as cluster, cluster.connect() as client:
        group = client.register("g", {"w": torch.zeros(2000)})
        assert float(group.pull()["w"].sum()) == 2000.0 * 3


def test_limits_reach_the_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARAMSERVER_LIMITS", "peer_bytes=1MiB vectors=1")
    with local_cluster() as cluster, cluster.connect() as client:
        group = client.register("g", {"w": torch.zeros(400_000)})
        with pytest.raises(ResourceError, match=r"rank 0 has 1600000 bytes.*at most 1048576"):
            group.push({"w": torch.ones(400_000)})
        group.lin("one", {"values": 1.0})
        with pytest.raises(ResourceError, match="at most 1 are allowed"):
            group.lin("two", {"values": 1.0})


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"durability": "disk"}, "durability='disk': must be one of memory, wal, replica"),
        ({"durability": "replica"}, "servers=1: a backup is kept by another server; use at"),
        ({"snapshot_every": 5}, "no directory is given"),
        ({"snapshot_dir": "x", "snapshot_keep": 0}, "keep=0: must be >= 1"),
        ({"snapshot_dir": "x", "snapshot_delta": 101}, "delta=101: at most 100"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any], error: str) -> None:
    with pytest.raises(ConfigurationError, match=error):
        local_cluster(**options)
