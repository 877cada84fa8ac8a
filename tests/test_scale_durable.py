"""Slices move while servers keep journals, and while servers and schedulers are killed."""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import paramserver as ps
from paramserver.config import SnapshotConfig
from paramserver.core.reshape import holders
from paramserver.errors import InvalidRequestError
from paramserver.ps.dump import dump
from paramserver.ps.journal import Journal
from paramserver.ps.replay import Replay
from paramserver.ps.service import ServerService
from paramserver.ps.wal import read_all
from paramserver.scheduler.shape import Moving
from paramserver.v1 import scheduler_pb2
from paramserver.v1 import server_pb2 as pb
from tests.cluster import Cluster, cluster, until
from tests.test_replay import blank, state
from tests.test_roll_back import LEASE_S, Adding
from tests.test_roll_back import STEPS as STEPS_OF_A_JOB
from tests.test_scale import STEPS, asked, held, rows, scale, scaled_meanwhile, train

SIZE = 200_000

# gRPC's own: a server that ends like a crash leaves readers of streams that never began.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def placed(c: Cluster, group: str) -> list[str]:
    """The servers that hold slices, as the scheduler says; one that leaves may hold copies."""
    return holders(c.scheduler.state.groups.get(group).map)


def both_hold(c: Cluster, servers: int) -> bool:
    """Whether so many servers have slices of "g", and of "t"."""
    return len(held(c, "g")) == len(held(c, "t")) == servers


def restart_all(c: Cluster) -> None:
    """Ends every server as a crash does, and starts it again."""
    for number, running in enumerate(list(c._roles)):
        if not running.role._leaves:
            c.kill(number)
            c.run(c._start_server(number, running.role.service.name))


def test_sync_training_is_the_same_to_the_bit(tmp_path: Path) -> None:
    work = partial(train, steps=STEPS, optimizer=torch.optim.Adam, lr=0.01)
    with cluster(2, 2) as c:
        wanted = c.workers(work)[0]
    with cluster(1, 2, state=tmp_path) as c:
        found = scaled_meanwhile(c, work, 3, 2)
        assert len(placed(c, "model")) == 2
        for got in found:
            assert all(torch.equal(got[name], wanted[name]) for name in wanted)


def test_what_has_moved_is_there_after_all_servers_began_again(tmp_path: Path) -> None:
    """Up and down, then every server is killed: journals tell where each slice is, and all of it.

    Three times: a server that had nothing gets slices, one gives all, one gets more of them.
    """

    def work(client: ps.Client) -> list[Tensor]:
        group = client.register("g", {"w": torch.zeros(SIZE)}, torch.optim.Adam, lr=0.1)
        table = client.table("t", 4, init=ps.Zeros(), optimizer=torch.optim.Adagrad, lr=0.1)
        ids = torch.arange(500)
        for servers in (3, 1, 2):
            group.push({"w": torch.ones(SIZE)})
            table.push(ids, torch.ones(500, 4))
            if moves:
                scale(c, servers)
                restart_all(c)
                assert len(placed(c, "g")) == len(placed(c, "t")) == servers
                until(partial(both_hold, c, servers))
        return [group.push_pull({"w": torch.ones(SIZE)})["w"], table.pull(ids)]

    found = {}
    for moves in (False, True):
        with cluster(2, 1, state=tmp_path / str(moves)) as c:
            found[moves] = c.workers(work)[0]
    assert torch.equal(found[True][0], found[False][0])
    assert torch.equal(found[True][1], found[False][1])


def test_a_dump_after_moves_goes_on_in_the_same_buckets(tmp_path: Path) -> None:
    """What follows a dump is of the buckets that moves have left, not of those that a map tells."""

    async def dumped(service: ServerService) -> tuple[int, list[bytes]]:
        assert service.journal is not None
        return service.journal.position, [data async for data in dump(service)]

    async def read_back(position: int, entries: list[bytes]) -> tuple[list[bytes], list[bytes]]:
        service = c.servers[0]
        assert service.journal is not None
        await service.journal.durable()
        again = blank(c, "ps-0")
        replay = Replay(again)
        for data in entries:
            await replay.apply(position, data)
        for at, entry in read_all(tmp_path / "ps-0", position):
            await replay.apply(at, entry)
        found = await state(again, Journal(replay.position)), await state(service)
        again.close()
        return found

    def work(client: ps.Client) -> None:
        ones = {f"t{i}": torch.ones(100) for i in range(10)}
        group = client.register("g", ones, torch.optim.Adam, lr=0.1)
        for servers in (2, 1):
            group.push_pull(ones)
            scale(c, servers)
        group.push_pull(ones)
        cells = c.run(c.servers[0].group_named("g")).cells
        assert len(cells) == 2, "else a map tells the same buckets"
        position, entries = c.run(dumped(c.servers[0]))
        for _ in range(3):
            group.push_pull(ones)
        found, wanted = c.run(read_back(position, entries))
        assert found == wanted

    with cluster(1, 1, state=tmp_path) as c:
        c.workers(work)


@pytest.mark.parametrize(
    ("consistency", "optimizer"),
    [(ps.Sync(), torch.optim.Adagrad), (ps.Async(), None)],
    ids=["Sync-Adagrad", "Async-add"],
)
def test_tables_move_too(tmp_path: Path, consistency: Any, optimizer: Any) -> None:
    work = partial(rows, steps=40, consistency=consistency, optimizer=optimizer)
    with cluster(1, 2) as c:
        wanted = c.workers(work)[0]
    with cluster(1, 2, state=tmp_path, journal_bytes=1000) as c:
        found = scaled_meanwhile(c, work, 3, 2)
        until(lambda: held(c, "t") == {"ps-0": 32, "ps-1": 32})
        restart_all(c)
    assert torch.equal(found[0], wanted)


class Killer:
    """Kills a server right before or after a step of the first move that it has a part in.

    Args:
        end: "source", "destination" or "lead".
        after: the server has done the step, but the scheduler does not hear of it.
    """

    def __init__(self, c: Cluster, end: str, step: Any, *, after: bool) -> None:
        self._cluster, self._end, self._step, self._after = c, end, step, after
        self.struck = threading.Event()
        self._call = c.scheduler.reshaping._step
        c.scheduler.reshaping._step = self  # type: ignore[method-assign]

    def _victim(self, moving: Moving) -> str:
        lead = moving.new.servers[moving.new.lead]
        return lead if self._end == "lead" else str(getattr(moving.move, self._end))

    async def __call__(self, moving: Moving, name: str, step: Any, **fields: Any) -> pb.MoveReply:
        due = step == self._step and name == self._victim(moving) and not self.struck.is_set()
        if due:
            self.struck.set()
        if due and not self._after:
            await self._kill(name)
        reply = await self._call(moving, name, step, **fields)
        if due and self._after:
            await self._kill(name)
        return reply

    async def _kill(self, name: str) -> None:
        """In a task of its own: the one that moves slices may be cancelled over it."""
        await asyncio.shield(asyncio.ensure_future(self._start_again(name)))

    async def _start_again(self, name: str) -> None:
        c = self._cluster
        number = [s.name for s in c.servers].index(name)
        await c._roles[number].crash()
        await c._start_server(number, name)


STEPS_OF_A_MOVE = {
    "hold": pb.MOVE_HOLD,
    "drain": pb.MOVE_DRAIN,
    "take": pb.MOVE_TAKE,
    "follow": pb.MOVE_FOLLOW,
}


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    ("end", "step"),
    [
        ("source", "hold"),
        ("source", "drain"),
        ("source", "follow"),
        ("destination", "hold"),
        ("destination", "take"),
        ("destination", "follow"),
        ("lead", "follow"),
    ],
)
@pytest.mark.parametrize("consistency", [ps.Sync(), ps.Async()], ids=str)
def test_a_server_killed_in_a_move_costs_nothing(
    tmp_path: Path, consistency: Any, end: str, step: str, after: bool
) -> None:
    """Every push counts once, whichever side of a move dies at whatever step."""
    with cluster(2, 2, state=tmp_path) as c:
        pushed = [0, 0]

        def work(client: ps.Client, over: threading.Event) -> Tensor:
            group = client.register("g", {"w": torch.zeros(SIZE)}, consistency=consistency)
            client.barrier("begin")
            while pushed[client.rank] < 10 or not over.is_set():
                group.push_pull({"w": torch.ones(SIZE)})
                pushed[client.rank] += 1
                if isinstance(consistency, ps.Sync) and pushed[client.rank] >= 300:
                    break
            assert over.wait(60)
            client.barrier("end")
            return group.read()["w"]

        killer = Killer(c, end, STEPS_OF_A_MOVE[step], after=after)
        results = scaled_meanwhile(c, work, 3, 2)
        assert killer.struck.is_set()
        for value in results:
            assert torch.equal(value, torch.full((SIZE,), float(sum(pushed))))
        assert placed(c, "g") == ["ps-0", "ps-1"]


def test_a_server_that_has_given_all_is_not_waited_for(tmp_path: Path) -> None:
    """It leaves, and what is left of its journal does not count when it comes again."""

    def work(client: ps.Client) -> float:
        group = client.register("g", {"w": torch.zeros(SIZE)})
        group.push({"w": torch.ones(SIZE)})
        scale(c, 1)
        until(lambda: len(client._session.view().members) == 2)
        c.stop_server(1)
        group.push({"w": torch.ones(SIZE)})
        assert not c.scheduler.state.absences.reason()
        c.run(c.scheduler.Scale(scheduler_pb2.ScaleRequest(servers=2)))
        c.run(c._start_server(1, "ps-1"))
        until(lambda: not asked(c).pending, 30)
        assert placed(c, "g") == ["ps-0", "ps-1"]
        return float(group.push_pull({"w": torch.ones(SIZE)})["w"].mean())

    with cluster(2, 1, state=tmp_path) as c:
        assert c.workers(work) == [3.0]


def test_backups_do_not_follow_yet() -> None:
    refused = pytest.raises(InvalidRequestError, match=r"not with --durability replica.*snapshot")
    with cluster(2, 1, durability="replica") as c, c.connect(), refused:
        c.run(c.scheduler.Scale(scheduler_pb2.ScaleRequest(servers=3)))


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("end", ["source", "destination"])
@pytest.mark.parametrize("step", ["take", "follow"])
def test_without_a_journal_the_job_goes_back_to_its_snapshot(
    tmp_path: Path, end: str, step: str, after: bool
) -> None:
    """All servers together, whatever had moved: no sample is lost or counted twice."""
    due = pb.MOVE_DRAIN if (end, step) == ("source", "take") else STEPS_OF_A_MOVE[step]
    where = SnapshotConfig(directory=str(tmp_path))
    with cluster(2, 2, lease_s=LEASE_S, snapshots=where) as c:
        job = Adding(c, 2, ps.Sync(), SIZE)
        killer = Killer(c, end, due, after=after)

        def move() -> None:
            c.run(c.scheduler.Scale(scheduler_pb2.ScaleRequest(servers=3)))
            c.start_server()
            until(lambda: c.scheduler.state.members.job == 2)

        job.run(move)
        assert killer.struck.is_set()
        assert job.values == [STEPS_OF_A_JOB * 2.0] * 2
        until(lambda: len(placed(c, "sum")) == 3)
