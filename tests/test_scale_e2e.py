"""Slices move between real processes, which are killed at every step of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SCRIPT = str(Path(__file__).parent / "scripts" / "growing.py")
WORKERS, STEPS = 2, 60
POINTS = (
    "ps.after_move_bind",
    "ps.after_move_take",
    "ps.before_move_arrives",
    "ps.before_move_leaves",
    "ps.after_move_follow",
    "scheduler.before_move_follow",
    "scheduler.before_move_commit",
    "scheduler.after_move_commit",
)


def grow(folder: Path, *shapes: str, points: str = "") -> dict[str, torch.Tensor]:
    """What the servers hold after a run under ``wal`` in which their number changes."""
    struck, path = folder / "struck", folder / "values.pt"
    struck.mkdir(parents=True)
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PARAMSERVER_FAILPOINTS": points,
        "PARAMSERVER_FAILPOINTS_DIR": str(struck),
    }
    options = ["-w", str(WORKERS), "-s", "2", "--durability", "wal", "--lease", "3"]
    command = [sys.executable, "-m", "paramserver", "run", "-q", *options]
    command += ["--max-restarts", "12", SCRIPT, str(path), str(STEPS), *shapes]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(struck.iterdir())) == len(points.split(",") if points else [])
    values: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return values


def test_every_process_may_be_killed_at_every_step_of_a_move(tmp_path: Path) -> None:
    """Equal to the bit, to a run in which nothing moves and nobody is killed."""
    wanted = grow(tmp_path / "quiet")
    points = ",".join(f"{point}:crash@2" for point in POINTS)
    found = grow(tmp_path / "killed", "3", "2", points=points)
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name
    for name in ("count", "rows"):
        assert torch.equal(found[name], torch.full_like(found[name], float(WORKERS * STEPS)))
