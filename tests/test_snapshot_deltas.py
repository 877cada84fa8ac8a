"""Snapshots that hold only the rows of tables that changed, and what they build on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import paramserver as ps
from paramserver.config import MAX_DELTAS, SnapshotConfig
from paramserver.errors import ConfigurationError
from paramserver.export import export_snapshot
from paramserver.snapshot_files import (
    Manifest,
    complete,
    newest_good,
    open_store,
    prune,
    read_manifest,
    write_manifest,
)
from tests.cluster import Cluster, cluster

ROWS = 4000
ALL = torch.arange(ROWS)


class Training:
    """A table whose rows age out, and a dense group; a few rows a step."""

    def __init__(self, client: ps.Client) -> None:
        self.table = client.table(
            "t", 8, seed=3, optimizer=torch.optim.Adagrad, lr=0.3, evict=ps.TTL(clocks=4)
        )
        self.dense = client.register("d", {"w": torch.zeros(50)}, torch.optim.Adam, lr=0.1)

    def fill(self) -> None:
        """Every row is there; those that are not touched again leave after four clocks."""
        self.table.push(ALL, torch.ones(ROWS, 8))
        self.dense.push_pull({"w": torch.zeros(50)})

    def step(self, number: int) -> None:
        ids = torch.arange(5) + 3 * number
        self.table.push(ids, 2 * self.table.pull(ids) + 1)
        self.dense.push_pull({"w": torch.full((50,), float(number))})

    def state(self) -> dict[str, Tensor]:
        return {"t": self.table.pull(ALL), "w": self.dense.read()["w"]}


def kept(folder: Path, **options: Any) -> SnapshotConfig:
    return SnapshotConfig(directory=str(folder), **options)


def take(
    made: Cluster, training: Training, names: str, first: int = 1
) -> dict[str, dict[str, Tensor]]:
    """A delta after every step; what was there each time."""
    found = {}
    for number, name in enumerate(names, first):
        training.step(number)
        reply = made.snapshot(name, delta=True)
        assert reply.name == name
        found[name] = training.state()
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The snapshots a, which is whole as it is the first, and b to f, each on the one before."""
    place = tmp_path_factory.mktemp("snapshots")
    with cluster(2, 1, snapshots=kept(place)) as made, made.connect() as client:
        training = Training(client)
        training.fill()
        states = take(made, training, "abcdef")
    torch.save(states, place / "states.pt")
    return place


def test_a_delta_holds_what_changed_and_names_its_base(folder: Path) -> None:
    store = open_store(str(folder))
    found = {name: read_manifest(store, name) for name in "abcdef"}
    assert [found[name].base for name in "abcdef"] == ["", *"abcde"]
    assert found["b"].nbytes < found["a"].nbytes / 3
    assert len(found["b"].files) == 2


@pytest.mark.parametrize("name", ["b", "f"])
def test_a_chain_is_restored_on_other_servers(folder: Path, name: str) -> None:
    """With what was evicted meanwhile, and to the bit as it would have gone on."""
    wanted = torch.load(folder / "states.pt", weights_only=True)
    rest = range("abcdef".index(name) + 2, 7)
    with cluster(3, 1, snapshots=kept(folder, resume=name)) as made, made.connect() as client:
        training = Training(client)
        for key, value in training.state().items():
            assert torch.equal(value, wanted[name][key]), key
        for number in rest:
            training.step(number)
        for key, value in training.state().items():
            assert torch.equal(value, wanted["f"][key]), key


def test_an_export_applies_the_chain(folder: Path, tmp_path: Path) -> None:
    wanted = torch.load(folder / "states.pt", weights_only=True)["f"]
    export_snapshot(str(folder / "f"), tmp_path / "f.safetensors")
    found = load_file(tmp_path / "f.safetensors")
    assert torch.equal(found["t.weight"], wanted["t"][found["t.ids"]])
    assert len(found["t.ids"]) < ROWS, "some were evicted"
    assert torch.equal(found["w"], wanted["w"])


def test_a_damaged_base_takes_along_all_that_builds_on_it(tmp_path: Path) -> None:
    """The newest one before is gone on from, and what is taken then builds on that."""
    with cluster(2, 1, snapshots=kept(tmp_path)) as made, made.connect() as client:
        training = Training(client)
        training.fill()
        states = take(made, training, "abcd")
    (file, *_) = (tmp_path / "c").glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    good, problems = newest_good(open_store(str(tmp_path)))
    assert good is not None
    assert good.name == "b"
    assert len(problems) == 2
    assert all("'c'" in problem for problem in problems)
    resume = kept(tmp_path, resume="latest")
    with cluster(3, 1, snapshots=resume) as made, made.connect() as client:
        training = Training(client)
        for key, value in training.state().items():
            assert torch.equal(value, states["b"][key]), key
        training.step(3)
        training.step(4)
        assert made.snapshot("again", delta=True).base == "b"
        for key, value in training.state().items():
            assert torch.equal(value, states["d"][key]), key
    assert newest_good(open_store(str(tmp_path)))[0] == read_manifest(
        open_store(str(tmp_path)), "again"
    )


def test_whole_ones_come_again_and_what_is_needed_stays(tmp_path: Path) -> None:
    """Every third is whole; the newest two are kept, and those that they build on."""
    where = kept(tmp_path, keep=2, delta=2)
    store, bases = open_store(str(tmp_path)), list[str]()
    with cluster(1, 1, snapshots=where) as made, made.connect() as client:
        training = Training(client)
        training.fill()
        snapshots = made.scheduler.snapshots

        async def take_one(number: int) -> None:
            """As ``tick`` does when one is due."""
            snapshots._start(f"auto-{number:06d}", "", where.delta)
            assert snapshots._cutting is not None
            await snapshots._cutting[1]

        for number in range(1, 9):
            training.step(number)
            made.run(take_one(number))
            found = complete(store)
            bases.append(found[-1].base)
            names = {manifest.name for manifest in found}
            assert all(m.base in names for m in found if m.base)
            assert len(found) <= 4
    assert [not base for base in bases] == [True, False, False] * 2 + [True, False]
    assert newest_good(store)[0] == complete(store)[-1]


def test_what_a_named_one_builds_on_is_not_pruned(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    store = open_store(str(tmp_path / "copy"))
    write_manifest(store, Manifest("whole", 9, 1, 1e12, ()))
    assert prune(store, 1, {"c"}) == list("def")
    assert sorted(m.name for m in complete(store)) == ["a", "b", "c", "whole"]
    store.delete("b")
    assert prune(store, 1, {"c"}) == ["a"], "of no use any more"
    assert [m.name for m in complete(store)] == ["c", "whole"]


def test_without_tables_or_a_base_it_is_whole(tmp_path: Path) -> None:
    with cluster(1, 1, snapshots=kept(tmp_path)) as made, made.connect() as client:
        group = client.register("g", {"w": torch.zeros(3)})
        for name in ("one", "two"):
            group.push_pull({"w": torch.ones(3)})
            assert client.snapshot(name, delta=True) == name
    assert [m.base for m in complete(open_store(str(tmp_path)))] == ["", ""]


def test_too_long_a_chain_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"delta=101: at most 100.*whole one more often"):
        SnapshotConfig(directory="x", delta=MAX_DELTAS + 1)
    with pytest.raises(ConfigurationError, match="delta=-1: must be >= 0"):
        SnapshotConfig(directory="x", delta=-1)
