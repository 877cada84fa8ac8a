"""Disks that are really full: nothing is acknowledged that is not kept, and nothing is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from paramserver import failpoints
from paramserver.core.members import Role
from paramserver.errors import ConfigurationError, ConnectionLostError
from paramserver.ps import checkpoint, wal
from paramserver.ps.journal import Journal
from paramserver.ps.state_dir import StateDir
from paramserver.ps.wal import Wal
from paramserver.snapshot_files import newest_good, open_store, prune
from paramserver.v1 import scheduler_pb2 as pb
from tests.chaos.hazards import HOUR_S, Disk
from tests.test_event_log import life
from tests.test_snapshot_files import put, snapshot
from tests.test_wal import entry, found

PARTS = [bytes([number]) * 4096 for number in range(8)]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk("snapshots", tmp_path / "disk", tmp_path, own=True)
    if not made.mounted:
        pytest.skip("this machine does not let us mount a small file system")
    yield made
    made.close()


def test_a_journal_goes_on_once_there_is_room(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wal, "RETRY_S", 0.01)
    folder = tmp_path / "disk"

    async def run() -> None:
        journal = Journal()
        files = Wal(folder, journal)
        journal.attach(files)
        journal.append(entry(1))
        await journal.durable()
        disk.strike("full")
        count = 1
        while not journal.blocked:  # what is left of its last page has room
            count += 1
            journal.append(entry(count))
            await asyncio.sleep(0)
        assert not journal.has(count)
        kept = [position for position in range(1, count + 1) if journal.has(position)]
        assert found(folder)[: len(kept)] == kept
        disk.calm()
        await journal.room()
        await journal.durable()
        files.close()
        assert found(folder) == list(range(1, count + 1))

    asyncio.run(run())


def test_a_dump_that_finds_no_room_never_was(disk: Disk, tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    dump = checkpoint.DumpFile(folder, 7)
    disk.strike("full")
    dump.write(PARTS[0][:100])  # not on its way yet
    with pytest.raises(OSError, match="No space"):
        dump.finish()
    dump.give_up()  # what is still in memory has no room either
    disk.calm()
    assert checkpoint.newest(folder) is None
    assert list(folder.iterdir()) == []


def test_a_scheduler_without_room_counts_as_away(disk: Disk, tmp_path: Path) -> None:
    folder = tmp_path / "disk"

    async def run() -> None:
        with life(folder) as made:
            who, _ = await made.begin()
            disk.strike("full")
            save = pb.SaveScheduleRequest(member=who, epoch=1, clock=1, state="x" * 100_000)
            for _ in range(2):
                with pytest.raises(ConnectionLostError, match=r"full; make room there"):
                    await made.says.SaveSchedule(save)
            disk.calm()
            await made.says.SaveSchedule(save)
        with life(folder) as after:
            assert after.service.state.schedule is not None
            assert after.service.state.schedule.state == save.state

    asyncio.run(run())


def test_a_scheduler_on_a_read_only_disk_counts_as_away(tmp_path: Path) -> None:
    async def run() -> None:
        with life(tmp_path / "state") as made:
            await made.begin()
            failpoints.arm("scheduler.before_write:error=EROFS@1")
            with pytest.raises(ConnectionLostError, match="Read-only"):
                await made.register(pb.ROLE_READER, "r")
            await made.register(pb.ROLE_READER, "r")
        with life(tmp_path / "state") as after:
            assert "r" in {m.name for m in after.service.state.members.live(Role.READER)}

    try:
        asyncio.run(run())
    finally:
        failpoints.arm("")


def test_the_snapshot_before_stands(disk: Disk, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "disk"))
    first = snapshot(store, "auto-000001", 1.0)
    disk.strike("full")
    with pytest.raises(OSError, match="No space"):
        put(store, "auto-000002/ps-0.safetensors", b"".join(PARTS))
    assert newest_good(store) == (first, [])
    disk.calm()
    assert not list((tmp_path / "disk").rglob("*.tmp"))
    second = snapshot(store, "auto-000002", 2.0)
    assert newest_good(store) == (second, [])


def test_a_clock_that_was_set_back_makes_no_snapshot_older(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    for number in (1, 2, 3):
        snapshot(store, f"auto-{number}", float(number), created=-number * HOUR_S)
    newest, _ = newest_good(store)
    assert newest is not None
    assert newest.name == "auto-3"
    assert prune(store, 2) == ["auto-1"]


def test_a_server_says_that_its_folder_cannot_be_written(tmp_path: Path) -> None:
    made = StateDir(str(tmp_path))
    made.note("ps-0", 1, 80)
    failpoints.arm("ps.before_rename:error=EROFS")
    try:
        with pytest.raises(ConfigurationError, match=r"Read-only.*; see to the disk, then start"):
            made.note("ps-0", 2, 81)
    finally:
        failpoints.arm("")
        made.close()
    assert '"incarnation": 1' in (tmp_path / "server.json").read_text()
