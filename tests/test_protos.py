"""The contract on the wire: stubs up to date, every call commented."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROTOS = sorted((ROOT / "protos" / "paramserver" / "v1").glob("*.proto"))
STUBS = ROOT / "src" / "paramserver" / "v1"
MAKEFILE = (ROOT / "Makefile").read_text()
GENERATOR = re.search(r"^PROTOC_VERSION := (\S+)$", MAKEFILE, re.MULTILINE)


def generator() -> str:
    """A Python that has the pinned generator, or a skip that says how to get one."""
    assert GENERATOR is not None
    candidate = ROOT / os.environ.get("PROTOC_VENV", ".venv-protos") / "bin" / "python"
    if candidate.exists():
        return str(candidate)
    try:
        if version("grpcio-tools") == GENERATOR[1] and importlib.util.find_spec("grpc_tools"):
            return sys.executable
    except PackageNotFoundError:
        pass
    pytest.skip(f"no grpcio-tools {GENERATOR[1]}: make check-protos brings it")


def test_stubs_are_what_the_generator_writes(tmp_path: Path) -> None:
    command = [generator(), "-m", "grpc_tools.protoc", f"-I{ROOT / 'protos'}"]
    command += [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    subprocess.run([*command, *map(str, PROTOS)], check=True, timeout=60)
    fresh = {path.name: path.read_text() for path in (tmp_path / "paramserver" / "v1").iterdir()}
    kept = {path.name: path.read_text() for path in STUBS.iterdir() if "_pb2" in path.name}
    assert kept == fresh


def test_there_are_protos() -> None:
    names = ["common.proto", "journal.proto", "scheduler.proto", "server.proto"]
    assert [path.name for path in PROTOS] == names


@pytest.mark.parametrize("path", PROTOS, ids=lambda path: path.stem)
def test_every_rpc_has_a_comment(path: Path) -> None:
    lines = path.read_text().splitlines()
    bare = [
        line.strip()
        for above, line in zip(["", *lines], lines, strict=False)
        if line.strip().startswith("rpc ") and not above.strip().startswith("//")
    ]
    assert bare == []


@pytest.mark.parametrize("path", PROTOS, ids=lambda path: path.stem)
def test_package_mirrors_the_path(path: Path) -> None:
    assert "package paramserver.v1;" in path.read_text()
