"""Cuts of a cluster while it trains, and groups that begin with one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import paramserver as ps
from paramserver.config import Limits
from paramserver.core.placement import GroupSpec, place
from paramserver.core.slices import TensorSpec
from paramserver.core.tables import Initial, TableSpec
from paramserver.errors import FencedError, InvalidRequestError, NotFoundError, SnapshotError
from paramserver.ps.capture import GroupCapture
from paramserver.ps.group import Cell, GroupState
from paramserver.ps.rules import Bucket
from paramserver.ps.tables.store import Rows
from paramserver.ps.vectors import Vector, Vectors
from paramserver.ps.workshop import Workshop
from paramserver.slice_state import SliceState
from paramserver.snapshot_export import group_of, open_groups
from paramserver.snapshot_files import complete, open_store, read_manifest, verify
from paramserver.snapshot_groups import GroupFile, groups_in
from paramserver.snapshot_tensors import TensorReader
from paramserver.v1 import server_pb2 as pb
from tests.cluster import cluster, in_threads
from tests.snapshot_rig import Restoring, Snapshooter, begin_with

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


def _when(c: Any, clock: int, do: Callable[[], Any], done: threading.Event) -> None:
    """Calls ``do`` when a group has come to a clock."""

    async def there() -> bool:
        groups = [t.result() for s in c.servers for t in s._groups.values() if t.done()]
        return bool(groups) and all(g.frontier.value >= clock for g in groups if g.slices)

    try:
        while not c.run(there()):
            done.wait(0.01)
        do()
    finally:
        done.set()


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


def a_group(table: bool) -> GroupState:
    """On one server, with many cells, some steps old."""
    if table:
        one = TensorSpec("t", (0, 3), "float32", "rows")
        life = TableSpec(3, None, Initial("normal", 0.0, 1.0, 5), ps.CountFilter(2), ps.LRU(64))
        spec = GroupSpec("t", (one,), "RowAdagrad", ({},), ps.Sync(), table=life)
    else:
        tensors = (TensorSpec("w", (500,), "float32"), TensorSpec("m", (70,), "float32", "delta"))
        spec = GroupSpec("g", tensors, "Adam", ({},), ps.Sync())
    placed = place(spec, [("ps-0", "nowhere:1")], 1)
    group = GroupState(spec, placed.map, "ps-0", WORKSHOP)
    for index, piece in group.slices.items():
        if not table:
            group.cell_of[index].dense.store(index, torch.full((piece.elements,), float(index)))
    for cell in group.cells:
        step(cell, 0)
    return group


def step(cell: Cell, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    given: dict[int, Any] = {}
    for index, piece in cell.slices.items():
        if cell.rows is None:
            given[index] = torch.randn(piece.elements, generator=generator)
        else:
            keys = np.arange(seed % 3, 5, dtype=np.uint64) + (np.uint64(index) << np.uint64(58))
            given[index] = Rows(keys, torch.randn(len(keys), 3, generator=generator))
    with cell.lock:
        cell.change_locked(cell.bucket.close, [(1.0, given)])


WORKSHOP = Workshop(1)
MOVES = st.lists(
    st.tuples(st.sampled_from(["copy", "close", "tick"]), st.integers(0, 63)), max_size=60
)


def equal(one: SliceState, other: SliceState) -> bool:
    return (
        one.numbers == other.numbers
        and one.tensors.keys() == other.tensors.keys()
        and all(torch.equal(t, other.tensors[n]) for n, t in one.tensors.items())
    )


@pytest.mark.parametrize("table", [False, True], ids=["dense", "table"])
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(moves=MOVES, given_up=st.booleans())
def test_a_capture_is_what_was_there_whatever_changes_meanwhile(
    table: bool, moves: list[tuple[str, int]], given_up: bool
) -> None:
    group, twin = a_group(table), a_group(table)
    wanted = {i: s for cell in twin.cells for i, s in cell.bucket.dump().items()}
    capture = GroupCapture(group, 1)
    states = capture.states()
    found: dict[int, SliceState] = {}
    for seed, (what, where) in enumerate(moves):
        cells = [g.cells[where % len(g.cells)] for g in (group, twin)]
        if what == "copy":
            found.update([next(states, (-1, SliceState()))])
        for cell in cells:
            if what == "close":
                step(cell, seed)
            elif what == "tick":
                with cell.lock:
                    cell.change_locked(cell.bucket.tick, list(cell.slices))
    if given_up:
        capture.end()
        with pytest.raises(SnapshotError, match="was ended"):
            list(capture.states())
    else:
        found.update(states)
        found.pop(-1, None)
        assert found.keys() == wanted.keys()
        assert all(equal(found[index], wanted[index]) for index in wanted)
    assert all(cell.capture is None for cell in group.cells)
    after = {i: s for cell in twin.cells for i, s in cell.bucket.dump().items()}
    for cell in group.cells:
        assert all(equal(state, after[i]) for i, state in cell.bucket.dump().items())


def rows(rank: int, clock: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 * rank + clock)
    ids = torch.randint(0, 400, (60,), generator=generator)
    return ids, torch.randn(60, 4, generator=generator)


@pytest.mark.parametrize("servers", [(1, 2), (3, 1)], ids=str)
def test_tables_go_on_exactly_with_rows_that_come_and_go(
    tmp_path: Path, servers: tuple[int, int]
) -> None:
    """A whole snapshot, then one of what has changed since, beside a dense group."""
    first_taken, second_taken = threading.Event(), threading.Event()

    def train(client: ps.Client) -> tuple[Tensor, Tensor, Any]:
        table = client.table(
            "t", 4, optimizer=torch.optim.Adagrad, admit=ps.CountFilter(2), evict=ps.LRU(128)
        )
        group = client.register("g", {"w": torch.zeros(100)}, torch.optim.Adam)
        while group.clock < 24:
            if group.clock in (8, 16):
                (first_taken if group.clock == 8 else second_taken).wait(20)
            table.push(*rows(client.rank, table.clock))
            group.push_pull({"w": torch.full((100,), float(group.clock + client.rank))})
            table.pull(torch.arange(400))
        client.barrier("over")
        return table.pull(torch.arange(400)), group.read()["w"], table.counts()

    with cluster(servers[0], 2) as c:
        camera = Snapshooter(c, str(tmp_path))

        def snapshots() -> None:
            _when(c, 4, lambda: camera.take("whole"), first_taken)
            _when(c, 10, lambda: camera.take("changes", base="whole"), second_taken)

        thread = threading.Thread(target=snapshots)
        thread.start()
        wanted = c.workers(train)
        thread.join()
    store = open_store(str(tmp_path))
    small, large = (read_manifest(store, n).nbytes for n in ("changes", "whole"))
    assert small < 2 * large
    clocks = {n: {p.clock for p in parts} for n, parts in files(tmp_path, "changes").items()}
    assert clocks["t"] == clocks["g"], "groups that are stepped together are cut together"
    parts = files(tmp_path, "changes")["t"]
    assert all("since" in numbers for part in parts for numbers in part.slices.values())
    with cluster(servers[1], 2) as c:
        begin_with(c, str(tmp_path), "changes")
        found = c.workers(train)
    for one, other in zip(wanted, found, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
        assert replace(one[2], bytes=0) == replace(other[2], bytes=0)
    assert wanted[0][2].evicted > 0


def test_a_hold_that_nobody_releases_gives_up(tmp_path: Path) -> None:
    with cluster(2, 1) as c, c.connect() as client:
        group = client.register("g", {"w": torch.zeros(300)}, consistency=ps.Async())
        sync = client.register("s", {"w": torch.zeros(300)})
        camera = Snapshooter(c, str(tmp_path))
        group.push_pull({"w": torch.ones(300)})
        sync.push_pull({"w": torch.ones(300)})
        held = c.run(camera.hold(limit_s=0.3))
        assert {g.group: g.next_clock for g in held} == {"g": 0, "s": 1}
        future = group.push_async({"w": torch.ones(300)})
        waits = sync.push_async({"w": torch.ones(300)})
        assert future.result(20).version == 2
        assert waits.result(20).clock == 1
        assert sync.push_pull({})["w"][0] == 2
        request = pb.SnapshotRequest(job=1, id=1, directory=str(tmp_path), name="a", hold=1)
        for call in (
            c.servers[0].Snapshot(request),
            c.servers[0].Drain(pb.DrainRequest(job=1, hold=1)),
            c.servers[0].Hold(pb.HoldRequest(job=1, hold=1)),
            c.servers[0].Hold(pb.HoldRequest(job=2, hold=2)),
        ):
            with pytest.raises(FencedError, match=r"is over|this is job"):
                c.run(call)
        assert c.run(c.servers[0].Release(pb.ReleaseRequest(job=1, hold=1))).held_s >= 0.3
        assert c.run(c.servers[0].Release(pb.ReleaseRequest(job=1, hold=9))).held_s == 0
        camera.take("later")


def test_a_drain_does_not_wait_for_a_lost_worker(tmp_path: Path) -> None:
    with cluster(2, 2, proxies=True) as c:
        assert c.proxies is not None
        lives, dies = in_threads([lambda k=k: c.connect(f"worker-{k}") for k in range(2)])  # type: ignore[misc]
        zeros = {"w": torch.zeros(300)}
        one, other = in_threads(
            [lambda x=x: x.register("g", zeros, consistency=ps.Async()) for x in (lives, dies)]  # type: ignore[misc]
        )
        one.push_pull({"w": torch.ones(300)})
        other.push_pull({"w": torch.ones(300)})
        c.proxies[1].black_hole = True
        future = other.push_async({"w": torch.ones(300)})

        async def clocks(server: Any) -> dict[int, int]:
            (group,) = [await task for task in server._groups.values()]
            return {worker.rank: clock for worker, clock in group.ledger.opened().items()}

        while c.run(clocks(c.servers[0]))[1] < 2:
            threading.Event().wait(0.01)
        assert c.run(clocks(c.servers[1]))[1] == 1
        camera = Snapshooter(c, str(tmp_path))
        drained = asyncio.run_coroutine_threadsafe(camera.hold(), c.loop)
        dies.fail("killed")
        held = drained.result(20)
        assert {w.rank: w.clock for w in held[0].workers} == {0: 1, 1: 2}
        c.run(c.servers[0].Release(pb.ReleaseRequest(job=1, hold=1)))
        c.proxies[1].black_hole = False
        future.cancel()
        dies.close()
        lives.close()


def test_a_snapshot_that_cannot_be_written_leaves_training_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with cluster(2, 1) as c, c.connect() as client:
        group = client.register("g", {"w": torch.zeros(300)}, torch.optim.Adam)
        group.push_pull({"w": torch.ones(300)})
        bad = Snapshooter(c, str(tmp_path / "file"))
        with pytest.raises(SnapshotError, match="training goes on"):
            bad.take("a")
        group.push_pull({"w": torch.ones(300)})
        with pytest.raises(SnapshotError, match="must be 1 to"):
            bad.take("../a")
        good = Snapshooter(c, str(tmp_path))
        good.number = bad.number
        good.take("a")
        verify(open_store(str(tmp_path)), read_manifest(open_store(str(tmp_path)), "a"))


def test_requests_that_cannot_be(tmp_path: Path) -> None:
    with cluster(1, 1) as c, c.connect() as client:
        group = client.register("g", {"w": torch.zeros(300)}, consistency=ps.Async())
        group.push_pull({"w": torch.ones(300)})
        server = c.servers[0]
        camera = Snapshooter(c, str(tmp_path))
        request = c.run(camera.request("a"))
        both = in_threads([lambda: c.run(server.Snapshot(request))] * 2)
        assert both[0] == both[1], "a second call joins the first"
        for hold in (0, request.hold):
            late = pb.SnapshotRequest()
            late.CopyFrom(request)
            late.id, late.hold = 7, hold
            with pytest.raises((InvalidRequestError, FencedError), match=r"hold .*"):
                c.run(server.Snapshot(late))
        late.job, late.id = 5, 8
        with pytest.raises(FencedError, match="this is job 1"):
            c.run(server.Snapshot(late))
        group.push_pull({"w": torch.ones(300)})


def test_groups_that_stand_still_are_cut_where_they_are(tmp_path: Path) -> None:
    with cluster(2, 1) as c, c.connect() as client:
        still = client.register("still", {"w": torch.zeros(300)})
        moves = client.register("moves", {"w": torch.zeros(300)})
        still.push_pull({"w": torch.ones(300)})
        for _ in range(5):
            moves.push_pull({"w": torch.ones(300)})
        Snapshooter(c, str(tmp_path)).take("a", patience_s=0.2)
        still.push_pull({"w": torch.ones(300)})
    found = files(tmp_path, "a")
    assert {part.clock for part in found["still"]} == {1}
    assert {part.clock for part in found["moves"]} == {5}


def test_cuts_over_breaking_connections(tmp_path: Path) -> None:
    """Streams between servers break too: a server that follows again hears of the cut."""
    names: list[str] = []

    def count(client: ps.Client) -> None:
        group = client.register("g", {"w": torch.zeros(3000)})
        client.barrier("begin")
        while len(names) < 8 or sum(proxy.cuts for proxy in proxies) < 4:
            group.push_pull({"w": torch.ones(3000)})

    with cluster(3, 2, proxies=True) as c:
        proxies = c.proxies or []
        for proxy in proxies:
            proxy.cut_after = (5_000, 60_000)
        camera = Snapshooter(c, str(tmp_path))

        def snapshots() -> None:
            _when(c, 1, lambda: None, threading.Event())
            while len(names) < 8:
                name = f"s{len(names)}"
                camera.take(name)
                parts = files(tmp_path, name)["g"]
                (clock,) = {part.clock for part in parts}
                for part in parts:
                    for index in part.slices:
                        assert set(part.tensors(index)["value"].tolist()) == {2.0 * clock}
                names.append(name)

        thread = threading.Thread(target=snapshots)
        thread.start()
        try:
            c.workers(count)
        finally:
            names += ["over"] * 8
            thread.join()
    assert len(complete(open_store(str(tmp_path)))) == 8


def test_vectors_come_back(tmp_path: Path) -> None:
    values = {"w": torch.arange(300.0, dtype=torch.float64), "b": torch.ones(7)}

    def make(client: ps.Client) -> dict[str, Tensor]:
        group = client.register("g", values, consistency=ps.Async("none"))
        group.lin("a", {"values": 3.0})
        group.lin("b", {"a": 1.0, "values": 0.5})
        return group.vector("b").pull()

    def look(client: ps.Client) -> dict[str, Tensor]:
        group = client.register("g", values, consistency=ps.Async("none"))
        return group.vector("b").pull()

    with cluster(2, 1) as c:
        (wanted,) = c.workers(make)
        Snapshooter(c, str(tmp_path)).take("a")
    with cluster(3, 1) as c:
        begin_with(c, str(tmp_path), "a")
        (found,) = c.workers(look)
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_a_vector_that_was_captured_is_not_written_to() -> None:
    group = a_group(False)
    space = Vectors(Limits(), WORKSHOP).of(group)
    vector = space.vectors["a"] = Vector({i: torch.zeros(1) for i in group.slices})
    kept = space.dump()["a"]
    for _ in range(2):
        space._add(vector, {0: torch.ones(1)})
    assert kept.values[0].item() == 0
    assert space.dump()["a"].values[0].item() == 2


def test_damage_is_found_when_a_group_begins_with_it(tmp_path: Path) -> None:
    def train(client: ps.Client) -> None:
        client.register("g", first(), torch.optim.Adam).push_pull(gradients(0, 0))

    with cluster(1, 1) as c:
        c.workers(train)
        Snapshooter(c, str(tmp_path)).take("a")
    (path,) = (tmp_path / "a").glob("*.safetensors")
    whole = bytearray(path.read_bytes())
    whole[-5] ^= 1
    path.write_bytes(whole)
    with pytest.raises(SnapshotError, match=r"ps-ps-0.safetensors is damaged"):
        verify(open_store(str(tmp_path)), read_manifest(open_store(str(tmp_path)), "a"))
    with cluster(1, 1) as c, pytest.raises(SnapshotError, match=r"tensor .* is damaged"):
        _begin_damaged(c, tmp_path)


def _begin_damaged(c: Any, directory: Path) -> None:
    for server in c.servers:
        restoring = Restoring(server._scheduler, str(directory), [])
        manifest = read_manifest(open_store(str(directory)), "a")
        restoring._manifests = [manifest]
        restoring._ends = {"g": (1, 1)}
        server._scheduler = restoring
    with c.connect() as client:
        client.register("g", first(), torch.optim.Adam)


def test_a_group_without_first_values_is_captured_as_that() -> None:
    group, other = a_group(False), a_group(False)
    group.cells[0].dense.values.popitem()
    capture = GroupCapture(group, 3)
    states = dict(capture.states())
    assert not capture.describe().stored
    for cell in other.cells:
        cell.bucket = Bucket(list(cell.slices.values()), other.spec.tensors, "Adam", ({},))
        cell.dense.load({i: states[i] for i in cell.slices})
    other._unset = set(other.slices)
    other.restored(3, 3)
    assert not other.stored
    assert len(other._unset) == 1


# Export


@pytest.mark.parametrize(("rule", "options"), RULES, ids=["momentum", "adam", "nadam"])
def test_an_exported_group_is_plain_torch(
    tmp_path: Path, rule: Any, options: dict[str, Any]
) -> None:
    def train(client: ps.Client) -> dict[str, Tensor]:
        group = client.register("g", first(), rule, **options)
        while group.clock < 5:
            group.push_pull(gradients(0, group.clock))
        taken.wait(20)
        while group.clock < 9:
            group.push_pull(gradients(0, group.clock))
        return group.read()

    taken = threading.Event()
    with cluster(2, 1) as c:
        camera = Snapshooter(c, str(tmp_path))
        thread = threading.Thread(target=lambda: _when(c, 5, lambda: camera.take("a"), taken))
        thread.start()
        (wanted,) = c.workers(train)
        thread.join()
    store = open_store(str(tmp_path))
    with open_groups(store, read_manifest(store, "a")) as groups:
        group = group_of(groups, "g")
        values, state = group.state_dict(), group.optimizer_state_dict()
        with pytest.raises(NotFoundError, match="no group 'x' in this snapshot; it has g"):
            group_of(groups, "x")
    parameters = {name: torch.nn.Parameter(values[name]) for name in SHAPES}
    optimizer = rule(parameters.values(), **options)
    optimizer.load_state_dict(state)
    for clock in range(5, 9):
        for name, parameter in parameters.items():
            parameter.grad = gradients(0, clock).get(name)
        optimizer.step()
    for name, parameter in parameters.items():
        same = parameter.detach() - wanted[name]
        assert same.abs().max() <= (0.05 if name == "half" else 0), name
    assert list(optimizer.state_dict()["state"]) == list(range(3))


@pytest.mark.parametrize("scheme", ["", "memory://"])
def test_an_exported_table_is_ids_and_rows(tmp_path: Path, scheme: str) -> None:
    directory = f"{scheme}{tmp_path}"

    def train(client: ps.Client) -> None:
        table = client.table("t", 2, optimizer=torch.optim.Adagrad, init=ps.Zeros())
        table.push(torch.tensor([5, -3, 2**40]), torch.ones(3, 2))
        table.pull(torch.tensor([5]))

    with cluster(2, 1) as c:
        c.workers(train)
        Snapshooter(c, directory).take("a")
    store = open_store(directory)
    with open_groups(store, read_manifest(store, "a")) as groups:
        found = groups["t"].state_dict()
        with pytest.raises(InvalidRequestError, match=r"no optimizer of torch\.optim"):
            groups["t"].optimizer_state_dict()
    assert found["t.ids"].tolist() == [-3, 5, 2**40]
    assert torch.allclose(found["t.weight"], torch.full((3, 2), -0.01))
