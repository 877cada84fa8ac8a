"""The benchmark: its statistics, tables and files, its processes, and a short run of all of it."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import psutil
import pytest

from paramserver.bench import memory, processes, settings, stats, tables
from paramserver.bench.results import Check, Label, Results, Row, Section, from_json, to_json, unmet
from paramserver.bench.stats import Stat

ROOT = Path(__file__).resolve().parent.parent
MIB = 1 << 20


def a_run() -> Results:
    """A small run with every kind of content."""
    goodput = Section("goodput", notes=["torch.rpc (uv) was not measured: no such thing"])
    for size in (4096, 64 * MIB):
        for name, speed in (("paramserver", 1.0), ("socket copy", 2.0)):
            labels: dict[str, Label] = {
                "operation": "push_pull",
                "bytes": size,
                "servers": 1,
                "workers": 2,
            }
            metrics = {"GB/s": Stat((speed, 2 * speed, speed)), "CPU-s/GB": Stat((0.5,))}
            goodput.rows.append(Row(name, labels, metrics))
    train = Section("train", rows=[Row("DDP gloo", {"batch": 64}, {"batches/s": Stat((5.0,))})])
    train.checks = [Check("fast", 1.2, ">=", 1.0), Check("small", 3.0, "<=", 2.0)]
    return Results("paramserver bench all", {"cores": "2"}, False, 61.0, [goodput, train])


def load_report() -> ModuleType:
    spec = importlib.util.spec_from_file_location("report", ROOT / "benchmarks" / "report.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_figure_is_its_median_and_range() -> None:
    stat = Stat((3.0, 1.0, 2.0))
    assert (stat.median, stat.low, stat.high) == (2.0, 1.0, 3.0)


def test_a_figure_needs_a_sample() -> None:
    with pytest.raises(ValueError, match="at least one sample"):
        Stat(())


def test_a_ratio_pairs_the_rounds() -> None:
    # The machine was twice as slow in the second round, for both: the ratio does not see it.
    assert Stat((4.0, 2.0)).over(Stat((2.0, 1.0))).samples == (2.0, 2.0)


def test_a_ratio_wants_as_many_rounds_on_both_sides() -> None:
    with pytest.raises(ValueError, match="2 samples against 1"):
        Stat((4.0, 2.0)).over(Stat((2.0,)))


def test_a_slope_ignores_an_outlier() -> None:
    xs = [float(x) for x in range(9)]
    ys = [2 * x for x in xs]
    ys[4] = 1e6
    assert stats.slope(xs, ys) == pytest.approx(2.0)


def test_a_slope_needs_two_points() -> None:
    with pytest.raises(ValueError, match="two points"):
        stats.slope([1.0], [1.0])


def test_flatness_is_the_smallest_over_the_largest() -> None:
    assert stats.flatness([1.0, 0.8, 0.9]) == pytest.approx(0.8)


@pytest.mark.parametrize(("seconds", "expected"), [(0.1, 4), (10.0, 1), (0.0, 50)])
def test_repetitions_fill_the_target_within_bounds(seconds: float, expected: int) -> None:
    assert stats.repetitions(seconds, 0.4, 50) == expected


def test_a_check_is_met_on_its_side_of_the_line() -> None:
    assert Check("a", 1.0, ">=", 1.0).met
    assert not Check("a", 0.9, ">=", 1.0).met
    assert Check("a", 0.9, "<=", 1.0).met
    assert [check.name for check in unmet(a_run().sections)] == ["small"]


def test_a_ratio_with_a_side_that_was_not_measured_is_no_check() -> None:
    section = Section("goodput")
    section.check_ratio("ours over theirs", Stat((1.0,)), None, 1.0)
    assert section.checks == []


def test_rows_are_found_by_contender_and_labels() -> None:
    section = a_run().sections[0]
    found = section.stat("GB/s", "socket copy", bytes=4096)
    assert found is not None
    assert found.median == 2.0
    assert section.stat("GB/s", "socket copy", bytes=1) is None


def test_results_survive_their_json() -> None:
    run = a_run()
    again = from_json(to_json(run))
    assert again == run
    first = json.loads(to_json(run))["sections"]["goodput"]["rows"][0]
    assert first["contender"] == "paramserver"
    assert first["metrics"]["GB/s"] == {"median": 1.0, "samples": [1.0, 2.0, 1.0]}


def test_another_format_is_refused() -> None:
    with pytest.raises(ValueError, match="format 99: must be 1"):
        from_json('{"format": 99}')


@pytest.mark.parametrize(
    ("size", "text"), [(4096, "4 KiB"), (256 * MIB, "256 MiB"), (100, "100 B"), (1536, "1536 B")]
)
def test_sizes_as_people_say_them(size: int, text: str) -> None:
    assert tables.size_text(size) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(12345.6, "12,346"), (123.4, "123"), (12.34, "12.3"), (1.234, "1.23"), (0.01234, "0.012")],
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert tables.number_text(value) == text


def test_goodput_has_a_table_per_operation_and_topology_with_ratios() -> None:
    (grid,) = tables.grids(a_run().sections[0])
    assert grid.title == "push_pull: 1 server, 2 workers"
    assert grid.columns[-1] == "paramserver over socket copy"
    assert grid.rows[1] == ("64 MiB", "1.00 (0.500)", "2.00 (0.500)", "0.500")


def test_the_page_holds_the_command_the_checks_and_the_tables() -> None:
    text = load_report().page(a_run())
    assert "$ paramserver bench all" in text
    assert "| small | 3.00 | ≤ 2.00 | no |" in text
    assert "### push_pull: 1 server, 2 workers" in text
    assert "Note: torch.rpc (uv) was not measured" in text
    assert "try-out" not in text


def test_the_allowed_peak_follows_the_formula() -> None:
    # Parameters, two moments and two staged pushes of 100 MiB each, 30 % over, and 300 MiB.
    assert memory.allowed_peak(100 * MIB, 2) == pytest.approx((1.3 * 500 + 300) * MIB)


def test_quick_keeps_who_is_measured() -> None:
    assert not settings.quick(settings.Settings(peers=False)).peers


def text(start: str) -> processes.Agent:
    """An agent that every child can import; it writes, and it can be closed."""
    return processes.Agent(io.StringIO, (start,))


def test_agents_answer_and_leave_no_process() -> None:
    with processes.Fleet([text("ab"), text("cd")]) as fleet:
        pids = fleet.pids
        assert fleet.ask_each([0, 1], "write", "xyz") == [3, 3]
        assert [fleet.ask(number, "getvalue") for number in (0, 1)] == ["xyz", "xyz"]
        times = psutil.Process(pids[0]).cpu_times()
        seen = processes.cpu_seconds(pids[:1])
        assert seen == pytest.approx(times.user + times.system, abs=0.1)
        assert processes.peak_rss(pids[0]) >= processes.rss(pids[0]) > MIB
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_a_failing_agent_is_named_with_its_error() -> None:
    with pytest.raises(processes.BenchError, match="TypeError"):
        processes.Fleet([processes.Agent(io.StringIO, (1,))]).__enter__()


def test_an_agent_that_hangs_is_given_up_and_ended() -> None:
    agent = processes.Agent(socket.create_server, (("127.0.0.1", 0),))
    fleet = processes.Fleet([agent])
    with pytest.raises(processes.BenchError, match="did not answer in 0 s"), fleet:
        fleet.ask(0, "accept", timeout=0.05)
    assert not any(psutil.pid_exists(pid) for pid in fleet.pids)


def test_cpu_of_a_process_that_is_gone_is_an_error() -> None:
    with processes.Fleet([text("")]) as fleet:
        pids = fleet.pids
    with pytest.raises(processes.BenchError, match="is gone"):
        processes.cpu_seconds(pids)


def test_the_environment_is_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_A", "before")
    with processes.environment({"BENCH_A": "inside", "BENCH_B": "inside"}):
        assert os.environ["BENCH_A"] == os.environ["BENCH_B"] == "inside"
    assert os.environ["BENCH_A"] == "before"
    assert "BENCH_B" not in os.environ


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_quick_run_measures_everything(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    command = [sys.executable, "-m", "paramserver", "bench", "all", "--quick", "--samples", "1"]
    done = subprocess.run(
        [*command, "--json", str(file)], capture_output=True, text=True, timeout=1140
    )
    assert done.returncode == 0, done.stderr
    results = from_json(file.read_text())
    names = [section.name for section in results.sections]
    assert names == ["goodput", "calls", "train", "memory", "imports", "rows"]
    assert all(section.rows and not section.notes for section in results.sections)
    assert "Wanted and seen" in done.stdout
