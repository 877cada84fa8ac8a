"""A group that begins with what the files of a snapshot hold of its slices."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack

from paramserver.core.placement import difference
from paramserver.errors import RefusedError, SnapshotError
from paramserver.ps.group import GroupState
from paramserver.ps.vectors import Vector, Vectors, VectorSpace
from paramserver.snapshot_files import open_store
from paramserver.snapshot_groups import GroupFile, groups_in, newest_state
from paramserver.snapshot_tensors import TensorReader
from paramserver.v1 import common_pb2


async def restore(group: GroupState, source: common_pb2.Restore, vectors: Vectors) -> None:
    """Loads every slice of a new group, before anybody has seen it.

    Raises:
        SnapshotError: a file is missing or damaged, is of another group, or a slice is nowhere.
    """
    space = vectors.of(group)
    # To be called once per group, before the first request: nobody waits for a lock of a cell.
    await asyncio.get_running_loop().run_in_executor(None, _load, group, source, space)
    group.restored(source.clock, source.version)


def _load(group: GroupState, source: common_pb2.Restore, space: VectorSpace) -> None:
    store, mine = open_store(source.directory), set(group.slices)
    with ExitStack() as stack:
        holding: dict[int, list[GroupFile]] = {index: [] for index in mine}
        for file in source.files:
            wanted = mine.intersection(file.slices)
            if not wanted:
                continue
            path = stack.enter_context(store.local(file.file))
            reader = stack.enter_context(TensorReader(path, file.file))
            found = _checked(group, groups_in(reader).get(group.spec.name), file.file)
            for index in wanted & found.slices.keys():
                holding[index].append(found)
        missing = sorted(index for index, files in holding.items() if not files)
        if missing:
            raise SnapshotError(
                f"group {group.spec.name!r}: no file has slices {missing[:10]}; "
                "restore another snapshot"
            )
        for cell in group.cells:
            with cell.lock:
                for index in cell.slices:
                    _load_slice(group, index, holding[index])
        if holding:
            _load_vectors(space, {index: files[-1] for index, files in holding.items()})


def _checked(group: GroupState, found: GroupFile | None, file: str) -> GroupFile:
    name = group.spec.name
    if found is None:
        raise SnapshotError(f"snapshot file {file} holds no group {name!r}")
    differs = difference(found.spec, group.spec)
    if differs is None and group.spec.table is None:
        left, right = found.slice_elements, group.map.slice_elements
        differs = None if left == right else f"slices have {left} elements, not {right}"
    if differs is not None:
        raise SnapshotError(f"snapshot file {file}, group {name!r}: {differs}")
    return found


def _load_slice(group: GroupState, index: int, files: Sequence[GroupFile]) -> None:
    try:
        state = newest_state(files, index)
        group.cell_of[index].bucket.load({index: state})
    except (RefusedError, KeyError) as error:
        raise SnapshotError(f"group {group.spec.name!r}, slice {index}: {error}") from error


def _load_vectors(space: VectorSpace, files: dict[int, GroupFile]) -> None:
    first, *others = [file.vectors for file in files.values()]
    vectors = {}
    for name, parts in first.items():
        if not all(name in known for known in others):
            continue  # it was being made, or dropped: no announcement speaks of it
        values = {index: files[index].vector(name, index) for index in space.slices}
        known = {(int(start), int(stop)): total for start, stop, total in parts}
        vectors[name] = Vector(values, known)
    space.load(vectors)
