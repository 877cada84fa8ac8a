"""Twenty seeded schedules of faults on real processes; ``make chaos`` runs two hundred."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.chaos.__main__ import broken
from tests.chaos.hazards import HOUR_S, Clock
from tests.chaos.plan import CLOCK, DISK, Means, draw

MEANS = Means(scheduler=True, durabilities=("memory", "wal", "replica"))


def test_a_plan_is_its_seeds() -> None:
    for seed in range(300):
        plan = draw(seed, MEANS)
        assert draw(seed, MEANS) == plan
        afters = [fault.after for fault in plan.faults]
        assert afters == sorted(afters)
        assert plan.durability != "replica" or plan.servers >= 2
    kinds = {(f.kind, f.target.split("-")[0]) for s in range(300) for f in draw(s, MEANS).faults}
    assert {("kill", "worker"), ("kill", "ps"), ("kill", "scheduler"), ("hole", "ps")} <= kinds
    disks = {(kind, whose) for kind in DISK for whose in ("ps", "scheduler", "snapshots")}
    clocks = {(kind, whose) for kind in CLOCK for whose in ("ps", "scheduler", "worker")}
    assert disks | clocks <= kinds


def test_only_what_is_survived_is_killed() -> None:
    means = Means(scheduler=False, durabilities=("memory",))
    for seed in range(300):
        for fault in draw(seed, means).faults:
            assert fault.kind != "kill" or fault.target.startswith("worker")


TELLS = """
import sys, time
for _ in sys.stdin:
    print(time.time(), time.monotonic(), flush=True)
"""


def test_a_wall_clock_jumps_alone(tmp_path: Path) -> None:
    clock = Clock(tmp_path / "clock")
    if not clock.environment:
        pytest.skip("no C compiler, or not Linux")
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", TELLS],
        env={**os.environ, **clock.environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        assert child.stdin is not None
        assert child.stdout is not None
        for jump in (0, HOUR_S, -HOUR_S):
            clock.jump(jump)
            child.stdin.write("tell\n")
            child.stdin.flush()
            wall, steady = map(float, child.stdout.readline().split())
            assert abs(wall - time.time() - jump) < 60.0
            assert abs(steady - time.monotonic()) < 60.0
        child.stdin.close()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(20))
def test_a_seed_keeps_every_promise(seed: int) -> None:
    assert not broken(seed), f"python -m tests.chaos --seed {seed}"
