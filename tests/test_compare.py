"""Runs summed up, put into a table, drawn; and the command that makes them."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from click.testing import CliRunner
from rich.console import Console

from paramserver.cli.compare import emulation
from paramserver.cli.comparison import Watch
from paramserver.cli.main import main
from paramserver.compare import picture, tables
from paramserver.compare.runs import Budget, Meter, Run, read_run, trailing_mean
from paramserver.compare.summary import (
    Summary,
    Target,
    main_curve,
    parse_target,
    save,
    summarise,
)
from paramserver.errors import ConfigurationError

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = str(ROOT / "examples" / "compare.py")
START = 1000.0


def step(time: float, samples: float, **changed: float) -> dict[str, Any]:
    figures = {"staleness": 0.0, "waited": 0.1, "sent_bytes": 400, "received_bytes": 800}
    return {"kind": "step", "time": START + time, "samples": samples, **figures, **changed}


def log(time: float, **scalars: float | None) -> dict[str, Any]:
    return {"kind": "log", "time": START + time, "scalars": scalars}


def opening(time: float) -> list[dict[str, Any]]:
    """A process connects half a second before it asks for its first batch."""
    return [{"kind": "start", "time": START + time - 0.5}, {"kind": "begin", "time": START + time}]


def write(folder: Path, worker: str, lines: list[dict[str, Any]], rest: str = "") -> None:
    folder.mkdir(exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / f"{worker}.jsonl").write_text(text + rest)


@pytest.fixture
def canned(tmp_path: Path) -> Path:
    """Two workers, four steps of 10 samples each, one a second; the chief evaluates twice."""
    folder = tmp_path / "canned"
    evaluations = {2: log(2.2, accuracy=0.5), 4: log(4.2, accuracy=0.9)}
    for rank in range(2):
        lines = opening(0.1 * rank)
        for i in range(1, 5):
            at = i + 0.1 * rank
            lines += [step(at, 10.0 * i, staleness=float(rank)), log(at, loss=1.0 / i + rank)]
            lines += [evaluations[i]] if rank == 0 and i in evaluations else []
        write(folder, f"worker-{rank}", lines)
    return folder


def read(folder: Path, budget: Budget | None = None) -> Run:
    run = read_run(folder, budget)
    assert run is not None
    return run


def test_a_run_is_the_sum_of_its_workers(canned: Path) -> None:
    run = read(canned)
    assert (run.workers, run.samples) == (2, 80.0)
    assert run.seconds == pytest.approx(4.1)
    assert [s.time for s in run.steps] == sorted(s.time for s in run.steps)
    assert run.steps[0].time == pytest.approx(1.0)


def test_figures_of_a_run(canned: Path) -> None:
    found = summarise("sync", read(canned), Target("accuracy", 0.9))
    assert found.samples_per_s == pytest.approx(80 / 4.1)
    # 8 steps of 0.1 s, by 2 workers in 4.1 s.
    assert found.waited == pytest.approx(0.8 / 8.2)
    assert (found.sent_per_sample, found.received_per_sample) == (40.0, 80.0)
    assert (found.staleness_p50, found.error) == (0.5, "")
    # The last evaluation came after the last step, and does not count.
    assert (found.target_s, found.finals["accuracy"]) == (None, 0.5)


def test_the_first_time_at_the_target_counts(canned: Path) -> None:
    found = summarise("sync", read(canned), Target("accuracy", 0.4))
    assert found.target_s == pytest.approx(2.2)
    assert found.target_samples == 40.0
    falling = summarise("sync", read(canned), Target("loss", 1.4))
    assert falling.target_s == pytest.approx(1.0)


def test_a_training_loss_is_smoothed_over_all_workers_and_an_evaluation_is_not(
    canned: Path,
) -> None:
    curves = read(canned).curves
    losses = [1 / i + rank for i in range(1, 5) for rank in range(2)]
    assert curves["loss"].values[-1] == pytest.approx(np.mean(losses))
    assert curves["loss"].samples.tolist() == [10.0 * i for i in range(1, 9)]
    assert curves["accuracy"].values.tolist() == [0.5]


@pytest.mark.parametrize(
    ("budget", "samples", "seconds"),
    [
        (Budget(samples=40), 40, 2.1),
        (Budget(samples=35), 40, 2.1),
        (Budget(seconds=3.05), 50, 3.0),
        (Budget(samples=60, seconds=2.0), 30, 2.0),
        (Budget(samples=1000), 80, 4.1),
    ],
)
def test_a_run_is_cut_where_its_budget_was_used(
    canned: Path, budget: Budget, samples: int, seconds: float
) -> None:
    run = read(canned, budget)
    assert run.samples == samples
    assert run.seconds == pytest.approx(seconds)
    assert all(curve.seconds[-1] <= seconds + 1e-6 for curve in run.curves.values())


def test_idle_time_counts_as_waiting_and_preparation_does_not(tmp_path: Path) -> None:
    early = {"kind": "wait", "time": START - 0.2, "what": "first values", "waited": 0.3}
    idle = {"kind": "wait", "time": START + 1.5, "what": "shards", "waited": 0.4}
    lines = [opening(0)[0], early, opening(0)[1], step(1, 10), idle, step(2, 20)]
    write(tmp_path / "a", "worker-0", lines)
    run = read(tmp_path / "a")
    assert (run.seconds, run.idle_s) == (2.0, 0.4)
    assert summarise("sync", run, None).waited == pytest.approx((0.2 + 0.4) / 2)


def test_a_worker_that_started_again_counts_from_zero(tmp_path: Path) -> None:
    lines = [*opening(0), step(1, 10), step(2, 20), *opening(3), step(4, 10)]
    write(tmp_path / "a", "worker-0", lines, rest='{"kind": "step", "ti')
    assert read(tmp_path / "a").samples == 30
    meter = Meter(tmp_path / "a", Budget(samples=30))
    assert meter.used_up(START + 4)
    assert meter.samples == 30


def test_local_steps_do_not_dilute_staleness(tmp_path: Path) -> None:
    quiet = [step(i, 10.0 * i, sent_bytes=0) for i in range(1, 10)]
    write(tmp_path / "a", "worker-0", [*opening(0), *quiet, step(10, 100, staleness=3.0)])
    found = summarise("local:10", read(tmp_path / "a"), None)
    assert (found.staleness_p50, found.staleness_p99) == (3.0, 3.0)
    write(tmp_path / "b", "worker-0", [*opening(0), *quiet])
    assert summarise("local:10", read(tmp_path / "b"), None).staleness_p99 == 0.0


def test_a_run_without_a_step_is_none(tmp_path: Path) -> None:
    assert read_run(tmp_path) is None
    write(tmp_path / "a", "worker-0", opening(0))
    assert read_run(tmp_path / "a") is None
    assert summarise("sync", None, None).error == "it took no step"


def test_what_diverged_is_not_a_number(tmp_path: Path) -> None:
    lines = [*opening(0), step(1, 10), log(1, loss=2.0), step(2, 20), log(2, loss=None)]
    write(tmp_path / "a", "worker-0", [*lines, step(3, 30)])
    found = summarise("async", read(tmp_path / "a"), Target("loss", 0.5))
    assert math.isnan(found.finals["loss"])
    assert found.target_s is None
    save([found], {}, tmp_path / "r.json")
    saved = json.loads((tmp_path / "r.json").read_text())
    assert saved["schemes"][0]["finals"] == {"loss": None}
    assert tables.number(found.finals["loss"]) == "diverged"


def test_the_meter_follows_files_that_grow(tmp_path: Path) -> None:
    budget = Budget(samples=40, seconds=100)
    meter = Meter(tmp_path, budget)
    assert not meter.used_up(START)
    lines = [*opening(0), step(1, 10), step(2, 30)]
    write(tmp_path, "worker-0", lines, rest='{"kind": "st')
    assert not meter.used_up(START + 2)
    assert meter.samples == 30
    write(tmp_path, "worker-0", [*lines, step(3, 40)])
    assert meter.used_up(START + 3)
    assert not Meter(tmp_path, Budget(samples=41, seconds=99)).used_up(START + 98)
    assert Meter(tmp_path, Budget(samples=41, seconds=99)).used_up(START + 100)


def test_a_run_ends_at_its_budget_or_fails_at_its_limit(canned: Path) -> None:
    done = Watch(Meter(canned, Budget(samples=80)), limit_s=0.0)
    assert (done(), done.late) == (True, False)
    late = Watch(Meter(canned, Budget(samples=81)), limit_s=0.0)
    assert (late(), late.late) == (True, True)
    under_way = Watch(Meter(canned, Budget(samples=81)), limit_s=1000.0)
    assert (under_way(), under_way.late) == (False, False)


def test_trailing_mean() -> None:
    assert trailing_mean([1, 2, 3, 4], 1).tolist() == [1, 2, 3, 4]
    assert trailing_mean([1, 2, 3, 6], 3).tolist() == pytest.approx([1, 1.5, 2, 11 / 3])


def test_targets() -> None:
    assert parse_target("accuracy=0.95") == Target("accuracy", 0.95)
    assert [Target(name, 1.0).falls for name in ("test_loss", "accuracy", "auc", "RMSE")] == [
        True,
        False,
        False,
        True,
    ]
    assert str(Target("loss", 0.2)) == "loss <= 0.2"
    for text in ("accuracy", "=1", "accuracy=high", "accuracy=nan"):
        with pytest.raises(ConfigurationError, match=r"such as accuracy=0\.95"):
            parse_target(text)


def test_a_held_out_loss_is_drawn_before_others(canned: Path) -> None:
    run = read(canned)
    summary = summarise("sync", run, None)
    assert main_curve([summary]) == "loss"
    assert main_curve([summary], "accuracy") == "accuracy"
    assert main_curve([summary], "bleu") is None
    curves = {"accuracy": run.curves["accuracy"], "loss": run.curves["loss"]}
    both = Summary(scheme="a", curves={**curves, "test_loss": run.curves["loss"]})
    assert main_curve([both]) == "test_loss"
    assert main_curve([Summary(scheme="a")]) is None


def test_the_table_has_a_row_for_each_scheme_and_says_why_one_failed(canned: Path) -> None:
    target = Target("accuracy", 0.5)
    good = summarise("sync", read(canned), target)
    bad = summarise("local:10", None, target, "worker-1: ValueError: bad luck")
    head, rows = tables.grid([good, bad], target, ["loss"])
    assert all(len(row) == len(head) for row in rows)
    shown = dict(zip(head, rows[0], strict=True))
    assert shown["s to accuracy >= 0.5"] == "2.2"
    assert shown["samples to it"] == "40"
    assert shown["samples/s"] == "20"
    assert shown["waited"] == "10 %"
    assert shown["sent/sample"] == "40 B"
    assert (shown["final loss"], shown["failed"]) == ("1.021", "")
    assert set(rows[1][1:-1]) == {"-"}
    assert rows[1][-1] == "worker-1: ValueError: bad luck"
    assert "failed" not in tables.grid([good], target, [])[0]
    console = Console(width=160, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    tables.show([good, bad], target, ["loss"], console)
    assert "bad luck" in console.export_text()
    console.file.close()


def test_the_page_is_written_from_the_results(canned: Path, tmp_path: Path) -> None:
    target = Target("accuracy", 0.5)
    some = [summarise("sync", read(canned), target), summarise("local:10", None, target, "broken")]
    goal = {"name": "accuracy", "value": 0.5}
    save(some, {"command": "paramserver compare x.py", "target": goal}, tmp_path / "r.json")
    spec = importlib.util.spec_from_file_location("schemes", ROOT / "benchmarks" / "schemes.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = module.body(json.loads((tmp_path / "r.json").read_text()))
    assert "paramserver compare x.py" in text
    head, _, good, bad = [line for line in text.splitlines() if line.startswith("|")]
    assert head.startswith("| scheme | s to accuracy >= 0.5 |")
    assert good.startswith("| sync | 2.2 | 40 | 20 |")
    assert bad.endswith("| broken |")
    page = module.PAGE.read_text()
    assert page.index(module.BEGIN) < page.index(module.END)


def test_numbers_are_shown_without_exponents() -> None:
    assert [tables.number(x) for x in (None, 0.0, 1.5, 12345.6, 0.00012, math.inf)] == [
        "-",
        "0",
        "1.5",
        "12,346",
        "0.00012",
        "diverged",
    ]
    assert [tables.size(x) for x in (0.0, 812.4, 3500.0, 5e6, 5e9)] == [
        "0 B",
        "812 B",
        "3.4 KiB",
        "4.8 MiB",
        "4.7 GiB",
    ]


def test_the_picture_is_the_same_each_time(canned: Path, tmp_path: Path) -> None:
    run = read(canned)
    some = [summarise(f"stale:{i}", run, None) for i in range(10)]
    nothing = summarise("local:10", None, None, "it failed")
    for name in ("one", "two"):
        files = picture.draw(
            [*some, nothing], "loss", Target("loss", 0.9), "title", tmp_path / name
        )
        assert [file.name for file in files] == [f"{name}.svg", f"{name}.png"]
    one, two = ((tmp_path / f"{name}.svg").read_bytes() for name in ("one", "two"))
    assert one == two
    assert b"<svg" in one
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--schemes", "sync,stael:4"], "'stael' must be one of sync"),
        (["--target", "accuracy"], "write NAME=VALUE"),
        (["--jitter", "2:5", "--sample-time", "0.1"], "write SHARE:FACTOR"),
        (["--straggler", "5"], "--straggler needs --sample-time"),
        (["--jitter", "0.1:5"], "--jitter needs --sample-time"),
        (["--out", "/dev/null/here"], "name another folder"),
        (["--json", "/dev/null/here/r.json"], "name another folder"),
    ],
)
def test_bad_usage_is_refused_before_anything_starts(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    result = CliRunner().invoke(main, ["compare", "--out", str(tmp_path), *arguments, SCRIPT])
    assert result.exit_code == 2
    assert said in result.output


def test_the_last_worker_is_the_straggler() -> None:
    assert emulation(4, 0.001, 5.0, "0.1:5") == {
        "PARAMSERVER_EMULATE": "sample=0.001,slow=3:5,jitter=0.1:5"
    }
    assert emulation(4, None, None, None) == {}


def test_run_refuses_a_scheme_that_is_none() -> None:
    result = CliRunner().invoke(main, ["run", "--scheme", "fast", SCRIPT])
    assert result.exit_code == 2
    assert "'fast' must be one of" in result.output


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "paramserver", "compare", *arguments]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_schemes_and_one_that_fails(tmp_path: Path) -> None:
    out, results = tmp_path / "out", tmp_path / "r.json"
    done = subprocess.run(
        command(
            *("--schemes", "sync,async,sync/random/balance", "-s", "1", "-w", "2"),
            *("--budget-samples", "4000", "--target", "accuracy=0.6", "--seed", "1"),
            *("--json", str(results), "--out", str(out)),
            *(SCRIPT, "--batch-size", "16"),
        ),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    found = json.loads(results.read_text())
    *good, bad = found["schemes"]
    assert [scheme["scheme"] for scheme in good] == ["sync", "async"]
    for scheme in good:
        assert scheme["error"] == ""
        assert scheme["workers"] == 2
        # The step that used up the budget is the last: at most one batch more.
        assert 4000 <= scheme["samples"] < 4000 + 2 * 16
        assert scheme["samples_per_s"] == pytest.approx(scheme["samples"] / scheme["seconds"])
        assert 0 < scheme["target_samples"] <= 4000
        assert 0 < scheme["target_s"] <= scheme["seconds"]
        assert 0 <= scheme["waited"] <= 1
        # Float32 gradients of 4,810 parameters for each batch of 16, or of the rest of a shard.
        assert 4 * 4810 / 16 <= scheme["sent_per_sample"] < 2 * 4 * 4810 / 16
        assert scheme["finals"]["test_loss"] < 1.5
        assert set(scheme["curves"]) == {"accuracy", "loss", "test_loss"}
    assert good[0]["staleness_p99"] == 0 <= good[1]["staleness_p50"]
    assert "balance" in bad["error"]
    assert bad["scheme"] in done.stdout
    assert (out / "compare.svg").stat().st_size > 1000
    assert (out / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert "worker-0 │" not in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_signal_ends_all_of_it(tmp_path: Path) -> None:
    arguments = ("-s", "1", "-w", "2", "--out", str(tmp_path), SCRIPT, "--epochs", "100000")
    with subprocess.Popen(command("--schemes", "sync,async", *arguments)) as process:
        deadline, pause = time.monotonic() + 120, threading.Event()
        steps = tmp_path / "sync" / "worker-0.jsonl"
        while not (steps.exists() and '"step"' in steps.read_text()):
            assert process.poll() is None
            assert time.monotonic() < deadline, "no step within two minutes"
            pause.wait(0.05)
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 4
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []
    assert not (tmp_path / "async").exists()
