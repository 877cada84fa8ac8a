"""One file of a snapshot: a safetensors file with a checksum of every tensor and of its metadata.

Written front to back while tensors are still being copied; read tensor by tensor. Any program that
reads safetensors can read it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from safetensors import SafetensorError, safe_open
from torch import Tensor

from paramserver.errors import SnapshotError
from paramserver.wire.tensors import NAMES, as_bytes, checksum, flat_host

FORMAT = 1
CHUNK = 4 << 20
ALIGNMENT = 64
TEXT = "paramserver"  # the one key of the metadata: JSON
_LENGTH = struct.Struct("<Q")
_CODES = {
    "float32": "F32",
    "float64": "F64",
    "bfloat16": "BF16",
    "float16": "F16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}


class TensorWriter:
    """Writes tensors as they come; the header goes to the front at the end.

    Args:
        stream: at its beginning; must seek.
        reserve: bytes kept for the header. Where it needs more, all tensors are moved once.
    """

    def __init__(self, stream: BinaryIO, reserve: int = 1 << 16) -> None:
        self._stream = stream
        self._header: dict[str, Any] = {}
        self._sums: dict[str, str] = {}
        self._first = _aligned(_LENGTH.size + reserve)
        self._size = 0
        stream.seek(self._first)

    def add(self, name: str, tensor: Tensor) -> None:
        """Writes one tensor, in C order."""
        piece = as_bytes(flat_host(tensor))
        code, shape = _CODES[NAMES[tensor.dtype]], list(tensor.shape)
        offsets = [self._size, self._size + len(piece)]
        self._header[name] = {"dtype": code, "shape": shape, "data_offsets": offsets}
        self._sums[name] = _sum(code, shape, piece)
        self._stream.write(piece)
        self._size = offsets[1]

    def finish(self, metadata: Mapping[str, Any]) -> None:
        """Writes the header, with metadata that JSON can hold."""
        text = json.dumps({"format": FORMAT, **metadata, "sums": self._sums}, allow_nan=False)
        meta = {TEXT: text, "checksum": f"{checksum(text.encode()):016x}"}
        header = json.dumps({"__metadata__": meta, **self._header}).encode()
        first = _aligned(_LENGTH.size + len(header))
        if first > self._first:
            self._move(first)
        header = header.ljust(self._first - _LENGTH.size)
        self._stream.seek(0)
        self._stream.write(_LENGTH.pack(len(header)))
        self._stream.write(header)
        self._stream.seek(0, 2)

    def _move(self, first: int) -> None:
        """All tensors further back, the last ones first."""
        at = self._size
        while at > 0:
            size = min(CHUNK, at)
            at -= size
            self._stream.seek(self._first + at)
            chunk = self._stream.read(size)
            self._stream.seek(first + at)
            self._stream.write(chunk)
        self._first = first


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _sum(code: str, shape: list[int], piece: Any) -> str:
    """A checksum of a tensor's bytes, and of how they are to be read."""
    return f"{checksum(piece) ^ checksum(f'{code} {shape}'.encode()):016x}"


class TensorReader:
    """Reads a file that ``TensorWriter`` wrote. A context; nothing it returns was changed.

    Attributes:
        metadata: as given to ``finish``.

    Raises:
        SnapshotError: the file is damaged, or none of ours.
    """

    def __init__(self, path: Path, what: str = "") -> None:
        self._what = what or path.name
        try:
            file: Any = safe_open(path, framework="pt")
            self._file = file
            self.metadata = self._read_metadata(file.metadata() or {})
            self._names = frozenset(file.keys())
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise SnapshotError(f"snapshot file {self._what}: cannot be read: {error}") from error
        if self._names != self._sums.keys():
            raise SnapshotError(f"snapshot file {self._what}: tensors are missing: it is damaged")

    def _read_metadata(self, given: Mapping[str, str]) -> dict[str, Any]:
        text = given.get(TEXT)
        if text is None:
            raise SnapshotError(f"snapshot file {self._what}: not written by a server of ours")
        if given.get("checksum") != f"{checksum(text.encode()):016x}":
            raise SnapshotError(f"snapshot file {self._what}: its metadata is damaged")
        metadata: dict[str, Any] = json.loads(text)
        self._sums: Mapping[str, str] = metadata.pop("sums")
        if metadata.pop("format") != FORMAT:
            raise SnapshotError(f"snapshot file {self._what}: not of format {FORMAT}")
        return metadata

    def __enter__(self) -> TensorReader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        del self._file

    def names(self) -> list[str]:
        """Names of all tensors, sorted."""
        return sorted(self._names)

    def tensor(self, name: str) -> Tensor:
        """A copy of a tensor.

        Raises:
            SnapshotError: it is not there, or its bytes were changed.
        """
        if name not in self._names:
            raise SnapshotError(f"snapshot file {self._what}: has no tensor {name!r}")
        found: Tensor = self._file.get_tensor(name)
        piece = as_bytes(found.reshape(-1))
        if _sum(_CODES[NAMES[found.dtype]], list(found.shape), piece) != self._sums[name]:
            raise SnapshotError(f"snapshot file {self._what}: tensor {name!r} is damaged")
        return found.clone()
