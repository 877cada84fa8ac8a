"""A journal in files: segments of checksummed records, written in groups and fsynced.

A record is a head (mark, length, position, position that was durable when it was written, xxh3 of
all of it) and an entry. A crash may leave a torn tail: it is cut. Damage before the end of what
was durable is an error, never a cut: an acknowledged push would be lost in silence.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import xxhash

from paramserver.errors import InternalError, SnapshotError
from paramserver.failpoints import failpoint
from paramserver.ps.journal import Journal
from paramserver.types import Durability

log = logging.getLogger("paramserver")

SEGMENT_BYTES = 64 << 20
RETRY_S = 1.0  # between attempts to write to a full disk
MARK = 0x314A5350  # "PSJ1"
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_HEAD = struct.Struct("<IIQQ")
_SUM = struct.Struct("<Q")
HEAD_BYTES = _HEAD.size + _SUM.size
BATCH_PARTS = 512  # buffers of one write


@dataclass(frozen=True, slots=True)
class Written:
    """A record as read.

    Attributes:
        durable: everything up to this position was durable when it was written.
        end: where the next record begins.
    """

    position: int
    durable: int
    data: memoryview
    end: int


def head(position: int, durable: int, data: bytes) -> bytes:
    """What stands before an entry."""
    first = _HEAD.pack(MARK, len(data), position, durable)
    return first + _SUM.pack(_checksum(first, data))


def _checksum(first: bytes | memoryview, data: bytes | memoryview) -> int:
    digest = xxhash.xxh3_64(first)
    digest.update(data)
    result: int = digest.intdigest()
    return result


def read_record(view: memoryview, at: int) -> Written | None:
    """The record that begins there; None: none does, or not whole."""
    start = at + HEAD_BYTES
    if start > len(view):
        return None
    mark, length, position, durable = _HEAD.unpack(view[at : at + _HEAD.size])
    if mark != MARK or start + length > len(view):
        return None
    data = view[start : start + length]
    (checksum,) = _SUM.unpack(view[at + _HEAD.size : start])
    if _checksum(view[at : at + _HEAD.size], data) != checksum:
        return None
    return Written(position, durable, data, start + length)


def records_of(view: memoryview, path: Path, first: int) -> Iterator[Written]:
    """The records of a file up to its end or its torn tail.

    Raises:
        SnapshotError: damage in what was durable.
    """
    at, position = 0, first
    while at < len(view):
        record = read_record(view, at)
        if record is None or record.position != position:
            _check_tail(view, at, position, path)
            return
        yield record
        at, position = record.end, position + 1


def _check_tail(view: memoryview, at: int, position: int, path: Path) -> None:
    """Raises unless nothing that was durable is lost with the file's end from ``at`` on."""
    mark = _HEAD.pack(MARK, 0, 0, 0)[:4]
    rest = bytes(view[at:])
    found = rest.find(mark)
    while found >= 0:
        later = read_record(view, at + found)
        if later is not None and later.durable >= position:
            raise SnapshotError(
                f"{path}: damaged at byte {at}: entry {position} cannot be read, and entry "
                f"{later.position} after it tells that it was kept; the disk has failed. Restore "
                "the newest snapshot, or start the server with an empty --state-dir and the job "
                "anew"
            )
        found = rest.find(mark, found + 1)


def segments(folder: Path) -> list[tuple[int, Path]]:
    """Segments with the positions of their first records, in order."""
    return sorted(numbered(folder, "journal"))


def numbered(folder: Path, kind: str) -> list[tuple[int, Path]]:
    """Files named KIND-NUMBER.log, and their numbers; what else lies there is somebody's."""
    found = [(p.stem.removeprefix(f"{kind}-"), p) for p in folder.glob(f"{kind}-*.log")]
    return [(int(number), p) for number, p in found if number.isascii() and number.isdigit()]


def segment_path(folder: Path, first: int) -> Path:
    """Where the segment that begins with this position is."""
    return folder / f"journal-{first:020d}.log"


def sync_folder(folder: Path) -> None:
    """Names in the folder survive a loss of power."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_all(folder: Path, after: int = 0) -> Iterator[tuple[int, memoryview]]:
    """Positions and entries after a position; a torn tail is cut off the newest segment.

    Raises:
        SnapshotError: damage, or a segment is missing.
    """
    found = segments(folder)
    wanted = after + 1
    for number, (first, path) in enumerate(found):
        if number + 1 < len(found) and found[number + 1][0] <= wanted:
            continue  # all of it is older
        if first > wanted:
            raise SnapshotError(
                f"{folder}: entries {wanted} to {first - 1} of the journal are gone"
            )
        view = memoryview(path.read_bytes())
        end = 0
        position = first
        for record in records_of(view, path, first):
            if record.position >= wanted:
                yield record.position, record.data
            end, position = record.end, record.position + 1
        if number + 1 < len(found):
            if position != found[number + 1][0]:
                raise SnapshotError(f"{path}: damaged at byte {end}, and newer segments follow")
        elif end < len(view):
            os.truncate(path, end)
        wanted = max(wanted, position)


class Wal:
    """The files of a journal, as its sink: a thread writes what has come meanwhile, then fsyncs.

    Args:
        folder: where segments are.
        journal: told what is durable; its position is that of the newest record there.

    Attributes:
        bytes: written since the oldest segment that is kept began.
    """

    durability: Durability = "wal"

    def __init__(
        self, folder: Path, journal: Journal, *, segment_bytes: int = SEGMENT_BYTES
    ) -> None:
        self._folder = folder
        self._journal = journal
        self._segment_bytes = segment_bytes
        self._durable = journal.position
        self._wanted = threading.Condition()
        self._waiting: list[tuple[int, bytes]] = []
        self._closed = False
        self._fd = -1
        self._size = 0
        self._full = False
        self.bytes = sum(path.stat().st_size for _, path in segments(folder))
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    def put(self, position: int, data: bytes) -> None:
        """Takes an entry."""
        with self._wanted:
            self._waiting.append((position, data))
            self._wanted.notify()

    def close(self) -> None:
        """Writes what has come, and ends."""
        with self._wanted:
            self._closed = True
            self._wanted.notify()
        self._thread.join()

    def begin_segment(self) -> None:
        """What comes from now on goes to a new segment, or a little of it to the present one."""
        self._full = True

    def drop_before(self, position: int) -> None:
        """Segments whose entries all stand in a dump, or void, are not needed any more."""
        found = segments(self._folder)
        for (_, path), (following, _) in pairwise(found):
            if following <= position + 1:
                self.bytes -= path.stat().st_size
                path.unlink()

    def _run(self) -> None:
        try:
            while True:
                with self._wanted:
                    self._wanted.wait_for(lambda: self._waiting or self._closed)
                    batch, self._waiting = self._waiting, []
                if not batch:
                    return
                self._keep(batch)
        except Exception as error:
            self._journal.fail(
                InternalError(
                    f"the journal in {self._folder} cannot be kept any more: {error}; "
                    "see to the disk, then start this server again with the same --state-dir"
                )
            )
        finally:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1

    def _keep(self, batch: Sequence[tuple[int, bytes]]) -> None:
        self._segment_for(batch[0][0])
        failpoint("ps.before_write")
        size = self._write(batch)
        failpoint("ps.after_write")
        try:
            failpoint("ps.before_fsync")
            os.fdatasync(self._fd)
        except OSError:
            # What an fsync failed on may be anywhere: none of it counts, now or after a restart.
            os.ftruncate(self._fd, self._size)
            raise
        failpoint("ps.after_fsync")
        self._size += size
        self.bytes += size
        self._durable = batch[-1][0]
        self._journal.reached(self._durable)

    def _segment_for(self, position: int) -> None:
        """The segment that the next record goes to is open."""
        if self._fd >= 0 and self._size < self._segment_bytes and not self._full:
            return
        found = segments(self._folder)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        newest = found[-1][1] if found else None
        if newest is None or newest.stat().st_size >= self._segment_bytes or self._full:
            newest = segment_path(self._folder, position)
        self._full = False
        self._fd = self._until_room(lambda: os.open(newest, os.O_WRONLY | os.O_CREAT, 0o600))
        self._size = os.lseek(self._fd, 0, os.SEEK_END)
        sync_folder(self._folder)

    def _write(self, batch: Sequence[tuple[int, bytes]]) -> int:
        buffers: list[bytes | memoryview] = []
        for position, data in batch:
            buffers += (head(position, self._durable, data), data)
        size = sum(map(len, buffers))

        def write() -> int:
            os.lseek(self._fd, self._size, os.SEEK_SET)
            try:
                failpoint("ps.write")
                _write_all(self._fd, buffers)
            except OSError:
                os.ftruncate(self._fd, self._size)
                raise
            return size

        return self._until_room(write)

    def _until_room(self, attempt: Callable[[], int]) -> int:
        """Tries again while the disk is full; new pushes wait meanwhile."""
        blocked = ""
        while True:
            try:
                result = attempt()
            except OSError as error:
                if error.errno not in FULL or self._closed:
                    raise
                if not blocked:
                    blocked = (
                        f"the disk of the journal ({self._folder}) is full: nothing more can be "
                        "kept; free some space, and pushes go on"
                    )
                    log.warning("%s", blocked)
                    self._journal.block(blocked)
                with self._wanted:
                    self._wanted.wait_for(lambda: self._closed, RETRY_S)
            else:
                if blocked:
                    log.warning("there is room for the journal in %s again", self._folder)
                    self._journal.block("")
                return result


def _write_all(fd: int, buffers: Sequence[bytes | memoryview]) -> None:
    """Writes all of the buffers, however many calls that takes."""
    left = [memoryview(b) for b in buffers if len(b)]
    at = 0
    while at < len(left):
        written = os.writev(fd, left[at : at + BATCH_PARTS])
        while at < len(left) and written >= len(left[at]):
            written -= len(left[at])
            at += 1
        if written:
            left[at] = left[at][written:]
