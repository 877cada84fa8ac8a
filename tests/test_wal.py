"""The files of a journal: what a crash leaves, what a bad disk does, and what is never read."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from paramserver import failpoints
from paramserver.errors import ConfigurationError, InternalError, ResourceError, SnapshotError
from paramserver.ps import checkpoint, wal
from paramserver.ps import journal as journals
from paramserver.ps.journal import Journal
from paramserver.ps.state_dir import StateDir
from paramserver.ps.wal import Wal, read_all, segment_path
from paramserver.v1.journal_pb2 import Begun, Entry
from paramserver.wire.entries import decode_entry, encode_entry

COUNT = 6


def entry(number: int) -> Entry:
    return Entry(begun=Begun(format=1, server=f"ps-{number}", job=number))


def found(folder: Path, after: int = 0) -> list[int]:
    """Numbers of the entries that a restart reads; their positions must be the same."""
    numbers = []
    for position, data in read_all(folder, after):
        assert decode_entry(data).entry.begun.job == position
        numbers.append(position)
    return numbers


async def written(folder: Path, first: int, count: int, segment_bytes: int = 1 << 20) -> Journal:
    """Entries numbered from ``first`` on, each durable before the next."""
    journal = Journal(first - 1)
    files = Wal(folder, journal, segment_bytes=segment_bytes)
    journal.attach(files)
    for number in range(first, first + count):
        journal.append(entry(number))
        await journal.durable()
    files.close()
    return journal


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    failpoints.arm("")


def test_entries_come_back_in_order(tmp_path: Path) -> None:
    asyncio.run(written(tmp_path, 1, COUNT))
    asyncio.run(written(tmp_path, COUNT + 1, COUNT))
    assert found(tmp_path) == list(range(1, 2 * COUNT + 1))
    assert found(tmp_path, after=4) == list(range(5, 2 * COUNT + 1))


def test_entries_come_back_from_many_segments(tmp_path: Path) -> None:
    asyncio.run(written(tmp_path, 1, COUNT, segment_bytes=1))
    assert len(list(tmp_path.iterdir())) == COUNT
    assert found(tmp_path) == list(range(1, COUNT + 1))
    segment_path(tmp_path, 3).unlink()
    with pytest.raises(SnapshotError, match="damaged at byte"):
        found(tmp_path)
    assert found(tmp_path, after=3) == [4, 5, 6]
    segment_path(tmp_path, 1).unlink()
    segment_path(tmp_path, 2).unlink()
    with pytest.raises(SnapshotError, match="entries 1 to 3 of the journal are gone"):
        found(tmp_path)


def test_a_torn_tail_is_cut_at_every_length(tmp_path: Path) -> None:
    asyncio.run(written(tmp_path, 1, COUNT))
    path = segment_path(tmp_path, 1)
    whole = path.read_bytes()
    ends = [0]
    while (record := wal.read_record(memoryview(whole), ends[-1])) is not None:
        ends.append(record.end)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        kept = max(n for n, end in enumerate(ends) if end <= length)
        assert found(tmp_path) == list(range(1, kept + 1))
        assert path.stat().st_size == ends[kept]  # what comes next stands behind what is whole
    asyncio.run(written(tmp_path, COUNT, 1))
    assert found(tmp_path) == list(range(1, COUNT + 1))


def test_a_flipped_bit_is_an_error_or_a_cut_of_the_last_entry_only(tmp_path: Path) -> None:
    asyncio.run(written(tmp_path, 1, COUNT))
    path = segment_path(tmp_path, 1)
    whole = path.read_bytes()
    last = 0
    for _ in range(COUNT - 1):
        record = wal.read_record(memoryview(whole), last)
        assert record is not None
        last = record.end
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        if at < last:
            with pytest.raises(SnapshotError, match="the disk has failed"):
                found(tmp_path)
            assert path.stat().st_size == len(whole)  # nothing is cut off that may be wanted
        else:
            assert found(tmp_path) == list(range(1, COUNT))


def test_an_entry_that_is_missing_or_there_twice_is_no_other(tmp_path: Path) -> None:
    """Whole records in the wrong place: one was kept and is gone, or one came back."""
    asyncio.run(written(tmp_path, 1, 3))
    path = segment_path(tmp_path, 1)
    whole = path.read_bytes()
    size = len(whole) // 3
    path.write_bytes(whole[:size] + whole[2 * size :])
    with pytest.raises(SnapshotError, match="entry 2 cannot be read"):
        found(tmp_path)
    path.write_bytes(whole + whole[size : 2 * size])
    assert found(tmp_path) == [1, 2, 3]
    assert path.read_bytes() == whole, "cut"


def test_a_batch_that_was_never_durable_is_cut_though_its_end_is_whole(tmp_path: Path) -> None:
    """A loss of power may keep the end of a write without its beginning."""
    asyncio.run(written(tmp_path, 1, 2))
    path = segment_path(tmp_path, 1)
    batch = b""
    for number in (3, 4):
        data = encode_entry(entry(number))
        batch += wal.head(number, 2, data) + data
    path.write_bytes(path.read_bytes() + bytes(8) + batch[8:])
    assert found(tmp_path) == [1, 2]


def test_a_failed_fsync_ends_the_journal_and_keeps_nothing_of_it(tmp_path: Path) -> None:
    async def run() -> None:
        failpoints.arm("ps.before_fsync:error=EIO@2")
        journal = Journal()
        files = Wal(tmp_path, journal)
        journal.attach(files)
        journal.append(entry(1))
        await journal.durable()
        journal.append(entry(2))
        with pytest.raises(InternalError, match="cannot be kept any more"):
            await journal.durable()
        with pytest.raises(InternalError, match="same --state-dir"):
            await journal.room()
        assert journal.failed.is_set()
        files.close()

    asyncio.run(run())
    assert found(tmp_path) == [1]  # the second was never acknowledged


def test_on_a_full_disk_new_pushes_wait_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wal, "RETRY_S", 0.01)
    monkeypatch.setattr(journals, "ROOM_S", 0.05)

    async def run() -> None:
        failpoints.arm("ps.write:error=ENOSPC@2+")
        journal = Journal()
        files = Wal(tmp_path, journal)
        journal.attach(files)
        journal.append(entry(1))
        await journal.durable()
        await journal.room()
        journal.append(entry(2))
        while not journal.blocked:
            await asyncio.sleep(0)
        with pytest.raises(ResourceError, match=r"full: .*; free some space"):
            await journal.room()
        assert not journal.has(2)
        monkeypatch.setattr(journals, "ROOM_S", 60.0)
        waiting = asyncio.create_task(journal.room())
        await asyncio.sleep(0)
        assert not waiting.done()
        failpoints.arm("")
        await waiting
        await journal.durable()
        files.close()

    asyncio.run(run())
    assert found(tmp_path) == [1, 2]


def test_old_segments_go_once_a_dump_holds_them(tmp_path: Path) -> None:
    asyncio.run(written(tmp_path, 1, COUNT, segment_bytes=1))

    async def run() -> None:
        files = Wal(tmp_path, Journal(COUNT))
        files.drop_before(3)
        files.close()

    asyncio.run(run())
    assert found(tmp_path, after=3) == [4, 5, 6]
    assert not segment_path(tmp_path, 3).exists()


def test_a_dump_counts_once_it_is_finished(tmp_path: Path) -> None:
    dump = checkpoint.DumpFile(tmp_path, 7)
    for number in range(3):
        dump.write(b"entry %d" % number)
    assert checkpoint.newest(tmp_path) is None
    path = dump.finish()
    assert checkpoint.newest(tmp_path) == (7, path)
    assert [bytes(e) for e in checkpoint.read(path)] == [b"entry 0", b"entry 1", b"entry 2"]
    checkpoint.DumpFile(tmp_path, 9).give_up()
    assert checkpoint.newest(tmp_path) == (7, path)


def test_a_damaged_dump_is_an_error(tmp_path: Path) -> None:
    dump = checkpoint.DumpFile(tmp_path, 7)
    dump.write(b"an entry")
    path = dump.finish()
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(SnapshotError, match="damaged"):
            list(checkpoint.read(path))
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(SnapshotError, match="damaged"):
            list(checkpoint.read(path))


def test_a_state_directory_has_one_user(tmp_path: Path) -> None:
    first = StateDir(str(tmp_path / "ps-0"))
    with pytest.raises(ConfigurationError, match="another process uses it"):
        StateDir(str(tmp_path / "ps-0"))
    first.note("ps-0", 12, 7071)
    first.close()
    second = StateDir(str(tmp_path / "ps-0"))
    assert (second.name, second.incarnation, second.port) == ("ps-0", 12, 7071)
    second.close()


def test_a_state_directory_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="cannot be written"):
        StateDir(str(tmp_path / "file" / "ps-0"))
    for text in (
        "{",
        "[1]",
        "7",
        '{"name": "ps-0"}',
        '{"name": "a", "incarnation": [], "port": 1}',
    ):
        (tmp_path / "server.json").write_text(text)
        with pytest.raises(ConfigurationError, match="cannot be read"):
            StateDir(str(tmp_path))


def test_files_of_others_in_a_state_directory_are_left_alone(tmp_path: Path) -> None:
    asyncio.run(written(tmp_path, 1, 2))
    others = [tmp_path / name for name in ("journal-old.log", "dump-mine.log", "journal-1.log.bak")]
    for path in others:
        path.write_text("mine")
    assert found(tmp_path) == [1, 2]
    assert checkpoint.newest(tmp_path) is None
    state = StateDir(str(tmp_path))
    state.wipe()
    state.close()
    assert found(tmp_path) == []
    assert all(path.exists() for path in others)
