"""Which snapshot a job goes on from: its files are checked first."""

from __future__ import annotations

from paramserver.errors import SnapshotError
from paramserver.scheduler.facts import Source
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
    raise SnapshotError("; ".join(["there is no snapshot to go on from", *problems]))


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
    return Source(manifest.name, directory, files)
