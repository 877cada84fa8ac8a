"""The image is built, the cluster of docker-compose.yml trains, ends, and stops when told."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BASE = "python:3.11-slim"
IMAGE = "paramserver:latest"
PROJECT = "paramserver-test"
pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.timeout(900)]


def docker(*args: str, timeout: float = 60, check: bool = True) -> str:
    """Standard output of a docker command."""
    done = subprocess.run(
        ["docker", *args], capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0 or not check, f"docker {' '.join(args)}:\n{done.stderr}"
    return done.stdout


def engine_answers() -> bool:
    return shutil.which("docker") is not None and (
        subprocess.run(["docker", "info"], capture_output=True, timeout=30, check=False).returncode
        == 0
    )


def compose_command() -> list[str] | None:
    """``docker compose`` where it is there, else the older ``docker-compose``."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]) is not None:
            version = subprocess.run([*command, "version"], capture_output=True, check=False)
            if version.returncode == 0:
                return command
    return None


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """A folder of wheels under a loopback URL: a build cannot see the folders of its host."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))
    ) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def find_links() -> Iterator[str]:
    """What the build's pip is to be told: PIP_FIND_LINKS, a local folder made reachable."""
    given = os.environ.get("PIP_FIND_LINKS", "")
    if given and Path(given).is_dir():
        with served(Path(given)) as url:
            yield url
    else:
        yield given


@pytest.fixture(scope="module")
def image() -> str:
    """The image, built from this tree."""
    if not engine_answers():
        pytest.skip("no Docker engine answers")
    if (
        not docker("images", "--quiet", BASE)
        and subprocess.run(
            ["docker", "pull", "--quiet", BASE], capture_output=True, timeout=300, check=False
        ).returncode
    ):
        pytest.skip(f"no base image {BASE}, and it cannot be pulled")
    with find_links() as links:
        command = ["build", "--network", "host", "--tag", IMAGE]
        command += ["--build-arg", f"PIP_FIND_LINKS={links}", str(ROOT)]
        docker(*command, timeout=600)
    return IMAGE


class Cluster:
    """The services of docker-compose.yml."""

    def __init__(self, command: list[str], workers: int) -> None:
        self._command = [*command, "--project-name", PROJECT]
        self._environment = {**os.environ, "WORKERS": str(workers)}

    def __call__(self, *args: str, timeout: float = 420) -> str:
        """Output and errors of a compose command that ends well."""
        done = subprocess.run(
            [*self._command, *args],
            cwd=ROOT,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(args)}: {done.returncode}\n{done.stdout}"
        return done.stdout

    def containers(self) -> dict[str, dict[str, object]]:
        """State of every container, by its name."""
        label = f"label=com.docker.compose.project={PROJECT}"
        ids = docker("ps", "--all", "--quiet", "--filter", label).split()
        found = json.loads(docker("inspect", *ids)) if ids else []
        return {item["Name"].lstrip("/"): item["State"] for item in found}


@pytest.fixture
def cluster(image: str) -> Iterator[Cluster]:
    command = compose_command()
    if command is None:
        pytest.skip("neither docker compose nor docker-compose")
    cluster = Cluster(command, workers=2)
    cluster("down", "--timeout", "5")
    try:
        yield cluster
    finally:
        cluster("down", "--timeout", "5")


def wait_until(condition: Callable[[], bool], limit: float) -> None:
    """Polls a condition that only the Docker engine knows."""
    deadline = time.monotonic() + limit
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"not within {limit} s"
        pause.wait(0.2)


def seconds(action: Callable[[], object]) -> float:
    """How long an action takes."""
    start = time.monotonic()
    action()
    return time.monotonic() - start


def test_image_runs_as_nobody_special(image: str) -> None:
    said = docker("run", "--rm", "--entrypoint", "id", image)
    assert "uid=0" not in said


def test_cluster_trains_and_ends(cluster: Cluster) -> None:
    said = cluster("up", "--no-build")
    found = re.findall(r"test accuracy ([\d.]+) %", said)
    assert len(found) == 1, said
    assert float(found[0]) >= 97
    codes = {name: state["ExitCode"] for name, state in cluster.containers().items()}
    assert len(codes) == 5
    assert set(codes.values()) == {0}, f"{codes}\n{said}"


def test_scaled_cluster_trains_and_ends(cluster: Cluster) -> None:
    said = cluster("up", "--no-build", "--scale", "worker=4")
    assert len(re.findall(r"test accuracy [\d.]+ %", said)) == 1, said
    codes = {name: state["ExitCode"] for name, state in cluster.containers().items()}
    assert len(codes) == 7
    assert set(codes.values()) == {0}, f"{codes}\n{said}"


def test_running_cluster_stops_in_time(cluster: Cluster) -> None:
    # One worker of the two that are awaited: everybody waits, nobody ends by himself.
    cluster("up", "--no-build", "--detach", "--scale", "worker=1")
    wait_until(lambda: len(cluster.containers()) == 4, 60)
    assert {state["Status"] for state in cluster.containers().values()} == {"running"}
    own = seconds(lambda: cluster("ps"))  # the compose client alone takes a second to start
    assert seconds(lambda: cluster("stop")) - own < 3
    codes = {name: state["ExitCode"] for name, state in cluster.containers().items()}
    assert 137 not in codes.values(), f"killed, not stopped: {codes}"
