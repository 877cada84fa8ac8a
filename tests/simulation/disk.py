"""The disk of a server in virtual time: what is left of a journal by a crash, or without power."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from paramserver.errors import InternalError
from paramserver.ps import checkpoint, wal
from paramserver.ps.journal import Journal
from paramserver.ps.wal import Wal
from tests.simulation.virtual import Died, running

WRITE_S = (0.001, 0.01)  # what a write with its fsync takes


class Disk:
    """The folder of one server. What was written is there after a crash; what was fsynced, after a
    loss of power.

    Attributes:
        plan: what happens next, once: the name of a failpoint to die at, "torn" for a write that
            is cut short, "EIO" for an fsync that fails.
    """

    def __init__(self, folder: Path, seed: str) -> None:
        self.folder = folder
        self.plan = ""
        self.draw = random.Random(seed)
        self._kept: dict[int, int] = {}  # bytes by inode that an fsync has covered

    def synced(self, fd: int) -> None:
        """What the file has now stays."""
        found = os.fstat(fd)
        self._kept[found.st_ino] = found.st_size

    def due(self, what: str) -> bool:
        """Whether this is to happen now."""
        if self.plan != what:
            return False
        self.plan = ""
        return True

    def lose_power(self) -> None:
        """Of what was not fsynced, any beginning may be there, and any rubbish in it."""
        for path in sorted(self.folder.glob("journal-*.log")):
            found = path.stat()
            kept = min(self._kept.get(found.st_ino, 0), found.st_size)
            left = self.draw.randint(kept, found.st_size)
            os.truncate(path, left)
            if left > kept and self.draw.random() < 0.5:
                with path.open("r+b") as stream:
                    stream.seek(self.draw.randrange(kept, left))
                    stream.write(self.draw.randbytes(1))
                os.truncate(path, left)


class System:
    """``os``, for the files of a journal."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    @staticmethod
    def truncate(path: Path, length: int) -> None:
        os.truncate(path, length)

    @staticmethod
    def fsync(fd: int) -> None:
        _disk().synced(fd)

    @staticmethod
    def fdatasync(fd: int) -> None:
        disk = _disk()
        if disk.due("EIO"):
            raise OSError(errno.EIO, "the disk has failed")
        disk.synced(fd)

    @staticmethod
    def writev(fd: int, buffers: Sequence[Any]) -> int:
        disk = _disk()
        if disk.due("torn"):
            whole = b"".join(map(bytes, buffers))
            os.write(fd, whole[: disk.draw.randrange(len(whole))])
            raise Died("in the middle of a write")
        return os.writev(fd, buffers)


def _disk() -> Disk:
    found = running().disk
    assert isinstance(found, Disk)
    return found


def _failpoint(name: str) -> None:
    disk = running().disk
    if isinstance(disk, Disk) and disk.due(name):
        raise Died(name)


class StepWal(Wal):
    """Writes in events of the loop instead of a thread."""

    def __init__(self, folder: Path, journal: Journal) -> None:
        super().__init__(folder, journal, segment_bytes=1000)
        self._machine = running()
        self._due = False

    def _run(self) -> None:
        """The thread has nothing to do."""

    def put(self, position: int, data: bytes) -> None:
        """As ``Wal.put``."""
        super().put(position, data)
        if not self._due and self._journal.failure is None:
            self._due = True
            self._machine.later(self._machine.disk.draw.uniform(*WRITE_S), self.step)

    def step(self) -> None:
        """Writes what has come meanwhile."""
        self._due = False
        batch, self._waiting = self._waiting, []
        if not batch or not self._machine.alive:
            return
        try:
            self._keep(batch)
        except Died:
            self._machine.dies()
        except Exception as error:
            self._journal.fail(InternalError(f"the journal cannot be kept any more: {error}"))

    def close(self) -> None:
        """As ``Wal.close``; what is dead writes nothing."""
        super().close()
        if self._machine.alive and self._journal.failure is None:
            self.step()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


@contextmanager
def disks() -> Iterator[None]:
    """Journals are on simulated disks."""
    with ExitStack() as stack:
        for module in (wal, checkpoint):
            stack.enter_context(patch.object(module, "os", System()))
            stack.enter_context(patch.object(module, "failpoint", _failpoint))
        stack.enter_context(patch.object(wal, "Wal", StepWal))
        yield
