"""What workers write down of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

import paramserver as ps
from paramserver.config import ClientConfig
from paramserver.errors import ConfigurationError
from paramserver.types import StepResult
from paramserver.worker.run_file import RunFile
from tests.cluster import cluster


class Who:
    """A worker's identity."""

    name = "worker-1"
    incarnation = 3
    rank = 1
    job = 2


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_clock_that_is_set_back_makes_no_wait_negative(tmp_path: Path) -> None:
    clock = iter([9000.0, *range(100, 0, -1)])
    file = RunFile(now=lambda: float(next(clock)))
    file.open(ClientConfig(scheduler="h:1", run_dir=str(tmp_path)), Who())
    with file.waiting("shards"):
        pass
    assert 0.0 <= lines(tmp_path / "worker-1.jsonl")[-1]["waited"] < 5.0
    file.close()


def test_lines_are_json_as_soon_as_written(tmp_path: Path) -> None:
    file = RunFile(now=lambda: 7.0)
    file.log({"lost": 1.0})  # not open yet
    file.open(ClientConfig(run_dir=str(tmp_path / "new")), Who())
    file.begin()
    file.step(StepResult(4, 5, 1.5, 0.25, 100, 200), 64.0)
    file.log({"loss": 0.5, "worse": float("nan"), "worst": float("inf")})
    with file.waiting("shards"):
        pass
    start, begin, step, log, wait = lines(tmp_path / "new" / "worker-1.jsonl")
    assert start == {
        "kind": "start",
        "time": 7.0,
        "worker": "worker-1",
        "rank": 1,
        "incarnation": 3,
        "job": 2,
        "scheme": None,
    }
    assert begin == {"kind": "begin", "time": 7.0}
    assert (step["clock"], step["version"], step["staleness"], step["waited"]) == (4, 5, 1.5, 0.25)
    assert (step["sent_bytes"], step["received_bytes"], step["samples"]) == (100, 200, 64.0)
    assert log["scalars"] == {"loss": 0.5, "worse": None, "worst": None}
    assert 0.0 <= wait.pop("waited") < 5.0
    assert wait == {"kind": "wait", "time": 7.0, "what": "shards"}
    file.close()
    file.log({"after": 1.0})
    assert len(lines(tmp_path / "new" / "worker-1.jsonl")) == 5


def test_a_process_that_starts_again_appends(tmp_path: Path) -> None:
    for _ in range(2):
        file = RunFile()
        file.open(ClientConfig(run_dir=str(tmp_path)), Who())
        file.close()
    assert [line["kind"] for line in lines(tmp_path / "worker-1.jsonl")] == ["start", "start"]


@pytest.mark.parametrize("config", [ClientConfig(), ClientConfig(run_dir="x", reader=True)])
def test_nothing_is_written_unasked(
    config: ClientConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = RunFile()
    file.open(config, Who())
    file.log({"loss": 1.0})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_a_file_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(ConfigurationError, match="PARAMSERVER_RUN_DIR must name a folder"):
        RunFile().open(ClientConfig(run_dir=str(tmp_path / "taken")), Who())


def test_a_full_disk_ends_the_file_not_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    (tmp_path / "worker-1.jsonl").symlink_to(full)
    file = RunFile()
    file.open(ClientConfig(run_dir=str(tmp_path)), Who())
    file.log({"loss": 1.0})
    assert caplog.text.count("ends here: ") == 1


def train(client: ps.Client) -> tuple[object, str]:
    """One epoch of least squares; its consistency model, and how shards were dealt."""
    torch.manual_seed(0)
    x = torch.randn(64, 3)
    model = torch.nn.Linear(3, 1)
    optimizer = client.optimizer(model, torch.optim.SGD, lr=0.1)
    sampler = client.sampler(64, 8)
    for _ in client.epochs(1):
        for inputs, targets in client.loader(TensorDataset(x, x.sum(1, keepdim=True)), 8):
            optimizer.zero_grad()
            loss = F.mse_loss(model(inputs), targets)
            loss.backward()
            optimizer.step()
            client.log(loss=loss)
    return optimizer.group.spec.consistency, sampler.source.spec.assign


def test_workers_write_every_step_and_scalar_under_the_scheme_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARAMSERVER_RUN_DIR", str(tmp_path))
    monkeypatch.setenv("PARAMSERVER_SCHEME", "stale:3/random")
    with cluster(1, 2, assign="dynamic") as made:
        assert made.workers(train) == [(ps.Stale(3), "random")] * 2
    found = [lines(tmp_path / f"worker-{rank}.jsonl") for rank in range(2)]
    applied = 0
    for mine in found:
        assert mine[0]["kind"] == "start"
        assert mine[0]["scheme"] == "stale:3/random"
        kinds = [line["kind"] for line in mine]
        assert kinds.count("begin") == 1
        assert kinds.count("step") == kinds.count("log") > 0
        steps = [line for line in mine if line["kind"] == "step"]
        assert [line["clock"] for line in steps] == list(range(len(steps)))
        counts = [line["samples"] for line in steps]
        assert counts == sorted(counts)
        applied += counts[-1]
    assert applied == 64


def test_a_scheme_that_is_none_stops_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARAMSERVER_SCHEME", "stael:3")
    monkeypatch.setenv("PARAMSERVER_SCHEDULER", "127.0.0.1:1")
    with pytest.raises(ConfigurationError, match="'stael' must be one of"):
        ps.connect()
