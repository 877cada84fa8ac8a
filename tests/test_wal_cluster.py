"""Servers that end and begin again from their journals: nothing acknowledged is lost or doubled."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import paramserver as ps
from paramserver import failpoints
from paramserver.config import ServerConfig
from paramserver.ps import journal as journals
from paramserver.ps import lasting, wal
from paramserver.ps.role import ServerRole
from paramserver.wire.client import AsyncGrpcChannel
from tests.cluster import Cluster, cluster, in_threads

STEPS = 12


def test_a_restarted_server_goes_on_where_it_was(tmp_path: Path) -> None:
    with cluster(state=tmp_path) as made, made.connect("worker-0") as client:
        group = client.register("g", {"w": torch.zeros(4)})
        for _ in range(3):
            group.push({"w": torch.ones(4)})
        made.kill(0)
        made.restart(0)
        for _ in range(3):
            group.push({"w": torch.ones(4)})
        assert torch.equal(group.pull()["w"], torch.full((4,), 6.0))


MODELS: dict[str, ps.Sync | ps.Stale | ps.Async] = {
    "sync": ps.Sync(),
    "stale": ps.Stale(2),
    "async": ps.Async(),
}


@pytest.mark.parametrize("short", [False, True], ids=["long", "short"])
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("model", MODELS)
def test_every_push_counts_once_while_servers_are_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, victim: int, short: bool
) -> None:
    """An additive group over two servers is the ledger: its values count the pushes."""
    monkeypatch.setattr(lasting, "LOOK_S", 0.01)
    size = 1000 if short else 256 << 20  # a short journal: dumps all the time
    with cluster(servers=2, workers=2, state=tmp_path, journal_bytes=size) as made:
        shapes = {"a": torch.zeros(70_000), "b": torch.zeros(30)}
        pushed = [0, 0]

        def train(rank: int) -> dict[str, torch.Tensor]:
            with made.connect(f"worker-{rank}", wait_timeout=60.0) as client:
                group = client.register("g", shapes, consistency=MODELS[model])
                for _ in range(STEPS):
                    values = group.push_pull({n: torch.ones_like(t) for n, t in shapes.items()})
                    pushed[rank] += 1
                    assert float(values["b"].min()) >= pushed[rank]
                client.barrier("end")
                found: dict[str, torch.Tensor] = group.read()
                return found

        def disturb() -> dict[str, torch.Tensor] | None:
            for at in (2, 6):
                while sum(pushed) < at:
                    made.run(_turn())
                made.kill(victim)
                made.restart(victim)
            return None

        results = in_threads([lambda: train(0), lambda: train(1), disturb])
        for values in filter(None, results):
            for tensor in values.values():
                assert torch.equal(tensor, torch.full_like(tensor, 2.0 * STEPS))
        assert any(tmp_path.glob("ps-*/dump-*.log")) == short


async def _turn() -> None:
    """Lets others go on."""


def test_a_server_that_stood_still_keeps_what_it_has(tmp_path: Path) -> None:
    """Its lease lapsed, the others waited: it registers anew and goes on."""
    with cluster(state=tmp_path, lease_s=1.0) as made, made.connect("worker-0") as client:
        group = client.register("g", {"w": torch.zeros(4)})
        group.push({"w": torch.ones(4)})
        role = made._roles[0].role
        made.run(_lose(made))
        assert "ps-0" in made.scheduler.state.absences.reason()
        made.run(role._beat())
        assert not made.scheduler.state.absences.reason()
        group.push({"w": torch.ones(4)})
        assert torch.equal(group.pull()["w"], torch.full((4,), 2.0))


async def _lose(made: Cluster) -> None:
    made.scheduler.state.lapse({"ps-0": "not heard"}, False, {}, made.scheduler._now())


def test_pushes_wait_on_a_full_disk_and_are_refused_when_it_stays_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wal, "RETRY_S", 0.01)
    monkeypatch.setattr(journals, "ROOM_S", 0.05)
    with cluster(state=tmp_path) as made, made.connect("worker-0") as client:
        group = client.register("g", {"w": torch.zeros(4)}, consistency=ps.Async())
        group.push({"w": torch.ones(4)})
        try:
            failpoints.arm("ps.write:error=ENOSPC")
            waiting = group.push_async({"w": torch.ones(4)})  # under way when the disk fills
            journal = made.servers[0].journal
            while not journal.blocked:
                made.run(_turn())
            with pytest.raises(ps.errors.ResourceError, match="is full"):
                group.push({"w": torch.ones(4)})
            monkeypatch.setattr(journals, "ROOM_S", 60.0)
            patient, clock, began = group._start_push({"w": torch.ones(4)}, None, None, None)
            while "is full" not in patient.reason:
                made.run(_turn())
            assert not waiting.done()
            assert not patient.done.happened
        finally:
            failpoints.arm("")
        assert waiting.result(20).durability == "wal"
        assert group.finish_push(patient, clock, began).durability == "wal"
        assert torch.equal(group.pull()["w"], torch.full((4,), 3.0))
        made.kill(0)
        made.restart(0)
        assert torch.equal(group.pull()["w"], torch.full((4,), 3.0))


def test_a_new_job_begins_empty(tmp_path: Path) -> None:
    with cluster(state=tmp_path) as made:
        for value in (1.0, 2.0):
            with made.connect("worker-0") as client:
                group = client.register("g", {"w": torch.full((4,), value)})
                group.push({"w": torch.ones(4)})
                made.kill(0)
                made.restart(0)
                assert torch.equal(group.pull()["w"], torch.full((4,), value + 1.0))


def test_a_server_without_a_state_directory_says_what_it_needs(tmp_path: Path) -> None:
    async def register() -> None:
        channel = AsyncGrpcChannel(made.address)
        role = ServerRole(ServerConfig(scheduler=made.address), channel, AsyncGrpcChannel)
        try:
            await role.register("127.0.0.1:1")
        finally:
            role.close()
            await channel.close()

    needs = pytest.raises(ps.errors.ConfigurationError, match=r"start this server with --state-dir")
    with cluster(state=tmp_path) as made, needs:
        made.run(register())
