"""Which snapshot a job goes on from: its files are checked first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from paramserver.errors import SnapshotError
from paramserver.scheduler.facts import Kept, Source
from paramserver.snapshot_files import Manifest, Store, chain, complete, read_manifest, verify


def choose(store: Store, name: str, lineage: str) -> tuple[Manifest, list[str]]:
    """A snapshot whose files are as they were written.

    Args:
        name: of it; "" or "latest": the newest one.
        lineage: of the training that it must be of; "": any.

    Returns:
        It, and what is wrong with newer ones.

    Raises:
        SnapshotError: there is none; says what is wrong with each.
    """
    if name not in ("", "latest"):
        manifest = read_manifest(store, name)
        _check(store, manifest)
        return manifest, []
    problems: list[str] = []
    for manifest in reversed(complete(store)):
        if lineage and manifest.state.get("lineage") != lineage:
            continue
        try:
            _check(store, manifest)
        except SnapshotError as error:
            problems.append(str(error))
            continue
        return manifest, problems
    none = "there is no snapshot to go on from; `paramserver snapshots DIR` lists those of a folder"
    raise SnapshotError("; ".join([none, *problems]))


def _check(store: Store, manifest: Manifest) -> None:
    for each in chain(store, manifest):
        verify(store, each)


def source_of(store: Store, manifest: Manifest, directory: str) -> Source:
    """Where the values of each group lie: in the snapshot, and in those that it builds on."""
    files: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
    for each in chain(store, manifest):
        for file in each.files:
            for group, slices in file.slices.items():
                if slices:
                    place = f"{each.name}/{file.file}"
                    files.setdefault(group, []).append((place, tuple(slices)))
    return Source(manifest.name, directory, files, kept_of(manifest))


def kept_of(manifest: Manifest, held_s: float = 0.0, took_s: float = 0.0) -> Kept:
    """What is told of a snapshot."""
    clock = max((group["clock"] for group in manifest.state.get("groups", ())), default=0)
    size, base = manifest.nbytes, manifest.base
    return Kept(manifest.name, clock, manifest.created, size, base, held_s, took_s)


@dataclass(frozen=True, slots=True)
class Base:
    """A snapshot that another one can build on.

    Attributes:
        since: by table and sub-table, the version that it has.
    """

    name: str
    since: Mapping[str, Mapping[int, int]]


def base_for(store: Store, lineage: str, job: int, resumed: str, longest: int) -> Base | None:
    """What the next snapshot can hold changes of; None: it has to be whole.

    Args:
        job: that is cut. What was taken of an earlier one is of steps that were undone, but for
        resumed: the snapshot that this job went on from.
        longest: snapshots, the whole one among them, that it may build on.
    """
    mine = [m for m in complete(store) if m.state.get("lineage") == lineage]
    mine = [m for m in mine if m.job == job or m.name == resumed]
    newest = max(mine, key=lambda m: (m.job, m.id), default=None)
    if newest is None:
        return None
    try:
        if len(chain(store, newest)) > longest:
            return None
    except SnapshotError:  # what it builds on is gone
        return None
    since: dict[str, dict[int, int]] = {}
    for file in newest.files:
        for group, slices in file.slices.items():
            versions = zip(slices, file.versions.get(group, ()), strict=True)
            since.setdefault(group, {}).update(versions)
    return Base(newest.name, since)
