"""Snapshots as files: the manifest that makes one exist, its checksums, which ones there are."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

from paramserver.errors import SnapshotError
from paramserver.failpoints import failpoint
from paramserver.snapshot_stores import (
    NewFile,
    Store,
    check_snapshot_name,
    digest,
    file_name,
    open_store,
)

__all__ = [
    "MANIFEST",
    "Manifest",
    "NewFile",
    "ServerFile",
    "Store",
    "check_snapshot_name",
    "complete",
    "file_name",
    "newest_good",
    "open_store",
    "prune",
    "read_manifest",
    "verify",
    "write_manifest",
]

log = logging.getLogger("paramserver")

MANIFEST = "manifest.json"
FORMAT = 1
MAX_MANIFEST = 1 << 30
_OURS = re.compile(r"manifest\.json|ps-.*\.safetensors|\..*\.tmp")


@dataclass(frozen=True, slots=True)
class ServerFile:
    """What one server wrote.

    Attributes:
        file: in the folder of the snapshot.
        server: its name then.
        bytes, sha256: of the whole file.
        slices: by group, the slices in it.
        versions: by group, beside ``slices``; a later snapshot may hold what changed since.
        base: the snapshot that this file of changes of tables belongs on; empty: it is whole.
    """

    file: str
    server: str
    bytes: int
    sha256: str
    slices: Mapping[str, Sequence[int]] = field(default_factory=dict)
    versions: Mapping[str, Sequence[int]] = field(default_factory=dict)
    base: str = ""


@dataclass(frozen=True, slots=True)
class Manifest:
    """A snapshot: written last, so that what has none does not exist.

    Attributes:
        name: of the snapshot, and of its folder.
        id: grows with every snapshot of a cluster.
        job: that was cut.
        created: seconds since 1970, for people.
        files: one per server.
        state: what the scheduler keeps of the job, JSON-able.
    """

    name: str
    id: int
    job: int
    created: float
    files: tuple[ServerFile, ...]
    state: Mapping[str, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Of all files but this one."""
        return sum(each.bytes for each in self.files)

    @property
    def base(self) -> str:
        """The snapshot that it builds on; empty: it is whole."""
        return next((each.base for each in self.files if each.base), "")

    def to_json(self) -> str:
        """As text, with a checksum of its own."""
        body = {"format": FORMAT, **asdict(self)}
        return json.dumps({**body, "checksum": _checksum(body)}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Raises SnapshotError for a text that was changed, or is none."""
        try:
            body = json.loads(text)
            checksum = body.pop("checksum")
            if checksum != _checksum(body):
                raise SnapshotError("its checksum does not match: it is damaged")
            if body.pop("format") != FORMAT:
                raise SnapshotError(f"it is not of format {FORMAT}; use the version that wrote it")
            files = tuple(ServerFile(**each) for each in body.pop("files"))
            return cls(files=files, **body)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise SnapshotError(f"it cannot be read: {type(error).__name__}: {error}") from error


def _checksum(body: Mapping[str, Any]) -> str:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def write_manifest(store: Store, manifest: Manifest) -> None:
    """Makes a snapshot exist; its files are there already."""
    check_snapshot_name(manifest.name)
    failpoint("snapshot.before_manifest")
    with store.create(f"{manifest.name}/{MANIFEST}") as made:
        made.stream.write(manifest.to_json().encode())


def read_manifest(store: Store, name: str) -> Manifest:
    """The manifest of a snapshot.

    Raises:
        SnapshotError: no such snapshot, or a damaged manifest.
    """
    check_snapshot_name(name)
    if MANIFEST not in store.files(name):
        raise SnapshotError(
            f"there is no snapshot {name!r}; `paramserver snapshots DIR` lists those that there are"
        )
    with store.open(f"{name}/{MANIFEST}") as stream:
        text = stream.read(MAX_MANIFEST)
    try:
        manifest = Manifest.from_json(text)
    except SnapshotError as error:
        raise SnapshotError(f"manifest of snapshot {name!r}: {error}") from error
    if manifest.name != name:
        raise SnapshotError(f"snapshot {name!r} has the manifest of {manifest.name!r}")
    return manifest


def verify(store: Store, manifest: Manifest) -> None:
    """Reads every file and compares size and SHA-256.

    Raises:
        SnapshotError: names the file that is missing or damaged.
    """
    for each in manifest.files:
        with store.open(f"{manifest.name}/{each.file}") as stream:
            size, sha256 = digest(stream)
        if size != each.bytes or sha256 != each.sha256:
            raise SnapshotError(
                f"snapshot {manifest.name!r}: {each.file} is damaged ({size} bytes, SHA-256 "
                f"{sha256[:12]}...; it was written with {each.bytes}, {each.sha256[:12]}...)"
            )


def complete(store: Store) -> list[Manifest]:
    """Every snapshot that has a readable manifest, the oldest first, by their numbers: the wall
    clock may have been set back between two of them."""
    found = []
    for name in store.folders():
        try:
            if MANIFEST in store.files(name):
                found.append(read_manifest(store, name))
        except SnapshotError as error:
            log.warning("%s; it is passed over", error)
    return sorted(found, key=lambda manifest: (manifest.id, manifest.created))


def chain(store: Store, manifest: Manifest) -> list[Manifest]:
    """A snapshot with those it builds on, the whole one first.

    Raises:
        SnapshotError: one of them is missing.
    """
    found = [manifest]
    while bases := {each.base for each in found[0].files if each.base}:
        if len(bases) > 1 or bases & {known.name for known in found}:
            raise SnapshotError(f"snapshot {found[0].name!r} builds on {sorted(bases)}")
        found.insert(0, read_manifest(store, bases.pop()))
    return found


def newest_good(store: Store) -> tuple[Manifest | None, list[str]]:
    """The newest snapshot all of whose files are as they were written.

    Returns:
        It, or None; and what is wrong with newer ones, in words.
    """
    problems = []
    for manifest in reversed(complete(store)):
        try:
            for each in chain(store, manifest):
                verify(store, each)
        except SnapshotError as error:
            problems.append(str(error))
            continue
        return manifest, problems
    return None, problems


def prune(store: Store, keep: int, busy: Collection[str] = ()) -> list[str]:
    """Deletes all but the newest ``keep`` snapshots, and what never became one.

    One whose manifest cannot be read stays: it may be of another version, or the disk away.

    Args:
        keep: at least 1; what they build on stays too.
        busy: names that stay in any case, with what they build on.

    Returns:
        The names of those that went.
    """
    kept, found = set(busy), complete(store)
    for manifest in [*found[-max(1, keep) :], *(m for m in found if m.name in kept)]:
        kept.add(manifest.name)
        with suppress(SnapshotError):  # what it builds on is gone
            kept |= {each.name for each in chain(store, manifest)}
    gone, readable = [], {manifest.name for manifest in found}
    for name in store.folders():
        files = store.files(name)
        if name in kept or not files or not all(map(_OURS.fullmatch, files)):
            continue  # whatever else lies there is somebody's
        if MANIFEST in files:
            if name not in readable:
                continue
            store.delete(f"{name}/{MANIFEST}")  # first: what has none does not exist
        store.delete(name)
        gone.append(name)
    return gone
