"""Pushes and pulls of one payload size: what every contender implements, and how it is timed."""

from __future__ import annotations

import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from paramserver.bench.processes import BenchError, Fleet, cpu_seconds

OPERATIONS = ("push", "pull", "push_pull")
WINDOW = 64
DIRECTIONS = {"push": 1, "pull": 1, "push_pull": 2, "pipelined": 1}


@dataclass(frozen=True, slots=True)
class Span:
    """When a worker began and ended (monotonic seconds, comparable between processes)."""

    start: float
    stop: float


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample over all workers: seconds, CPU-seconds of all processes, calls of all workers."""

    seconds: float
    cpu: float
    calls: int


class Exchanger(ABC):
    """A worker of a contender: lives in a process of its own, holds one payload per copy."""

    def __init__(self) -> None:
        self.copies = 1

    @abstractmethod
    def setup(self, size: int, copies: int) -> None:
        """Make ready for payloads of ``size`` bytes of float32; ``copies`` independent ones."""

    @abstractmethod
    def push(self, copy: int) -> None:
        """Send the payload; back when every server has it."""

    @abstractmethod
    def pull(self, copy: int) -> None:
        """Fetch the value."""

    @abstractmethod
    def push_pull(self, copy: int) -> None:
        """Send the payload and fetch the value that includes it."""

    def pipelined(self, calls: int) -> None:
        """Push ``calls`` times with up to WINDOW pushes unanswered."""
        raise NotImplementedError

    @abstractmethod
    def close(self) -> None:
        """Leave."""

    def run(self, operation: str, repeats: int) -> Span:
        """Repeat an operation over every copy."""
        start = time.monotonic()
        if operation == "pipelined":
            self.pipelined(repeats * self.copies)
        else:
            call = getattr(self, operation)
            for _ in range(repeats):
                for copy in range(self.copies):
                    call(copy)
        return Span(start, time.monotonic())


class Rig:
    """A running contender: its worker agents, and the ids of all its processes."""

    def __init__(self, name: str, fleet: Fleet, workers: Sequence[int], pids: list[int]) -> None:
        self.name = name
        self.fleet = fleet
        self.workers = list(workers)
        self.pids = pids
        self.copies = 1

    def setup(self, size: int, copies: int) -> None:
        """Make all workers ready for a payload size."""
        self.copies = copies
        self.fleet.ask_each(self.workers, "setup", size, copies)

    def sample(self, operation: str, repeats: int) -> Sample:
        """One sample; pulls follow an untimed push each, so that there is something to send."""
        if operation != "pull":
            return self._timed(operation, repeats)
        parts = []
        for _ in range(repeats):
            self.fleet.ask(self.workers[0], "run", "push", 1)
            parts.append(self._timed("pull", 1))
        return Sample(
            sum(part.seconds for part in parts),
            sum(part.cpu for part in parts),
            sum(part.calls for part in parts),
        )

    def _timed(self, operation: str, repeats: int) -> Sample:
        before = cpu_seconds(self.pids)
        spans: list[Span] = self.fleet.ask_each(self.workers, "run", operation, repeats)
        cpu = cpu_seconds(self.pids) - before
        seconds = max(span.stop for span in spans) - min(span.start for span in spans)
        return Sample(seconds, cpu, repeats * self.copies * len(self.workers))


Opener = Callable[[int, int], contextlib.AbstractContextManager[Rig]]


@contextlib.contextmanager
def opened(
    openers: dict[str, Opener], servers: int, workers: int, notes: list[str], must: str
) -> Iterator[list[Rig]]:
    """Start all contenders; one that cannot start is noted, except the one that ``must``."""
    with contextlib.ExitStack() as stack:
        rigs = []
        for name, opener in openers.items():
            try:
                rigs.append(stack.enter_context(opener(servers, workers)))
            except (BenchError, OSError) as error:
                if name == must:
                    raise
                notes.append(f"{name} was not measured: {str(error).strip().splitlines()[-1]}")
        yield rigs
