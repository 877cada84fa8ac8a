"""The scheduler's memory on disk: what it holds after any end, and when it refuses."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from paramserver.config import SchedulerConfig, SnapshotConfig
from paramserver.core.dataset import DatasetSpec
from paramserver.core.members import JobState
from paramserver.core.placement import GroupSpec
from paramserver.core.progress import Progress
from paramserver.core.slices import TensorSpec
from paramserver.errors import (
    ConfigurationError,
    ConnectionLostError,
    InternalError,
    InvalidRequestError,
)
from paramserver.scheduler.durable import Durable
from paramserver.scheduler.event_log import EventLog
from paramserver.scheduler.facts import Kept, Schedule, Source
from paramserver.scheduler.image import GroupImage, Image
from paramserver.scheduler.plain import from_text, to_text
from paramserver.scheduler.service import SchedulerService
from paramserver.scheduler.snapshot_choice import kept_of
from paramserver.snapshot_files import Manifest, ServerFile, open_store, write_manifest
from paramserver.types import Sync
from paramserver.v1 import common_pb2 as common
from paramserver.v1 import scheduler_pb2 as pb
from tests.canonical import same
from tests.test_scheduler_service import FakeServers

CONFIG = SchedulerConfig(workers=2, assign="round-robin")

SOURCE = Source("s", "/snapshots", {"m": [("s/ps-0.safetensors", (0,))]})
GROUP = GroupSpec("m", (TensorSpec("w", (4,), "float32", "add"),), "", (), Sync())
IMAGE = Image(
    7, 9, 40, 5, 3, "line", Schedule(2, 30, "{}"), ("m",), (GroupImage(GROUP, 4, 30, 30),),
    (Progress(DatasetSpec("d", 32, 4, 4, 0, False, "round-robin"), 2, (), ((0, 8),)),),
)  # fmt: skip


class Life:
    """One scheduler process on a state directory, without the process; time is its own."""

    def __init__(self, folder: Path, config: SchedulerConfig = CONFIG, start: float = 0.0) -> None:
        self.time = start
        self.log = EventLog(folder)
        try:
            self.service = SchedulerService(
                config,
                now=lambda: self.time,
                connect=FakeServers().connect,
                first_incarnation=1,
                log=self.log,
            )
        except BaseException:
            self.log.close()
            raise
        self.says = Durable(self.service, self.log)

    async def register(self, role: pb.Role, name: str) -> common.Identity:
        reply = await self.says.Register(
            pb.RegisterRequest(protocol=1, role=role, name=name, address="h:1", host="box", pid=7)
        )
        identity: common.Identity = reply.identity
        return identity

    async def begin(self) -> list[common.Identity]:
        """A job of one server and two workers with a data set; the workers."""
        await self.register(pb.ROLE_SERVER, "ps-0")
        workers = [await self.register(pb.ROLE_WORKER, f"worker-{i}") for i in range(2)]
        for who in workers:
            spec = pb.DatasetSpec(name="d", size=32, batch_size=4, shard_size=4)
            await self.says.OpenDataset(pb.OpenDatasetRequest(member=who, spec=spec))
        return workers

    async def next(self, who: common.Identity, sequence: int) -> pb.NextShardReply:
        request = pb.NextShardRequest(member=who, dataset="d", epoch=0, sequence=sequence)
        reply: pb.NextShardReply = await self.says.NextShard(request)
        return reply


@contextmanager
def life(folder: Path, config: SchedulerConfig = CONFIG, start: float = 0.0) -> Iterator[Life]:
    made = Life(folder, config, start)
    try:
        yield made
    finally:
        made.log.close()


def killed(made: Life, folder: Path, into: Path) -> None:
    """What the disk has at this moment, as a process that is killed leaves it."""
    into.mkdir()
    for file in folder.glob("scheduler.sqlite*"):
        (into / file.name).write_bytes(file.read_bytes())
    made.log.close()


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(test())  # type: ignore[arg-type]


def test_a_killed_scheduler_goes_on_where_it_was(tmp_path: Path) -> None:
    async def test() -> None:
        before = Life(tmp_path / "a", start=100.0)
        first, second = await before.begin()
        shard = (await before.next(first, 1)).shard
        span = common.Span(lease=shard.lease, start=shard.start, stop=shard.start + 2)
        await before.says.ReportSamples(
            pb.ReportSamplesRequest(member=first, dataset="d", done=[span])
        )
        killed(before, tmp_path / "a", tmp_path / "b")
        with life(tmp_path / "b", start=3.0) as after:  # the machine started anew: another clock
            same(after.service.state, before.service.state)
            after.service.state.check_invariants()
            assert (await after.next(first, 1)).shard == shard, "asked again: the same lease"
            taken = (await after.next(second, 1)).shard
            assert taken.lease > shard.lease
            beat = await after.says.Heartbeat(pb.HeartbeatRequest(member=first))
            assert beat.state == pb.JOB_RUNNING
            events = (await after.says.Status(pb.StatusRequest())).events
            assert any("the scheduler is back" in e for e in events)

    run(test)


def test_members_have_fresh_leases_after_any_absence(tmp_path: Path) -> None:
    async def test() -> None:
        with life(tmp_path) as before:
            await before.begin()
            before.time = 9.0
            before.service.tick()
        with life(tmp_path, start=1e6) as after:
            after.time += 9.0
            after.service.tick()
            assert not after.service.state.members.ended()
            after.time += 2.0
            after.service.tick()
            assert after.service.state.members.ended()

    run(test)


def test_what_a_lost_worker_held_returns_though_the_scheduler_died_over_it(tmp_path: Path) -> None:
    async def test() -> None:
        with life(tmp_path) as before:
            first, second = await before.begin()
            shard = (await before.next(first, 1)).shard
            before.service.state.tick(0.0)
            before.service.state.fail(
                from_text(to_text(_caller(first)), CONFIG), "oops", False, 137, 0.0
            )
            await before.log.durable()  # and no recovery was begun
        with life(tmp_path) as after:
            after.service._after()
            found = [(await after.next(second, i + 1)).shard for i in range(8)]
            assert (shard.start, shard.stop) in [(s.start, s.stop) for s in found]

    run(test)


def _caller(who: common.Identity) -> Any:
    from paramserver.scheduler.convert import caller_from_proto

    return caller_from_proto(who)


def rows(folder: Path) -> int:
    """How many events the log has."""
    with sqlite3.connect(folder / "scheduler.sqlite") as database:
        return int(database.execute("SELECT count(*) FROM events").fetchone()[0])


def test_a_new_job_leaves_a_short_log(tmp_path: Path) -> None:
    async def test() -> None:
        with life(tmp_path) as before:
            workers = await before.begin()
            for who in workers:
                await before.says.Finish(pb.FinishRequest(member=who))
            assert rows(tmp_path) > 3
            await before.begin()
            assert rows(tmp_path) == 3, "only what came after the new job began"
            job = before.service.state.members.job
        with life(tmp_path) as after:
            assert after.service.state.members.job == job == 2

    run(test)


def test_after_many_events_the_state_is_written_instead(tmp_path: Path) -> None:
    async def test() -> None:
        with life(tmp_path) as before:
            who, _ = await before.begin()
            before.log._pause = 7
            for sequence in range(4):
                await before.next(who, sequence + 1)
            assert rows(tmp_path) == 2, "the last two of nine"
        with life(tmp_path) as after:
            same(after.service.state, before.service.state)

    run(test)


def test_two_schedulers_do_not_share_a_folder(tmp_path: Path) -> None:
    with life(tmp_path):
        code = "import sys; from pathlib import Path\n"
        code += "from paramserver.scheduler.event_log import EventLog\nEventLog(Path(sys.argv[1]))"
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True
        )
        assert "in use by pid" in done.stderr
    with life(tmp_path):
        pass


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (replace(CONFIG, workers=3), "began with workers=2, now workers=3"),
        (replace(CONFIG, durability="wal"), "began with durability=memory, now durability=wal"),
    ],
)
def test_a_running_job_keeps_its_options(
    tmp_path: Path, other: SchedulerConfig, words: str
) -> None:
    """Another durability would have servers throw their journals away."""

    async def test() -> None:
        with life(tmp_path) as before:
            workers = await before.begin()
            with pytest.raises(ConfigurationError, match="in use"):
                EventLog(tmp_path)
        with (
            pytest.raises(ConfigurationError, match=words),
            life(tmp_path, other),
        ):
            pass
        with life(tmp_path) as again:
            for who in workers:
                await again.says.Finish(pb.FinishRequest(member=who))
            newest = again.service.state.members._incarnation
        with life(tmp_path, other) as after:
            assert after.service.state.config == other
            assert after.service.state.members.state is JobState.WAITING
            assert newest > 0

    run(test)


def test_a_log_that_was_changed_is_refused(tmp_path: Path) -> None:
    async def test() -> None:
        before = Life(tmp_path / "a")
        await before.begin()
        killed(before, tmp_path / "a", tmp_path / "b")
        with sqlite3.connect(tmp_path / "b" / "scheduler.sqlite") as database:
            database.execute("DELETE FROM events WHERE number = 2")
        with pytest.raises(InternalError, match="instead of"), life(tmp_path / "b"):
            pass

    run(test)


def test_a_damaged_row_or_fact_is_refused_with_its_folder(tmp_path: Path) -> None:
    async def begin(folder: Path) -> None:
        with life(folder) as before:
            await before.begin()

    damage = (
        "UPDATE facts SET value='x' WHERE name='at'",
        "UPDATE facts SET value='[\"dict\",' WHERE name='options'",
        "UPDATE states SET state='1'",
        "UPDATE states SET state=x'ff'",
    )
    for number, statement in enumerate(damage):
        folder = tmp_path / str(number)
        asyncio.run(begin(folder))
        with sqlite3.connect(folder / "scheduler.sqlite") as database:
            database.execute(statement)
        with closing(EventLog(folder)) as log, pytest.raises((ConfigurationError, InternalError)):
            log.tell(CONFIG)


def test_a_damaged_file_is_refused_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "scheduler.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(ConfigurationError, match="not a database"):
        EventLog(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match="--state-dir"):
        EventLog(tmp_path / "file" / "folder")


def test_nothing_is_answered_that_is_not_written(tmp_path: Path) -> None:
    """A full disk: refused by name, nothing lost, and it goes on once there is room."""

    async def test() -> None:
        with life(tmp_path) as made:
            who, _ = await made.begin()
            made.log._database.execute("PRAGMA max_page_count=1")  # no room from here on
            text = "x" * 100_000
            save = pb.SaveScheduleRequest(member=who, epoch=1, clock=1, state=text)
            for _ in range(2):
                with pytest.raises(ConnectionLostError, match="make room"):
                    await made.says.SaveSchedule(save)
            made.log._database.execute("PRAGMA max_page_count=1000000")
            await made.says.SaveSchedule(save)
        with life(tmp_path) as after:
            assert after.service.state.schedule is not None
            assert after.service.state.schedule.state == text

    run(test)


def test_only_classes_of_the_state_are_made() -> None:
    for text in (
        '["object", 0, "subprocess:Popen", {}]',
        '["object", 0, "paramserver.launch:Child", {}]',
        '["named", "paramserver.scheduler.event_log:EventLog", ["x"]]',
        '["object", 0, "paramserver.core.members:WorkerId", {}]',
        '["again", 7]',
        '["unheard_of"]',
        "{}",
        "[",
    ):
        with pytest.raises(InternalError, match="another version"):
            from_text(text, CONFIG)


def test_a_job_that_went_on_from_a_snapshot_is_that_job_still(tmp_path: Path) -> None:
    """It is not asked to go on from there again, and its cut that was under way is over."""
    folder = tmp_path / "snapshots"
    folder.mkdir()
    config = replace(CONFIG, snapshots=SnapshotConfig(directory=str(folder), resume="latest"))

    async def test() -> None:
        before = Life(tmp_path / "a", config)
        state = before.service.state
        state.resume(IMAGE, SOURCE, [], 0.0)
        await before.begin()
        state.begin_snapshot()
        hold = state.next_hold()
        await before.log.durable()
        killed(before, tmp_path / "a", tmp_path / "b")
        with life(tmp_path / "b", config) as after:
            told = after.service.state
            same(told, state)
            assert told.members.job == 8
            await after.service.snapshots.begin()
            assert told.draft is None
            assert told.next_hold() > hold
            assert told.restored("m") == (SOURCE, IMAGE.groups[0])
            assert told.members.can_roll_back
            assert (told.data.epoch(), told.job_epoch(), told.lineage) == (2, 2, "line")

    run(test)


@pytest.mark.parametrize("end", ["told", "complete", "torn"])
def test_a_snapshot_that_was_asked_for_is_taken_once(tmp_path: Path, end: str) -> None:
    """Killed after it was kept, after its manifest was written, or before: asked again by key."""
    folder = tmp_path / "snapshots"
    config = replace(CONFIG, snapshots=SnapshotConfig(directory=str(folder)))
    asked = pb.TakeSnapshotRequest(name="mine", key="k")
    store = open_store(str(folder))

    async def test() -> None:
        before = Life(tmp_path / "a", config)
        state = before.service.state
        state.resume(replace(IMAGE, lineage="line"), SOURCE, [], 0.0)
        await before.begin()
        state.begin_snapshot("mine", "k")
        with store.create("mine/ps-ps-0.safetensors") as made:
            made.stream.write(b"seven b")
        file = ServerFile("ps-ps-0.safetensors", "ps-0", made.bytes, made.sha256)
        manifest = Manifest("mine", 4, 8, 5.0, (file,), {"lineage": "line", "groups": []})
        if end != "torn":
            image = state.end_snapshot({"m": (31, 31)}, (), 1.0)
            write_manifest(store, manifest)
        if end == "told":
            state.keep_snapshot(kept_of(manifest, held_s=0.5), image.job, "", 1.0)
        await before.log.durable()
        killed(before, tmp_path / "a", tmp_path / "b")
        with life(tmp_path / "b", config) as after:
            same(after.service.state, state)
            await after.service.snapshots.begin()
            assert not after.service.state.awaited()
            if end == "torn":
                assert store.files("mine") == [], "nobody stumbles over it"
                reply = await after.says.TakeSnapshot(asked)
                assert reply.pending, "it is taken now"
                await after.service.snapshots.close()
                return
            reply = await after.says.TakeSnapshot(asked)
            assert (reply.name, reply.bytes, reply.pending) == ("mine", 7, "")
            assert reply.held_s == (0.5 if end == "told" else 0.0)
            newest = (await after.says.Status(pb.StatusRequest())).snapshot
            assert newest.name == "mine"
            assert newest.age_s > 1e6
            other = pb.TakeSnapshotRequest(name="mine", key="other", wait_s=5.0)
            with pytest.raises(InvalidRequestError, match="'mine' is there already"):
                await after.says.TakeSnapshot(other)
            await after.service.snapshots.close()

    run(test)


def test_a_job_that_cannot_go_back_ends_and_says_why(tmp_path: Path) -> None:
    """The scheduler was started again without --snapshot-dir: nobody waits for ever."""

    async def test() -> None:
        with life(tmp_path) as before:
            await before.begin()
            before.service.state.keep_snapshot(Kept("auto-000001", 1, 0.0), 1, "is whole", 0.0)
        with life(tmp_path) as after:
            state = after.service.state
            state.lapse({"ps-0": "not heard"}, False, {}, 0.0)
            assert state.members.waits
            after.service.tick()
            while state.members.waits:
                await asyncio.sleep(0)
            assert state.members.state is JobState.FAILED
            assert "without --snapshot-dir" in state.members.message

    run(test)
