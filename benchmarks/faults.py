"""How long a job stands still when a process is killed, and what guarding against it costs.

python benchmarks/faults.py [recovery|overhead] [--mib 1,16,64] [--rounds 3]
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

STEPS = Path(__file__).with_name("steps.py")
WARM_UP = 20  # steps
PATIENCE_S = 180.0
LOOK_S = 0.1  # between looks at the logs, which have the times
FLYING_S = 0.05  # what was on its way when the process died is no step of afterwards


@dataclass(frozen=True, slots=True)
class Way:
    """A way to run: what it is called, and options of ``paramserver run``; {} is a new folder."""

    name: str
    options: tuple[str, ...] = ()

    def command(self, folder: Path, mib: float, steps: int) -> list[str]:
        """The command of a cluster of two servers and two workers."""
        filled = [option.replace("{}", str(folder)) for option in self.options]
        script = [str(STEPS), "--mib", str(mib), "--steps", str(steps), "--log", str(folder)]
        run = [sys.executable, "-m", "paramserver", "run", "-q", "-s", "2", "-w", "2"]
        return [*run, "--lease", "3", *filled, *script]


MEMORY = Way("memory, a snapshot every 20 clocks", ("--snapshot-dir={}/s", "--snapshot-every=20"))
WAL = Way("wal", ("--durability=wal",))
REPLICA = Way("replica", ("--durability=replica",))
PLAIN = Way("nothing")


def applied(folder: Path) -> list[float]:
    """When steps were applied, in order, on this machine's monotonic clock."""
    times = []
    for log in folder.iterdir():
        if log.is_file():
            lines = [line.split() for line in log.read_text().splitlines()]
            times += [float(line[0]) for line in lines if len(line) == 2]
    return sorted(times)


@contextlib.contextmanager
def running(way: Way, mib: float, steps: int) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A job, and the folder of its logs; ended when done with."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job = subprocess.Popen(way.command(folder, mib, steps))
        try:
            yield job, folder
        finally:
            job.send_signal(signal.SIGTERM)
            job.wait()


def until(job: subprocess.Popen[bytes], folder: Path, after: float, count: int) -> float:
    """When the count-th step after a moment was applied."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and job.poll() is None:
        later = [t for t in applied(folder) if t > after]
        if len(later) >= count:
            return later[count - 1]
        with contextlib.suppress(subprocess.TimeoutExpired):
            job.wait(LOOK_S)
    raise SystemExit(f"no step for {PATIENCE_S:g} s, or the job ended ({job.poll()})")


def victim(job: subprocess.Popen[bytes], role: str) -> psutil.Process:
    """A process of that role: the scheduler, the last server, or the last worker."""
    words = {"scheduler": ["paramserver", "scheduler"], "server": ["ps-1"], "worker": [str(STEPS)]}
    found = []
    for child in psutil.Process(job.pid).children():
        with contextlib.suppress(psutil.Error):
            line = child.cmdline()
            if all(any(word == part for part in line) for word in words[role]):
                found.append(child)
    return found[-1]


def recovery(role: str, way: Way, mib: float) -> float:
    """Seconds from a kill to the next step that is applied by the workers that are left."""
    with running(way, mib, 100_000) as (job, folder):
        until(job, folder, 0.0, 100)
        while way is MEMORY and not list(folder.glob("s/*/manifest.json")):
            until(job, folder, time.monotonic(), 1)
        process = victim(job, role)
        process.kill()
        killed = time.monotonic()
        return until(job, folder, killed + FLYING_S, 1) - killed


def rate(way: Way, mib: float, steps: int) -> float:
    """Steps per second of both workers, the first ones left out."""
    with running(way, mib, steps) as (job, folder):
        times: list[float] = []
        until(job, folder, 0.0, 2 * steps)
        times = applied(folder)[2 * WARM_UP :]
        return (len(times) - 1) / (times[-1] - times[0])


def show(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table in Markdown."""
    for row in [header, ["---"] * len(header), *rows]:
        print("| " + " | ".join(row) + " |", flush=True)


def recoveries(sizes: Sequence[float], rounds: int) -> None:
    """Prints seconds from kill to the next applied step."""
    cases = [("worker", PLAIN), ("scheduler", Way("its state directory"))]
    cases += [("server", way) for way in (MEMORY, WAL, REPLICA)]
    rows = []
    for role, way in cases:
        row = [role, way.name]
        for mib in sizes:
            seen = [recovery(role, way, mib) for _ in range(rounds)]
            row.append(f"{statistics.median(seen):.2f} ({min(seen):.2f} to {max(seen):.2f})")
        rows.append(row)
    show(["killed", "guarded by", *(f"{mib:g} MiB" for mib in sizes)], rows)


def overheads(sizes: Sequence[float], rounds: int, certs: str) -> None:
    """Prints steps per second beside those of a job that guards nothing."""
    secure = [f"--tls-{x}={certs}/{f}.pem" for x, f in (("cert", "admin"), ("key", "admin-key"))]
    ways = [PLAIN, MEMORY, WAL, REPLICA]
    ways += [Way("mutual TLS", (*secure, f"--tls-ca={certs}/ca.pem"))] if certs else []
    rows: dict[str, list[str]] = {way.name: [way.name] for way in ways}
    for mib in sizes:
        seen: dict[str, list[float]] = {way.name: [] for way in ways}
        for _ in range(rounds):
            for way in ways:
                seen[way.name].append(rate(way, mib, 300 if mib <= 4 else 120))
        base = statistics.median(seen[PLAIN.name])
        for name, rates in seen.items():
            middle = statistics.median(rates)
            rows[name].append(f"{middle:.1f} ({100 * (1 - middle / base):+.0f} %)")
    show(["guarded by", *(f"steps/s at {mib:g} MiB (cost)" for mib in sizes)], list(rows.values()))


def main() -> None:
    """Prints one table or both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", choices=("recovery", "overhead"))
    parser.add_argument("--mib", default="1,16,64")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--certs", default="", help="folder made by `paramserver certs`")
    options = parser.parse_args()
    sizes = [float(size) for size in options.mib.split(",")]
    if options.what != "overhead":
        recoveries(sizes, options.rounds)
    if options.what != "recovery":
        overheads(sizes, options.rounds, options.certs)


if __name__ == "__main__":
    main()
