"""Cuts of a cluster while it trains, and groups that begin with one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import paramserver as ps
from paramserver.snapshot_files import open_store, read_manifest, verify
from paramserver.snapshot_groups import GroupFile, groups_in
from paramserver.snapshot_tensors import TensorReader
from tests.cluster import cluster
from tests.snapshot_rig import Snapshooter, begin_with

SHAPES = {"w": (41, 13), "b": (13,), "half": (29,)}
STEPS = 30


@pytest.fixture(autouse=True)
def _small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same slices, many of them, whatever the number of servers; two or three to a bucket."""
    monkeypatch.setattr("paramserver.core.placement.slice_elements", lambda *_: 64)
    monkeypatch.setattr("paramserver.core.slices.pack.__defaults__", (600,))


def first() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    return {**made, "half": made["half"].bfloat16()}


def gradients(rank: int, clock: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1000 * rank + clock)
    made = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    if clock % 3 == 1:
        del made["b"]
    return {**made, "half": made["half"].bfloat16()}


def files(directory: Path, name: str) -> dict[str, list[GroupFile]]:
    """All parts of all groups of a snapshot."""
    found: dict[str, list[GroupFile]] = {}
    for file in read_manifest(open_store(str(directory)), name).files:
        reader = TensorReader(directory / name / file.file)
        for group, part in groups_in(reader).items():
            found.setdefault(group, []).append(part)
    return found


RULES: list[tuple[type[torch.optim.Optimizer], dict[str, Any]]] = [
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
    (torch.optim.Adam, {"lr": 0.01}),
    (torch.optim.NAdam, {"lr": 0.01}),
]


@pytest.mark.parametrize(("rule", "options"), RULES, ids=["momentum", "adam", "nadam"])
@pytest.mark.parametrize("servers", [(1, 2), (2, 1), (2, 3)], ids=str)
def test_training_goes_on_exactly_on_other_servers(
    tmp_path: Path, rule: Any, options: dict[str, Any], servers: tuple[int, int]
) -> None:
    """Two workers under Sync; snapshots are taken in the midst of it, unasked."""
    taken = threading.Event()

    def train(client: ps.Client) -> dict[str, Tensor]:
        group = client.register("g", first(), rule, **options)
        while group.clock < STEPS:
            if group.clock == 12:
                taken.wait(20)
            group.push_pull(gradients(client.rank, group.clock), weight=client.rank + 1)
        return group.read()

    with cluster(servers[0], 2) as c:
        camera = Snapshooter(c, str(tmp_path))
        thread = threading.Thread(target=lambda: _when(c, 3, lambda: camera.take("s"), taken))
        thread.start()
        wanted = c.workers(train)
        thread.join()
    manifest = read_manifest(open_store(str(tmp_path)), "s")
    verify(open_store(str(tmp_path)), manifest)
    clocks = {part.clock for part in files(tmp_path, "s")["g"]}
    assert len(clocks) == 1
    assert 3 <= clocks.pop() <= 12

    with cluster(servers[1], 2) as c:
        begin_with(c, str(tmp_path), "s")
        found = c.workers(train)
    for name, value in wanted[0].items():
        assert torch.equal(value, wanted[1][name])
        assert torch.equal(value, found[0][name]), name
        assert torch.equal(value, found[1][name]), name


@pytest.mark.parametrize("consistency", [ps.Async("none"), ps.Stale(2, "none")], ids=str)
def test_a_cut_holds_exactly_the_pushes_that_all_servers_agreed_on(
    tmp_path: Path, consistency: Any
) -> None:
    """Each worker counts its pushes in every element of a tensor of its own."""
    workers: int = 3
    names: list[str] = []
    zeros = {f"t{rank}": torch.zeros(300, dtype=torch.float64) for rank in range(workers)}

    def count(client: ps.Client) -> int:
        group = client.register("g", zeros, consistency=consistency)
        client.barrier("begin")
        ones = {f"t{client.rank}": torch.ones(300, dtype=torch.float64)}
        futures = []
        while len(names) < 6:
            if client.rank == 0:
                group.push_pull(ones)
            else:
                futures.append(group.push_async(ones))
                if len(futures) > 20:
                    futures.pop(0).result(20)
        for future in futures:
            future.result(20)
        return group.clock

    with cluster(3, workers) as c:
        camera = Snapshooter(c, str(tmp_path))

        def snapshots() -> None:
            _when(c, 1, lambda: None, threading.Event())
            while len(names) < 6:
                name = f"s{len(names)}"
                replies = camera.take(name)
                agreed = {w.rank: w.clock for w in camera.agreed[0].workers}
                parts = files(tmp_path, name)["g"]
                seen = {0: set[float](), 1: set[float](), 2: set[float]()}
                for part in parts:
                    for index in part.slices:
                        tensor = 64 * index // 320
                        seen[tensor] |= set(part.tensors(index)["value"].tolist())
                assert seen == {rank: {float(agreed.get(rank, 0))} for rank in range(workers)}
                assert all(r.held_s < 10 for r in replies)
                assert {p.clock for p in parts} == {max(agreed.values())}
                names.append(name)

        thread = threading.Thread(target=snapshots)
        thread.start()
        try:
            pushed = c.workers(count)
        finally:
            names += ["over"] * 6
            thread.join()

    def look(client: ps.Client) -> tuple[int, dict[str, Tensor]]:
        group = client.register("g", zeros, consistency=consistency)
        return group.clock, group.read()

    with cluster(2, 1) as c:
        begin_with(c, str(tmp_path), "s5")
        ((clock, values),) = c.workers(look)
    agreed = {w.rank: w.clock for w in camera.agreed[0].workers}
    assert clock == max(agreed.values())
    assert max(pushed) >= clock
    for rank in range(workers):
        assert set(values[f"t{rank}"].tolist()) == {float(agreed[rank])}


def _when(c: Any, clock: int, do: Callable[[], Any], done: threading.Event) -> None:
    """Calls ``do`` when a group has come to a clock."""

    async def there() -> bool:
        groups = [t.result() for s in c.servers for t in s._groups.values() if t.done()]
        return bool(groups) and all(g.frontier.value >= clock for g in groups)

    try:
        while not c.run(there()):
            pass
        do()
    finally:
        done.set()
