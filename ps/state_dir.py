"""A server's folder: who it was, and its journal. One process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from pathlib import Path

from paramserver.errors import ConfigurationError
from paramserver.failpoints import failpoint
from paramserver.ps import checkpoint, wal

IDENTITY = "server.json"


def unwritable(path: str | Path, error: OSError) -> ConfigurationError:
    """What to say of a folder in which nothing can be written."""
    return ConfigurationError(
        f"--state-dir {path}: cannot be written: {error}; see to the disk, then start this server "
        "again with the same folder"
    )


class StateDir:
    """The folder, locked for as long as this process lives.

    Args:
        path: made if it is not there.

    Attributes:
        name: of the server that kept its state here; "" if there is none.
        incarnation: of it; 0: none.
        port: that it listened on; 0: none.

    Raises:
        ConfigurationError: another process uses it, or it cannot be written.
    """

    def __init__(self, path: str) -> None:
        self.folder = Path(path)
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise unwritable(path, error) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise ConfigurationError(
                f"--state-dir {path}: another process uses it; every server needs a folder of its "
                "own"
            ) from None
        self.name, self.incarnation, self.port = self._read()

    def _read(self) -> tuple[str, int, int]:
        try:
            found = json.loads((self.folder / IDENTITY).read_text())
            return str(found["name"]), int(found["incarnation"]), int(found["port"])
        except FileNotFoundError:
            return "", 0, 0
        except (OSError, ValueError, TypeError, LookupError) as error:
            os.close(self._lock)
            raise ConfigurationError(
                f"{self.folder / IDENTITY}: cannot be read: {error!r}; who this server was is not "
                "known without it: use an empty folder, and restore a snapshot"
            ) from None

    def note(self, name: str, incarnation: int, port: int) -> None:
        """Remembers who the server is; survives a loss of power.

        Raises:
            ConfigurationError: it cannot be written.
        """
        try:
            self._note(name, incarnation, port)
        except OSError as error:
            raise unwritable(self.folder, error) from None

    def _note(self, name: str, incarnation: int, port: int) -> None:
        self.name, self.incarnation, self.port = name, incarnation, port
        text = json.dumps({"name": name, "incarnation": incarnation, "port": port})
        temporary = self.folder / f"{IDENTITY}.tmp"
        with temporary.open("w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        failpoint("ps.before_rename")
        temporary.rename(self.folder / IDENTITY)
        wal.sync_folder(self.folder)

    def wipe(self) -> None:
        """Forgets the journal: it is of no use to anybody.

        Raises:
            ConfigurationError: it cannot be removed.
        """
        try:
            for path in [p for _, p in wal.segments(self.folder)]:
                path.unlink()
            checkpoint.clear(self.folder)
            wal.sync_folder(self.folder)
        except OSError as error:
            raise unwritable(self.folder, error) from None

    def close(self) -> None:
        """Another process may use it."""
        with contextlib.suppress(OSError):
            os.close(self._lock)
