"""The command line: usage errors of one line, pass-through, exit codes, what status shows."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from paramserver.cli.limits import parse_limits
from paramserver.cli.main import COMMANDS, main
from paramserver.cli.progress import Progress
from paramserver.cli.signals import handled
from paramserver.cli.state import State, add_server, balance, from_status, waits
from paramserver.cli.status import duration, render, size
from paramserver.config import Limits
from paramserver.errors import ConnectionLostError, UsageError
from paramserver.launch import report_exit
from paramserver.trust import OPEN
from paramserver.v1 import common_pb2, scheduler_pb2, server_pb2
from tests.cluster import cluster

COMMAND = [sys.executable, "-m", "paramserver"]


def invoke(*args: str, **env: str) -> Result:
    """Runs a command in this process."""
    return CliRunner(env=env).invoke(main, list(args), prog_name="paramserver")


def run(*args: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Runs a command in a process of its own."""
    return subprocess.run(
        [*COMMAND, *args], capture_output=True, text=True, timeout=timeout, check=False
    )


# -- help and usage


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert f"Usage: paramserver {command}" in result.output


@pytest.mark.parametrize("args", [(), ("--help",), ("-h",)])
def test_help_names_the_commands(args: tuple[str, ...]) -> None:
    result = invoke(*args)
    assert result.exit_code == 0
    assert all(f"\n  {command} " in result.output for command in COMMANDS)


def test_version() -> None:
    result = invoke("--version")
    assert result.exit_code == 0
    assert result.output.startswith("paramserver ")


SCHEDULER = ("--scheduler", "127.0.0.1:1")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("nonsense",), "No such command 'nonsense'"),
        (("scheduler", "--nonsense"), "'--nonsense'"),
        (("scheduler", "--bind", "127.0.0.1:70000"), "from 0 to 65535"),
        (("scheduler", "--bind", "127.0.0.1:-1"), "from 0 to 65535"),
        (("scheduler", "--bind", "127.0.0.1"), "not HOST:PORT"),
        (("scheduler", "--bind", ":7070"), "not HOST:PORT"),
        (("scheduler", "--bind", "::1:7070"), "not HOST:PORT"),
        (("scheduler", "--bind", "host.invalid:1"), "cannot be resolved"),
        (("scheduler", "--bind", f"{'x' * 70}.invalid:1"), "cannot be resolved"),
        (("scheduler", "--bind", "0.0.0.0:7070"), "add --insecure"),
        (("scheduler", "--bind", "[::]:7070"), "add --insecure"),
        (("scheduler", "--workers", "-1"), "x>=1"),
        (("scheduler", "--workers", "many"), "'many' is not a valid integer"),
        (("scheduler", "--servers", "0"), "x>=1"),
        (("scheduler", "--lease", "0"), "x>=0.1"),
        (("scheduler", "--assign", "best"), "'best' is not one of"),
        (("scheduler", "ps"), "unexpected extra argument"),
        (("ps",), "Missing option '--scheduler'"),
        (("ps", "--scheduler", "nowhere"), "not HOST:PORT"),
        (("ps", *SCHEDULER, "--bind", "0.0.0.0:0"), "add --insecure"),
        (("ps", *SCHEDULER, "--threads", "-1"), "x>=0"),
        (("ps", *SCHEDULER, "--limit", "x=1"), "one of the names peer_bytes, staged_bytes, work"),
        (("ps", *SCHEDULER, "--limit", "peer_bytes"), "must be NAME=VALUE"),
        (("ps", *SCHEDULER, "--limit", "frame_bytes=1"), "one of the names"),
        (("ps", *SCHEDULER, "--limit", "peer_bytes=4GB"), "such as 1073741824, 512MiB or 4GiB"),
        (("ps", *SCHEDULER, "--limit", "vector_bytes=0"), "'0': must be bytes > 0"),
        (("ps", *SCHEDULER, "--limit", "work_bytes=99"), "99: must be at least one frame"),
        (("ps", *SCHEDULER, "--limit", "staged_bytes=1GiB"), "raise that, or lower peer_bytes"),
        (("ps", *SCHEDULER, "--limit", "stall_s=nan"), "must be > 0 seconds"),
        (("scheduler", "--limit", "parked_calls=1KiB"), "must be a whole number >= 1"),
        (("scheduler", "--snapshot-delta", "101"), "0<=x<=100"),
        (("worker", "train.py"), "Missing option '--scheduler'"),
        (("worker", *SCHEDULER), "Missing argument 'SCRIPT'"),
        (("worker", *SCHEDULER, "nowhere.py"), "script 'nowhere.py' not found"),
        (("worker", *SCHEDULER, "-m", "no_such_module.x"), "module 'no_such_module.x' not found"),
        (("run", "nowhere.py"), "script 'nowhere.py' not found"),
        (("run", "-s", "0", "nowhere.py"), "x>=1"),
        (("run", "-w", "-4", "nowhere.py"), "x>=1"),
        (("run", "--max-restarts", "-1", "nowhere.py"), "x>=0"),
        (("run", "-w", "4", "--parties", "3", __file__), "parties=3, workers=4"),
        (("run", "-w", "4", "--parties", "0", __file__), "x>=1"),
        (("run", "--durability", "replica", __file__), "use at least 2 servers"),
        (("snapshots", "/nowhere/snapshots"), "there is no folder /nowhere/snapshots"),
        (("scheduler", "--workers", "5", "--parties", "2"), "the workers must make whole replicas"),
        (("status",), "Missing option '--scheduler'"),
        (("top", *SCHEDULER), "needs a terminal"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(args: tuple[str, ...], words: str) -> None:
    result = invoke(*args)
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_shared_options_come_from_the_environment(tmp_path: Path) -> None:
    assert "nowhere" in invoke("ps", PARAMSERVER_SCHEDULER="nowhere").stderr
    assert "'x'" in invoke("scheduler", PARAMSERVER_WORKERS="x").stderr
    assert "'x'" in invoke("run", str(tmp_path), PARAMSERVER_WORKERS="x").stderr
    assert "'y'" in invoke("scheduler", PARAMSERVER_SCHEDULER_SERVERS="y").stderr
    assert "limit 'y'" in invoke("scheduler", PARAMSERVER_LIMITS="stall_s=3 y").stderr


def test_limits_are_said_in_words() -> None:
    said = ["peer_bytes=64MiB", "staged_bytes=1073741824", "stall_s=2.5", "vectors=7", "vectors=8"]
    wanted = Limits(peer_bytes=64 << 20, staged_bytes=1 << 30, stall_s=2.5, vectors=8)
    assert parse_limits(said) == wanted
    assert parse_limits([]) == Limits()


def test_errors_of_ours_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(error: Exception) -> Result:
        def gather(*args: object, **options: object) -> None:
            raise error

        monkeypatch.setattr("paramserver.cli.status.check_reachable", gather)
        return invoke("status", *SCHEDULER)

    lost = fail(ConnectionLostError("no scheduler\nthere"))
    assert (lost.exit_code, lost.stderr) == (1, "paramserver: no scheduler there\n")
    assert fail(UsageError("bad")).exit_code == 2
    assert fail(KeyboardInterrupt()).exit_code == 130  # type: ignore[arg-type]
    assert fail(BrokenPipeError()).exit_code == 1


def test_status_says_at_once_that_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    result = invoke("status", "--scheduler", f"127.0.0.1:{port}")
    assert result.exit_code == 1
    assert result.stderr == f"paramserver: no scheduler at 127.0.0.1:{port}: Connection refused\n"


def test_status_is_json_whatever_was_logged() -> None:
    with cluster(1, 1) as c:
        c.workers(lambda client: client.log(loss=float("nan"), rate=0.5))
        result = invoke("status", "--scheduler", c.address, "--json")

    def refuse(name: str) -> None:
        raise AssertionError(f"JSON has no {name}")

    assert "0.5" in str(json.loads(result.stdout, parse_constant=refuse)["scalars"])


def test_help_into_a_closed_pipe() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as out:
        done = subprocess.run(
            [*COMMAND, "run", "--help"], stdout=out, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr == ""


@pytest.mark.parametrize(
    "code",
    [
        "from paramserver.cli.main import main; main(['scheduler', '--help'])",
        "from paramserver.cli.main import main; main(['run', '--help'])",
        "from paramserver.cli.main import main; main(['status', '--help'])",
        "import paramserver.cli.roles, paramserver.cli.run, paramserver.cli.status",
        "import paramserver.scheduler.main",
    ],
)
def test_the_command_line_and_the_scheduler_do_not_import_torch(code: str) -> None:
    ending = "import sys; assert 'torch' not in sys.modules, 'torch was imported'"
    program = f"try:\n    {code}\nexcept SystemExit:\n    pass\n{ending}"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


# -- worker

SHOW = """
import json, os, sys
names = ("PARAMSERVER_SCHEDULER", "PARAMSERVER_NAME", "PARAMSERVER_LAUNCHED")
print(json.dumps([sys.argv[1:], {name: os.environ.get(name) for name in names}]))
"""


@pytest.fixture
def script(tmp_path: Path) -> Any:
    def write(text: str) -> str:
        path = tmp_path / "script.py"
        path.write_text(text)
        return str(path)

    return write


def test_worker_passes_arguments_and_environment(script: Any) -> None:
    args = ["--help", "-m", "--scheduler", "x", "--", "last", "--name=y"]
    done = run("worker", *SCHEDULER, "--name", "w7", script(SHOW), *args)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [
        args,
        {
            "PARAMSERVER_SCHEDULER": "127.0.0.1:1",
            "PARAMSERVER_NAME": "w7",
            "PARAMSERVER_LAUNCHED": "1",
        },
    ]


def test_worker_runs_modules() -> None:
    done = run("worker", *SCHEDULER, "-m", "json.tool", "--help")
    assert done.returncode == 0
    assert "json.tool" in done.stdout


def test_worker_ends_with_the_code_of_its_script(script: Any) -> None:
    assert run("worker", *SCHEDULER, script("raise SystemExit(7)")).returncode == 7


DIES_TWICE = """
import os, pathlib, signal, sys
count = pathlib.Path(sys.argv[1])
done = int(count.read_text()) if count.exists() else 0
count.write_text(str(done + 1))
if done < 2:
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_worker_starts_a_killed_script_again(script: Any, tmp_path: Path) -> None:
    path = script(DIES_TWICE)
    done = run("worker", *SCHEDULER, path, str(tmp_path / "a"))
    assert done.returncode == 0
    assert done.stderr.count("worker was killed, exit code 137 (SIGKILL); starting it again") == 2
    assert (
        run("worker", *SCHEDULER, "--max-restarts=1", path, str(tmp_path / "b")).returncode == 137
    )


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_worker_forwards_signals(script: Any, number: int, code: int) -> None:
    path = script("import time; print('up', flush=True); time.sleep(60)")
    command = [*COMMAND, "worker", *SCHEDULER, path]
    before = signal.signal(number, signal.SIG_DFL)  # these tests may run under nohup
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    finally:
        signal.signal(number, before)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(number)
        assert process.wait(20) == code


def test_a_worker_under_nohup_outlives_its_terminal(script: Any) -> None:
    path = script("print('up', flush=True); input()")
    command = ["nohup", *COMMAND, "worker", *SCHEDULER, path]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGHUP)
        process.communicate(b"go on\n", timeout=20)
        assert process.returncode == 0


def test_run_under_nohup_ignores_what_nohup_ignores() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with handled(lambda number, frame: None):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


class FakeChannel:
    """Remembers what the scheduler would have been told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []

    def call(self, method: str, request: Any, *, timeout: float) -> None:
        self.told.append((method, request))
        raise ConnectionLostError("the scheduler has ended")

    def close(self) -> None:
        self.told.append(("close", None))


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (0, ["Finish", "close"]),
        (3, ["Fail", "close"]),
        (139, ["Fail", "close"]),
        (130, []),
        (137, []),
        (138, []),
        (143, []),
    ],
)
def test_the_scheduler_is_told_how_a_script_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int, told: list[str]
) -> None:
    channel = FakeChannel()
    monkeypatch.setattr("paramserver.wire.client.scheduler_channel", lambda *_: channel)
    identity = tmp_path / "identity.json"
    report_exit("127.0.0.1:1", identity, "worker", code, OPEN)
    assert channel.told == []
    identity.write_text('{"name": "worker-1", "incarnation": 4, "rank": 1, "job": 2}')
    report_exit("127.0.0.1:1", identity, "worker", code, OPEN)
    assert [method for method, _ in channel.told] == told
    if told and code:
        request = channel.told[0][1]
        assert request.reason == f"worker-1 exited with code {code}"
        assert (request.fatal, request.exit_code, request.member.incarnation) == (True, code, 4)


# -- what status and the live line show


def member(name: str, role: Any, state: Any, **more: Any) -> scheduler_pb2.Member:
    """A member of a made-up view."""
    return scheduler_pb2.Member(name=name, role=role, state=state, host="box", pid=7, **more)


@pytest.fixture
def state() -> State:
    """Two servers and two workers in the second epoch, worker-1 behind and awaited."""
    view = scheduler_pb2.View(
        number=9,
        job=1,
        state=scheduler_pb2.JOB_RUNNING,
        started=True,
        members=[
            member("ps-0", scheduler_pb2.ROLE_SERVER, scheduler_pb2.MEMBER_ACTIVE, rank=-1),
            member("ps-1", scheduler_pb2.ROLE_SERVER, scheduler_pb2.MEMBER_ACTIVE, rank=-1),
            member("worker-0", scheduler_pb2.ROLE_WORKER, scheduler_pb2.MEMBER_ACTIVE, rank=0),
            member(
                "worker-1",
                scheduler_pb2.ROLE_WORKER,
                scheduler_pb2.MEMBER_IDLE,
                rank=1,
                reason="waits for worker-0 at the end of epoch 1",
            ),
        ],
    )
    workers = [
        scheduler_pb2.WorkerStatus(
            name=f"worker-{i}",
            clocks=[scheduler_pb2.GroupClock(group="model", clock=12 - 3 * i)],
            stats={"samples": 640.0, "steps": 10.0, "staleness": 1.0},
            heard_s=0.5,
        )
        for i in range(2)
    ]
    placement = scheduler_pb2.GroupPlacement(
        group="model",
        optimizer="Adam",
        consistency=common_pb2.Consistency(kind="stale", bound=2),
        parameters=1000,
        bytes=4000,
        slices=4,
        servers=["ps-0", "ps-1"],
        server_bytes=[2000, 2000],
        lead="ps-0",
        stored=True,
    )
    data = scheduler_pb2.DatasetStatus(
        spec=common_dataset(), epoch=1, shards=8, free=2, leased=2, done=4, samples_done=512
    )
    return from_status(
        "127.0.0.1:1",
        scheduler_pb2.StatusReply(
            view=view,
            workers=workers,
            datasets=[data],
            groups=[placement],
            scalars={"loss": 0.25},
            uptime_s=61.0,
            expected_workers=2,
            expected_servers=2,
            events=["worker-1 joined"],
            durability="wal",
            keeps_snapshots=True,
            snapshot=scheduler_pb2.SnapshotStatus(
                name="auto-000003", clock=60, age_s=75.25, base="auto-000002"
            ),
        ),
    )


def common_dataset() -> scheduler_pb2.DatasetSpec:
    """The data set of the made-up job."""
    return scheduler_pb2.DatasetSpec(name="train", size=1024, batch_size=64, assign="dynamic")


def test_state_is_json(state: State) -> None:
    assert json.loads(json.dumps(state)) == state


def test_state_has_clocks_and_lags(state: State) -> None:
    found = {m["name"]: (m["clocks"], m["lag"]) for m in state["members"] if m["clocks"]}
    assert found == {
        "worker-0": ({"model": 12}, {"model": 0}),
        "worker-1": ({"model": 9}, {"model": 3}),
    }
    assert state["groups"][0]["consistency"] == "Stale(2)"
    assert state["groups"][0]["balance"] == 1.0


def test_servers_add_what_they_know(state: State) -> None:
    lead = server_pb2.GroupStatus(
        group="model", slices=2, bytes=2000, version=21, min_clock=9, lead=True, waiting="for w-1"
    )
    lead.workers.append(server_pb2.WorkerClock(rank=0, clock=15, active=True))
    add_server(state, state["members"][0], server_pb2.DescribeReply(groups=[lead], duplicates=3))
    add_server(state, state["members"][1], ConnectionLostError("no answer"))
    assert state["servers"][0]["duplicates"] == 3
    assert state["members"][2]["clocks"] == {"model": 15}  # the lead knows better
    assert state["servers"][1]["error"] == "no answer"
    assert (state["groups"][0]["version"], state["groups"][0]["min_clock"]) == (21, 9)
    assert waits(state) == [
        {"who": "group model", "why": "for w-1"},
        {"who": "worker-1", "why": "waits for worker-0 at the end of epoch 1"},
    ]


def test_a_job_that_has_not_started_says_who_is_missing(state: State) -> None:
    state["job"]["state"] = "waiting"
    state["members"] = state["members"][:1]
    state["groups"] = []
    assert [w["why"] for w in waits(state)] == [
        "waiting for 1 of 2 servers",
        "waiting for 2 of 2 workers",
    ]


def drawn(state: State) -> str:
    """What status prints, without colours."""
    console = Console(width=160, color_system=None)
    with console.capture() as capture:
        console.print(render(state))
    return capture.get()


def test_status_shows_all_of_it(state: State) -> None:
    add_server(state, state["members"][0], server_pb2.DescribeReply(resident_bytes=3 << 20))
    add_server(state, state["members"][1], ConnectionLostError("no [answer]"))
    state["waits"] = waits(state)
    state["job"]["message"] = "why"
    text = drawn(state)
    for words in (
        *("job 1 running", "up 0:01:01", "why", "worker-1", "idle", "0.5 s ago", "Stale(2)"),
        *("Adam", "1.000", "3.0 MiB", "no [answer]", "512/1,024", "loss 0.25", "worker-1 joined"),
    ):
        assert words in text
    assert "worker-1: waits for worker-0" in text
    assert (
        "durability wal · snapshots: newest auto-000003 at clock 60, 0:01:15 ago, "
        "changes since auto-000002"
    ) in text
    newest = {"name": "auto-000003", "clock": 60, "age_s": 75.25, "base": "auto-000002"}
    assert state["snapshots"] == {"kept": True, "newest": newest}
    assert state["durability"] == "wal"


@pytest.mark.parametrize(("kept", "words"), [(True, "none yet"), (False, "none are kept")])
def test_status_says_that_there_is_no_snapshot(kept: bool, words: str) -> None:
    reply = scheduler_pb2.StatusReply(durability="memory", keeps_snapshots=kept)
    state = from_status("127.0.0.1:1", reply)
    assert state["snapshots"] == {"kept": kept, "newest": None}
    assert f"durability memory · snapshots: {words}" in drawn(state)


def test_status_of_an_empty_cluster() -> None:
    text = drawn(from_status("127.0.0.1:1", scheduler_pb2.StatusReply()))
    assert "job 0 none" in text
    assert "nobody waits" in text


def test_sizes_and_durations() -> None:
    assert [size(x) for x in (0, 1023, 1536, 3 << 30)] == ["0 B", "1023 B", "1.5 KiB", "3.0 GiB"]
    assert size(5 << 40) == "5.0 TiB"
    assert duration(3723.9) == "1:02:03"
    assert balance([3, 2]) == 1.5
    assert balance([3]) is None
    assert balance([3, 0]) is None


def test_live_line(state: State) -> None:
    progress = Progress()
    assert progress.line() == "starting"
    progress.update(state, 10.0)
    for m in state["members"][2:]:
        m["stats"]["samples"] += 100.0
    progress.update(state, 12.0)
    assert progress.line() == (
        "2/2 servers · 2/2 workers · epoch 2 · shards 4/8 · loss 0.25 · 100 samples/s · "
        "staleness 1.0 · slowest worker-1 (3 behind)"
    )


def test_live_line_says_who_is_missing(state: State) -> None:
    state["job"]["state"] = "waiting"
    state["waits"] = [{"who": "job", "why": "waiting for 1 of 2 servers"}]
    progress = Progress()
    progress.update(state, 10.0)
    assert progress.line() == "2/2 servers · 2/2 workers · waiting for 1 of 2 servers"


def test_summary(state: State) -> None:
    progress = Progress()
    assert progress.summary(1.0) == "done in 1.0 s"
    progress.update(state, 10.0)
    worker = state["members"][2]
    worker["stats"]["samples"] += 200.0
    progress.update(state, 12.0)
    worker["incarnation"] = 5
    worker["stats"]["samples"] = 20.0
    progress.update(state, 14.0)
    assert progress.summary(14.5, restarts=1) == (
        "done in 14.5 s: 2 workers, 2 servers, 1 epoch, 10 steps, "
        "1,500 samples (55 samples/s), loss 0.25, 1 restart"
    )
