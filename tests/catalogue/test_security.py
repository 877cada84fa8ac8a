"""D. Security: rows 66 to 82, as far as they do not stand in tests/test_trust.py."""

from __future__ import annotations

import ast
import io
import json
import os
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import grpc
import psutil
import pytest

from paramserver.errors import ParameterServerError, SnapshotError
from paramserver.snapshot_files import newest_good, read_manifest
from paramserver.snapshot_stores import check_snapshot_name, open_store
from paramserver.snapshot_tensors import TensorReader
from paramserver.v1 import common_pb2
from paramserver.v1 import server_pb2 as pb
from tests.catalogue.desk import Desk

FLOAT = common_pb2.DTYPE_FLOAT32
ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("ps", "worker", "scheduler", "src/paramserver")
SECRET = "the innermost secret of /a/path"


def sources() -> list[Path]:
    found = {p.resolve() for f in FOLDERS for p in (ROOT / f).rglob("*.py")}
    return sorted(p for p in found if "_pb2" not in p.name)


@pytest.mark.parametrize(
    "name", ["../x", "/etc/x", "~", "a/../../b", "a\0b", "a\nb", "", ".", "..", "x" * 300, "a/b"]
)
def test_row_75_names_that_leave_their_folder(name: str, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "in"))
    with pytest.raises(SnapshotError):
        check_snapshot_name(name)
    with pytest.raises(ParameterServerError):
        read_manifest(store, name)
    assert list(tmp_path.rglob("*")) == []


def test_row_75_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "manifest.json").write_text("{}")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "step-1").symlink_to(tmp_path / "outside")
    with pytest.raises(ParameterServerError):
        read_manifest(open_store(str(tmp_path / "in")), "step-1")


# A spawned worker of local_cluster hears its function from its own parent, as in multiprocessing;
# zlib is there for a checksum.
ALLOWED = {"src/paramserver/local_job.py": {"pickle"}, "worker/party.py": {"zlib"}}
BANNED_CALLS = {"eval", "exec", "compile", "__import__"}
BANNED_MODULES = {
    "cPickle", "cloudpickle", "dill", "marshal", "pickle", "shelve", "yaml",
    "gzip", "zlib", "bz2", "lzma", "zipfile", "tarfile",
}  # fmt: skip


def test_rows_76_and_79_nothing_here_runs_or_unpacks_what_comes_in() -> None:
    """No pickle, no evaluation, no decompression anywhere in the product."""
    found = []
    for path in sources():
        name = str(path.relative_to(ROOT))
        for node in ast.walk(ast.parse(path.read_text())):
            modules: list[str] = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module or ""]
            banned = {m.partition(".")[0] for m in modules} & BANNED_MODULES
            found += [(name, m) for m in banned - ALLOWED.get(name, set())]
            if isinstance(node, ast.Call):
                text = ast.unparse(node.func)
                if text in BANNED_CALLS:
                    found.append((name, text))
                if text.endswith("torch.load") and "weights_only=True" not in ast.unparse(node):
                    found.append((name, ast.unparse(node)))
                if text in ("np.load", "numpy.load") or "decompress" in text:
                    found.append((name, text))
    assert found == []


def pickled_bomb() -> bytes:
    return b"cos\nsystem\n(S'touch /tmp/should-never-be'\ntR."


def zipped_bomb() -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("data.pkl", bytes(64 << 20))
    return made.getvalue()


@pytest.mark.parametrize(
    "manifest",
    [
        pickled_bomb(),
        zipped_bomb(),
        b"\x1f\x8b" + b"\0" * 100,
        b"[" * 100_000,
        b"{}",
        b"null",
        json.dumps({"files": {"ps-0": {"bytes": 4 << 40}}}).encode(),
        b"\xff\xfe",
        b'{"a": 1e999}',
    ],
    ids=["pickle", "zip", "gzip", "deep", "empty", "null", "4 TiB", "no text", "infinite"],
)
def test_rows_76_to_79_manifests_that_are_bombs(manifest: bytes, tmp_path: Path) -> None:
    """An error of ours, in little memory, and no snapshot to begin from."""
    folder = tmp_path / "step-1"
    folder.mkdir()
    (folder / "manifest.json").write_bytes(manifest)
    before = psutil.Process().memory_info().rss
    store = open_store(str(tmp_path))
    with pytest.raises(ParameterServerError):
        read_manifest(store, "step-1")
    assert newest_good(store)[0] is None
    assert psutil.Process().memory_info().rss - before < 256 << 20
    assert not Path("/tmp/should-never-be").exists()


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<Q", 1 << 62) + b"{}",
        struct.pack("<Q", 2) + b"{",
        b"",
        struct.pack("<Q", 3) + b"nul",
        pickled_bomb(),
    ],
    ids=["header of 2^62", "cut off", "empty", "no json", "pickle"],
)
def test_row_77_files_of_tensors_that_lie(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "ps-0.safetensors"
    path.write_bytes(data)
    with pytest.raises(SnapshotError):
        TensorReader(path)


def test_row_80_one_port_and_on_loopback() -> None:
    """A role listens on its one port, on this machine, unless it is told otherwise."""
    process = subprocess.Popen(
        [sys.executable, "-m", "paramserver", "scheduler"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        found = re.search(r"ready at (\S+):(\d+)", process.stdout.readline())
        assert found is not None
        ports = [
            c.laddr
            for c in psutil.Process(process.pid).net_connections("inet")
            if c.status == psutil.CONN_LISTEN
        ]
        assert [(p.ip.removeprefix("::ffff:"), p.port) for p in ports] == [
            ("127.0.0.1", int(found[2]))
        ]
    finally:
        process.terminate()
        process.wait(20)
        process.stdout.close()  # type: ignore[union-attr]


def test_row_81_errors_of_ours_tell_strangers_nothing(
    at: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An id to look for, and the words in the log."""

    def fails(*_: object) -> None:
        raise ValueError(SECRET)

    monkeypatch.setattr(at.cluster.servers[0].collectives, "check", fails)
    monkeypatch.setattr("paramserver.ps.service.describe", fails)
    with caplog.at_level("ERROR"):
        said = at.refuse_call(
            at.worker.server.Describe, pb.DescribeRequest(), grpc.StatusCode.INTERNAL
        )
        contribute = pb.Contribute(worker=at.identity, name="r", pieces=[0], sizes=[1], dtype=FLOAT)
        records = [
            pb.Record(request=7, contribute=contribute),
            pb.Record(request=7, data=pb.Data(slices=[0], sizes=[1], checksums=[0])),
        ]
        failed = at.refuse(records, b"x", reason="INTERNAL")
    for message in (said, failed):
        assert SECRET not in message
        mark = re.search(r"internal error ([0-9a-f]{8})", message)
        assert mark is not None
        assert mark[1] in caplog.text
    assert SECRET in caplog.text


def test_row_82_no_shell_is_asked() -> None:
    for path in sources():
        text = path.read_text()
        assert "shell=True" not in text, path
        assert "os.system(" not in text, path


def test_row_82_what_the_environment_adds_is_not_run(tmp_path: Path) -> None:
    """A value of a variable is a value: nothing in it is expanded."""
    trap = tmp_path / "trap"
    done = subprocess.run(
        [sys.executable, "-m", "paramserver", "status"],
        env={**os.environ, "PARAMSERVER_SCHEDULER": f"$(touch {trap}):1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode in (1, 2)
    assert done.stderr.count("\n") == 1
    assert not trap.exists()
