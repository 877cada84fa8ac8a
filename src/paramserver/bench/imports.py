"""Start-up: what ``import paramserver`` adds to torch's own import, and a scheduler's start."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from paramserver.bench.processes import BenchError, rss
from paramserver.bench.results import Check, Row, Section
from paramserver.bench.settings import MIB, Settings
from paramserver.bench.stats import Stat

ALLOWED_IMPORT_S = 0.3
TIMEOUT = 60.0
IMPORT = """
import time
start = time.perf_counter()
import torch
middle = time.perf_counter()
import paramserver
for name in paramserver.__all__:  # what is imported late counts as well
    getattr(paramserver, name)
print(middle - start, time.perf_counter() - middle)
"""
SCHEDULER = [sys.executable, "-m", "paramserver", "scheduler", "--bind", "127.0.0.1:0"]


def run(settings: Settings) -> Section:
    """Measure the imports in fresh processes, and look for torch in a running scheduler."""
    section = Section("imports")
    if not settings.ours:
        section.notes.append("imports are measured of ourselves only")
        return section
    settings.say("imports: import paramserver, and a scheduler's start")
    _import(section, settings.samples)
    _scheduler(section, settings.samples)
    return section


def _import(section: Section, samples: int) -> None:
    _import_once()  # fills the caches of the file system
    taken = [_import_once() for _ in range(samples)]
    beyond = Stat(tuple(ours for _, ours in taken))
    metrics = {"seconds": Stat(tuple(torch for torch, _ in taken))}
    section.rows.append(Row("import torch", {}, metrics))
    section.rows.append(Row("import paramserver, beyond torch", {}, {"seconds": beyond}))
    name = "import paramserver beyond torch's own, seconds"
    section.checks.append(Check(name, beyond.median, "<=", ALLOWED_IMPORT_S))


def _import_once() -> tuple[float, float]:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT], capture_output=True, text=True, timeout=TIMEOUT
    )
    if done.returncode:
        raise BenchError(f"import paramserver failed:\n{done.stderr}")
    torch, ours = done.stdout.split()
    return float(torch), float(ours)


def _scheduler(section: Section, samples: int) -> None:
    starts = [_start_scheduler() for _ in range(samples)]
    metrics = {
        "seconds": Stat(tuple(seconds for seconds, _, _ in starts)),
        "MiB": Stat(tuple(size / MIB for _, size, _ in starts)),
    }
    section.rows.append(Row("scheduler, until its ready line", {}, metrics))
    loaded = sum(torch for _, _, torch in starts)
    section.checks.append(Check("schedulers that loaded torch", float(loaded), "<=", 0.0))


def _start_scheduler() -> tuple[float, int, bool]:
    """Seconds to the ready line, resident bytes, whether torch is loaded."""
    start = time.perf_counter()
    process = subprocess.Popen(
        SCHEDULER, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise BenchError("the scheduler ended before it was ready")
        seconds = time.perf_counter() - start
        return seconds, rss(process.pid), _has_torch(process.pid)
    finally:
        process.terminate()
        try:
            process.wait(timeout=5.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _has_torch(pid: int) -> bool:
    """Whether a process has torch's libraries mapped (Linux; False elsewhere)."""
    maps = Path(f"/proc/{pid}/maps")
    return maps.exists() and "libtorch" in maps.read_text(errors="replace")
