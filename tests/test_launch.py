"""Processes of a cluster on one machine: started, heard, restarted, stopped, never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from paramserver.cli.exits import Failure, block, last_words, root_cause
from paramserver.cli.output import Output, colour_of, prefixed
from paramserver.errors import JobFailedError
from paramserver.launch import (
    Child,
    RestartRule,
    child_environment,
    cores,
    describe_exit,
    exit_code,
    is_consequence,
    lines,
    read_identity,
    role_command,
    role_environment,
    script_command,
    signal_name,
    stop,
    worker_environment,
)

WAIT_S = 20.0


def until(condition: Callable[[], object], what: str) -> None:
    """Waits for a condition of other processes."""
    deadline = time.monotonic() + WAIT_S
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {WAIT_S} s"
        pause.wait(0.01)


def gone(pid: int) -> bool:
    """Whether a process has ended, reaped or not."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


class Started:
    """Children that a test starts, and what they say; ended with the test."""

    def __init__(self) -> None:
        self.children: list[Child] = []
        self.said: list[tuple[str, str]] = []

    def __call__(self, code: str, name: str = "worker-0", role: str = "worker") -> Child:
        child = Child(
            name,
            role,
            [sys.executable, "-I", "-S", "-c", code],
            env=child_environment(os.environ),
            on_line=lambda child, stream, line: self.said.append((stream, line)),
        )
        self.children.append(child)
        return child


@pytest.fixture
def start() -> Iterator[Started]:
    started = Started()
    yield started
    stop(started.children, signal.SIGKILL)


# -- rules


@pytest.mark.parametrize(
    ("returncode", "code"), [(0, 0), (1, 1), (3, 3), (-9, 137), (-15, 143), (-2, 130), (-11, 139)]
)
def test_exit_codes_are_those_of_a_shell(returncode: int, code: int) -> None:
    assert exit_code(returncode) == code


def test_signals_have_names() -> None:
    assert signal_name(137) == "SIGKILL"
    assert signal_name(1) == ""
    assert describe_exit(143) == "exit code 143 (SIGTERM)"
    assert describe_exit(3) == "exit code 3"


@pytest.mark.parametrize("code", [137, 138, 143])
def test_a_killed_worker_starts_again(code: int) -> None:
    assert RestartRule(3).restarts("worker-0", code)


@pytest.mark.parametrize("code", [0, 1, 2, 3, 126, 127, 128, 130, 134, 139])
def test_any_other_end_is_final(code: int) -> None:
    assert not RestartRule(3).restarts("worker-0", code)


def test_restarts_are_counted_by_worker() -> None:
    rule = RestartRule(2)
    assert [rule.restarts("worker-0", 137) for _ in range(3)] == [True, True, False]
    assert rule.restarts("worker-1", 137)
    assert rule.used == {"worker-0": 2, "worker-1": 1}
    assert not RestartRule(0).restarts("worker-0", 137)


# -- environments and commands


def test_children_get_allocator_settings_unless_set() -> None:
    assert child_environment({})["MALLOC_MMAP_THRESHOLD_"] == "33554432"
    assert child_environment({})["MALLOC_TRIM_THRESHOLD_"] == "1073741824"
    assert child_environment({"MALLOC_TOP_PAD_": "1"})["MALLOC_TOP_PAD_"] == "1"


def test_roles_know_their_parent() -> None:
    assert role_environment({})["PARAMSERVER_PARENT"] == str(os.getpid())


def test_worker_environment() -> None:
    env = worker_environment(
        {"HOME": "/h"}, scheduler="h:1", name="worker-1", identity=Path("i"), workers=10_000
    )
    assert env["PARAMSERVER_SCHEDULER"] == "h:1"
    assert env["PARAMSERVER_NAME"] == "worker-1"
    assert env["PARAMSERVER_LAUNCHED"] == "1"
    assert env["PARAMSERVER_IDENTITY_FILE"] == "i"
    assert env["OMP_NUM_THREADS"] == "1"
    assert env["HOME"] == "/h"


def test_threads_are_shared_by_the_workers_of_a_machine() -> None:
    def threads(base: dict[str, str], workers: int) -> str | None:
        env = worker_environment(base, scheduler="h:1", name=None, workers=workers)
        return env.get("OMP_NUM_THREADS")

    assert threads({}, 1) == str(cores())
    assert threads({"OMP_NUM_THREADS": "7"}, 2) == "7"
    assert threads({}, 0) is None


def test_commands() -> None:
    command = role_command("ps", scheduler="h:1", name=None, bind="127.0.0.1:0")
    assert command[1:] == ["-m", "paramserver", "ps", "--scheduler", "h:1", "--bind", "127.0.0.1:0"]
    assert script_command("a.py", ["--x", "1"], module=False)[1:] == ["a.py", "--x", "1"]
    assert script_command("a.b", [], module=True)[1:] == ["-m", "a.b"]


# -- what processes say


def split(*chunks: bytes) -> list[str]:
    it = iter([*chunks, b""])
    return list(lines(lambda: next(it)))


def test_lines_are_put_together_from_pieces() -> None:
    assert split(b"a", b"b\nc", b"\n\n", b"rest") == ["ab", "c", "", "rest"]


def test_lines_show_what_a_terminal_would() -> None:
    assert split(b" 10%\r 50%\r100%\nend\r\n") == ["100%", "end"]
    assert split(b"caf\xc3\xa9 \xff\n") == ["café �"]


def test_a_line_without_end_is_cut() -> None:
    assert [len(line) for line in split(b"x" * 70_000, b"y\n")] == [70_000, 1]


def test_names_are_prefixed() -> None:
    assert prefixed("ps-0", "hello") == "ps-0      │ hello"
    assert colour_of("ps-0") == colour_of("ps-1")
    assert colour_of("worker-0") != colour_of("worker-1")


def test_output_goes_where_the_child_sent_it(
    start: Started, capsys: pytest.CaptureFixture[str]
) -> None:
    child = start("")
    output = Output(quiet=False)
    output.line(child, "stdout", "out")
    output.line(child, "stderr", "err")
    said = capsys.readouterr()
    assert said.out == "worker-0  │ out\n"
    assert said.err == "worker-0  │ err\n"


def test_quiet_leaves_out_the_roles(start: Started, capsys: pytest.CaptureFixture[str]) -> None:
    output = Output(quiet=True)
    output.line(start("", "ps-0", "ps"), "stderr", "not shown")
    output.line(start(""), "stdout", "shown")
    output.status("not shown")
    said = capsys.readouterr()
    assert (said.out, said.err) == ("worker-0  │ shown\n", "")


def test_a_traceback_that_we_asked_for_is_not_shown(
    start: Started, capsys: pytest.CaptureFixture[str]
) -> None:
    child = start("")
    child.stopped = True
    output = Output()
    for line in ("saving", "Traceback (most recent call last):", "  x", "KeyboardInterrupt"):
        output.line(child, "stderr", line)
    assert capsys.readouterr().err == "worker-0  │ saving\n"


# -- processes


def test_exit_code_and_lines_of_a_child(start: Started) -> None:
    code = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"
    child = start(code)
    assert child.wait(WAIT_S) == 3
    assert sorted(start.said) == [("stderr", "err"), ("stdout", "out")]
    assert list(child.tail) == ["err"]


def test_a_child_that_kills_itself(start: Started) -> None:
    child = start("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert child.wait(WAIT_S) == 137


def test_the_child_is_the_program_and_leads_its_session(start: Started) -> None:
    child = start("import os; print(os.getpid(), os.getsid(0), os.getppid())")
    child.wait(WAIT_S)
    assert start.said == [("stdout", f"{child.pid} {child.pid} {os.getpid()}")]


def test_a_program_that_is_not_there() -> None:
    child = Child("x", "worker", ["/nowhere/program"], env={}, on_line=lambda c, s, line: None)
    assert child.wait(WAIT_S) == 1
    assert "No such file" in child.tail[-1]


def test_ready_line(start: Started) -> None:
    line = "print('paramserver ps-0 ready at 127.0.0.1:41001', flush=True)"
    child = start(f"{line}; import time; time.sleep(60)", "ps-0", "ps")
    assert child.wait_ready() == "127.0.0.1:41001"


def test_a_role_that_ends_before_it_is_ready(start: Started) -> None:
    child = start("import sys; sys.exit('port in use')", "scheduler", "scheduler")
    with pytest.raises(JobFailedError, match=r"did not come up: exit code 1\nport in use"):
        child.wait_ready()


def test_a_role_that_says_nothing(start: Started) -> None:
    child = start("import time; time.sleep(60)", "scheduler", "scheduler")
    with pytest.raises(JobFailedError, match=r"said nothing for 0.01 s"):
        child.wait_ready(0.01)


def test_a_worker_cannot_fake_a_ready_line(start: Started) -> None:
    child = start("print('paramserver ps-0 ready at evil:1')")
    child.wait(WAIT_S)
    assert child.address is None


def test_stop_asks_first(start: Started) -> None:
    child = start("import time; print('up', flush=True); time.sleep(60)")
    until(lambda: start.said, "the first line")
    stop([child])
    assert child.code == 143
    assert child.stopped


STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "print('up', flush=True); time.sleep(60)"
)


def test_stop_kills_what_does_not_listen(start: Started) -> None:
    child = start(STUBBORN)
    until(lambda: start.said, "the first line")
    stop([child], grace=0.05)
    assert child.code == 137


def test_a_second_signal_cuts_the_grace_short(start: Started) -> None:
    child = start(STUBBORN)
    until(lambda: start.said, "the first line")
    hurry = threading.Event()
    hurry.set()
    stop([child], grace=WAIT_S, hurry=hurry)
    assert child.code == 137


PARENT_OF_SLEEPER = (
    "import subprocess, sys; "
    "p = subprocess.Popen([sys.executable, '-I', '-S', '-c', 'import time; time.sleep(60)']); "
    "print(p.pid, flush=True)"
)


def test_what_a_child_leaves_behind_ends_with_it(start: Started) -> None:
    child = start(PARENT_OF_SLEEPER)
    assert child.wait(WAIT_S) == 0
    left = int(start.said[0][1])
    until(lambda: gone(left), "the end of the grandchild")


def test_children_started_in_a_thread_outlive_the_thread(start: Started) -> None:
    found: list[Child] = []
    code = "import sys; print('up', flush=True); sys.stdin.read(); import time; time.sleep(60)"
    thread = threading.Thread(target=lambda: found.append(start(code)))
    thread.start()
    thread.join()
    until(lambda: start.said, "the first line")
    assert found[0].wait(0.2) is None


LAUNCHER = """
import os, sys, time
from paramserver.launch import Child, child_environment
def show(child, stream, line): os.write(1, b"%d\\n" % child.pid)  # whole, from any thread
command = [sys.executable, "-I", "-S", "-c", "import time; print('up', flush=True); time.sleep(60)"]
env = child_environment(os.environ)
children = [Child(f"worker-{i}", "worker", command, env=env, on_line=show) for i in range(3)]
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs the death signal of Linux")
def test_nothing_outlives_a_launcher_that_is_killed() -> None:
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER], stdout=subprocess.PIPE, text=True)
    with launcher:
        assert launcher.stdout is not None
        pids = [int(launcher.stdout.readline().split()[0]) for _ in range(3)]
        assert not any(gone(pid) for pid in pids)
        launcher.kill()
    until(lambda: all(gone(pid) for pid in pids), "the end of all children")


# -- root cause

TRACEBACK = """Traceback (most recent call last):
  File "train.py", line 3, in <module>
    raise ValueError("bad")
ValueError: bad"""
FOLLOWED = """Traceback (most recent call last):
  File "train.py", line 2, in <module>
    optimizer.step()
paramserver.errors.JobFailedError: worker-1 failed:
Traceback (most recent call last):
  File "train.py", line 3, in <module>
ValueError: bad"""


def failure(name: str, text: str, code: int = 1) -> Failure:
    return Failure(name=name, code=code, pid=7, host="box", after_s=2.5, text=text)


def test_a_consequence_is_told_from_a_cause() -> None:
    assert is_consequence(FOLLOWED)
    assert not is_consequence(TRACEBACK)
    assert not is_consequence("")


def test_the_cause_is_the_first_that_is_no_consequence() -> None:
    first, second = failure("worker-0", FOLLOWED), failure("worker-1", TRACEBACK)
    assert root_cause([first, second]) == second
    assert root_cause([second, failure("worker-2", "")]) == second
    assert root_cause([first]) == first


def test_the_scheduler_knows_when_no_process_of_ours_is_to_blame() -> None:
    cause = root_cause([failure("worker-0", FOLLOWED)], "server ps-0 was lost")
    assert (cause.name, cause.text) == ("job", "server ps-0 was lost")


def test_block_says_who_where_how_and_what() -> None:
    cause, other = failure("worker-1", TRACEBACK), failure("worker-0", FOLLOWED)
    text = block(cause, [other, cause], "server ps-0 was lost\nmore")
    shown = text.splitlines()
    assert shown[0].strip("─") == " root cause "
    assert shown[1:3] == ["worker-1 failed first: exit code 1", "host box, pid 7, after 2.5 s"]
    assert "  ValueError: bad" in shown
    assert "the scheduler says: server ps-0 was lost" in shown
    assert "scheduler says" not in block(cause, [], "worker-1 (rank 1) failed: Traceback")
    assert "then: worker-0 (exit code 1)" in shown


def test_block_names_the_signal_and_the_restarts() -> None:
    killed = Failure(name="worker-1", code=137, restarts=3)
    assert "exit code 137 (SIGKILL)" in block(killed)
    assert "restarts 3" in block(killed)
    assert "  nothing on standard error" in block(killed)
    assert "no process of this cluster" in block(Failure(name="job", code=None, text="x"))


def test_last_words_are_the_last_traceback() -> None:
    noise = ["starting", *TRACEBACK.splitlines(), "", "going on"]
    assert last_words([*noise, *TRACEBACK.splitlines()]) == TRACEBACK
    assert last_words(["a", "b"]) == "a\nb"
    assert last_words([]) == ""


def test_last_words_keep_causes_and_quotes() -> None:
    chain = [
        *TRACEBACK.splitlines(),
        "",
        "The above exception was the direct cause of the following exception:",
        "",
        *FOLLOWED.splitlines(),
    ]
    assert last_words(["noise", "", *chain]) == "\n".join(chain)


def test_identity_file(tmp_path: Path) -> None:
    path = tmp_path / "identity.json"
    assert read_identity(path) is None
    path.write_text("{")
    assert read_identity(path) is None
    path.write_text('{"name": "worker-1", "incarnation": 4, "rank": 1, "job": 2}')
    who = read_identity(path)
    assert (who.name, who.incarnation, who.rank, who.job) == ("worker-1", 4, 1, 2)
