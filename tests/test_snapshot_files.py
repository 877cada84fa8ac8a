"""Files of a snapshot: whole or not there, every change found, names kept in their folder."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor

from paramserver import failpoints
from paramserver.errors import ConfigurationError, SnapshotError
from paramserver.snapshot_files import (
    MANIFEST,
    Manifest,
    ServerFile,
    Store,
    chain,
    check_snapshot_name,
    complete,
    file_name,
    newest_good,
    open_store,
    prune,
    read_manifest,
    verify,
    write_manifest,
)
from paramserver.snapshot_tensors import TensorReader, TensorWriter

TENSORS = {
    "0/1/value": torch.arange(5.0),
    "0/1/step": torch.tensor(3.0),
    "flags": torch.tensor([True, False, True]),
    "none": torch.empty(0, 4),
    "half": torch.tensor([[1.5, 2.5]], dtype=torch.bfloat16),
    "long": torch.tensor([2**62, -1]),
    "double": torch.tensor([1e300], dtype=torch.float64),
}
METADATA = {"server": "ps-0", "groups": [{"clock": 7}]}


def written(path: Path, reserve: int = 1 << 12, tensors: dict[str, Tensor] = TENSORS) -> bytes:
    with path.open("w+b") as stream:
        writer = TensorWriter(stream, reserve)
        for name, tensor in tensors.items():
            writer.add(name, tensor)
        writer.finish(METADATA)
    return path.read_bytes()


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with TensorReader(path) as reader:
        return {name: reader.tensor(name) for name in reader.names()}, reader.metadata


def same(found: dict[str, Tensor]) -> bool:
    return found.keys() == TENSORS.keys() and all(
        found[n].dtype == t.dtype and torch.equal(found[n], t) for n, t in TENSORS.items()
    )


@pytest.mark.parametrize("reserve", [0, 100, 1 << 12], ids=["none", "little", "enough"])
def test_tensors_come_back(tmp_path: Path, reserve: int) -> None:
    path = tmp_path / "file"
    written(path, reserve)
    found, metadata = read(path)
    assert same(found)
    assert metadata == METADATA
    with safe_open(path, framework="pt") as plain:  # any program that reads safetensors can
        assert all(torch.equal(plain.get_tensor(n), t) for n, t in TENSORS.items())


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.integers(0, 3000), max_size=12), reserve=st.integers(0, 2000))
def test_a_header_that_does_not_fit_moves_the_tensors(sizes: list[int], reserve: int) -> None:
    stream = io.BytesIO()
    writer = TensorWriter(stream, reserve)
    for number, size in enumerate(sizes):
        writer.add(str(number), torch.full((size,), number, dtype=torch.uint8))
    writer.finish({})
    found = stream.getvalue()
    (length,) = struct.unpack_from("<Q", found)
    header = json.loads(found[8 : 8 + length])
    assert len(found) == 8 + length + sum(sizes)
    for number, size in enumerate(sizes):
        start, stop = header[str(number)]["data_offsets"]
        assert found[8 + length + start : 8 + length + stop] == bytes([number]) * size


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "file"
    whole = written(path, 0)
    for at in range(len(whole)):
        for flip in (0x01, 0xFF):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :])
            try:
                found, metadata = read(path)
            except SnapshotError:
                continue
            assert same(found), at  # blanks behind the header
            assert metadata == METADATA


def test_every_truncation_is_found(tmp_path: Path) -> None:
    path = tmp_path / "file"
    whole = written(path, 0)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(SnapshotError):
            read(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(SnapshotError):
        read(path)


def test_what_is_not_ours_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "file"
    save_file({"w": torch.ones(3)}, path)
    with pytest.raises(SnapshotError, match="not written by a server of ours"):
        TensorReader(path)
    path.write_bytes(struct.pack("<Q", 1 << 62) + b"{}")
    with pytest.raises(SnapshotError, match="cannot be read"):
        TensorReader(path)
    with pytest.raises(SnapshotError, match="cannot be read"):
        TensorReader(tmp_path / "nothing")
    written(path)
    with TensorReader(path) as reader, pytest.raises(SnapshotError, match="no tensor 'x'"):
        reader.tensor("x")


# Stores


@pytest.fixture(params=["folder", "file URL", "memory URL"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "memory URL":
        return f"memory://{tmp_path}"
    return str(tmp_path / "new") if request.param == "folder" else f"file://{tmp_path}/new"


def put(store: Store, name: str, content: bytes = b"x") -> ServerFile:
    with store.create(name) as made:
        made.stream.write(content)
    return ServerFile(name.partition("/")[2], "ps-0", made.bytes, made.sha256)


def snapshot(
    store: Store, name: str, at: float, base: str = "", created: float | None = None
) -> Manifest:
    part = put(store, f"{name}/{file_name('ps-0')}", name.encode())
    part = ServerFile(part.file, part.server, part.bytes, part.sha256, {"m": [0]}, {"m": [3]}, base)
    created = at if created is None else created
    manifest = Manifest(name, int(at), 1, created, (part,), {"epoch": 2})
    write_manifest(store, manifest)
    return manifest


def test_a_store_keeps_whole_files(place: str) -> None:
    store = open_store(place)
    assert store.folders() == []
    assert store.files("a") == []
    made = put(store, "a/f", b"hello")
    assert made.bytes == 5
    assert made.sha256.startswith("2cf24dba5fb0")
    half = store.create("a/g")
    half.__enter__().stream.write(b"half")
    assert not half.__exit__(ValueError, ValueError("lost"), None)
    assert store.files("a") == ["f"]
    put(store, "a/f", b"again")
    with store.open("a/f") as stream:
        assert stream.read() == b"again"
    with store.local("a/f") as path:
        assert path.read_bytes() == b"again"
    with pytest.raises(SnapshotError), store.open("a/g"):
        pass
    store.delete("a")
    store.delete("a")
    store.delete("b/c")
    assert store.folders() == []


BAD_NAMES = ["../x", "/etc/passwd", "~/x", "a/../b", "a/b/c", "", ".", "..", ".a", "a\0b", "a\nb"]


@pytest.mark.parametrize("name", [*BAD_NAMES, "a" * 300, "\u202ea", "a b"])
def test_names_cannot_leave_the_folder(place: str, name: str) -> None:
    store = open_store(place)
    calls: list[Callable[[], Any]] = [
        lambda: store.create(name).__enter__(),
        lambda: store.open(name).__enter__(),
        lambda: store.local(name).__enter__(),
        lambda: store.files(name),
        lambda: store.delete(name),
        lambda: store.create(f"{name}/f").__enter__(),
        lambda: check_snapshot_name(name),
        lambda: read_manifest(store, name),
    ]
    for call in calls:
        with pytest.raises(SnapshotError):
            call()


@pytest.mark.parametrize("server", ["ps-0", "a/b", "..", "/", "x y\n", "ü"])
def test_the_file_of_any_server_is_a_plain_name(place: str, server: str) -> None:
    store = open_store(place)
    put(store, f"a/{file_name(server)}")
    assert store.files("a") == [file_name(server)]
    assert file_name("a/b") != file_name("a%2Fb")


def test_links_are_not_followed(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "snapshots"))
    put(store, "a/f")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "f").write_text("secret")
    (tmp_path / "snapshots" / "b").symlink_to(outside)
    (tmp_path / "snapshots" / "a" / "g").symlink_to(outside / "f")
    for name in ("b/f", "a/g"):
        with pytest.raises(SnapshotError), store.open(name):
            pass
    with pytest.raises(SnapshotError):
        store.delete("b/f")
    assert store.folders() == ["a"]
    assert (outside / "f").exists()


def test_urls_that_nobody_reads() -> None:
    with pytest.raises(ConfigurationError, match="none given"):
        open_store("")
    with pytest.raises(ConfigurationError, match="nosuchthing://x"):
        open_store("nosuchthing://x")


# Manifests


def test_a_snapshot_is_what_has_a_manifest(place: str) -> None:
    store = open_store(place)
    put(store, f"torn/{file_name('ps-0')}")
    for number, name in enumerate(("one", "two", "three")):
        snapshot(store, name, float(number))
    assert [m.name for m in complete(store)] == ["one", "two", "three"]
    manifest = read_manifest(store, "two")
    assert manifest == Manifest.from_json(manifest.to_json())
    assert (manifest.nbytes, manifest.state) == (3, {"epoch": 2})
    verify(store, manifest)
    for name in ("torn", "mistyped"):
        with pytest.raises(SnapshotError, match=f"there is no snapshot '{name}'"):
            read_manifest(store, name)


def test_every_change_of_a_manifest_is_found(place: str) -> None:
    store = open_store(place)
    text = snapshot(store, "one", 1.0).to_json()
    assert Manifest.from_json(text).name == "one"
    for at in range(len(text)):
        changed = text[:at] + chr(ord(text[at]) ^ 1) + text[at + 1 :]
        with pytest.raises(SnapshotError):
            Manifest.from_json(changed)
        with pytest.raises(SnapshotError):
            Manifest.from_json(text[:at])
    put(store, f"two/{MANIFEST}", text.encode())
    with pytest.raises(SnapshotError, match="has the manifest of 'one'"):
        read_manifest(store, "two")
    put(store, f"three/{MANIFEST}", b"[" * 100_000)
    with pytest.raises(SnapshotError, match="cannot be read"):
        read_manifest(store, "three")
    assert [m.name for m in complete(store)] == ["one"]


def test_a_damaged_snapshot_is_passed_over(place: str) -> None:
    store = open_store(place)
    for number in range(4):
        snapshot(store, f"s{number}", float(number))
    put(store, f"s3/{file_name('ps-0')}", b"S3")
    store.delete(f"s2/{file_name('ps-0')}")
    good, problems = newest_good(store)
    assert good is not None
    assert good.name == "s1"
    assert len(problems) == 2
    assert "snapshot 's3': ps-ps-0.safetensors is damaged" in problems[0]
    for number in range(4):
        store.delete(f"s{number}/{file_name('ps-0')}")
    assert newest_good(store)[0] is None


def test_changes_need_their_base(place: str) -> None:
    store = open_store(place)
    for name, at, base in (("a", 0.0, ""), ("b", 1.0, "a"), ("c", 2.0, "b"), ("d", 3.0, "")):
        snapshot(store, name, at, base)
    assert [m.name for m in chain(store, read_manifest(store, "c"))] == ["a", "b", "c"]
    assert prune(store, 2) == []
    put(store, f"a/{file_name('ps-0')}", b"A")
    store.delete("d")
    assert newest_good(store)[0] is None
    snapshot(store, "d", 3.0)
    assert prune(store, 1) == ["a", "b", "c"]


def test_prune_leaves_what_is_not_ours(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    for number in range(4):
        snapshot(store, f"s{number}", float(number))
    put(store, f"torn/{file_name('ps-0')}")
    put(store, f"busy/{file_name('ps-0')}")
    for name, file in (("model", "weights.safetensors"), ("site", MANIFEST), ("site", "index.js")):
        put(store, f"{name}/{file}")
    (tmp_path / "empty").mkdir()
    assert prune(store, 2, busy=["busy"]) == ["s0", "s1", "torn"]
    assert store.folders() == ["busy", "empty", "model", "s2", "s3", "site"]


def test_prune_is_not_kept_from_its_work_by_what_lies_about(place: str) -> None:
    """Every file system made by mkfs has a lost+found; a snapshot may have lost its base."""
    store = open_store(place)
    for name in ("lost+found", ".git", "my models") if "://" not in place else ():
        (Path(place) / name).mkdir(parents=True)
    for number in range(4):
        snapshot(store, f"s{number}", float(number))
    snapshot(store, "s4", 4.0, "nowhere")
    assert [m.name for m in complete(store)] == ["s0", "s1", "s2", "s3", "s4"]
    assert prune(store, 2) == ["s0", "s1", "s2"]
    assert store.folders() == ["s3", "s4"]


def test_prune_leaves_what_it_cannot_read(place: str) -> None:
    """It may be of another version, or the disk may be away for a moment."""
    store = open_store(place)
    for number in range(3):
        snapshot(store, f"s{number}", float(number))
    newer = read_manifest(store, "s0").to_json().replace('"format": 1', '"format": 2')
    put(store, f"s0/{MANIFEST}", newer.encode())
    assert prune(store, 1) == ["s1"]
    assert store.folders() == ["s0", "s2"]


@pytest.mark.parametrize("where", ["snapshot.before_fsync", "snapshot.before_rename"])
def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, where: str) -> None:
    store = open_store(str(tmp_path))
    put(store, "a/f", b"before")
    failpoints.arm(f"{where}:error=ENOSPC")
    try:
        with pytest.raises(OSError, match="No space"):
            put(store, "a/f", b"after")
    finally:
        failpoints.arm("")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["f"]
    with store.open("a/f") as stream:
        assert stream.read() == b"before"


CRASHES = """
import sys
from tests.test_snapshot_files import snapshot
from paramserver import failpoints
from paramserver.snapshot_files import open_store
failpoints.arm(sys.argv[2])
snapshot(open_store(sys.argv[1]), "two", 2.0)
"""


@pytest.mark.parametrize("step", ["before_fsync", "before_rename", "after_rename"])
@pytest.mark.parametrize("time", [1, 2], ids=["tensors", "manifest"])
def test_a_crash_leaves_a_whole_snapshot_or_none(tmp_path: Path, step: str, time: int) -> None:
    store = open_store(str(tmp_path))
    one = snapshot(store, "one", 1.0)
    ended = subprocess.run(
        [sys.executable, "-c", CRASHES, str(tmp_path), f"snapshot.{step}:crash@{time}"],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        timeout=60,
        check=False,
    )
    assert ended.returncode == -9
    found = [manifest.name for manifest in complete(store)]
    assert found == (["one", "two"] if (step, time) == ("after_rename", 2) else ["one"])
    good, problems = newest_good(store)
    assert good is not None
    assert (good.name, problems) == (found[-1], [])
    if found == ["one"]:
        assert good == one
        snapshot(store, "three", 3.0)
        assert prune(store, 1) == ["one", "two"], "what never became a snapshot goes too"


def test_two_schedulers_do_not_share_a_place(tmp_path: Path) -> None:
    """Each would clear away what the other has begun, under the same names."""
    place = str(tmp_path / "new")
    with open_store(place).own():
        with pytest.raises(ConfigurationError, match="its own --snapshot-dir"):
            open_store(place).own().__enter__()
        assert open_store(place).folders() == []
    with open_store(place).own(), open_store(f"memory://{tmp_path}").own():
        pass
    (tmp_path / "file").touch()  # nothing can be made there, and that is told elsewhere
    with open_store(str(tmp_path / "file")).own():
        pass
