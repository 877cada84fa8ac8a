"""Failpoints: nothing when off; armed, exactly what was asked for, exactly when."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from paramserver import failpoints
from paramserver.errors import ConfigurationError
from paramserver.failpoints import arm, arm_from, failpoint, hits


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    arm("")


def struck(name: str) -> bool:
    try:
        failpoint(name)
    except OSError:
        return True
    return False


def test_off_is_one_test_of_a_variable() -> None:
    assert failpoints._armed is None
    failpoint("ps.apply")
    assert hits() == {}


@pytest.mark.parametrize(
    ("when", "wanted"),
    [
        ("", [True, True, True, True]),
        ("@1", [True, False, False, False]),
        ("@3", [False, False, True, False]),
        ("@3+", [False, False, True, True]),
    ],
)
def test_an_error_comes_when_it_is_due(when: str, wanted: list[bool]) -> None:
    arm(f"ps.apply:error{when}")
    assert [struck("ps.apply") for _ in range(4)] == wanted
    assert not struck("ps.other")
    assert hits() == {"ps.apply": 4, "ps.other": 1}


def test_an_error_has_its_number() -> None:
    arm("a:error, b:error=ENOSPC")
    with pytest.raises(OSError, match="failpoint a") as plain:
        failpoint("a")
    with pytest.raises(OSError, match="No space left") as full:
        failpoint("b")
    assert (plain.value.errno, full.value.errno) == (errno.EIO, errno.ENOSPC)


def test_a_delay_blocks() -> None:
    arm("a:delay=0.05@1")
    began = time.monotonic()
    failpoint("a")
    assert time.monotonic() - began >= 0.05


def test_an_error_while_a_file_is_there(tmp_path: Path) -> None:
    arm("a:error=EROFS@read-only", tmp_path)
    seen = [struck("a")]
    (tmp_path / "read-only").touch()
    seen += [struck("a"), struck("a")]
    (tmp_path / "read-only").unlink()
    assert [*seen, struck("a")] == [False, True, True, False]


def test_several_rules_of_one_name() -> None:
    arm("a:error@2,a:error@4")
    assert [struck("a") for _ in range(5)] == [False, True, False, True, False]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a", "must be NAME"),
        ("a:explode", "must be NAME"),
        ("a:crash@0", "must be NAME"),
        ("a:crash=3", "takes no value"),
        ("a:delay", "needs seconds"),
        ("a:delay=x", "needs seconds"),
        ("a:error=ENOSUCH", "no name of an errno"),
        ("a:error=errorcode", "no name of an errno"),
        ("a b:crash", "must be NAME"),
        ("a:error@some-file", "PARAMSERVER_FAILPOINTS_DIR, name one"),
    ],
)
def test_what_cannot_be_meant_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        arm(text)
    assert failpoints._armed is None


def test_the_environment_arms(tmp_path: Path) -> None:
    arm_from({})
    assert failpoints._armed is None
    arm_from({failpoints.VARIABLE: "a:error", failpoints.FOLDER: str(tmp_path / "new")})
    assert struck("a")


PASSES = """
import sys
from paramserver.failpoints import arm, failpoint
arm(sys.argv[1], sys.argv[2])
for number in range(5):
    print(number, flush=True)
    failpoint("a")
"""


def passes(rule: str, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PASSES, rule, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_a_crash_is_a_kill_and_strikes_once_per_folder(tmp_path: Path) -> None:
    first = passes("a:crash@3", tmp_path)
    assert first.communicate(timeout=60)[0].split() == ["0", "1", "2"]
    assert first.returncode == -signal.SIGKILL
    second = passes("a:crash@3", tmp_path)
    assert second.communicate(timeout=60)[0].split() == ["0", "1", "2", "3", "4"]
    assert second.returncode == 0


def test_a_stop_stands_still_until_it_is_continued(tmp_path: Path) -> None:
    child = passes("a:stop@2", tmp_path)
    process = psutil.Process(child.pid)
    deadline = time.monotonic() + 60
    while process.status() != psutil.STATUS_STOPPED:
        assert time.monotonic() < deadline
    os.kill(child.pid, signal.SIGCONT)
    assert child.communicate(timeout=60)[0].split() == ["0", "1", "2", "3", "4"]
