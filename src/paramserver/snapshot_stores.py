"""Where snapshots lie: a folder, or an object store that fsspec knows. Names never leave it."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from paramserver.errors import ConfigurationError, SnapshotError
from paramserver.failpoints import failpoint

log = logging.getLogger("paramserver")

CHUNK = 1 << 20
MAX_PART = 200
LOCK = ".lock"
_PART = re.compile(r"[A-Za-z0-9_%\-][A-Za-z0-9_.%\-]*")


class NewFile:
    """A file on its way: bytes go to ``stream``; size and SHA-256 are known once it is whole.

    Attributes:
        stream: to write to, and to seek in.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.bytes = 0
        self.sha256 = ""

    def finish(self) -> None:
        """Brings all bytes to the disk and reads them back for the checksum."""
        failpoint("snapshot.before_fsync")
        self.stream.flush()
        os.fsync(self.stream.fileno())
        self.stream.seek(0)
        self.bytes, self.sha256 = digest(self.stream)


class Store(Protocol):
    """A place with folders of files; names are FOLDER/FILE. All methods block.

    Every method raises SnapshotError for a name that is none, and for a file that is not there.
    """

    def create(self, name: str) -> AbstractContextManager[NewFile]:
        """A file that is there, whole, once the context has ended without an error; else not."""

    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A file's bytes, to be read from front to back."""

    def local(self, name: str) -> AbstractContextManager[Path]:
        """A file on this machine, for as long as the context lasts."""

    def folders(self) -> list[str]:
        """Names of all folders that could be ours; what else lies there is somebody's."""

    def files(self, folder: str) -> list[str]:
        """Names of the files of a folder, without it; none for one that is not there."""

    def delete(self, name: str) -> None:
        """Removes a file, or a folder with all it holds; one that is not there is not missed."""

    def own(self) -> AbstractContextManager[None]:
        """Nobody else writes snapshots here meanwhile, as far as this kind of place can tell.

        Raises:
            ConfigurationError: another process has it.
        """


def check_snapshot_name(name: str) -> str:
    """The name of a snapshot, which is that of its folder.

    Raises:
        SnapshotError: it could be a path, or is too long.
    """
    if len(name) > MAX_PART or not _PART.fullmatch(name):
        raise SnapshotError(
            f"snapshot name {name[:MAX_PART]!r}: must be 1 to {MAX_PART} letters, digits and "
            "_ . - and not begin with a dot"
        )
    return name


def file_name(server: str) -> str:
    """The file of a server in the folder of a snapshot."""
    kept = (c if re.match(r"[A-Za-z0-9_.\-]", c) else f"%{ord(c):02X}" for c in server)
    return f"ps-{''.join(kept)}.safetensors"


def open_store(directory: str) -> Store:
    """The store at a path, or at a URL such as s3://bucket/folder.

    Raises:
        ConfigurationError: empty, or a URL without the package that reads it.
    """
    if not directory:
        raise ConfigurationError("snapshot directory: none given; use --snapshot-dir DIR")
    scheme, colon, rest = directory.partition("://")
    if not colon:
        return LocalStore(Path(directory))
    if scheme in ("file", "local"):
        return LocalStore(Path(rest))
    return RemoteStore(directory)


def digest(stream: BinaryIO) -> tuple[int, str]:
    """Size and SHA-256, in hexadecimal digits, of what is left of a stream."""
    size, made = 0, hashlib.sha256()
    while chunk := stream.read(CHUNK):
        size += len(chunk)
        made.update(chunk)
    return size, made.hexdigest()


def _parts(name: str) -> list[str]:
    parts = name.split("/")
    if len(parts) > 2 or not all(len(p) <= 255 and _PART.fullmatch(p) for p in parts):
        raise SnapshotError(f"snapshot file {name[:255]!r}: must be a plain FOLDER/FILE")
    return parts


class LocalStore:
    """A folder of a file system."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def _path(self, name: str) -> Path:
        path = self._root.joinpath(*_parts(name))
        if path.parent != self._root and path.parent.is_symlink():
            raise SnapshotError(f"{path.parent} is a link: snapshots are never read through links")
        return path

    @contextmanager
    def create(self, name: str) -> Iterator[NewFile]:
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        number, draft = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
        try:
            with os.fdopen(number, "w+b") as stream:
                made = NewFile(stream)
                yield made
                made.finish()
            failpoint("snapshot.before_rename")
            os.replace(draft, path)
            failpoint("snapshot.after_rename")
        except BaseException:
            with suppress(OSError):
                os.unlink(draft)
            raise
        _sync_folder(path.parent)
        _sync_folder(self._root)

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        path = self._path(name)
        try:
            number = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        except OSError as error:
            raise SnapshotError(f"snapshot file {path}: {error.strerror}") from error
        with os.fdopen(number, "rb") as stream:
            yield stream

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        with self.open(name):
            yield self._path(name)

    def folders(self) -> list[str]:
        if not self._root.is_dir():
            return []
        found = (p for p in self._root.iterdir() if p.is_dir() and not p.is_symlink())
        return sorted(p.name for p in found if _PART.fullmatch(p.name))

    def files(self, folder: str) -> list[str]:
        path = self._path(folder)
        try:
            return sorted(p.name for p in path.iterdir() if p.is_file()) if path.is_dir() else []
        except OSError as error:
            raise SnapshotError(f"snapshot folder {path}: {error.strerror}") from error

    def delete(self, name: str) -> None:
        path = self._path(name)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    @contextmanager
    def own(self) -> Iterator[None]:
        with ExitStack() as stack:  # the kernel lets go of it with the process
            try:
                self._root.mkdir(parents=True, exist_ok=True)
                lock = stack.enter_context((self._root / LOCK).open("a"))
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigurationError(
                    f"snapshot directory {self._root}: another scheduler keeps its snapshots "
                    "there; give every one its own --snapshot-dir"
                ) from None
            except OSError as error:  # what is there can be read all the same
                log.warning("snapshot directory %s cannot be locked: %s", self._root, error)
            yield


def _sync_folder(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


class RemoteStore:
    """A URL that fsspec can read and write. A file is there once it was sent whole."""

    def __init__(self, url: str) -> None:
        try:
            import fsspec
        except ImportError as error:
            raise ConfigurationError(
                f"snapshot directory {url!r}: URLs need the package fsspec; "
                "pip install fsspec, with the package for this kind of store"
            ) from error
        self._url = url
        try:
            self._system, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise ConfigurationError(f"snapshot directory {url!r}: {error}") from error

    def _path(self, name: str) -> str:
        return "/".join([self._root.rstrip("/"), *_parts(name)])

    @contextmanager
    def create(self, name: str) -> Iterator[NewFile]:
        path = self._path(name)
        with tempfile.TemporaryDirectory(prefix="paramserver-") as folder:
            draft = os.path.join(folder, "draft")
            with open(draft, "w+b") as stream:
                made = NewFile(stream)
                yield made
                made.finish()
            self._system.makedirs(path.rpartition("/")[0], exist_ok=True)
            failpoint("snapshot.before_rename")
            self._system.put_file(draft, path)
            failpoint("snapshot.after_rename")

    @contextmanager
    def open(self, name: str) -> Iterator[BinaryIO]:
        try:
            stream: Any = self._system.open(self._path(name), "rb")
        except OSError as error:
            raise SnapshotError(f"snapshot file {self._url}/{name}: {error}") from error
        with stream:
            yield stream

    @contextmanager
    def local(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="paramserver-") as folder:
            copy = Path(folder, "copy")
            with self.open(name) as source, copy.open("wb") as target:
                shutil.copyfileobj(source, target, CHUNK)
            yield copy

    def _names(self, path: str, kind: str) -> list[str]:
        try:
            found = self._system.ls(path, detail=True, refresh=True)
        except FileNotFoundError:
            return []
        named = (e["name"].rstrip("/").rpartition("/")[2] for e in found if e["type"] == kind)
        return sorted(named)

    def folders(self) -> list[str]:
        return [n for n in self._names(self._root, "directory") if _PART.fullmatch(n)]

    def files(self, folder: str) -> list[str]:
        return self._names(self._path(folder), "file")

    def delete(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._system.rm(self._path(name), recursive=True)

    def own(self) -> AbstractContextManager[None]:
        return nullcontext()
