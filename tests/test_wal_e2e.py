"""Real servers, killed at every durable step: nothing is lost, nothing counts twice."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

SCRIPT = str(Path(__file__).parent / "scripts" / "ledger.py")
STEPS, WORKERS = 12, 2
POINTS = (
    "ps.before_write",
    "ps.after_write",
    "ps.after_fsync",
    "ps.after_apply",
    "ps.before_reply",
)


def run(model: str, folder: Path, points: str = "") -> dict[str, torch.Tensor]:
    """What the servers hold after a run on two servers."""
    struck = folder / "struck"
    struck.mkdir()
    path = folder / "values.pt"
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PARAMSERVER_FAILPOINTS": points,
        "PARAMSERVER_FAILPOINTS_DIR": str(struck),
    }
    command = [sys.executable, "-m", "paramserver", "run", "-q", "-s", "2", "-w", str(WORKERS)]
    command += ["--durability", "wal", "--lease", "3", SCRIPT, model, str(STEPS), str(path), "wal"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list(struck.iterdir())) == len(points.split(",")) if points else True
    values: dict[str, torch.Tensor] = torch.load(path, weights_only=True)
    return values


def check_counts(values: dict[str, torch.Tensor]) -> None:
    for name in ("count/large", "count/small", "rows"):
        wanted = torch.full_like(values[name], float(STEPS * WORKERS))
        assert torch.equal(values[name], wanted), name


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The values of a run in which nothing is killed."""
    values = run("sync", tmp_path_factory.mktemp("undisturbed"))
    check_counts(values)
    return values


@pytest.mark.parametrize("point", POINTS)
def test_sync_is_equal_to_an_undisturbed_run(
    tmp_path: Path, undisturbed: dict[str, torch.Tensor], point: str
) -> None:
    values = run("sync", tmp_path, f"{point}:crash@17,{point}:crash@70")
    check_counts(values)
    for name, value in undisturbed.items():
        assert torch.equal(values[name], value), name


@pytest.mark.parametrize("model", ["stale", "async"])
@pytest.mark.parametrize("point", POINTS)
def test_every_push_counts_once(tmp_path: Path, model: str, point: str) -> None:
    check_counts(run(model, tmp_path, f"{point}:crash@17,{point}:crash@70"))
