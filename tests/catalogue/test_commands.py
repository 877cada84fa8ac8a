"""E. Commands: rows 83 and 84."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "paramserver"]


def run(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *args],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        errors="replace",
    )


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("scheduler", "--bind", "127.0.0.1:70000"), "0 to 65535"),
        (("scheduler", "--bind", "no.such.host.invalid:0"), "cannot be resolved"),
        (("scheduler", "--bind", "192.0.2.1:0", "--insecure"), "cannot listen"),
        (("scheduler", "--bind", "0.0.0.0:0"), "--tls-cert"),
        (("scheduler", "--nonsense"), "--nonsense"),
        (("scheduler", "--workers", "-1"), "x>=1"),
        (("scheduler", "ps"), "unexpected extra argument"),
        (("ps", "--scheduler", "nowhere"), "HOST:PORT"),
        (("scheduler", "--tls-cert", "/no/cert", "--tls-key", "/no/key"), "/no/cert"),
        (("certs", "/proc/nowhere"), "/proc/nowhere"),
        (("status", "--scheduler", "127.0.0.1:1"), "no scheduler at 127.0.0.1:1"),
    ],
)
def test_row_83_usage_that_cannot_work(args: tuple[str, ...], words: str) -> None:
    done = run(*args)
    assert done.returncode in (1, 2)
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


@pytest.fixture
def scheduler() -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = subprocess.Popen(
        [*COMMAND, "scheduler"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    found = re.search(r"ready at (\S+)", process.stdout.readline())
    assert found is not None
    yield process, found[1]
    if process.poll() is None:
        process.kill()
    process.wait(20)
    process.stdout.close()


def test_row_83_a_port_in_use(scheduler: tuple[subprocess.Popen[str], str]) -> None:
    done = run("scheduler", "--bind", scheduler[1])
    assert done.returncode == 2
    assert "in use" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_row_84_once_or_twice(
    scheduler: tuple[subprocess.Popen[str], str], number: signal.Signals
) -> None:
    process, _ = scheduler
    for _ in range(2):
        process.send_signal(number)
    assert process.wait(20) in (0, 128 + number, -number)


def test_row_84_killed_and_started_again(scheduler: tuple[subprocess.Popen[str], str]) -> None:
    """Nothing is left behind that would keep the next one from the same address."""
    process, address = scheduler
    process.kill()
    process.wait(20)
    command = [*COMMAND, "scheduler", "--bind", address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as again:
        assert again.stdout is not None
        assert address in again.stdout.readline()
        again.terminate()
        assert again.wait(20) in (0, -signal.SIGTERM)


def test_row_84_nobody_reads_the_output(scheduler: tuple[subprocess.Popen[str], str]) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [*COMMAND, "status", "--json", "--scheduler", scheduler[1]],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    os.close(write)
    assert "Traceback" not in done.stderr
    assert done.returncode in (0, 1)


def test_row_84_a_locale_without_unicode(
    scheduler: tuple[subprocess.Popen[str], str], tmp_path: Path
) -> None:
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii:replace"}
    assert run("status", "--scheduler", scheduler[1], **plain).returncode == 0
    assert run("--help", **plain).returncode == 0
    script = tmp_path / "job.py"
    script.write_text("print('done')\n")
    done = run("run", str(script), **plain)
    assert done.returncode == 0, done.stderr
