"""Runs of real processes whose additive groups count every push that was applied."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

SCRIPT = str(Path(__file__).parent / "scripts" / "ledger.py")


def ledger_run(
    model: str,
    folder: Path,
    points: str,
    *options: str,
    workers: int,
    steps: int,
    durabilities: str,
) -> dict[str, torch.Tensor]:
    """What the servers hold after ``paramserver run``; every failpoint named has struck once.

    Args:
        points: failpoints, comma-separated.
        options: of ``run``.
        durabilities: that steps may be told, comma-separated.
    """
    struck = folder / "struck"
    struck.mkdir()
    path = folder / "values.pt"
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PARAMSERVER_FAILPOINTS": points,
        "PARAMSERVER_FAILPOINTS_DIR": str(struck),
    }
    command = [sys.executable, "-m", "paramserver", "run", "-q", "-w", str(workers), *options]
    command += [SCRIPT, model, str(steps), str(path), durabilities]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(struck.iterdir())) == len(points.split(",") if points else [])
    values: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return values


def check_counts(values: dict[str, torch.Tensor], pushes: int) -> None:
    """Raises AssertionError unless each of so many pushes counts once."""
    for name in ("count/large", "count/small", "rows"):
        assert torch.equal(values[name], torch.full_like(values[name], float(pushes))), name
