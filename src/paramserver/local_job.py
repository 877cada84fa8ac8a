"""A function run by workers of a local cluster, each in a spawned process."""

from __future__ import annotations

import multiprocessing
import os
import pickle  # noqa: TID251 - as multiprocessing does, between a process and its own child
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from paramserver._guard import die_with
from paramserver.errors import JobFailedError, WaitTimeoutError
from paramserver.launch import (
    RESTARTABLE,
    RestartRule,
    describe_exit,
    exit_code,
    in_lasting_thread,
    is_consequence,
)

SETTLE_S = 10.0
STOP_S = 2.0
_environment_lock = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one worker of a local job ended.

    Attributes:
        name: "worker-0".
        code: exit code; 128 + n for a worker killed by signal n.
        value: what the function returned; None unless code is 0.
        error: the traceback of what it raised; empty if it raised nothing.
    """

    name: str
    code: int
    value: Any = None
    error: str = ""


class SpawnedWorker:
    """One process that runs the function, and what it has answered."""

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        args: Sequence[Any],
        environment: Mapping[str, str],
        report: Callable[[int], object] = lambda code: None,
    ) -> None:
        """Starts it; ``function`` and ``args`` must be picklable, as for torch.multiprocessing.

        ``report`` is told each exit code, once.
        """
        self.name = name
        self._task = (function, tuple(args))
        self._environment = environment
        self.report = report
        self._answer: tuple[bool, Any] | None = None
        self.process, self.results = self._spawn()

    def _spawn(self) -> tuple[BaseProcess, Connection]:
        context = multiprocessing.get_context("spawn")
        results, sender = context.Pipe(duplex=False)
        process = context.Process(
            target=_entry, args=(os.getpid(), sender, *self._task), name=self.name
        )

        def start() -> None:
            with replaced_environment(self._environment):
                process.start()

        in_lasting_thread(start)
        sender.close()
        return process, results

    def restart(self) -> None:
        """Starts a process that has ended again."""
        self.results.close()
        self._answer = None
        self.process, self.results = self._spawn()

    def waits_on(self) -> list[Any]:
        """What becomes ready when it answers or ends."""
        return [self.process.sentinel, *([self.results] if self._answer is None else [])]

    def outcome(self) -> Outcome | None:
        """How it ended; None while it runs. Takes its answer, so that it can end."""
        code = self.process.exitcode
        if self._answer is None and self.results.poll():
            try:
                self._answer = pickle.loads(self.results.recv_bytes())  # noqa: S301
            except (EOFError, OSError):
                self._answer = (False, "")
        if code is None:
            return None
        good, content = self._answer or (False, "")
        if good and code == 0:
            return Outcome(name=self.name, code=0, value=content)
        said = "" if good else str(content)
        return Outcome(name=self.name, code=exit_code(code) or (0 if good else 1), error=said)


def _entry(parent: int, results: Connection, function: Callable[..., Any], args: Any) -> None:
    die_with(parent)
    try:
        # Bytes, so that tensors travel by value; torch's own way needs this process to live on.
        answer = pickle.dumps((True, function(*args)))
    except Exception:
        sys.excepthook(*sys.exc_info())  # as in a script
        results.send_bytes(pickle.dumps((False, traceback.format_exc())))
        sys.exit(1)
    results.send_bytes(answer)


@contextmanager
def replaced_environment(environment: Mapping[str, str]) -> Iterator[None]:
    """``os.environ`` is ``environment`` while inside: what a spawned process sees from its start.

    Variables such as OMP_NUM_THREADS are read before any code of ours runs there.
    """
    with _environment_lock:
        before = dict(os.environ)
        os.environ.update(environment)
        try:
            yield
        finally:
            for name in environment:
                if name in before:
                    os.environ[name] = before[name]
                else:
                    os.environ.pop(name, None)


class LocalJob:
    """Workers of a local cluster that run one function."""

    def __init__(self, workers: Sequence[SpawnedWorker], max_restarts: int = 0) -> None:
        """Takes workers that have been started."""
        self._workers = {worker.name: worker for worker in workers}
        self._rule = RestartRule(max_restarts)
        self._ended: dict[str, Outcome] = {}

    @property
    def processes(self) -> dict[str, int]:
        """Process ids of the workers that still run, by name."""
        found = {name: self._workers[name].process for name in self._running()}
        return {n: p.pid for n, p in found.items() if p.pid is not None and p.exitcode is None}

    def _running(self) -> list[str]:
        return [name for name in self._workers if name not in self._ended]

    @property
    def failed(self) -> bool:
        """Whether a worker has ended with an error, rather than done or killed."""
        return any(o.code and o.code not in RESTARTABLE for o in self._ended.values())

    @property
    def disturbed(self) -> bool:
        """Whether a worker did not end by itself and well, so that the scheduler may await it."""
        return len(self._ended) < len(self._workers) or any(o.code for o in self._ended.values())

    def outcomes(self, timeout: float = 1800.0) -> dict[str, Outcome]:
        """How each worker ended, by name, once all have.

        A worker that was killed does not stop the others. After one that failed, what still runs
        10 s later is ended.

        Raises:
            WaitTimeoutError: some still run after ``timeout`` seconds; the message names them.
        """
        deadline = time.monotonic() + timeout
        settled = float("inf")
        while running := self._running():
            now = time.monotonic()
            if now >= deadline:
                raise WaitTimeoutError(f"still running after {timeout:g} s: {', '.join(running)}")
            if now >= settled:
                self.stop()
            watched = [x for name in running for x in self._workers[name].waits_on()]
            wait(watched, timeout=max(0.0, min(deadline, settled) - now))
            self._collect(running)
            if self.failed:
                settled = min(settled, time.monotonic() + SETTLE_S)
        return {name: self._ended[name] for name in self._workers}

    def _collect(self, names: Sequence[str]) -> None:
        for name in names:
            outcome = self._workers[name].outcome()
            if outcome is None:
                continue
            self._workers[name].report(outcome.code)
            if self._rule.restarts(name, outcome.code):
                self._workers[name].restart()
            else:
                self._ended[name] = outcome

    def wait(self, timeout: float = 1800.0) -> list[Any]:
        """What the function returned in each worker, in the order of their names.

        Raises:
            JobFailedError: a worker raised, was killed, or ended otherwise; has its traceback.
            WaitTimeoutError: some still run after ``timeout`` seconds.
        """
        found = self.outcomes(timeout)
        bad = [outcome for outcome in self._ended.values() if outcome.code]
        if not bad:
            return [outcome.value for outcome in found.values()]
        cause = next((o for o in bad if not is_consequence(o.error)), bad[0])
        said = f"\n{cause.error}" if cause.error else ""
        raise JobFailedError(
            f"{cause.name} failed: {describe_exit(cause.code)}{said}",
            worker=cause.name,
            exit_code=str(cause.code),
        )

    def stop(self) -> None:
        """Ends the workers that still run."""
        there = [self._workers[name].process for name in self._running()]
        for process in there:
            process.terminate()
        for process in there:
            process.join(STOP_S)
            with suppress(ValueError):
                process.kill()
            process.join()
