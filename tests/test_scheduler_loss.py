"""The scheduler is killed while others work: they go on, and it comes back where it was."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset

import paramserver as ps
from paramserver.launch import Child, role_command, role_environment, stop

pytestmark = pytest.mark.timeout(240)

WAIT_S = 120.0


class Indices(Dataset[torch.Tensor]):
    """Sample i is the number i."""

    def __len__(self) -> int:
        return 96

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(index)


class Roles:
    """A scheduler on a state directory, and servers, as processes; workers are threads here."""

    def __init__(self, folder: Path, servers: int, workers: int) -> None:
        self.folder, self.workers = folder, workers
        self.servers: list[Child] = []
        self.scheduler = self.start_scheduler()
        self.address = self.scheduler.wait_ready()
        for i in range(servers):
            command = role_command("ps", scheduler=self.address, name=f"ps-{i}")
            self.servers.append(self._child(f"ps-{i}", "ps", command))
        for server in self.servers:
            server.wait_ready()

    def start_scheduler(self, **more: object) -> Child:
        command = role_command(
            "scheduler", workers=self.workers, state_dir=self.folder, lease=20, **more
        )
        self.scheduler = self._child("scheduler", "scheduler", command)
        return self.scheduler

    @staticmethod
    def _child(name: str, role: str, command: list[str]) -> Child:
        said = print  # pytest shows it where a test fails
        return Child(
            name,
            role,
            command,
            env=role_environment(os.environ),
            on_line=lambda child, stream, line: said(f"{name}: {line}"),
        )

    def kill_scheduler(self) -> None:
        self.scheduler.send(signal.SIGKILL)
        assert self.scheduler.wait(WAIT_S) == 137


@contextmanager
def roles(folder: Path, servers: int = 1, workers: int = 2) -> Iterator[Roles]:
    made = Roles(folder, servers, workers)
    try:
        yield made
    finally:
        stop([made.scheduler, *made.servers])


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, what
        threading.Event().wait(0.02)


class Job:
    """Two epochs of two workers over a data set, in threads; each step adds one to the value."""

    def __init__(self, made: Roles, consistency: ps.Sync | ps.Async, assign: str) -> None:
        self.made, self.consistency, self.assign = made, consistency, assign
        self.seen: list[tuple[int, int]] = []  # epoch and sample
        self.steps = 0
        self.go = [threading.Semaphore(0) for _ in range(made.workers)]  # one for each batch
        self.pool = ThreadPoolExecutor(made.workers)
        self.done: list[Future[float]] = [
            self.pool.submit(self.work, rank) for rank in range(made.workers)
        ]

    def allow(self, batches: int) -> None:
        """Every worker may work on so many more."""
        for go in self.go:
            go.release(batches)

    def work(self, rank: int) -> float:
        name = f"worker-{rank}"
        with ps.connect(self.made.address, name=name, timeout=60, wait_timeout=WAIT_S) as client:
            group = client.register("m", {"w": torch.zeros(1)}, consistency=self.consistency)
            loader = client.loader(Indices(), batch_size=4, assign=self.assign, shard_size=24)
            for epoch in client.epochs(2):
                for batch in loader:
                    self.go[rank].acquire()
                    group.push_pull({"w": torch.ones(1)})
                    self.steps += 1
                    self.seen += [(epoch, int(i)) for i in batch]
            client.barrier("all steps are done")
            return float(group.pull()["w"])

    def finish(self) -> None:
        """The rest of the job; every sample once, and every push once."""
        self.allow(1000)
        values = [future.result(WAIT_S) for future in self.done]
        self.pool.shutdown()
        assert Counter(self.seen) == {(e, i): 1 for e in range(2) for i in range(len(Indices()))}
        assert values == [self.steps] * len(values)
        assert self.steps == 2 * len(Indices()) / 4


@pytest.mark.slow
@pytest.mark.parametrize("assign", ["round-robin", "dynamic"])
@pytest.mark.parametrize("consistency", [ps.Sync(), ps.Async()], ids=["sync", "async"])
def test_steps_go_on_without_a_scheduler(
    tmp_path: Path, consistency: ps.Sync | ps.Async, assign: str
) -> None:
    with roles(tmp_path) as made:
        job = Job(made, consistency, assign)
        job.allow(1)
        until(lambda: job.steps == 2, "the first batches")
        made.kill_scheduler()
        job.allow(4)  # of the shards that the workers have
        until(lambda: job.steps == 10, "batches while there is no scheduler")
        again = made.start_scheduler()
        assert again.wait_ready() == made.address
        job.finish()


@pytest.mark.slow
def test_a_scheduler_that_dies_again_and_again(tmp_path: Path) -> None:
    """Killed in any state of the job, from its first registration on."""
    with roles(tmp_path, servers=2) as made:
        job = Job(made, ps.Sync(), "dynamic")
        for _ in range(8):
            made.kill_scheduler()
            made.start_scheduler()
            goal = job.steps + 2
            job.allow(2)
            until(partial(lambda goal: job.steps >= goal, goal), "two steps more")
        made.scheduler.wait_ready()
        job.finish()


@pytest.mark.slow
def test_a_second_scheduler_and_other_options_are_refused(tmp_path: Path) -> None:
    with roles(tmp_path) as made:
        job = Job(made, ps.Sync(), "dynamic")
        job.allow(1)
        until(lambda: job.steps == 2, "the first batches")
        first = made.scheduler
        second = made.start_scheduler()
        assert second.wait(WAIT_S) == 2
        assert any("in use by pid" in line for line in second.tail), second.tail
        made.scheduler = first
        made.kill_scheduler()
        made.workers = 3
        assert made.start_scheduler().wait(WAIT_S) == 2
        assert any("began with workers=2" in line for line in made.scheduler.tail)
        made.workers = 2
        made.start_scheduler().wait_ready()
        job.finish()
