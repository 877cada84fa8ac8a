"""A snapshot as one plain PyTorch file, which loads without this product."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from paramserver.errors import ConfigurationError, SnapshotError, UnsupportedError
from paramserver.snapshot_export import SnapshotGroup, group_of, open_groups
from paramserver.snapshot_files import (
    Manifest,
    Store,
    chain,
    complete,
    open_store,
    read_manifest,
    verify,
)

SUFFIXES = (".safetensors", ".pt", ".pth")


def find(source: str) -> tuple[Store, Manifest]:
    """The snapshot at DIR/NAME, or the newest one in DIR.

    Raises:
        SnapshotError: there is none, or it is damaged.
    """
    store = open_store(source)
    found = complete(store)
    if found:
        return store, found[-1]
    folder, _, name = source.rstrip("/").rpartition("/")
    if not name:
        raise SnapshotError(f"{source}: no snapshot is there")
    store = open_store(folder or ("/" if source.startswith("/") else "."))
    return store, read_manifest(store, name)


def export_snapshot(
    source: str, target: Path, group: str | None = None, *, optimizer: bool = False
) -> str:
    """Writes a ``state_dict`` of a snapshot, once all its files were checked.

    Args:
        source: DIR/NAME, or DIR for the newest.
        target: OUT.safetensors, OUT.pt or OUT.pth; replaced as a whole.
        group: of which group; None: the only group of dense tensors, and all tables.
        optimizer: also its state in torch's form: {"model": ..., "optimizer": ...}; .pt only.

    Returns:
        What was written, in words.

    Raises:
        ConfigurationError: another kind of file, or a group must be chosen.
        SnapshotError: no such snapshot, or a damaged one.
    """
    if target.suffix not in SUFFIXES:
        raise ConfigurationError(f"{target}: must end in one of {', '.join(SUFFIXES)}")
    if optimizer and target.suffix == ".safetensors":
        raise UnsupportedError(f"{target}: safetensors holds tensors only; use OUT.pt")
    store, manifest = find(source)
    for each in chain(store, manifest):
        verify(store, each)
    with open_groups(store, manifest) as groups:
        chosen = _choose(groups, group)
        model: dict[str, Any] = {}
        for found in chosen:
            model |= found.state_dict()
        content: Any = model
        if optimizer:
            state = chosen[0].optimizer_state_dict()
            _take_rates(state["param_groups"], chosen[0].spec.name, manifest)
            content = {"model": model, "optimizer": state}
    _write(target, content)
    what = " and optimizer" if optimizer else ""
    return f"{target}: {len(model)} tensors{what} of snapshot {manifest.name}"


def _choose(groups: Mapping[str, SnapshotGroup], name: str | None) -> list[SnapshotGroup]:
    if name is not None:
        return [group_of(groups, name)]
    tables = [group for group in groups.values() if group.spec.table is not None]
    dense = [group for group in groups.values() if group.spec.table is None]
    if len(dense) > 1:
        names = ", ".join(group.spec.name for group in dense)
        raise ConfigurationError(f"the snapshot has the groups {names}: choose one (--group)")
    return [*dense, *tables]


def _take_rates(groups: list[dict[str, Any]], name: str, manifest: Manifest) -> None:
    """Hyper-parameters as the chief had them at the cut: a schedule has moved them."""
    from paramserver.worker import states

    schedule = manifest.state.get("schedule")
    saved = states.loads(schedule["state"])["optimizers"].get(name, ()) if schedule else ()
    for mine, then in zip(groups, saved, strict=False):
        mine.update((key, value) for key, value in then.items() if key in mine)


def _write(target: Path, content: Any) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    number, draft = tempfile.mkstemp(dir=target.parent, prefix=".", suffix=target.suffix)
    os.close(number)
    try:
        if target.suffix == ".safetensors":
            from safetensors.torch import save_file

            save_file({name: tensor.contiguous() for name, tensor in content.items()}, draft)
        else:
            torch.save(content, draft)
        os.replace(draft, target)
    except BaseException:
        os.unlink(draft)
        raise
