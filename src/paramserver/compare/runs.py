"""Run files of one run, read into steps and curves."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SMOOTH = 10  # logs of each worker that one point of a smoothed curve is the mean of

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """When a run has had enough; None: no limit. Both: whichever comes first.

    Attributes:
        samples: of all workers.
        seconds: since a worker asked for its first batch.
    """

    samples: int | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One push; ``time`` in seconds since the start, ``samples`` those it added."""

    time: float
    samples: float
    staleness: float
    waited: float
    sent: float
    received: float


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """A logged scalar over time: seconds since the start, samples of all workers, values."""

    seconds: Array
    samples: Array
    values: Array

    def thinned(self, most: int) -> Curve:
        """At most ``most`` points, the first and the last among them."""
        if len(self.values) <= most:
            return self
        keep = np.linspace(0, len(self.values) - 1, most).round().astype(int)
        return Curve(self.seconds[keep], self.samples[keep], self.values[keep])


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What the workers of one run wrote down, up to its budget.

    Attributes:
        workers: how many wrote.
        seconds: from the first batch that a worker asked for to the last step.
        steps: in the order of their times.
        idle_s: seconds that workers were idle outside of steps, all together.
        curves: by name of the scalar.
    """

    workers: int
    seconds: float
    steps: tuple[Step, ...]
    idle_s: float
    curves: dict[str, Curve]

    @property
    def samples(self) -> float:
        """Samples of all workers."""
        return sum(step.samples for step in self.steps)


@dataclass(slots=True)
class _Log:
    """One value of one scalar, as a worker logged it."""

    worker: str
    time: float
    value: float


@dataclass(slots=True)
class _Raw:
    """All lines of a run, times as written."""

    starts: list[float] = field(default_factory=list)
    begins: list[float] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    waits: list[tuple[float, float]] = field(default_factory=list)
    logs: dict[str, list[_Log]] = field(default_factory=dict)

    def add(self, worker: str, lines: Iterable[dict[str, Any]]) -> None:
        """The lines of one worker, in order."""
        before = 0.0
        for line in lines:
            time, kind = line["time"], line["kind"]
            if kind == "start":
                self.starts.append(time)
                before = 0.0  # a process that was started again counts from 0
            elif kind == "begin":
                self.begins.append(time)
            elif kind == "step":
                added, before = line["samples"] - before, line["samples"]
                sent, received = line["sent_bytes"], line["received_bytes"]
                self.steps.append(
                    Step(time, added, line["staleness"], line["waited"], sent, received)
                )
            elif kind == "wait":
                self.waits.append((time, line["waited"]))
            elif kind == "log":
                for name, value in line["scalars"].items():
                    logged = float("nan") if value is None else float(value)
                    self.logs.setdefault(name, []).append(_Log(worker, time, logged))


def read_run(folder: Path, budget: Budget | None = None) -> Run | None:
    """The run whose files are in a folder, cut where its budget was used; None if it took no step.

    A line that a killed process left half written is left out.
    """
    raw = _Raw()
    files = sorted(folder.glob("*.jsonl"))
    for file in files:
        raw.add(file.stem, _lines(file))
    if not raw.steps or not raw.starts:
        return None
    raw.steps.sort(key=lambda step: step.time)
    start = min(raw.begins or raw.starts)
    end = _end(raw.steps, start, budget or Budget())
    steps = [step for step in raw.steps if step.time <= end]
    times = np.array([step.time for step in steps])
    totals = np.cumsum([step.samples for step in steps])
    return Run(
        workers=len(files),
        seconds=end - start,
        steps=tuple(
            Step(s.time - start, s.samples, s.staleness, s.waited, s.sent, s.received)
            for s in steps
        ),
        idle_s=sum(waited for time, waited in raw.waits if start <= time <= end),
        curves=_curves(raw.logs, start, end, times, totals),
    )


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    for text in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            found = json.loads(text)
        except ValueError:
            continue
        if isinstance(found, dict) and "kind" in found:
            yield found


def _end(steps: list[Step], start: float, budget: Budget) -> float:
    """The moment of the last step that counts."""
    total, end = 0.0, steps[0].time
    for step in steps:
        if budget.seconds is not None and step.time - start > budget.seconds:
            break
        total, end = total + step.samples, step.time
        if budget.samples is not None and total >= budget.samples:
            break
    return end


def _curves(
    logs: dict[str, list[_Log]], start: float, end: float, times: Array, totals: Array
) -> dict[str, Curve]:
    everyone = {log.worker for found in logs.values() for log in found}
    often = max((len(found) for found in logs.values()), default=0)
    curves = {}
    for name, found in logs.items():
        kept = sorted((log for log in found if log.time <= end), key=lambda log: log.time)
        if not kept:
            continue
        # What everyone logs all the time is the noise of single batches; the rest was measured.
        noisy = {log.worker for log in found} == everyone and 2 * len(found) >= often
        window = SMOOTH * len(everyone) if noisy else 1
        at = np.array([log.time for log in kept])
        done = np.concatenate([[0.0], totals])[np.searchsorted(times, at, side="right")]
        curves[name] = Curve(at - start, done, trailing_mean([log.value for log in kept], window))
    return curves


def trailing_mean(values: Iterable[float], window: int) -> Array:
    """The mean of each value and those before it, ``window`` of them where there are as many."""
    sums = np.array(list(values), dtype=np.float64)
    found = np.empty_like(sums)
    for stop in range(1, len(sums) + 1):
        found[stop - 1] = sums[max(0, stop - window) : stop].mean()
    return found


class Meter:
    """How much of its budget a run has used, while its files grow."""

    def __init__(self, folder: Path, budget: Budget) -> None:
        """The folder may be empty as yet."""
        self._folder = folder
        self._budget = budget
        self._read: dict[Path, int] = {}
        self._samples: dict[Path, list[float]] = {}  # of each process of a worker
        self._start = float("inf")  # of the first loop

    @property
    def samples(self) -> float:
        """Samples of all workers when last looked at."""
        return sum(sum(each) for each in self._samples.values())

    def used_up(self, now: float) -> bool:
        """Looks at what was written since; ``now`` in Unix seconds."""
        for file in self._folder.glob("*.jsonl"):
            self._follow(file)
        if not self._samples:
            return False
        samples, seconds = self._budget.samples, self._budget.seconds
        late = seconds is not None and now - self._start > seconds
        return late or (samples is not None and self.samples >= samples)

    def _follow(self, file: Path) -> None:
        with file.open("rb") as stream:
            stream.seek(self._read.get(file, 0))
            whole = stream.read().rpartition(b"\n")[0]
        self._read[file] = self._read.get(file, 0) + len(whole) + bool(whole)
        for text in whole.splitlines():
            line = json.loads(text)
            counts = self._samples.setdefault(file, [])
            if line["kind"] == "start":
                counts.append(0.0)
            if line["kind"] == "begin":
                self._start = min(line["time"], self._start)
            elif line["kind"] == "step":
                counts[-1] = line["samples"]
