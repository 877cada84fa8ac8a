"""``run`` as a supervisor, over stand-ins for the scheduler and the servers."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from paramserver.cli import supervisor as run_module
from paramserver.cli.output import Output
from paramserver.cli.plan import Plan
from paramserver.cli.state import State, from_status
from paramserver.cli.supervisor import Supervisor
from paramserver.errors import ConnectionLostError
from paramserver.trust import OPEN, Trust
from paramserver.v1 import scheduler_pb2

ROLE = """
import sys, time
print(f"paramserver {sys.argv[1]} ready at 127.0.0.1:1", flush=True)
time.sleep(60)
"""
FAILS = "import os; os.environ['PARAMSERVER_NAME'] == 'worker-1' and {}"


class FakeSource:
    """A scheduler's state, made up by the test; unreachable unless set."""

    state: State | None = None

    def __init__(self, address: str, trust: Trust = OPEN) -> None:
        self.address = address

    def gather(self, **options: Any) -> State:
        if FakeSource.state is None:
            raise ConnectionLostError("nobody there")
        return FakeSource.state

    def close(self) -> None:
        pass


class Case:
    """Runs a worker's code on a stand-in cluster."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.role = ROLE
        self.supervisor: Supervisor | None = None
        monkeypatch.setattr(run_module, "Source", FakeSource)
        monkeypatch.setattr(run_module, "POLL_S", 0.01)
        monkeypatch.setattr(run_module, "SETTLE_S", 0.3)
        monkeypatch.setattr(run_module, "OBEY_S", 0.1)
        monkeypatch.setattr(run_module, "role_command", self._command)
        monkeypatch.setattr(FakeSource, "state", None)

    def _command(self, role: str, /, **flags: object) -> list[str]:
        return [sys.executable, "-I", "-S", "-c", self.role, str(flags.get("name", role))]

    def __call__(
        self, code: str, *, workers: int = 2, max_restarts: int = 3, **options: Any
    ) -> int:
        plan = Plan(
            servers=2,
            workers=workers,
            assign="dynamic",
            lease_s=1.0,
            max_restarts=max_restarts,
            command=[sys.executable, "-I", "-S", "-c", code, str(self.folder)],
            **options,
        )
        with Output() as output:
            self.supervisor = Supervisor(plan, output, self.folder)
            code_ = self.supervisor.run()
        assert all(child.code is not None for child in self.supervisor.children.values())
        return code_


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Case]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield Case(tmp_path, monkeypatch)
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


Capture = pytest.CaptureFixture[str]


def test_all_roles_start_and_all_end(case: Case, capsys: Capture) -> None:
    code = "import os; print(os.environ['PARAMSERVER_NAME'], os.environ['PARAMSERVER_SCHEDULER'])"
    assert case(code) == 0
    said = capsys.readouterr()
    assert "scheduler │ paramserver scheduler ready" in said.out
    assert case.supervisor is not None
    assert sorted(case.supervisor.children) == ["ps-0", "ps-1", "scheduler", "worker-0", "worker-1"]
    for name in ("worker-0", "worker-1"):
        assert f"{name:<9} │ {name} 127.0.0.1:1" in said.out
    assert re.search(r"^done in \d+\.\d s", said.err, re.MULTILINE)


def test_a_script_that_raises_ends_the_job(case: Case, capsys: Capture) -> None:
    code = FAILS.format("exec('raise ValueError(\"bad\")')") + "\nimport time; time.sleep(60)"
    assert case(code) == 1
    said = capsys.readouterr().err
    assert "root cause" in said
    assert "worker-1 failed first: exit code 1" in said
    assert "ValueError: bad" in said.partition("root cause")[2]
    assert "done in" not in said


CONSEQUENCE = """
import os, time
class JobFailedError(Exception): pass
if os.environ["PARAMSERVER_NAME"] == "worker-0":
    raise JobFailedError("worker-1 failed")
time.sleep(0.2)
raise ValueError("the cause")
"""


def test_a_consequence_that_comes_first_is_not_the_cause(case: Case, capsys: Capture) -> None:
    assert case(CONSEQUENCE) == 1
    said = capsys.readouterr().err
    assert "worker-1 failed first" in said
    assert "then: worker-0 (exit code 1)" in said


DIES_ONCE = """
import os, pathlib, signal, sys
mark = pathlib.Path(sys.argv[1], os.environ["PARAMSERVER_NAME"])
if mark.name == "worker-1" and not mark.exists():
    mark.touch()
    os.kill(os.getpid(), signal.{})
"""


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGUSR1"])
def test_a_killed_worker_starts_again(case: Case, capsys: Capture, name: str) -> None:
    assert case(DIES_ONCE.format(name)) == 0
    said = capsys.readouterr().err
    assert f"worker-1 was killed, exit code {128 + getattr(signal, name)} ({name})" in said
    assert "restart 1 of 3" in said


def test_a_worker_that_is_killed_too_often_ends_the_job(case: Case, capsys: Capture) -> None:
    code = FAILS.format("os.kill(os.getpid(), 9)") + "\nimport time; time.sleep(60)"
    assert case(code, max_restarts=2) == 1
    said = capsys.readouterr().err
    assert "worker-1 failed first: exit code 137 (SIGKILL)" in said
    assert "restarts 2" in said


def test_a_lost_role_ends_the_job(case: Case, capsys: Capture) -> None:
    case.role = ROLE.replace("60", "60 if sys.argv[1] != 'ps-1' else 0.1")
    assert case("import time; time.sleep(60)") == 1
    assert "ps-1 failed first: exit code 0" in capsys.readouterr().err


def test_a_scheduler_that_does_not_come_up(case: Case, capsys: Capture) -> None:
    case.role = "raise SystemExit('paramserver: no port')"
    assert case("") == 1
    said = capsys.readouterr().err
    assert "scheduler did not come up: exit code 1" in said
    assert "no process of this cluster ended" not in said
    assert "paramserver: no port" in said


def failed_state() -> State:
    """A job that the scheduler gave up."""
    view = scheduler_pb2.View(state=scheduler_pb2.JOB_FAILED, message="server ps-0 was lost")
    return from_status("127.0.0.1:1", scheduler_pb2.StatusReply(view=view))


def test_workers_that_do_not_notice_a_failed_job(case: Case, capsys: Capture) -> None:
    FakeSource.state = failed_state()
    assert case("import time; time.sleep(60)") == 1
    said = capsys.readouterr().err
    assert "the job failed" in said
    assert "server ps-0 was lost" in said.partition("root cause")[2]


def test_a_failed_job_is_a_failure_even_when_every_script_ends_well(case: Case) -> None:
    FakeSource.state = failed_state()
    assert case("") == 1


def when(condition: Callable[[], bool], do: Callable[[], None]) -> threading.Thread:
    """Does something once a condition holds, from another thread."""

    def watch() -> None:
        pause = threading.Event()
        for _ in range(2000):
            if condition():
                do()
                return
            pause.wait(0.01)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


SHOWS = """
import os, pathlib, sys, time
pathlib.Path(sys.argv[1], os.environ["PARAMSERVER_NAME"]).write_text(os.environ["MOOD"])
time.sleep(60)
"""


def test_a_run_that_has_had_enough_ends_well(case: Case, capsys: Capture) -> None:
    files = [case.folder / f"worker-{i}" for i in range(2)]

    def enough() -> bool:
        return all(file.exists() and file.read_text() == "good" for file in files)

    before = signal.getsignal(signal.SIGINT)
    assert case(SHOWS, environment={"MOOD": "good"}, enough=enough) == 0
    assert "root cause" not in capsys.readouterr().err
    assert case.supervisor is not None
    assert case.supervisor.why == ""
    assert signal.getsignal(signal.SIGINT) is before


def test_a_failure_is_one_however_little_was_enough(case: Case) -> None:
    code = FAILS.format("exec('raise ValueError(\"bad\")')") + "\nimport time; time.sleep(60)"

    def enough() -> bool:
        return case.supervisor is not None and bool(case.supervisor._failures)

    assert case(code, enough=enough) == 1
    assert case.supervisor is not None
    assert case.supervisor.why == "worker-1: ValueError: bad"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_all_of_it(case: Case, capsys: Capture, number: int, code: int) -> None:
    up = "import pathlib, sys, os, time; pathlib.Path(sys.argv[1], 'up' + os.environ['"
    up += "PARAMSERVER_NAME']).touch(); time.sleep(60)"

    def both() -> bool:
        return all(Path(case.folder, f"upworker-{i}").exists() for i in range(2))

    thread = when(both, lambda: os.kill(os.getpid(), number))
    assert case(up) == code
    thread.join()
    said = capsys.readouterr().err
    assert f"{signal.Signals(number).name}: stopping 5 processes" in said
    assert "Traceback" not in said
    assert "root cause" not in said


def test_a_second_ctrl_c_kills(case: Case) -> None:
    stubborn = "import signal, pathlib, sys, os, time; signal.signal(2, signal.SIG_IGN);"
    stubborn += "pathlib.Path(sys.argv[1], 'up').touch(); time.sleep(60)"

    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        stopping.join()
        os.kill(os.getpid(), signal.SIGINT)

    def is_stopping() -> bool:
        supervisor = case.supervisor
        child = supervisor.children.get("worker-0") if supervisor is not None else None
        return child is not None and child.stopped

    stopping = when(is_stopping, lambda: None)
    thread = when(Path(case.folder, "up").exists, twice)
    assert case(stubborn, workers=1) == 130
    thread.join()
    assert case.supervisor is not None
    assert case.supervisor.children["worker-0"].code == 137
