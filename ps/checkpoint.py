"""Dumps in a state directory: what makes the older part of a journal superfluous."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from paramserver.errors import SnapshotError
from paramserver.failpoints import failpoint
from paramserver.ps import wal

_END = b""  # the entry of the last record


def newest(folder: Path) -> tuple[int, Path] | None:
    """The newest complete dump, and the position of the journal that it was begun at."""
    return max(wal.numbered(folder, "dump"), default=None)


def clear(folder: Path, but: Path | None = None) -> None:
    """Deletes the dumps, finished or not."""
    finished = [path for _, path in wal.numbered(folder, "dump")]
    for path in [*finished, *folder.glob("dump-*.tmp")]:
        if path != but:
            path.unlink()


def read(path: Path) -> Iterator[memoryview]:
    """The entries of a dump.

    Raises:
        SnapshotError: it is damaged.
    """
    view = memoryview(path.read_bytes())
    whole = False
    for record in wal.records_of(view, path, 1):
        whole = record.end == len(view) and len(record.data) == 0
        if not whole:
            yield record.data
    if not whole:
        raise SnapshotError(
            f"{path}: damaged; the disk has failed. Restore the newest snapshot, or start the "
            "server with an empty --state-dir and the job anew"
        )


class DumpFile:
    """A dump under way: it counts once it is finished, and not before.

    Args:
        position: of the journal, before the first entry of the dump is made.

    Attributes:
        bytes: written so far.
    """

    def __init__(self, folder: Path, position: int) -> None:
        self._path = folder / f"dump-{position:020d}.log"
        self._temporary = self._path.with_suffix(".tmp")
        self._stream = self._temporary.open("wb")
        self._count = 0
        self.bytes = 0

    def write(self, data: bytes) -> None:
        """One more entry. Any thread, one after the other."""
        self._count += 1
        failpoint("ps.before_dump_write")
        self._stream.write(wal.head(self._count, 0, data))
        self._stream.write(data)
        self.bytes += len(data) + wal.HEAD_BYTES

    def finish(self) -> Path:
        """All of it is there; what it contains must be durable by now."""
        self.write(_END)
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        failpoint("ps.before_rename")
        self._temporary.rename(self._path)
        wal.sync_folder(self._path.parent)
        failpoint("ps.after_rename")
        return self._path

    def give_up(self) -> None:
        """It never was."""
        with suppress(OSError):  # a disk that is full, or read-only
            self._stream.close()
        with suppress(OSError):
            self._temporary.unlink(missing_ok=True)
