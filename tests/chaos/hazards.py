"""What befalls a machine around a process: disks without room, read-only disks, wrong clocks."""

from __future__ import annotations

import atexit
import shutil
import struct
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

POINTS = {  # failpoints at which each user of a disk writes
    "scheduler": ("scheduler.before_write",),
    "ps": ("ps.write", "ps.before_dump_write", "ps.before_rename"),
    "snapshots": ("snapshot.before_fsync", "snapshot.before_rename", "snapshot.before_manifest"),
}
ERRORS = {"full": "ENOSPC", "read-only": "EROFS"}
DISK_BYTES = 16 << 20
HOUR_S = 3600


class Disk:
    """The disk of a folder, which can be full or read-only for a while.

    With ``own`` it is a small file system, where this machine lets us mount one, and full when it
    is full. All else is done by failpoints in the processes that write there.

    Args:
        name: "scheduler", "ps-0", "snapshots".
        switches: folder in which the failpoints of all processes look for files.
    """

    def __init__(self, name: str, folder: Path, switches: Path, *, own: bool) -> None:
        self._name, self._folder, self._switches = name, folder, switches
        folder.mkdir()
        size = f"size={DISK_BYTES}"
        self.mounted = own and _succeeds("mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder))

    @property
    def rules(self) -> list[str]:
        """What the processes that write here are to be armed with."""
        points = POINTS[self._name.partition("-")[0]]
        return [
            f"{point}:error={number}@{kind}-{self._name}"
            for kind, number in ERRORS.items()
            for point in points
            if not (self.mounted and kind == "full")
        ]

    @property
    def _ballast(self) -> Path:
        return self._folder / "ballast"

    def strike(self, kind: str) -> None:
        """From now on it is "full" or "read-only"."""
        if kind == "full" and self.mounted:
            with self._ballast.open("wb", buffering=0) as file, suppress(OSError):
                while file.write(bytes(1 << 16)):
                    continue
        else:
            (self._switches / f"{kind}-{self._name}").touch()

    def calm(self) -> None:
        """It can be written again."""
        self._ballast.unlink(missing_ok=True)
        for kind in ERRORS:
            (self._switches / f"{kind}-{self._name}").unlink(missing_ok=True)

    def close(self) -> None:
        """The file system goes; what was on it, too."""
        if self.mounted:
            _succeeds("umount", "--lazy", str(self._folder))


class Clock:
    """The wall clock of one process, as far as it asks the C library; set off by a jump.

    Attributes:
        environment: of the process.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        path.write_bytes(struct.pack("=q", 0))
        library = _clock_library()
        self.environment = (
            {"LD_PRELOAD": str(library), "CHAOS_CLOCK": str(path)} if library is not None else {}
        )

    def jump(self, seconds: int) -> None:
        """It is wrong by so much from now on."""
        with self._path.open("r+b", buffering=0) as file:
            file.write(struct.pack("=q", seconds))


@cache
def _clock_library() -> Path | None:
    """``clock.c``, compiled for as long as this process lives; None without a compiler."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        return None
    folder = tempfile.TemporaryDirectory(prefix="paramserver-chaos-")
    atexit.register(folder.cleanup)
    made = Path(folder.name, "clock.so")
    source = str(Path(__file__).with_name("clock.c"))
    line = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-o", str(made), source, "-ldl"]
    return made if _succeeds(*line) else None


def _succeeds(*line: str) -> bool:
    with suppress(OSError):
        return not subprocess.run(line, capture_output=True, timeout=60, check=False).returncode
    return False
