"""A cluster of real processes on this machine, for notebooks, tests and first steps."""

from __future__ import annotations

import atexit
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from paramserver.config import check_durability, snapshot_config
from paramserver.errors import ConfigurationError
from paramserver.launch import report_exit, worker_environment
from paramserver.local_job import LocalJob, SpawnedWorker
from paramserver.local_roles import LocalRoles, Shape, without_resume
from paramserver.trust import from_environment
from paramserver.types import ASSIGNMENTS, Durability

if TYPE_CHECKING:
    from paramserver.worker.client import Client


class LocalCluster:
    """A scheduler and servers on loopback, started when they are first needed.

    The scheduler is told how many workers a job starts with. A job of another number of workers,
    or one after a job that failed, gets fresh processes at a new address; otherwise they stay,
    and ``address`` with them. One job at a time.
    """

    def __init__(self, shape: Shape) -> None:
        """Starts nothing yet; ``local_cluster`` makes the shape."""
        self._shape = shape
        self._roles: LocalRoles | None = None
        self._job: LocalJob | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> LocalCluster:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def address(self) -> str:
        """HOST:PORT of the scheduler, which is started if need be.

        Raises:
            JobFailedError: a process did not come up; has what it said.
        """
        if self._roles is None:
            atexit.register(self.close)
            self._roles = LocalRoles(self._shape)
            self._shape = without_resume(self._shape)
        return self._roles.address

    @property
    def processes(self) -> dict[str, int]:
        """Process ids by name: "scheduler", "ps-0", "worker-0"; only those that run."""
        roles = self._roles.processes if self._roles is not None else {}
        return roles | (self._job.processes if self._job is not None else {})

    def connect(self, **options: Any) -> Client:
        """``paramserver.connect`` to this cluster; options as there."""
        from paramserver._connect import connect  # a launcher has no use for torch

        return connect(self.address, **options)

    def start(
        self,
        function: Callable[..., Any],
        workers: int = 1,
        args: Sequence[Any] = (),
        *,
        max_restarts: int = 0,
    ) -> LocalJob:
        """Starts ``function(*args)`` in spawned processes; there, ``connect()`` finds the cluster.

        Args:
            function: picklable, as for torch.multiprocessing: a function of an importable module.
            workers: how many, and how many the scheduler expects.
            args: picklable.
            max_restarts: how often a worker that was killed is started again, under its name.

        Raises:
            ConfigurationError: a job is still running.
            JobFailedError: a process did not come up.
        """
        check_count("workers", workers)
        if self._job is not None and self._job.processes:
            raise ConfigurationError("a job is still running on this cluster; wait for it first")
        if workers != self._shape.workers or (self._job is not None and self._job.disturbed):
            self._stop_roles()
        self._shape = replace(self._shape, workers=workers)
        address = self.address
        self._forget_job()
        folder = self._folder = tempfile.TemporaryDirectory(prefix="paramserver-")
        trust = from_environment(os.environ)
        started: list[SpawnedWorker] = []
        for name in [f"worker-{i}" for i in range(workers)]:
            identity = Path(folder.name, f"{name}.json")
            env = worker_environment(
                os.environ, scheduler=address, name=name, identity=identity, workers=workers
            )
            report = partial(report_exit, address, identity, name, trust=trust)
            started.append(SpawnedWorker(name, function, args, env, report))
            self._job = LocalJob(started, max_restarts)
        assert self._job is not None
        return self._job

    def run(
        self,
        function: Callable[..., Any],
        workers: int = 1,
        args: Sequence[Any] = (),
        *,
        max_restarts: int = 0,
        timeout: float = 1800.0,
    ) -> list[Any]:
        """``start`` and ``wait``: what the function returned, in the order of the workers' names.

        Raises:
            JobFailedError: a worker failed; has its traceback.
            WaitTimeoutError: some still run after ``timeout`` seconds; they are ended.
        """
        job = self.start(function, workers, args, max_restarts=max_restarts)
        try:
            return job.wait(timeout)
        finally:
            job.stop()

    def close(self) -> None:
        """Ends all processes; the cluster can be used again, at a new address."""
        self._forget_job()
        self._stop_roles()

    def _forget_job(self) -> None:
        if self._job is not None:
            self._job.stop()
            self._job = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _stop_roles(self) -> None:
        if self._roles is not None:
            self._roles.stop()
            self._roles = None
        atexit.unregister(self.close)


def check_count(name: str, value: int) -> None:
    """Raises ConfigurationError unless ``value`` is at least 1."""
    if value < 1:
        raise ConfigurationError(f"{name}={value}: must be >= 1")


def local_cluster(
    servers: int = 1,
    *,
    workers: int = 1,
    parties: int = 1,
    assign: str = "dynamic",
    lease: float = 10.0,
    durability: Durability = "memory",
    snapshot_dir: str | Path | None = None,
    snapshot_every: int | None = None,
    snapshot_seconds: float | None = None,
    snapshot_keep: int = 3,
    snapshot_delta: int = 0,
    resume: str | None = None,
    state_dir: str | Path | None = None,
) -> LocalCluster:
    """A cluster of real processes on this machine; a context manager that ends them all.

    With a durability, snapshots or a state directory, a scheduler or server that is killed is
    started again, three times at most, and the job goes on as the durability promises.

    Args:
        servers: how many.
        workers: how many clients ``connect`` waits for; ``run`` and ``start`` set their own.
        parties: of one replica; a number of workers that it does not divide is an error.
        assign: how data shards are dealt: "round-robin", "random" or "dynamic".
        lease: seconds of silence after which a member is lost.
        durability: what an applied push survives: "memory", "wal" or "replica".
        snapshot_dir: folder or fsspec URL of snapshots; None: none are taken.
        snapshot_every, snapshot_seconds: clocks and seconds from one to the next; 300 seconds
            where nothing is said.
        snapshot_keep: how many are kept of those that nobody named.
        snapshot_delta: after a whole one, how many hold only the rows of tables that changed.
        resume: name of the snapshot that the first job goes on from, or "latest".
        state_dir: folder for what the scheduler, and servers under "wal", outlast their processes
            with; a cluster made on it again takes up its job. None: one that ends with this.

    Raises:
        ConfigurationError: a value that cannot work.
    """
    for name, value in (("servers", servers), ("workers", workers), ("parties", parties)):
        check_count(name, value)
    if assign not in ASSIGNMENTS:
        raise ConfigurationError(f"assign={assign!r}: must be one of {', '.join(ASSIGNMENTS)}")
    check_durability(durability, servers)
    folder = None if snapshot_dir is None else str(snapshot_dir)
    shape = Shape(
        servers=servers,
        workers=workers,
        parties=parties,
        assign=assign,
        lease=lease,
        durability=durability,
        snapshots=snapshot_config(
            folder, snapshot_every, snapshot_seconds, snapshot_keep, snapshot_delta, resume
        ),
        state_dir=None if state_dir is None else Path(state_dir).resolve(),
    )
    return LocalCluster(shape)
