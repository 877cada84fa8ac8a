"""A worker that is slower than the others: what is learnt, and what is gained."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

import paramserver as ps
from tests.cluster import cluster
from tests.test_examples import ROOT, clean_environment


@pytest.mark.parametrize("assign", ["round-robin", "dynamic"])
@pytest.mark.parametrize("servers", [1, 2])
def test_what_backup_drops_is_learnt_later(servers: int, assign: str, monkeypatch: Any) -> None:
    """The straggler's dropped batches go back, and every sample is in one applied push."""
    monkeypatch.setenv("PARAMSERVER_EMULATE", "sample=0.001,slow=2:6")
    size, epochs = 96, 2

    def work(client: ps.Client) -> tuple[list[list[int]], int]:
        model = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
        consistency = ps.Sync(backup=1)
        optimizer = client.optimizer(model, torch.optim.SGD, lr=1e-3, consistency=consistency)
        data = TensorDataset(torch.arange(size, dtype=torch.float64))
        loader = client.loader(data, 4, assign=assign)
        applied: list[list[int]] = [[] for _ in range(epochs)]
        dropped = 0
        for epoch in client.epochs(epochs):
            for (x,) in loader:
                optimizer.zero_grad()
                model(x[:, None]).mean().backward()
                optimizer.step()
                assert optimizer.last is not None
                if optimizer.last.dropped:
                    dropped += 1
                else:
                    applied[epoch] += x.int().tolist()
        return applied, dropped

    with cluster(servers, 3, assign=assign) as made:
        results = made.workers(work)
        counts = made.scheduler.state.data.get("train").counts()
    for epoch in range(epochs):
        assert sorted(x for applied, _ in results for x in applied[epoch]) == list(range(size))
    assert sum(dropped for _, dropped in results) > 0
    assert (counts.samples_done, counts.unpushed) == (size, 0)
    if assign == "round-robin":
        assert len(results[2][0][0]) == size // 3, "its share is learnt, by itself in the end"


def benchmark(tmp_path: Path, *options: str) -> dict[str, list[dict[str, Any]]]:
    """What benchmarks/stragglers.py found."""
    out = tmp_path / "found.json"
    done = subprocess.run(
        [sys.executable, "benchmarks/stragglers.py", "--json", str(out), *options],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, list[dict[str, Any]]] = json.loads(out.read_text())
    return found


# The goals are 2.5 and 1.4; a machine that is busy with other things takes some of that.
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_slow_machine_costs_little_with_the_right_scheme(tmp_path: Path) -> None:
    found = benchmark(tmp_path, "--only", "machine", "--schemes", "0,1,2,3", "--repeat", "2")
    plain, *others = found["machine"]
    assert plain["target_s"], plain
    for better in others:
        assert better["ratio"] >= 2.0, (plain, better)
        assert better["samples_per_s"] >= 2.0 * plain["samples_per_s"], (plain, better)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_slow_steps_cost_little_under_bounded_staleness(tmp_path: Path) -> None:
    plain, stale = benchmark(tmp_path, "--only", "steps", "--schemes", "0,2")["steps"]
    assert stale["ratio"] >= 1.25, (plain, stale)
