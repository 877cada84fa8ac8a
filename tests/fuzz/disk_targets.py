"""What is read from disks of our own, and what the server sends whose backup one keeps."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from google.protobuf.json_format import MessageToDict

from paramserver.config import SchedulerConfig
from paramserver.core.members import Caller, Role
from paramserver.core.placement import GroupSpec
from paramserver.core.slices import TensorSpec
from paramserver.errors import ParameterServerError
from paramserver.ps import checkpoint, wal
from paramserver.ps.state_dir import IDENTITY, StateDir
from paramserver.scheduler.event_log import EventLog
from paramserver.scheduler.image import GroupImage, Image
from paramserver.scheduler.plain import from_text, to_text
from paramserver.scheduler.state import SchedulerState
from paramserver.snapshot_groups import groups_in
from paramserver.snapshot_tensors import TensorReader, TensorWriter
from paramserver.types import Sync
from paramserver.v1 import journal_pb2 as pb
from paramserver.v1 import server_pb2
from paramserver.wire.convert import group_to_proto
from paramserver.wire.entries import decode_entry, encode_entry

CONFIG = SchedulerConfig(workers=1)
SPEC = GroupSpec("g", (TensorSpec("w", (4,), "float32", "add"),), "", (), Sync())


@dataclass(frozen=True, slots=True)
class Target:
    """Something that reads.

    Attributes:
        seeds: inputs that are good.
        read: reads one input.
        refusals: what it may raise.
    """

    name: str
    seeds: tuple[bytes, ...]
    read: Callable[[bytes], object]
    refusals: tuple[type[Exception], ...] = (ParameterServerError,)


def _entries() -> list[bytes]:
    """Entries of a journal, of a few kinds."""
    part = pb.Part(slice=0, kind=pb.PART_GRADIENT, dtype="DTYPE_FLOAT32", bytes=16)
    return [
        encode_entry(pb.Entry(begun=pb.Begun(format=1, server="ps-0", job=1))),
        encode_entry(pb.Entry(group="g", stored=pb.Stored(), parts=[part]), [b"x" * 16]),
        encode_entry(
            pb.Entry(group="g", arrived=pb.Arrived(rank=1, clock=3, slices=[0]), parts=[part]),
            [b"y" * 16],
        ),
        encode_entry(pb.Entry(group="g", completed=pb.Completed(rank=1, clock=3))),
    ]


def _records(*, durable: bool) -> bytes:
    """A file of a journal."""
    return b"".join(
        wal.head(number, number - 1 if durable else 0, data) + data
        for number, data in enumerate(_entries(), 1)
    )


def _journal(folder: Path) -> Target:
    """A segment, and every entry that is read from it; what is left is read again."""
    path = wal.segment_path(folder, 1)

    def read(data: bytes) -> None:
        path.write_bytes(data)
        for _ in range(2):  # the second time without its torn end
            for _, entry in wal.read_all(folder):
                decode_entry(entry)

    return Target("journal", (_records(durable=True), _records(durable=False)), read)


def _dump(folder: Path) -> Target:
    path = folder / "dump-00000000000000000007.log"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        for entry in checkpoint.read(path):
            decode_entry(entry)

    whole = _records(durable=False)
    return Target("dump", (whole + wal.head(5, 0, b""),), read)


def _replication() -> Target:
    """Messages to a backup, and the entries in them."""
    entries = _entries()
    seeds = [
        server_pb2.ReplicateRequest(server="ps-0", job=1, epoch=2),
        server_pb2.ReplicateRequest(number=1, position=1, records=entries),
        server_pb2.ReplicateRequest(number=1, position=1, records=[entries[1]], more=True),
    ]

    def read(data: bytes) -> None:
        try:
            request = server_pb2.ReplicateRequest.FromString(data)
        except Exception:  # refused by the transport, before anything of ours sees it
            decode_entry(data)
            return
        for record in request.records:
            decode_entry(record)

    return Target("replication", (*(s.SerializeToString() for s in seeds), *entries), read)


def _identity(folder: Path) -> Target:
    path = folder / "identity"
    path.mkdir()
    good = json.dumps({"name": "ps-0", "incarnation": 3, "port": 7071}).encode()

    def read(data: bytes) -> None:
        (path / IDENTITY).write_bytes(data)
        StateDir(str(path)).close()

    return Target("identity", (good,), read)


def _log(folder: Path) -> Path:
    """A state directory of a scheduler with a few events."""

    async def fill() -> None:
        log = EventLog(folder)
        state = SchedulerState(CONFIG, 0.0)
        state.recorder = lambda method, rest, named: log.record(state, 0.0, method, rest, named)
        log.begin(state, CONFIG, 0.0)
        for role in (Role.SERVER, Role.WORKER):
            member = state.register(role, "", 0.0, address="h:1", host="h", pid=1).member
        state.register_group(Caller(member.name, member.incarnation, 1), SPEC, 0.0)
        await log.durable()
        log.close()

    asyncio.run(fill())
    return folder / "scheduler.sqlite"


def _rows(folder: Path) -> list[Target]:
    """A row of the event log, a whole state, and the file itself."""
    path = _log(folder / "log")
    with closing(sqlite3.connect(path)) as database:
        rows = database.execute("SELECT number, arguments FROM events").fetchall()
        (state,) = database.execute("SELECT state FROM states").fetchone()
        database.execute("PRAGMA journal_mode=DELETE")
    whole, texts = path.read_bytes(), tuple(text.encode() for _, text in rows)

    def read_row(data: bytes) -> None:
        from_text(data.decode(errors="replace"), CONFIG)

    def tell() -> None:
        log = EventLog(path.parent)
        try:
            log.tell(CONFIG)
        finally:
            log.close()

    def read_told(data: bytes) -> None:
        path.write_bytes(whole)
        number, _ = rows[-1]
        with closing(sqlite3.connect(path)) as database, database:
            text = data.decode(errors="replace")
            database.execute("UPDATE events SET arguments=? WHERE number=?", (text, number))
        tell()

    def read_file(data: bytes) -> None:
        for beside in path.parent.glob("scheduler.sqlite-*"):
            beside.unlink()
        path.write_bytes(data)
        tell()

    return [
        Target("plain", (*texts, state.encode(), to_text([1, "a"]).encode()), read_row),
        Target("events", texts[-1:], read_told),
        Target("log", (whole,), read_file),
    ]


def _image() -> Target:
    image = Image(7, 9, 40, 5, 3, "line", None, ("g",), (GroupImage(SPEC, 4, 30, 30),), ())
    good = json.dumps(image.to_json()).encode()

    def read(data: bytes) -> None:
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            return  # as ``Manifest.from_json`` refuses it
        if isinstance(value, dict):
            Image.from_json(value)

    return Target("image", (good,), read)


def _groups(folder: Path) -> Target:
    """What a file of a snapshot says of its groups; its checksums are right."""
    path = folder / "groups"
    entry = {
        "name": "g",
        "spec": MessageToDict(group_to_proto(SPEC)),
        "slice_elements": 4,
        "clock": 3,
        "version": 3,
        "ledger": {},
        "vectors": {},
        "slices": {"0": {"version": 3}},
    }

    def read(data: bytes) -> None:
        try:
            groups = json.loads(data)
            json.dumps(groups, allow_nan=False)
        except (ValueError, RecursionError):
            return
        with path.open("w+b") as stream:
            writer = TensorWriter(stream, 1 << 10)
            writer.add("0/0/value", torch.zeros(4))
            writer.finish({"server": "ps-0", "groups": groups})
        with TensorReader(path) as reader:
            for group in groups_in(reader).values():
                for index in group.slices:
                    group.tensors(index)

    return Target("groups", (json.dumps([entry]).encode(),), read)


def disk_targets(folder: Path) -> list[Target]:
    """All of them."""
    return [
        _journal(_made(folder / "journal")),
        _dump(_made(folder / "dump")),
        _replication(),
        _identity(folder),
        *_rows(folder),
        _image(),
        _groups(folder),
    ]


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
