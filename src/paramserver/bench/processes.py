"""Processes of a contender: started, spoken to over pipes, measured, and always ended.

An agent is any object that lives in a process of its own and whose methods are called from
here. When the benchmark dies, so do its agents.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from paramserver._guard import die_with
from paramserver.errors import ParameterServerError

TIMEOUT = 120.0
START_TIMEOUT = 90.0


class BenchError(ParameterServerError):
    """A contender could not be started or measured."""

    reason = "BENCH"


@dataclass(frozen=True, slots=True)
class Agent:
    """What to build in a process of its own: ``factory(*args)``."""

    factory: Callable[..., Any]
    args: tuple[Any, ...] = ()


class Fleet:
    """Agents, each in a process of its own. A context manager; leaves no process behind."""

    def __init__(self, agents: Iterable[Agent]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        for agent in agents:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, agent, os.getpid()), daemon=True)
            with _interrupts_ignored():
                process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def __enter__(self) -> Fleet:
        try:
            for number in range(len(self._pipes)):
                self._answer(number, START_TIMEOUT)
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self.close()
        else:
            self.kill()

    def __len__(self) -> int:
        return len(self._pipes)

    @property
    def pids(self) -> list[int]:
        """Process ids, in the order of the agents."""
        return [process.pid for process in self._processes]

    def ask(self, number: int, method: str, *args: Any, timeout: float = TIMEOUT) -> Any:
        """Call a method of one agent and wait for its result."""
        return self.ask_each([number], method, *args, timeout=timeout)[0]

    def ask_each(
        self, numbers: Iterable[int], method: str, *args: Any, timeout: float = TIMEOUT
    ) -> list[Any]:
        """Call a method of several agents at once and wait for all results."""
        asked = list(numbers)
        for number in asked:
            self._pipes[number].send((method, args))
        return [self._answer(number, timeout) for number in asked]

    def close(self) -> None:
        """Let the agents end; kill what has not ended after a few seconds."""
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                pipe.send(None)
        deadline = time.monotonic() + 8.0
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))
        self.kill()

    def kill(self) -> None:
        """End all processes now."""
        for process in self._processes:
            if process.is_alive():
                process.kill()
            process.join(5.0)
        for pipe in self._pipes:
            pipe.close()

    def _answer(self, number: int, timeout: float) -> Any:
        pipe = self._pipes[number]
        if not pipe.poll(timeout):
            raise BenchError(f"agent {number} did not answer in {timeout:.0f} s")
        try:
            good, value = pipe.recv()
        except EOFError:
            process = self._processes[number]
            process.join(1.0)
            raise BenchError(f"agent {number} ended with exit code {process.exitcode}") from None
        if not good:
            raise BenchError(f"agent {number} failed:\n{value}")
        return value


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """A process started in the block ignores Ctrl-C, which reaches all: we end it ourselves."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _serve(pipe: Connection, agent: Agent, parent: int) -> None:
    """Build the agent and call its methods until told to end; dies with its parent."""
    die_with(parent)
    try:
        built = agent.factory(*agent.args)
        pipe.send((True, None))
        while (request := pipe.recv()) is not None:
            method, args = request
            pipe.send((True, getattr(built, method)(*args)))
        built.close()
    except EOFError:
        os._exit(1)  # the benchmark is gone; nothing here is worth a clean end
    except BaseException:
        with contextlib.suppress(OSError):
            pipe.send((False, traceback.format_exc()))
        sys.stderr.flush()
        os._exit(1)


@contextlib.contextmanager
def new_children() -> Iterator[list[int]]:
    """Yields a list that holds, after the block, the ids of processes started in it."""
    me = psutil.Process()
    before = {child.pid for child in me.children(recursive=True)}
    found: list[int] = []
    yield found
    found.extend(c.pid for c in me.children(recursive=True) if c.pid not in before)


def cpu_seconds(pids: Iterable[int]) -> float:
    """User + system seconds that these processes have used so far.

    Linux gives them by the process clock, to the microsecond; elsewhere psutil, to 10 ms.
    """
    return sum(_cpu_clock(pid) for pid in pids)


def _cpu_clock(pid: int) -> float:
    try:
        if sys.platform == "linux":
            return time.clock_gettime((~pid << 3) | 2)  # see clock_getcpuclockid(3)
        times = psutil.Process(pid).cpu_times()
    except (OSError, psutil.Error) as error:
        raise BenchError(f"process {pid} is gone: {error}") from error
    return times.user + times.system


def peak_rss(pid: int) -> int:
    """The largest resident size of a process so far, in bytes (the present one without /proc)."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return rss(pid)


def rss(pid: int) -> int:
    """The resident size of a process, in bytes."""
    return int(psutil.Process(pid).memory_info().rss)


def command_line(pid: int) -> list[str]:
    """The arguments a process was started with; empty when it is gone."""
    with contextlib.suppress(psutil.Error):
        return list(psutil.Process(pid).cmdline())
    return []


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables for the processes started in the block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
