"""SIGTERM between two steps, within one, in a wait, twice, and after the client has left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from paramserver.worker import drain
from paramserver.worker.drain import Drain, Terminated


@pytest.fixture
def asked() -> Drain:
    made = Drain()
    left: list[str] = []
    made.leave = lambda: left.append("left")
    made.ask()
    return made


def left(of: Drain, then: Callable[[], None]) -> bool:
    """Whether this made the client leave."""
    try:
        then()
    except Terminated as end:
        return end.code == 143
    return False


def test_nobody_leaves_unasked() -> None:
    made = Drain()
    made.step_over()
    made.push_begins()
    with made.interruptible():
        assert made.ask(), "it only waits: it may leave at once"
    with pytest.raises(Terminated):
        made.step_over()


def test_the_step_under_way_is_the_last(asked: Drain) -> None:
    assert not left(asked, asked.push_begins), "the push of the step under way"
    assert left(asked, asked.push_begins), "a loop without a loader begins its next step"
    assert not left(asked, asked.step_over), "it has left: what follows may go on"


def test_a_wait_that_begins_after_the_signal_does_not(asked: Drain) -> None:
    def wait() -> None:
        with asked.interruptible():
            pytest.fail("this waits for others")

    assert left(asked, wait)


SCRIPT = """
import signal, sys, threading
from paramserver.worker import drain
def there(): print("there", flush=True)
made = drain.Drain()
made.leave = lambda: print("left", flush=True)
{before}
drain.install(made)
print("ready", flush=True)
{then}
"""
FOREVER = "threading.Event().wait(60)"


@pytest.mark.parametrize(
    ("before", "then", "signals", "code", "says"),
    [
        ("", f"with made.interruptible():\n    there()\n    {FOREVER}", 1, 143, "left"),
        ("", f"there()\n{FOREVER}", 2, 143, ""),
        ("", f"drain.forget(made)\nthere()\n{FOREVER}", 1, -15, ""),
        (
            "signal.signal(signal.SIGTERM, lambda *a: sys.exit(7))",
            f"there()\n{FOREVER}",
            1,
            7,
            "",
        ),
    ],
    ids=["in a wait", "twice", "after leaving", "the script's own"],
)
def test_signals_of_a_process(before: str, then: str, signals: int, code: int, says: str) -> None:
    script = SCRIPT.format(before=before, then=then)
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env={**os.environ}
    )
    assert process.stdout is not None
    with process.stdout:
        while "there" not in process.stdout.readline():
            assert process.poll() is None
        for _ in range(signals):
            process.send_signal(signal.SIGTERM)
            if signals > 1:  # one pending signal is one
                _until_heard(process.pid)
        said = process.stdout.read()
        assert process.wait(60) == code
    assert says in said


def _until_heard(pid: int) -> None:
    """Until no SIGTERM is pending any more."""
    mask = 1 << (signal.SIGTERM - 1)
    try:
        while True:
            with open(f"/proc/{pid}/status") as file:
                found = re.findall(r"(?:ShdPnd|SigPnd):\s*([0-9a-f]+)", file.read())
            if not any(int(pending, 16) & mask for pending in found):
                return
    except FileNotFoundError:
        return


def test_the_last_client_gives_the_signal_back() -> None:
    one, other = Drain(), Drain()
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        drain.install(one)
        drain.install(other)
        drain.forget(one)
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        drain.forget(other)
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


def test_threads_do_not_hear_signals() -> None:
    made = Drain()
    made.ask()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(drain.install, made).result()
        pool.submit(made.step_over).result()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
