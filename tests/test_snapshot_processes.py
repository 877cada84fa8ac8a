"""Snapshots with real processes: killed servers, killed clusters, the commands."""

from __future__ import annotations

import json
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

from tests.test_run_e2e import Running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SCRIPT = str(Path(__file__).parent / "scripts" / "counting.py")
WAIT_S = 240.0
SAMPLES, EPOCHS = 160, 3
TOTAL = f"total {EPOCHS * SAMPLES * (SAMPLES - 1) // 2:g} of {EPOCHS * SAMPLES} samples"


@pytest.fixture
def start() -> Iterator[Callable[..., Running]]:
    with ExitStack() as stack:

        def begin(*args: str) -> Running:
            running = Running(*args)
            stack.callback(running.close)
            return running

        yield begin


def until(running: Running, text: str) -> re.Match[str]:
    """Waits for a command to say something."""
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        found = re.search(text, running.said())
        if found:
            return found
        assert running.process.poll() is None, running.said()
        threading.Event().wait(0.05)
    raise AssertionError(f"never said {text!r}: {running.said()}")


def result(running: Running) -> str:
    """The chief's last line."""
    assert running.wait() == 0, running.said()
    found = re.search(r"total .*", running.said())
    assert found, running.said()
    return found[0]


def await_snapshot(folder: str) -> None:
    """Until there is one that is whole."""
    deadline = time.monotonic() + WAIT_S
    while not list(Path(folder).glob("*/manifest.json")):
        assert time.monotonic() < deadline
        threading.Event().wait(0.05)


def server(running: Running, name: str = "ps-0") -> psutil.Process:
    """The process of a role."""
    for process in running.tree():
        command = process.cmdline()
        if (
            {"ps", "scheduler"} & set(command)
            and name in command
            and "_guard.py" not in " ".join(command)
        ):
            return process
    raise AssertionError(f"no {name} among {[p.cmdline() for p in running.tree()]}")


def test_a_killed_server_starts_again_and_the_job_goes_back(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    """By itself: every sample counts once in what is left, and nobody is asked anything."""
    common = ("run", "-s", "2", "-w", "2", "--assign", "round-robin")
    script = (SCRIPT, str(SAMPLES), str(EPOCHS), "0.05")
    folder = str(tmp_path / "snapshots")
    broken = start(*common, "--snapshot-dir", folder, "--snapshot-every", "5", *script)
    until(broken, "step 20 of")
    await_snapshot(folder)
    server(broken).send_signal(signal.SIGKILL)
    found = result(broken)
    said = broken.said()
    assert found.startswith(TOTAL)
    assert "ps-0 was killed, exit code 137 (SIGKILL): restart 1 of 3" in said
    assert len(re.findall("was sent back to a snapshot: starting it again", said)) == 2
    assert "Traceback" not in said
    whole = start(*common, *script[:3], "0")
    assert result(whole) == found, "bit for bit"

    listed = start("snapshots", folder, "--check", "--json")
    assert listed.wait() == 0
    kept = json.loads(listed.said())
    assert 1 <= len(kept) <= 3
    assert all(entry["name"].startswith("auto-") for entry in kept)


def test_a_scheduler_that_was_killed_goes_back_to_its_snapshot_too(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    """It knows of the snapshot that it took before; then it is killed once more, gone back."""
    folder = str(tmp_path / "snapshots")
    broken = start(
        "run", "-s", "1", "-w", "2", "--snapshot-dir", folder, "--snapshot-every", "10",
        SCRIPT, str(SAMPLES), str(EPOCHS), "0.1",
    )  # fmt: skip
    await_snapshot(folder)
    server(broken, "scheduler").send_signal(signal.SIGKILL)
    until(broken, "the scheduler was killed.*restart 1 of 3")
    until(broken, "the scheduler is back")
    server(broken).send_signal(signal.SIGKILL)
    until(broken, "was sent back to a snapshot: starting it again")
    server(broken, "scheduler").send_signal(signal.SIGKILL)
    assert result(broken).startswith(TOTAL)


def test_a_cluster_that_was_killed_goes_on_from_its_snapshot(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    folder, out = str(tmp_path / "snapshots"), str(tmp_path / "model.pt")
    script = (SCRIPT, str(SAMPLES), str(EPOCHS), "0.05")
    first = start(
        "run", "-s", "1", "-w", "2", "--assign", "random", "--snapshot-dir", folder,
        "--snapshot-every", "10", *script,
    )  # fmt: skip
    until(first, "step 25 of")
    await_snapshot(folder)
    first.process.kill()  # all of it: its children go with it
    first.wait()
    again = start(
        "run", "-s", "3", "-w", "2", "--assign", "random", "--snapshot-dir", folder,
        "--resume", "latest", *script,
    )  # fmt: skip
    found = result(again)
    assert found.startswith(TOTAL)
    assert "goes on from snapshot auto-" in again.said()
    whole = start("run", "-s", "2", "-w", "2", "--assign", "random", *script[:3], "0")
    assert result(whole) == found, "bit for bit"

    exported = start("export", folder, out, "--group", "model", "--optimizer")
    assert exported.wait() == 0, exported.said()
    code = (
        "import torch,sys; c = torch.load(sys.argv[1], weights_only=True); "
        "m = torch.nn.Linear(3, 2); m.load_state_dict(c['model']); "
        "torch.optim.SGD(m.parameters()).load_state_dict(c['optimizer'])"
    )
    subprocess.run([sys.executable, "-c", code, out], check=True)


def test_roles_by_hand_snapshot_and_restore(start: Callable[..., Running], tmp_path: Path) -> None:
    """``snapshot`` by name, ``restore --force``: workers under ``worker`` start again."""
    folder = str(tmp_path / "snapshots")
    scheduler = start("scheduler", "--workers", "1", "--snapshot-dir", folder)
    address = until(scheduler, r"ready at (\S+)")[1]
    start("ps", "--scheduler", address)
    worker = start("worker", "--scheduler", address, SCRIPT, str(SAMPLES), "2", "0.05")
    until(worker, "step 12 of")
    taken = start("snapshot", "--scheduler", address, "mine")
    assert taken.wait() == 0, taken.said()
    assert taken.said().startswith("mine: ")
    refused = start("restore", "--scheduler", address, "mine")
    assert refused.wait() == 1
    assert "add --force" in refused.said()
    restored = start("restore", "--scheduler", address, "--force", "mine")
    assert restored.wait() == 0, restored.said()
    assert restored.said().startswith("job 2 goes on from snapshot mine")
    found = result(worker)
    assert "was sent back to a snapshot" in worker.said()
    assert found.startswith(f"total {SAMPLES * (SAMPLES - 1):g} of {2 * SAMPLES} samples")
    status = start("status", "--scheduler", address, "--json")
    assert status.wait() == 0, status.said()
    newest = json.loads(status.said())["snapshots"]["newest"]
    assert (newest["name"], newest["base"]) == ("mine", "")
    assert newest["clock"] >= 12
    none = start("restore", "--scheduler", address, "nothing")
    assert none.wait() == 1
    assert "nothing" in none.said()
    missing = start("snapshot", "--scheduler", address, "../x")
    assert missing.wait() == 1
    assert "snapshot name" in missing.said()
