"""A cluster of real processes on this machine, for notebooks, tests and first steps."""

from __future__ import annotations

import atexit
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from paramserver.config import check_parties
from paramserver.errors import ConfigurationError
from paramserver.launch import (
    Child,
    report_exit,
    role_command,
    role_environment,
    stop,
    worker_environment,
)
from paramserver.local_job import LocalJob, SpawnedWorker
from paramserver.trust import from_environment
from paramserver.types import ASSIGNMENTS

if TYPE_CHECKING:
    from paramserver.worker.client import Client


class LocalCluster:
    """A scheduler and servers on loopback, started when they are first needed.

    The scheduler is told how many workers a job starts with. A job of another number of workers,
    or one after a job that failed, gets fresh processes at a new address; otherwise they stay,
    and ``address`` with them. One job at a time.
    """

    def __init__(
        self,
        servers: int = 1,
        *,
        workers: int = 1,
        parties: int = 1,
        assign: str = "dynamic",
        lease: float = 10.0,
    ) -> None:
        """Starts nothing yet; arguments as for ``local_cluster``."""
        check_count("servers", servers)
        check_count("workers", workers)
        check_count("parties", parties)
        if assign not in ASSIGNMENTS:
            raise ConfigurationError(f"assign={assign!r}: must be one of {', '.join(ASSIGNMENTS)}")
        self._servers = servers
        self._workers = workers
        self._parties = parties
        self._assign = assign
        self._lease = lease
        self._roles: dict[str, Child] = {}
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
        if not self._roles:
            self._start()
        return self._roles["scheduler"].wait_ready()

    @property
    def processes(self) -> dict[str, int]:
        """Process ids by name: "scheduler", "ps-0", "worker-0"; only those that run."""
        roles = {name: child.pid for name, child in self._roles.items() if child.code is None}
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
        if workers != self._workers or (self._job is not None and self._job.disturbed):
            self._stop_roles()
        self._workers = workers
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

    def _start(self) -> None:
        check_parties(self._workers, self._parties)
        atexit.register(self.close)
        try:
            scheduler = self._start_role(
                "scheduler",
                "scheduler",
                bind="127.0.0.1:0",
                workers=self._workers,
                servers=self._servers,
                parties=self._parties,
                assign=self._assign,
                lease=self._lease,
            )
            address = scheduler.wait_ready()
            names = [f"ps-{i}" for i in range(self._servers)]
            for name in names:
                self._start_role(name, "ps", scheduler=address, name=name, bind="127.0.0.1:0")
            for name in names:
                self._roles[name].wait_ready()
        except BaseException:
            self._stop_roles()
            raise

    def _start_role(self, name: str, role: str, /, **flags: object) -> Child:
        command = [*role_command(role, **flags), "--log-level", "warning"]
        env = role_environment(os.environ)
        self._roles[name] = Child(name, role, command, env=env, on_line=_show)
        return self._roles[name]

    def _stop_roles(self) -> None:
        stop(self._roles.values())
        self._roles.clear()
        atexit.unregister(self.close)


def check_count(name: str, value: int) -> None:
    """Raises ConfigurationError unless ``value`` is at least 1."""
    if value < 1:
        raise ConfigurationError(f"{name}={value}: must be >= 1")


def _show(child: Child, stream: str, line: str) -> None:
    if stream == "stderr" and not child.stopped:
        print(f"{child.name}: {line}", file=sys.stderr)


def local_cluster(
    servers: int = 1,
    *,
    workers: int = 1,
    parties: int = 1,
    assign: str = "dynamic",
    lease: float = 10.0,
) -> LocalCluster:
    """A cluster of real processes on this machine; a context manager that ends them all.

    Args:
        servers: how many.
        workers: how many clients ``connect`` waits for; ``run`` and ``start`` set their own.
        parties: of one replica; a number of workers that it does not divide is an error.
        assign: how data shards are dealt: "round-robin", "random" or "dynamic".
        lease: seconds of silence after which a member is lost.

    Raises:
        ConfigurationError: a value that cannot work.
    """
    return LocalCluster(servers, workers=workers, parties=parties, assign=assign, lease=lease)
