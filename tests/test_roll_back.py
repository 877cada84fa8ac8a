"""A lost server with ``memory`` durability: the job goes back to its newest snapshot, by itself."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

import paramserver as ps
from paramserver.config import SnapshotConfig
from paramserver.errors import JobFailedError, RolledBackError
from tests.cluster import Cluster, cluster, in_threads, until

LEASE_S = 4.0
STEPS = 12


class Adding:
    """Workers that add 1 a step; how far each came. One that is sent back starts again."""

    def __init__(
        self, made: Cluster, workers: int, consistency: ps.Consistency, size: int = 3
    ) -> None:
        self.made, self.workers, self.consistency, self.size = made, workers, consistency, size
        self.saved, self.lost = threading.Event(), threading.Event()
        self.sent_back: list[str] = []
        self.values: list[float] = []

    def run(self, break_it: Callable[[], None]) -> None:
        def breaker() -> None:
            assert self.saved.wait(30)
            break_it()
            self.lost.set()

        calls: list[Callable[[], None]] = [breaker]
        calls += [lambda r=r: self._launch(r) for r in range(self.workers)]  # type: ignore[misc]
        in_threads(calls)

    def _launch(self, rank: int) -> None:
        """As a launcher does: again after a roll-back."""
        while True:
            client = self.made.connect(f"worker-{rank}")
            try:
                self._script(client)
                client.finish()
            except RolledBackError as error:
                self.sent_back.append(str(error))
                client.fail("rolled back")
                continue
            return

    def _script(self, client: ps.Client) -> None:
        zeros = {"w": torch.zeros(self.size)}
        group = client.register("sum", zeros, consistency=self.consistency)
        loader = client.loader(TensorDataset(torch.arange(STEPS * self.workers)), shuffle=False)
        for _ in client.epochs(1):
            for _batch in loader:
                group.push_pull({"w": torch.ones(self.size)})
                if group.clock == STEPS // 2 and client.is_chief and not self.saved.is_set():
                    client.snapshot("half")
                    self.saved.set()
                    assert self.lost.wait(30)
        client.barrier("end")
        self.values.append(float(client.state_dict("sum")["w"][0]))


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("consistency", [ps.Sync(), ps.Stale(2), ps.Async()])
def test_a_restarted_server_takes_its_place(
    tmp_path: Path, workers: int, consistency: ps.Consistency
) -> None:
    """No sample is lost or counted twice, though everything since the snapshot was undone."""
    where = SnapshotConfig(directory=str(tmp_path))
    with cluster(2, workers, lease_s=LEASE_S, snapshots=where) as made:
        job = Adding(made, workers, consistency)
        job.run(lambda: made.restart_server(0))
        assert job.values == [STEPS * workers] * workers
        assert len(job.sent_back) == workers
        assert "went back to a snapshot" in job.sent_back[0]
        assert made.scheduler.state.members.job == 2


def test_a_spare_server_takes_over_after_the_lease(tmp_path: Path) -> None:
    where = SnapshotConfig(directory=str(tmp_path))
    with cluster(2, 2, lease_s=LEASE_S, snapshots=where) as made:
        job = Adding(made, 2, ps.Sync())

        def lose() -> None:
            made.start_server()
            made.stop_server(0)

        job.run(lose)
        assert job.values == [STEPS * 2.0] * 2
        servers = made.scheduler.state.groups.get("sum").map.servers
        assert set(servers) == {made.servers[1].name, made.servers[2].name}


def test_who_asks_for_a_group_that_was_undone_hears_of_the_roll_back(tmp_path: Path) -> None:
    """Not that it is not registered: nobody has, in the job that goes on."""
    where = SnapshotConfig(directory=str(tmp_path))
    with cluster(1, 1, lease_s=60.0, snapshots=where) as made:
        client = made.connect("worker-0")
        group = client.register("sum", {"w": torch.zeros(3)})
        made.snapshot("one")
        made.restart_server(0)
        until(lambda: made.scheduler.state.members.job == 2)
        with pytest.raises(RolledBackError):
            group.moves._fetch()
        server = made.servers[0]
        server.views.current.job = 1  # a server that begins meanwhile, and has an older view yet
        with pytest.raises(RolledBackError):
            made.run(server.group("sum", 1))
        client.fail("rolled back")


def test_without_a_snapshot_the_job_fails_and_says_so(tmp_path: Path) -> None:
    where = SnapshotConfig(directory=str(tmp_path))
    with cluster(1, 1, lease_s=LEASE_S, snapshots=where) as made, made.connect() as client:
        client.register("sum", {"w": torch.zeros(3)})
        made.restart_server(0)
        with pytest.raises(JobFailedError, match="there is no snapshot"):
            client.barrier("end")


def test_a_damaged_snapshot_is_passed_over(tmp_path: Path) -> None:
    """Rolled back to the one before it, with a word about why; without any, the job fails."""
    where = SnapshotConfig(directory=str(tmp_path))
    with cluster(1, 1, lease_s=LEASE_S, snapshots=where) as made:
        client = made.connect("worker-0")
        group = client.register("sum", {"w": torch.zeros(3)})
        for name in ("one", "two"):
            group.push_pull({"w": torch.ones(3)})
            made.snapshot(name)
        (file,) = (tmp_path / "two").glob("*.safetensors")
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        made.restart_server(0)
        with pytest.raises(RolledBackError):
            client.barrier("end")
        client = made.connect("worker-0")
        group = client.register("sum", {"w": torch.zeros(3)})
        assert group.clock == 1
        assert group.pull()["w"].tolist() == [1.0] * 3
        events = "\n".join(made.scheduler.state.journal.events())
        assert "passed over" in events
        assert "is damaged" in events

        (file,) = (tmp_path / "one").glob("*.safetensors")
        file.unlink()
        made.restart_server(0)
        with pytest.raises((RolledBackError, JobFailedError)):
            client.barrier("end")
        with pytest.raises(JobFailedError, match="there is no snapshot to go on from"):
            made.connect("worker-0")
