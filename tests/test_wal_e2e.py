"""Real servers, killed at every durable step: nothing is lost, nothing counts twice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.ledger_runs import check_counts, ledger_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

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
    options = ("-s", "2", "--durability", "wal", "--lease", "3")
    values = ledger_run(
        model, folder, points, *options, workers=WORKERS, steps=STEPS, durabilities="wal"
    )
    check_counts(values, STEPS * WORKERS)
    return values


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The values of a run in which nothing is killed."""
    return run("sync", tmp_path_factory.mktemp("undisturbed"))


@pytest.mark.parametrize("point", POINTS)
def test_sync_is_equal_to_an_undisturbed_run(
    tmp_path: Path, undisturbed: dict[str, torch.Tensor], point: str
) -> None:
    values = run("sync", tmp_path, f"{point}:crash@17,{point}:crash@70")
    for name, value in undisturbed.items():
        assert torch.equal(values[name], value), name


@pytest.mark.parametrize("model", ["stale", "async"])
@pytest.mark.parametrize("point", POINTS)
def test_every_push_counts_once(tmp_path: Path, model: str, point: str) -> None:
    run(model, tmp_path, f"{point}:crash@17,{point}:crash@70")
