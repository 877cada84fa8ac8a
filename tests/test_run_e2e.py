"""The real thing: ``paramserver run`` and roles started by hand, with real ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from paramserver.launch import cores

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SCRIPT = str(Path(__file__).parent / "scripts" / "linear.py")
MARKING = str(Path(__file__).parent / "scripts" / "marking.py")
PARTIES = str(Path(__file__).parent / "scripts" / "parties.py")
COMMAND = [sys.executable, "-m", "paramserver"]
WAIT_S = 240.0  # everything waits on a condition; this is for a machine that is busy


class Running:
    """A command under way, its output collected."""

    def __init__(self, *args: str) -> None:
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [*COMMAND, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
        )
        self.out: list[str] = []
        self.err: list[str] = []
        pairs = [(self.process.stdout, self.out), (self.process.stderr, self.err)]
        self._pumps = [threading.Thread(target=self._pump, args=pair) for pair in pairs]
        for pump in self._pumps:
            pump.start()

    @staticmethod
    def _pump(stream: Iterator[str] | None, into: list[str]) -> None:
        assert stream is not None
        into.extend(stream)

    def said(self) -> str:
        """All it has said so far."""
        return "".join([*self.out, *self.err])

    def tree(self) -> list[psutil.Process]:
        """All processes that the command has started."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def wait(self, timeout: float = WAIT_S) -> int:
        """Its exit code."""
        code = self.process.wait(timeout)
        for pump in self._pumps:
            pump.join(timeout)
        return code

    def close(self) -> None:
        """Ends it, whatever it does."""
        self.process.kill()
        self.process.wait()
        for pump in self._pumps:
            pump.join()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


@pytest.fixture
def start() -> Iterator[Callable[..., Running]]:
    with ExitStack() as stack:

        def begin(*args: str) -> Running:
            running = Running(*args)
            stack.callback(running.close)
            return running

        yield begin


Start = Callable[..., Running]


def until(condition: Callable[[], object], what: str, running: Running) -> None:
    """Waits for a condition of a command, and shows what it said if that does not come."""
    deadline = time.monotonic() + WAIT_S
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {WAIT_S} s\n{running.said()}"
        pause.wait(0.05)


def busy() -> float:
    """How many times as long things take now as on an idle machine."""
    return max(1.0, os.getloadavg()[0] / cores())


def gone(process: psutil.Process) -> bool:
    """Whether a process has ended, reaped or not."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_run_trains(start: Start) -> None:
    run = start("run", "-s", "2", "-w", "2", SCRIPT, "--epochs", "4")
    code = run.wait()
    err = "".join(run.err)
    assert code == 0, err
    [loss] = [line for line in run.out if "final loss" in line]
    assert float(loss.split()[-1]) < 0.1
    assert re.search(r"^done in .* s: 2 workers, 2 servers, 4 epochs, ", err, re.MULTILINE), err


def test_run_shows_the_root_cause(start: Start) -> None:
    args = ("--who", "worker-1", "--how", "raise", "--epochs", "1000")
    run = start("run", "-s", "1", "-w", "2", SCRIPT, *args)
    assert run.wait() == 1
    block = "".join(run.err).partition(" root cause ")[2]
    assert "worker-1 failed first: exit code 1" in block
    assert "ValueError: told to go wrong" in block


def test_an_exit_code_of_a_script_fails_the_job(start: Start) -> None:
    args = ("--who", "worker-0", "--how", "exit", "--epochs", "1000")
    run = start("run", "-s", "1", "-w", "2", SCRIPT, *args)
    assert run.wait() == 1
    assert "worker-0 failed first: exit code 3" in "".join(run.err)


def test_a_killed_worker_comes_back_and_the_job_ends_well(start: Start, tmp_path: Path) -> None:
    args = ("--who", "worker-1", "--how", "die", "--mark", str(tmp_path / "mark"))
    run = start("run", "-s", "2", "-w", "2", "--lease", "5", SCRIPT, *args, "--pause", "0.01")
    code = run.wait()
    err = "".join(run.err)
    assert code == 0, err
    assert "worker-1 was killed, exit code 137 (SIGKILL): restart 1 of 3" in err
    assert "final loss" in run.said()


def test_a_worker_killed_in_mid_round_takes_part_again(start: Start, tmp_path: Path) -> None:
    args = ("--who", "worker-1", "--how", "die", "--mark", str(tmp_path / "mark"))
    rounds = ("--local", "5", "--pause", "0.01")
    run = start("run", "-s", "2", "-w", "2", "--lease", "5", SCRIPT, *args, *rounds)
    assert run.wait() == 0, "".join(run.err)
    assert "restart 1 of 3" in "".join(run.err)
    (loss,) = re.findall(r"final loss ([\d.]+)", run.said())
    assert float(loss) < 0.1


def test_a_replica_comes_back_when_one_of_its_parties_was_killed(
    start: Start, tmp_path: Path
) -> None:
    size = ("-s", "2", "-w", "4", "--parties", "2", "--lease", "5")
    run = start("run", *size, PARTIES, str(tmp_path / "mark"))
    code = run.wait()
    err = "".join(run.err)
    assert code == 0, err
    assert "worker-1 was killed, exit code 137 (SIGKILL): restart 1 of 3" in err
    assert "worker-0 lost a party of its replica, exit code 1: restart 1 of 3" in err
    (loss,) = re.findall(r"final loss ([\d.]+)", run.said())
    assert float(loss) < 0.5


@pytest.mark.parametrize(
    ("epochs", "then", "said"),
    [
        ("80", "worker-1 lost", "worker-1 was not heard for its lease, exit code 1: restart 1 of"),
        ("6", "job 1 is done", "worker-1 was not heard for its lease; the job is done without it"),
    ],
)
def test_a_worker_that_stood_still_fails_nothing(
    start: Start, epochs: str, then: str, said: str
) -> None:
    script = (SCRIPT, "--epochs", epochs, "--pause", "0.02")
    run = start("run", "-s", "1", "-w", "2", "--lease", "4", *script)
    until(lambda: "rank 1 at step 3" in run.said(), "the third step", run)
    [worker] = [
        p
        for p in run.tree()
        if SCRIPT in p.cmdline() and p.environ().get("PARAMSERVER_NAME") == "worker-1"
    ]
    worker.suspend()
    until(lambda: then in run.said(), then, run)
    worker.resume()
    assert run.wait() == 0, run.said()
    assert said in "".join(run.err)


def test_a_killed_scheduler_comes_back(start: Start, tmp_path: Path) -> None:
    run = start("run", "-s", "2", "-w", "2", MARKING, str(tmp_path / "samples"), "--pause", "0.5")
    until(lambda: "rank 0 has" in run.said() and "rank 1 has" in run.said(), "batches", run)
    [scheduler] = [p for p in run.tree() if "scheduler" in p.cmdline()]
    scheduler.kill()
    assert run.wait() == 0, run.said()
    assert "the scheduler was killed, exit code 137 (SIGKILL): restart 1 of 3" in run.said()
    samples = [int(line) for line in (tmp_path / "samples").read_text().split()]
    assert sorted(samples) == list(range(48))


def test_what_every_worker_dies_over_is_set_aside_and_the_job_is_not_complete(
    start: Start, tmp_path: Path
) -> None:
    run = start("run", "-w", "2", MARKING, str(tmp_path / "samples"), "--poison", "13")
    assert run.wait() == 1, run.said()
    said = "".join(run.err)
    assert "INCOMPLETE: 4 samples of data set 'train' were set aside" in said
    samples = {int(line) for line in (tmp_path / "samples").read_text().split()}
    assert samples == set(range(48)) - {12, 13, 14, 15}


def test_a_worker_that_is_asked_to_end_ends_after_its_step(start: Start, tmp_path: Path) -> None:
    """And its samples go to the others at once, not after its lease."""
    began = time.monotonic()
    file, slow = str(tmp_path / "samples"), ("--until-asked", "worker-0")
    scheduler = start("scheduler", "--workers", "2", "--lease", "600", "--once")
    until(lambda: "ready at" in scheduler.said(), "the scheduler", scheduler)
    [address] = re.findall(r"ready at (\S+)", scheduler.said())
    start("ps", "--scheduler", address, "--once")
    first, second = (
        start("worker", "--scheduler", address, "--name", f"worker-{i}", MARKING, file, *slow)
        for i in range(2)
    )
    until(lambda: "has [" in first.said(), "a batch", first)
    first.process.send_signal(signal.SIGTERM)
    assert first.wait() == 143, first.said()
    assert second.wait() == 0, second.said()
    samples = [int(line) for line in (tmp_path / "samples").read_text().split()]
    assert sorted(samples) == list(range(48)), "each once: the step under way was not cut off"
    assert time.monotonic() - began < 300


def test_a_killed_server_is_the_root_cause(start: Start) -> None:
    run = start("run", "-s", "2", "-w", "2", SCRIPT, "--epochs", "1000", "--pause", "0.01")
    until(lambda: "at step 3" in run.said(), "the third step", run)
    [server] = [p for p in run.tree() if "ps-1" in p.cmdline()]
    server.kill()
    assert run.wait() == 1
    assert "ps-1 failed first: exit code 137 (SIGKILL)" in "".join(run.err)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_all_of_it(start: Start, number: int, code: int) -> None:
    run = start("run", "-s", "2", "-w", "2", SCRIPT, "--epochs", "1000", "--pause", "0.01")
    until(lambda: "at step 3" in run.said(), "the third step", run)
    tree = run.tree()
    assert len(tree) >= 5
    began = time.monotonic()
    run.process.send_signal(number)
    assert run.wait() == code
    assert time.monotonic() - began < 5.0 * busy()
    assert all(gone(process) for process in tree)
    assert "Traceback" not in "".join(run.err)


def test_nothing_outlives_a_run_that_is_killed(start: Start) -> None:
    run = start("run", "-s", "1", "-w", "2", SCRIPT, "--epochs", "1000", "--pause", "0.01")
    until(lambda: "at step 3" in run.said(), "the third step", run)
    tree = run.tree()
    run.process.kill()
    until(lambda: all(gone(process) for process in tree), "the end of all processes", run)


READY = re.compile(r"^paramserver (\S+) ready at (\S+)$", re.MULTILINE)


def ready(role: Running) -> str:
    """The address of a role, once it is ready."""

    def said_so() -> bool:
        return READY.search("".join(role.out)) is not None or role.process.poll() is not None

    until(said_so, "the ready line", role)
    found = READY.search("".join(role.out))
    assert found is not None, "".join(role.err)
    return found[2]


def status(address: str) -> dict[str, object]:
    """What ``status --json`` says."""
    done = subprocess.run(
        [*COMMAND, "status", "--scheduler", address, "--json"],
        capture_output=True,
        text=True,
        check=True,
        timeout=WAIT_S,
    )
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_roles_by_hand(start: Start) -> None:
    scheduler = start("scheduler", "--workers", "2", "--servers", "2")
    address = ready(scheduler)
    servers = [start("ps", "--scheduler", address) for _ in range(2)]
    for server in servers:
        ready(server)
    for _ in range(2):  # a second job on the same roles
        workers = [start("worker", "--scheduler", address, SCRIPT) for _ in range(2)]
        for worker in workers:
            assert worker.wait() == 0, "".join(worker.err)
        state = status(address)
        assert isinstance(state["job"], dict)
        assert state["job"]["state"] == "done"
    for role in (*servers, scheduler):
        began = time.monotonic()
        role.process.terminate()
        assert role.wait() == 0, "".join(role.err)
        assert time.monotonic() - began < 2.0 * busy()


def test_a_server_waits_for_its_scheduler_and_says_so(start: Start) -> None:
    server = start("ps", "--scheduler", "127.0.0.1:1")
    until(lambda: "waiting for the scheduler" in server.said(), "the reason", server)
    assert server.process.poll() is None


def test_a_port_in_use_is_bad_usage(start: Start) -> None:
    address = ready(start("scheduler"))
    second = start("scheduler", "--bind", address)
    assert second.wait() == 2
    assert "".join(second.err).count("\n") == 1
    assert "in use" in "".join(second.err)


def test_roles_end_once_the_job_has(start: Start) -> None:
    scheduler = start("scheduler", "--once")
    address = ready(scheduler)
    server = start("ps", "--scheduler", address, "--once")
    worker = start("worker", "--scheduler", address, SCRIPT)
    assert [role.wait() for role in (worker, server, scheduler)] == [0, 0, 0]


def test_the_number_of_servers_changes_while_it_trains(start: Start) -> None:
    run = start("run", "-s", "1", "-w", "2", SCRIPT, "--epochs", "100000", "--pause", "0.02")
    ready = re.compile(r"paramserver scheduler ready at (\S+)")
    until(lambda: ready.search(run.said()) and "at step 3" in run.said(), "step 3", run)
    address = ready.search(run.said())
    assert address is not None
    for servers in ("3", "1"):
        scale = start("scale", "--scheduler", address[1], "--servers", servers)
        assert scale.wait() == 0, scale.said()
        assert f"{servers} servers; " in scale.said()
    until(lambda: "ps-2 has no slices any more and left" in run.said(), "ps-2 left", run)
    assert "failed" not in run.said()
    run.process.send_signal(signal.SIGTERM)
    assert run.wait() == 143
