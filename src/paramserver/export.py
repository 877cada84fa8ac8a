"""A snapshot as one plain PyTorch file, which loads without this product."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paramserver.core.placement import GroupSpec
from paramserver.core.slices import TensorSpec, cut
from paramserver.errors import ConfigurationError, NotFoundError, SnapshotError, UnsupportedError
from paramserver.snapshot_files import (
    Manifest,
    Store,
    chain,
    complete,
    open_store,
    read_manifest,
    verify,
)
from paramserver.snapshot_groups import GroupFile, groups_in
from paramserver.snapshot_tensors import TensorReader
from paramserver.wire.tensors import DTYPES

SUFFIXES = (".safetensors", ".pt", ".pth")
_Slices = dict[int, dict[str, Tensor]]


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
    with Reading(store, manifest) as reading:
        chosen = _choose(reading.specs, group)
        model: dict[str, Any] = {}
        for name in chosen:
            model |= reading.state_dict(name, prefix=f"{name}." if len(chosen) > 1 else "")
        content: Any = model
        if optimizer:
            content = {"model": model, "optimizer": reading.optimizer_state(_dense(reading, group))}
    _write(target, content)
    what = " and optimizer" if optimizer else ""
    return f"{target}: {len(model)} tensors{what} of snapshot {manifest.name}"


def _choose(specs: Mapping[str, GroupSpec], group: str | None) -> list[str]:
    if group is not None:
        if group not in specs:
            raise NotFoundError(f"group {group!r} is not in the snapshot: it has {_names(specs)}")
        return [group]
    dense = [name for name, spec in specs.items() if spec.table is None]
    if len(dense) > 1:
        raise ConfigurationError(
            f"the snapshot has the groups {_names(dense)}; choose one: --group"
        )
    return [*dense, *(name for name, spec in specs.items() if spec.table is not None)]


def _dense(reading: Reading, group: str | None) -> str:
    name = _choose(reading.specs, group)[0] if reading.specs else ""
    spec = reading.specs.get(name)
    if spec is None or spec.table is not None or not spec.optimizer:
        raise UnsupportedError(
            f"group {name!r} has no torch optimizer whose state could be written"
        )
    return name


def _names(names: Any) -> str:
    return ", ".join(sorted(names)) or "none"


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


class Reading:
    """The files of a snapshot, open for reading.

    Attributes:
        specs: of the groups, by name.
    """

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self._stack = ExitStack()
        self._files: dict[str, list[GroupFile]] = {}
        self._manifest = manifest
        self.specs: dict[str, GroupSpec] = {}
        for each in chain(store, manifest):
            for file in each.files:
                path = self._stack.enter_context(store.local(f"{each.name}/{file.file}"))
                reader = self._stack.enter_context(TensorReader(path, file.file))
                for name, found in groups_in(reader).items():
                    self._files.setdefault(name, []).append(found)
                    self.specs[name] = found.spec

    def __enter__(self) -> Reading:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def state_dict(self, group: str, prefix: str = "") -> dict[str, Tensor]:
        """Tensors by name; of a table ``ids`` and ``rows``, in ascending order of ids."""
        spec = self.specs[group]
        slices = self._slices(group)
        if spec.table is not None:
            return {f"{prefix}{name}": t for name, t in self._rows(spec, slices).items()}
        whole = self._whole(group, slices, "value")
        return {tensor.name: whole[number] for number, tensor in enumerate(spec.tensors)}

    def _slices(self, group: str) -> _Slices:
        found: _Slices = {}
        for file in self._files[group]:
            if any("since" in numbers for numbers in file.slices.values()):
                raise UnsupportedError(
                    f"table {group!r} is there as changes since another snapshot; export that one"
                )
            found |= {index: file.tensors(index) for index in file.slices}
        return found

    def _rows(self, spec: GroupSpec, slices: _Slices) -> dict[str, Tensor]:
        dim = spec.tensors[0].shape[-1]
        keys = torch.cat([part["keys"] for _, part in sorted(slices.items())])
        rows = torch.cat([part["rows"][:, :dim] for _, part in sorted(slices.items())])
        order = torch.argsort(keys)
        return {"ids": keys[order], "rows": rows[order].to(DTYPES[spec.tensors[0].dtype])}

    def _whole(self, group: str, slices: _Slices, name: str) -> dict[int, Tensor]:
        """By tensor what its slices have under a name, in the tensor's shape."""
        spec = self.specs[group]
        pieces: dict[int, list[Tensor]] = {}
        for piece in cut(spec.tensors, self._files[group][0].slice_elements):
            if piece.index not in slices:
                raise SnapshotError(f"group {group!r}: slice {piece.index} is in no file")
            part = slices[piece.index].get(name)
            if part is not None:
                pieces.setdefault(piece.tensor, []).append(part)
        return {n: _joined(parts, spec.tensors[n]) for n, parts in pieces.items()}

    def optimizer_state(self, group: str) -> dict[str, Any]:
        """As ``torch.optim.Optimizer.state_dict``, for ``load_state_dict`` of the same class.

        Parameters are numbered in the order of the group, param group by param group.
        """
        spec, slices = self.specs[group], self._slices(group)
        stepped = [n for n, t in enumerate(spec.tensors) if t.rule == "step"]
        stepped.sort(key=lambda n: spec.tensors[n].param_group)
        names = sorted({name for part in slices.values() for name in part} - {"value"})
        parts = {name: self._whole(group, slices, name) for name in names}
        state = {
            number: {name: part[n] for name, part in parts.items() if n in part}
            for number, n in enumerate(stepped)
        }
        groups = []
        for which, options in enumerate(self._options(group)):
            members = [k for k, n in enumerate(stepped) if spec.tensors[n].param_group == which]
            groups.append({**options, "params": members})
        return {"state": {k: part for k, part in state.items() if part}, "param_groups": groups}

    def _options(self, group: str) -> list[dict[str, Any]]:
        """Hyper-parameters as the chief had them at the cut, else as they were registered."""
        options = [dict(each) for each in self.specs[group].param_groups]
        from paramserver.worker import states

        schedule = self._manifest.state.get("schedule")
        saved = states.loads(schedule["state"])["optimizers"].get(group, ()) if schedule else ()
        for mine, then in zip(options, saved, strict=False):
            mine.update(then)
        return options


def _joined(parts: list[Tensor], tensor: TensorSpec) -> Tensor:
    """A tensor of slices that were cut from it; what every slice has once stays a number."""
    if all(part.dim() == 0 for part in parts):
        return torch.stack(parts).max()
    return torch.cat([part.reshape(-1) for part in parts]).reshape(tensor.shape)
