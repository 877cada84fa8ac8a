"""What ``import paramserver`` offers, and what it costs."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import paramserver as ps
from paramserver.embedded import _Loop
from paramserver.errors import ConfigurationError, ConnectionLostError

FACE = [
    "LRU",
    "TTL",
    "Adaptive",
    "AllReduce",
    "Async",
    "Client",
    "CountFilter",
    "DataShard",
    "Decay",
    "Downpour",
    "Embedding",
    "EmbeddingBag",
    "Group",
    "Local",
    "LocalCluster",
    "MinimizeResult",
    "Normal",
    "ParameterServerError",
    "Probability",
    "Stale",
    "StepResult",
    "Sync",
    "Table",
    "Tls",
    "Uniform",
    "VerticalLinear",
    "Zeros",
    "__version__",
    "connect",
    "errors",
    "local_cluster",
    "minimize",
]


def fresh(code: str) -> str:
    """What a new interpreter prints."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def test_the_face_is_pinned() -> None:
    assert ps.__all__ == FACE
    assert dir(ps) == sorted(FACE)


@pytest.mark.parametrize("name", FACE)
def test_every_name_is_there(name: str) -> None:
    assert getattr(ps, name) is not None


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Sink'"):
        ps.Sink  # noqa: B018


def test_connect_stays_a_function() -> None:
    said = fresh(
        "import paramserver as ps, paramserver._connect, paramserver.local\n"
        "print(callable(ps.connect), ps.connect is paramserver._connect.connect)"
    )
    assert said == "True True\n"


def test_import_brings_neither_torch_nor_grpc() -> None:
    said = fresh(
        "import sys, paramserver\n"
        "print([m for m in ('torch', 'grpc', 'numpy', 'google.protobuf') if m in sys.modules])"
    )
    assert said == "[]\n"


def test_scheduler_does_without_torch() -> None:
    said = fresh(
        "import sys, paramserver.scheduler.main\n"
        "print([m for m in ('torch', 'numpy') if m in sys.modules])"
    )
    assert said == "[]\n"


@pytest.mark.slow
def test_import_costs_little_beyond_torch() -> None:
    code = (
        "import time, torch, torch.utils.data\n"
        "start = time.process_time()\n"
        "import paramserver\n"
        "for name in paramserver.__all__:\n"
        "    getattr(paramserver, name)\n"
        "print(time.process_time() - start)"
    )
    # Up to five tries: what others do on the machine costs this process time too.
    assert any(float(fresh(code)) <= 0.3 for _ in range(5))


@pytest.mark.parametrize("argument", [{"timeout": 0}, {"wait_timeout": -1}])
def test_connect_refuses_times_that_cannot_work(argument: Any) -> None:
    with pytest.raises(ConfigurationError, match="must be > 0"):
        ps.connect(**argument)


def test_half_an_environment_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARAMSERVER_NAME", "worker-0")
    with pytest.raises(ConfigurationError, match="PARAMSERVER_NAME set, but no scheduler"):
        ps.connect()


def test_settings_of_a_run_go_with_an_embedded_cluster(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("PARAMSERVER_SCHEDULER", raising=False)
    for name, value in (("EMULATE", "sample=0.001"), ("SCHEME", "stale:4"), ("SEED", "1")):
        monkeypatch.setenv(f"PARAMSERVER_{name}", value)
    monkeypatch.setenv("PARAMSERVER_RUN_DIR", str(tmp_path))
    with ps.connect():
        pass
    assert '"scheme": "stale:4"' in (tmp_path / "worker-0.jsonl").read_text()


def test_nothing_named_is_an_embedded_cluster(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("PARAMSERVER_SCHEDULER", raising=False)
    with ps.connect() as client:
        assert (client.rank, client.num_workers, client.is_chief) == (0, 1, True)
    assert capsys.readouterr().out == (
        "paramserver: no scheduler named, running an embedded cluster in this process\n"
    )


def test_a_call_under_way_when_the_embedded_cluster_closes_is_no_internal_error() -> None:
    """As when ``minimize`` raises while its coordinator waits in a thread of its own."""
    loop = _Loop()
    begun = threading.Event()

    async def wait() -> None:
        begun.set()
        await asyncio.Event().wait()

    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(lambda: loop.run(wait()))
        assert begun.wait(30)
        loop.close()
        with pytest.raises(ConnectionLostError, match="embedded cluster was closed"):
            call.result(30)
