"""Real servers with backups, killed and frozen: nothing is lost, nothing counts twice."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import paramserver as ps
from paramserver.launch import Child, role_command, role_environment, stop
from tests.ledger_runs import check_counts, ledger_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

STEPS, WORKERS = 12, 2
POINTS = (
    "ps.before_replicate",
    "ps.after_replicate",
    "ps.after_shadow",
    "ps.after_apply",
    "ps.before_reply",
)


def run(model: str, folder: Path, points: str = "", servers: int = 2) -> dict[str, torch.Tensor]:
    """What the servers hold after a run."""
    options = ("-s", str(servers), "--durability", "replica", "--lease", "4")
    values = ledger_run(
        model, folder, points, *options,
        workers=WORKERS, steps=STEPS, durabilities="replica,memory",
    )  # fmt: skip
    check_counts(values, STEPS * WORKERS)
    return values


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The values of a run in which nothing is killed."""
    return run("sync", tmp_path_factory.mktemp("undisturbed"))


@pytest.mark.parametrize(
    ("point", "servers"), [*((point, 2) for point in POINTS), ("ps.after_replicate", 3)]
)
def test_sync_is_equal_to_an_undisturbed_run(
    tmp_path: Path, undisturbed: dict[str, torch.Tensor], point: str, servers: int
) -> None:
    values = run("sync", tmp_path, f"{point}:crash@40", servers)
    for name, value in undisturbed.items():
        assert torch.equal(values[name], value), name


@pytest.mark.parametrize(
    ("model", "point"), [("stale", POINTS[0]), *(("async", point) for point in POINTS[1:])]
)
def test_every_push_counts_once(tmp_path: Path, model: str, point: str) -> None:
    run(model, tmp_path, f"{point}:crash@40")


@contextmanager
def roles(servers: int, workers: int, lease: float) -> Iterator[dict[str, Child]]:
    """A scheduler and servers as processes, to be ended here."""
    started: dict[str, Child] = {}

    def start(name: str, role: str, /, **flags: object) -> Child:
        env = role_environment(os.environ)
        command = role_command(role, **flags)
        child = Child(name, role, command, env=env, on_line=lambda *line: None)
        started[name] = child
        return child

    try:
        scheduler = start(
            "scheduler", "scheduler", workers=workers, servers=servers, lease=lease,
            durability="replica",
        )  # fmt: skip
        address = scheduler.wait_ready()
        for name in [f"ps-{i}" for i in range(servers)]:
            start(name, "ps", scheduler=address, name=name).wait_ready()
        yield started
    finally:
        for child in started.values():
            child.send(signal.SIGCONT)
        stop(list(started.values()))


def test_a_primary_that_was_frozen_acknowledges_nothing() -> None:
    with roles(2, 2, 2.0) as started:
        address = started["scheduler"].wait_ready()
        ones = {"w": torch.ones(100_000)}
        with ThreadPoolExecutor(2) as pool:
            opening = [pool.submit(ps.connect, address, name=f"worker-{i}") for i in range(2)]
            client, late = (future.result(60) for future in opening)
        with client, late:
            zeros = {"w": torch.zeros(100_000)}
            group = client.register("m", zeros, consistency=ps.Async())
            behind = late.register("m", zeros, consistency=ps.Async())
            behind.push(ones)
            directory = late._session.directory
            learn, directory.learn = directory.learn, lambda view: None  # type: ignore[method-assign]
            started["ps-0"].send(signal.SIGSTOP)
            unheard = behind.push_async(ones)  # to the frozen one
            group.push(ones)  # returns: the backup has taken over
            started["ps-0"].send(signal.SIGCONT)
            with pytest.raises(FutureTimeoutError):
                unheard.result(5)
            assert group.read()["w"].min() == 2
            directory.learn = learn  # type: ignore[method-assign]
            directory.learn(late._session.directory.fetch())
            unheard.result(30)
            assert torch.equal(group.read()["w"], torch.full((100_000,), 3.0))
