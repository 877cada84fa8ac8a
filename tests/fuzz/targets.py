"""Whatever reads bytes from the network or a disk: good inputs, and how to read them.

A reader may refuse with an error of ours. Anything else is a finding: another exception, a call
that takes long, memory that grows.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from paramserver.errors import ParameterServerError
from paramserver.ps.push import check_payload, split
from paramserver.snapshot_files import Manifest, ServerFile
from paramserver.snapshot_tensors import TensorReader, TensorWriter
from paramserver.v1 import common_pb2, scheduler_pb2
from paramserver.v1 import server_pb2 as pb
from paramserver.wire.frames import decode, encode
from paramserver.wire.methods import METHODS
from paramserver.wire.rows import decode_rows, encode_rows
from paramserver.wire.serve import parse
from tests.fuzz.disk_targets import Target, disk_targets


def _frame() -> Target:
    worker = common_pb2.Identity(name="worker-0", incarnation=3, view=2, job=1)
    push = pb.Push(worker=worker, group="model", clock=7, weight=2.0, slices=[0, 1, 5])
    data = pb.Data(slices=[0, 1], sizes=[16, 4], checksums=[5, 6])
    records = [pb.Record(request=1, push=push), pb.Record(request=1, data=data)]

    def read(message: bytes) -> None:
        found, payload = decode(message)
        check_payload(found, payload)
        at = 0
        for record in found:
            if record.HasField("data"):
                _, at = split(record.data, payload, at)

    seeds = (
        encode(records, [b"x" * 16, b"yyyy"]),
        encode([pb.Record(request=9, cancel=pb.Cancel())]),
        pb.Frame(header=pb.Header(records=records), payload=b"x" * 20).SerializeToString(),
    )
    return Target("frame", seeds, read)


def _requests() -> Target:
    spec = common_pb2.GroupSpec(name="model")
    seeds = (
        scheduler_pb2.RegisterRequest(name="worker-0", host="h", pid=3).SerializeToString(),
        scheduler_pb2.RegisterGroupRequest(spec=spec).SerializeToString(),
        scheduler_pb2.HeartbeatRequest(stats={"speed": 2.0}).SerializeToString(),
    )

    def read(message: bytes) -> None:
        for method in METHODS.values():
            try:
                parse(method, message)
            except ParameterServerError:
                continue

    return Target("requests", seeds, read)


def _rows() -> Target:
    rows = torch.arange(12.0).view(3, 4)
    seeds = tuple(bytes(encode_rows(rows, wire)) for wire in ("float32", "bfloat16", "int8"))

    def read(message: bytes) -> None:
        for wire in ("float32", "bfloat16", "int8"):
            try:
                decode_rows(message, 4, wire, torch.float32)
            except ParameterServerError:
                continue

    return Target("rows", seeds, read)


def _snapshot(folder: Path) -> Target:
    path = folder / "tensors"
    with path.open("w+b") as stream:
        writer = TensorWriter(stream, 1 << 10)
        writer.add("0/1/value", torch.arange(5.0))
        writer.add("flags", torch.tensor([True, False]))
        writer.add("none", torch.empty(0, 4))
        writer.finish({"server": "ps-0", "groups": [{"clock": 7}]})
    good = path.read_bytes()

    def read(message: bytes) -> None:
        path.write_bytes(message)
        with TensorReader(path) as reader:
            for name in reader.names():
                reader.tensor(name)

    return Target("snapshot", (good,), read)


def _manifest() -> Target:
    file = ServerFile(
        file="ps-0.safetensors",
        server="ps-0",
        bytes=12,
        sha256="0" * 64,
        slices={"model": (0, 1)},
        versions={"model": (3, 3)},
    )
    made = Manifest(name="s", id=1, job=1, created=1.8e9, files=(file,), state={})
    return Target("manifest", (made.to_json().encode(),), Manifest.from_json)


def targets() -> list[Target]:
    """All of them; files lie in a folder that goes with the process."""
    memory = Path("/dev/shm")  # nothing is to be kept: fsync would only take time
    folder = Path(
        tempfile.mkdtemp(prefix="paramserver-fuzz-", dir=memory if memory.is_dir() else None)
    )
    return [
        _frame(),
        _requests(),
        _rows(),
        _snapshot(folder),
        _manifest(),
        *disk_targets(folder),
    ]


__all__ = ["Target", "targets"]
