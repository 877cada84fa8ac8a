"""The service driven directly: messages in and out, a clock of its own, no gRPC."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from google.protobuf.message import Message

from paramserver.config import Limits, SchedulerConfig
from paramserver.core.members import Role
from paramserver.errors import (
    ConnectionLostError,
    FencedError,
    InvalidRequestError,
    JobFailedError,
    MismatchError,
    NotFoundError,
    ParameterServerError,
    ResourceError,
    VersionError,
)
from paramserver.scheduler.service import SchedulerService
from paramserver.types import Stale, Sync
from paramserver.v1 import common_pb2 as common
from paramserver.v1 import scheduler_pb2 as pb
from paramserver.v1 import server_pb2
from paramserver.wire.convert import consistency_to_proto


class FakeServers:
    """Answers AppliedSpans by address; an address without an answer cannot be reached."""

    def __init__(self) -> None:
        self.answers: dict[str, server_pb2.AppliedSpansReply] = {}
        self.asked: list[tuple[str, server_pb2.AppliedSpansRequest]] = []

    def connect(self, address: str) -> FakeChannel:
        return FakeChannel(self, address)


class FakeChannel:
    def __init__(self, servers: FakeServers, address: str) -> None:
        self.servers, self.address = servers, address

    async def call(self, method: str, request: Message, *, timeout: float = 30.0) -> Any:
        assert method == "AppliedSpans"
        assert isinstance(request, server_pb2.AppliedSpansRequest)
        self.servers.asked.append((self.address, request))
        if self.address not in self.servers.answers:
            raise ConnectionLostError(f"{self.address} cannot be reached")
        return self.servers.answers[self.address]


class Cluster:
    """A scheduler with a clock that tests turn."""

    def __init__(self, workers: int = 2, servers: int = 1, **config: Any) -> None:
        self.time = 100.0
        self.servers = FakeServers()
        self.service = SchedulerService(
            SchedulerConfig(workers=workers, servers=servers, **config),
            now=lambda: self.time,
            connect=self.servers.connect,
            first_incarnation=1,
        )
        self.who: dict[str, common.Identity] = {}

    async def join(self, role: Any, name: str = "", **fields: Any) -> common.Identity:
        reply = await self.service.Register(
            pb.RegisterRequest(protocol=1, role=role, name=name, **fields)
        )
        self.who[reply.identity.name] = reply.identity
        return reply.identity

    async def server(self, name: str = "") -> common.Identity:
        return await self.join(pb.ROLE_SERVER, name, address=f"h:{len(self.who)}")

    async def worker(self, name: str = "") -> common.Identity:
        return await self.join(pb.ROLE_WORKER, name, host="box", pid=7)

    async def start(self) -> Cluster:
        members = self.service.state.members
        for _ in range(members.servers):
            await self.server()
        for _ in range(members.workers):
            await self.worker()
        return self

    async def pass_time(self, seconds: float, *alive: str) -> None:
        """Time passes; those named are heard."""
        self.time += seconds
        for name in alive:
            await self.service.Heartbeat(pb.HeartbeatRequest(member=self.who[name]))
        self.service.tick()

    async def group(
        self, name: str, worker: str, consistency: Any = None, size: int = 4000
    ) -> pb.RegisterGroupReply:
        tensor = common.TensorSpec(
            name="w", shape=[size], dtype=common.DTYPE_FLOAT32, rule=common.RULE_ADD
        )
        spec = common.GroupSpec(
            name=name,
            tensors=[tensor],
            consistency=consistency_to_proto(consistency or Sync()),
        )
        return await self.service.RegisterGroup(
            pb.RegisterGroupRequest(member=self.who[worker], spec=spec)
        )

    async def data(self, worker: str, size: int = 32, **fields: Any) -> pb.OpenDatasetReply:
        fields = {"batch_size": 8, "shard_size": 8, **fields}
        spec = pb.DatasetSpec(name="train", size=size, **fields)
        return await self.service.OpenDataset(
            pb.OpenDatasetRequest(member=self.who[worker], spec=spec)
        )

    async def next(
        self, worker: str, sequence: int, wait_s: float = 0.0, epoch: int = 0
    ) -> pb.NextShardReply:
        return await self.service.NextShard(
            pb.NextShardRequest(
                member=self.who[worker],
                dataset="train",
                epoch=epoch,
                sequence=sequence,
                wait_s=wait_s,
            )
        )

    async def done(self, worker: str, *shards: pb.Shard, back: bool = False) -> list[int]:
        spans = [common.Span(lease=s.lease, start=s.start, stop=s.stop) for s in shards]
        reply = await self.service.ReportSamples(
            pb.ReportSamplesRequest(
                member=self.who[worker],
                dataset="train",
                done=[] if back else spans,
                returned=spans if back else [],
            )
        )
        return list(reply.lost_leases)

    async def barrier(self, worker: str, sequence: int = 0, wait_s: float = 0.0) -> pb.JoinReply:
        return await self.service.Join(
            pb.JoinRequest(member=self.who[worker], name="x", sequence=sequence, wait_s=wait_s)
        )

    async def active(self, worker: str, active: bool = True) -> None:
        await self.service.SetActive(pb.SetActiveRequest(member=self.who[worker], active=active))

    async def finish(self, name: str) -> None:
        await self.service.Finish(pb.FinishRequest(member=self.who[name]))

    def state(self, name: str) -> str:
        view = self.service._current()
        found = next(m for m in view.members if m.name == name)
        return pb.MemberState.Name(found.state).removeprefix("MEMBER_")

    @property
    def number(self) -> int:
        return self.service.state.members.number


def run(test: Callable[[Cluster], Awaitable[None]], **config: Any) -> None:
    """Runs a test on a started cluster; afterwards nothing is parked and all parts agree."""

    async def body() -> None:
        cluster = await Cluster(**config).start()
        await test(cluster)
        cluster.service.state.check_invariants()
        assert len(cluster.service.parking) == 0
        cluster.service.recovery.stop()

    asyncio.run(body())


async def parked(cluster: Cluster, *calls: Awaitable[Any]) -> list[asyncio.Future[Any]]:
    """Starts calls one after another and returns when all of them wait."""
    tasks: list[asyncio.Future[Any]] = []
    for call in calls:
        count = len(cluster.service.parking)
        tasks.append(asyncio.ensure_future(call))
        while len(cluster.service.parking) == count and not tasks[-1].done():
            await asyncio.sleep(0)
    return tasks


# -- joining and starting


def test_the_scheduler_starts_without_torch() -> None:
    code = "import sys, paramserver.scheduler.service; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_start_says_who_is_missing() -> None:
    async def body() -> None:
        cluster = Cluster(workers=1, servers=2)
        await cluster.server()
        await cluster.worker()
        request = pb.AwaitStartRequest(member=cluster.who["worker-0"])
        reply = await cluster.service.AwaitStart(request)
        assert reply.pending == "waiting for 1 of 2 servers"
        assert reply.arrivals == 2
        request.wait_s = 5
        (task,) = await parked(cluster, cluster.service.AwaitStart(request))
        await cluster.server()
        started = await task
        assert (started.pending, started.arrivals) == ("", 3)
        assert started.view.state == pb.JOB_RUNNING

    asyncio.run(body())


def test_a_scheduler_that_stood_still_loses_nobody() -> None:
    """SIGSTOP, or a machine that sleeps: nobody could be heard meanwhile."""

    async def test() -> None:
        config = SchedulerConfig(lease_s=1.0, heartbeat_s=0.2)
        service = SchedulerService(config, connect=FakeServers().connect)
        await service.Register(pb.RegisterRequest(protocol=1, role=pb.ROLE_WORKER, name="w"))
        running = asyncio.ensure_future(service.run())
        await asyncio.sleep(0)
        threading.Event().wait(1.5)
        await asyncio.sleep(0.2)
        running.cancel()
        assert [m.name for m in service.state.members.live(Role.WORKER)] == ["w"]

    asyncio.run(test())


def test_registration_is_checked() -> None:
    async def body() -> None:
        cluster = Cluster()
        with pytest.raises(VersionError, match="protocol 9"):
            await cluster.service.Register(pb.RegisterRequest(protocol=9, role=pb.ROLE_WORKER))
        with pytest.raises(InvalidRequestError, match="role number 0"):
            await cluster.service.Register(pb.RegisterRequest(protocol=1))
        with pytest.raises(InvalidRequestError, match="address"):
            await cluster.join(pb.ROLE_SERVER)
        with pytest.raises(InvalidRequestError, match="member name"):
            await cluster.worker("../x")
        assert cluster.number == 1

    asyncio.run(body())


def test_incarnations_of_a_later_scheduler_are_others() -> None:
    config = SchedulerConfig()
    service = SchedulerService(config, connect=FakeServers().connect)
    with pytest.raises(InvalidRequestError, match="register first"):
        asyncio.run(
            service.Heartbeat(
                pb.HeartbeatRequest(member=common.Identity(name="ps-0", incarnation=1, job=1))
            )
        )


def identity_calls(service: SchedulerService, who: common.Identity) -> dict[str, Any]:
    """One call of every rpc that carries an identity."""
    return {
        name: getattr(service, name)(getattr(pb, f"{name}Request")(member=who))
        for name in (
            "AwaitStart", "Heartbeat", "RegisterGroup", "AwaitGroup", "GroupStored", "SetActive",
            "OpenDataset", "NextShard", "ReportSamples", "Join", "Finish", "Fail", "Log",
            "SaveSchedule", "LoadSchedule",
        )
    }  # fmt: skip


def test_every_call_of_a_fenced_incarnation_is_refused() -> None:
    async def test(cluster: Cluster) -> None:
        old = cluster.who["worker-0"]
        await cluster.worker("worker-0")
        before = cluster.number
        for call in identity_calls(cluster.service, old).values():
            with pytest.raises(FencedError):
                await call
        with pytest.raises(FencedError):
            await cluster.service.Watch(pb.WatchRequest(member=old)).__anext__()
        assert cluster.number == before

    run(test)


def test_every_call_of_a_stranger_is_refused() -> None:
    async def test(cluster: Cluster) -> None:
        stranger = common.Identity(name="x", incarnation=99, job=1)
        for call in identity_calls(cluster.service, stranger).values():
            with pytest.raises(InvalidRequestError, match="register first"):
                await call
        other = common.Identity(name="worker-0", incarnation=2, job=3)
        for call in identity_calls(cluster.service, other).values():
            with pytest.raises(FencedError, match="job 3"):
                await call

    run(test)


def test_every_rpc_of_the_protocol_is_here() -> None:
    service = pb.DESCRIPTOR.services_by_name["Scheduler"]
    assert all(hasattr(SchedulerService, m.name) for m in service.methods)


# -- views


def test_watch_gives_every_view_in_order() -> None:
    async def test(cluster: Cluster) -> None:
        watch = cluster.service.Watch(pb.WatchRequest(member=cluster.who["ps-0"]))
        first = await watch.__anext__()
        assert first.number == cluster.number
        (task,) = await parked(cluster, watch.__anext__())
        await cluster.active("worker-0")
        await cluster.active("worker-1")
        view = await task
        assert view.number == first.number + 2
        assert view.started
        (task,) = await parked(cluster, watch.__anext__())
        task.cancel()
        await asyncio.wait([task])

    run(test)


def test_a_watch_ends_when_its_member_is_lost() -> None:
    async def test(cluster: Cluster) -> None:
        watch = cluster.service.Watch(pb.WatchRequest(member=cluster.who["worker-0"]))
        await watch.__anext__()
        (task,) = await parked(cluster, watch.__anext__())
        await cluster.pass_time(11.0, "ps-0", "worker-1")
        with pytest.raises(FencedError, match="not heard for 11"):
            await task

    run(test)


# -- groups


def test_the_chief_stores_first_values_and_all_others_wait() -> None:
    async def test(cluster: Cluster) -> None:
        await cluster.group("m", "worker-1")
        ask = {
            name: pb.AwaitGroupRequest(member=cluster.who[name], group="m")
            for name in ("worker-0", "worker-1")
        }
        reply = await cluster.service.AwaitGroup(ask["worker-1"])
        assert "waits for first values of worker-0 (rank 0, last heard 0.0 s ago)" in reply.pending
        await cluster.group("m", "worker-0")
        assert (await cluster.service.AwaitGroup(ask["worker-0"])).initialize
        ask["worker-1"].wait_s = 5
        (task,) = await parked(cluster, cluster.service.AwaitGroup(ask["worker-1"]))
        stored = pb.GroupStoredRequest(member=cluster.who["worker-0"], group="m")
        await cluster.service.GroupStored(stored)
        assert (await task).stored
        assert (await cluster.service.GetGroup(pb.GetGroupRequest(group="m"))).stored

    run(test)


def test_the_next_rank_stores_when_the_chief_is_lost() -> None:
    async def test(cluster: Cluster) -> None:
        await cluster.group("m", "worker-0")
        await cluster.group("m", "worker-1")
        ask = pb.AwaitGroupRequest(member=cluster.who["worker-1"], group="m", wait_s=5)
        (task,) = await parked(cluster, cluster.service.AwaitGroup(ask))
        await cluster.pass_time(11.0, "ps-0", "worker-1")
        assert (await task).initialize

    run(test)


def test_another_specification_is_a_mismatch() -> None:
    async def test(cluster: Cluster) -> None:
        first = await cluster.group("m", "worker-0")
        assert first.map.addresses == ["h:0"]
        again = await cluster.group("m", "worker-0")
        assert again == first
        with pytest.raises(MismatchError, match="consistency"):
            await cluster.group("m", "worker-1", Stale(2))
        with pytest.raises(NotFoundError):
            await cluster.service.GetGroup(pb.GetGroupRequest(group="n"))
        with pytest.raises(InvalidRequestError, match="only workers"):
            await cluster.group("m", "ps-0")

    run(test)


def test_a_reader_waits_for_a_group_that_nobody_registered() -> None:
    async def test(cluster: Cluster) -> None:
        reader = await cluster.join(pb.ROLE_READER)
        assert reader.rank == -1
        request = pb.AwaitGroupRequest(member=reader, group="m")
        assert "not registered yet" in (await cluster.service.AwaitGroup(request)).pending
        with pytest.raises(NotFoundError):
            await cluster.service.AwaitGroup(
                pb.AwaitGroupRequest(member=cluster.who["worker-0"], group="m")
            )

    run(test)


# -- data


def test_the_first_shard_makes_a_worker_active_in_the_same_view() -> None:
    async def test(cluster: Cluster) -> None:
        reply = await cluster.data("worker-0", shard_size=0, size=1000)
        assert (reply.spec.shard_size, reply.spec.assign) == (56, "dynamic")
        assert cluster.state("worker-0") == "JOINED"
        leased = await cluster.next("worker-0", 0)
        assert cluster.state("worker-0") == "ACTIVE"
        assert leased.view == cluster.number
        assert await cluster.next("worker-0", 0) == leased

    run(test)


def test_whoever_waits_is_idle_and_all_go_on_in_one_view() -> None:
    async def test(cluster: Cluster) -> None:
        for name in ("worker-0", "worker-1"):
            await cluster.data(name, size=16)
        one = await cluster.next("worker-0", 0)
        two = await cluster.next("worker-1", 0)
        none = await cluster.next("worker-0", 1)
        assert "held by worker-0 (rank 0" in none.pending
        assert cluster.state("worker-0") == "ACTIVE"
        await cluster.done("worker-0", one.shard)
        (task,) = await parked(cluster, cluster.next("worker-0", 1, wait_s=5))
        assert cluster.state("worker-0") == "IDLE"
        before = cluster.number
        await cluster.done("worker-1", two.shard)
        reply = await task
        assert (reply.drained, cluster.state("worker-0")) == (True, "ACTIVE")
        assert cluster.number == before + 1
        assert (await cluster.next("worker-0", 2, epoch=1)).shard.epoch == 1

    run(test)


def test_a_returned_shard_wakes_one_that_waits() -> None:
    async def test(cluster: Cluster) -> None:
        for name in ("worker-0", "worker-1"):
            await cluster.data(name, size=8)
        held = await cluster.next("worker-0", 0)
        (task,) = await parked(cluster, cluster.next("worker-1", 0, wait_s=5))
        await cluster.done("worker-0", held.shard, back=True)
        again = await task
        assert (again.shard.start, again.shard.stop) == (0, 8)
        assert cluster.state("worker-1") == "ACTIVE"
        assert await cluster.done("worker-0", again.shard) == [again.shard.lease]

    run(test)


def test_workers_that_disagree_on_the_data_are_told() -> None:
    async def test(cluster: Cluster) -> None:
        await cluster.data("worker-0")
        with pytest.raises(InvalidRequestError, match="size is 32, not 33"):
            await cluster.data("worker-1", size=33)
        with pytest.raises(InvalidRequestError, match="assign is dynamic, not random"):
            await cluster.data("worker-1", assign="random")
        with pytest.raises(NotFoundError):
            await cluster.service.NextShard(
                pb.NextShardRequest(member=cluster.who["worker-0"], dataset="test")
            )

    run(test)


def spans(group: str, *found: common.Span) -> server_pb2.AppliedSpansReply:
    return server_pb2.AppliedSpansReply(groups=[server_pb2.GroupSpans(group=group, spans=found)])


def test_the_lead_says_what_a_lost_worker_had_applied() -> None:
    async def test(cluster: Cluster) -> None:
        for name in ("worker-0", "worker-1"):
            await cluster.group("m", name)
            await cluster.data(name, size=16)
        one = (await cluster.next("worker-0", 0)).shard
        two = (await cluster.next("worker-0", 1)).shard
        applied = common.Span(lease=one.lease, start=one.start, stop=one.stop)
        cluster.servers.answers["h:0"] = spans("m", applied)
        (task,) = await parked(cluster, cluster.next("worker-1", 0, wait_s=5))
        await cluster.pass_time(11.0, "ps-0", "worker-1")
        assert not task.done()
        back = (await task).shard
        assert (back.start, back.stop) == (two.start, two.stop)
        ((_, asked),) = cluster.servers.asked
        assert (asked.rank, asked.incarnation, asked.job) == (0, 2, 1)
        assert asked.view <= cluster.number
        await cluster.done("worker-1", back)
        assert (await cluster.next("worker-1", 1)).drained

    run(test)


def test_stale_pushes_count_when_every_server_has_them() -> None:
    async def test(cluster: Cluster) -> None:
        await cluster.group("m", "worker-0", Stale(2))
        await cluster.data("worker-0", size=16)
        one = (await cluster.next("worker-0", 0)).shard
        two = (await cluster.next("worker-0", 1)).shard
        first, second = (common.Span(lease=s.lease, start=s.start, stop=s.stop) for s in (one, two))
        cluster.servers.answers["h:0"] = spans("m", first, second)
        cluster.servers.answers["h:1"] = spans("m", second)
        await cluster.pass_time(11.0, "ps-0", "ps-1", "worker-1")
        await cluster.service.recovery.drain()
        assert {a for a, _ in cluster.servers.asked} == {"h:0", "h:1"}
        counts = cluster.service.state.data.get("train").counts()
        assert (counts.samples_done, counts.free, counts.requeued) == (8, 1, 1)

    run(test, servers=2)


def test_a_server_without_slices_of_the_group_has_no_say() -> None:
    async def test(cluster: Cluster) -> None:
        await cluster.group("m", "worker-0", Stale(2), size=3)
        await cluster.data("worker-0", size=16)
        one = (await cluster.next("worker-0", 0)).shard
        cluster.servers.answers["h:0"] = spans(
            "m", common.Span(lease=one.lease, start=one.start, stop=one.stop)
        )
        cluster.servers.answers["h:1"] = spans("m")
        await cluster.pass_time(11.0, "ps-0", "ps-1", "worker-1")
        await cluster.service.recovery.drain()
        assert cluster.service.state.data.get("train").counts().samples_done == 8

    run(test, servers=2)


def test_what_servers_have_in_common_counts_however_they_cut_it() -> None:
    async def test(cluster: Cluster) -> None:
        await cluster.group("m", "worker-0", Stale(2))
        await cluster.data("worker-0", size=16)
        lease = (await cluster.next("worker-0", 0)).shard.lease
        cluster.servers.answers["h:0"] = spans("m", common.Span(lease=lease, start=0, stop=6))
        cluster.servers.answers["h:1"] = spans("m", common.Span(lease=lease, start=0, stop=4))
        await cluster.pass_time(11.0, "ps-0", "ps-1", "worker-1")
        await cluster.service.recovery.drain()
        assert cluster.service.state.data.get("train").counts().samples_done == 4

    run(test, servers=2)


def test_a_server_that_cannot_be_reached_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paramserver.scheduler.recovery.FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr("paramserver.scheduler.recovery.LAST_PAUSE_S", 0.0)

    async def test(cluster: Cluster) -> None:
        await cluster.group("m", "worker-0")
        await cluster.data("worker-0", size=8)
        await cluster.next("worker-0", 0)
        await cluster.pass_time(11.0, "ps-0", "worker-1")
        while len(cluster.servers.asked) < 3:
            await asyncio.sleep(0)
        queue = cluster.service.state.data.get("train")
        assert queue.counts().leased == 1
        cluster.servers.answers["h:0"] = spans("m")
        await cluster.service.recovery.drain()
        assert queue.counts().free == 1

    run(test)


def test_a_failed_worker_gives_back_its_shards_at_once() -> None:
    async def test(cluster: Cluster) -> None:
        await cluster.data("worker-0", size=8)
        await cluster.data("worker-1", size=8)
        await cluster.next("worker-0", 0)
        fail = pb.FailRequest(member=cluster.who["worker-0"], reason="ValueError")
        await cluster.service.Fail(fail)
        assert cluster.state("worker-0") == "LOST"
        assert (await cluster.next("worker-1", 0)).shard.stop == 8
        with pytest.raises(FencedError):
            await cluster.service.Fail(fail)

    run(test)


# -- rounds


def test_a_barrier_names_whom_it_waits_for() -> None:
    async def test(cluster: Cluster) -> None:
        cluster.time += 4.1
        reply = await cluster.barrier("worker-0")
        assert reply.pending == "barrier 'x' waits for worker-1 (rank 1, last heard 4.1 s ago)"
        assert cluster.state("worker-0") == "IDLE"
        (task,) = await parked(cluster, cluster.barrier("worker-0", wait_s=5))
        last = await cluster.barrier("worker-1")
        first = await task
        assert last.released
        assert first.round == last.round
        assert [a.rank for a in first.arrivals] == [0, 1]
        assert {cluster.state(n) for n in ("worker-0", "worker-1")} == {"ACTIVE"}
        again = await cluster.barrier("worker-1")
        assert list(again.arrivals) == list(last.arrivals)

    run(test)


def test_a_repeated_answer_makes_nobody_active() -> None:
    async def test(cluster: Cluster) -> None:
        await cluster.barrier("worker-0")
        await cluster.barrier("worker-1")
        await cluster.barrier("worker-0", sequence=1)
        await cluster.barrier("worker-1")
        assert cluster.state("worker-0") == "IDLE"

    run(test)


def test_a_lost_and_a_finished_worker_leave_the_round() -> None:
    async def test(cluster: Cluster) -> None:
        (task,) = await parked(cluster, cluster.barrier("worker-0", wait_s=5))
        await cluster.finish("worker-2")
        assert not task.done()
        await cluster.pass_time(11.0, "ps-0", "worker-0")
        reply = await task
        assert [a.rank for a in reply.arrivals] == [0]

    run(test, workers=3)


def test_a_cancelled_call_leaves_nothing_parked() -> None:
    async def test(cluster: Cluster) -> None:
        tasks = await parked(
            cluster,
            cluster.barrier("worker-0", wait_s=5),
            cluster.barrier("worker-0", wait_s=5),
        )
        assert len(cluster.service.parking) == 2
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert len(cluster.service.parking) == 0
        await cluster.active("worker-0")
        assert cluster.state("worker-0") == "ACTIVE"
        assert not cluster.service.state.rounds.waiting()

    run(test)


def test_parked_calls_are_limited() -> None:
    async def test(cluster: Cluster) -> None:
        (task,) = await parked(cluster, cluster.barrier("worker-0", wait_s=5))
        with pytest.raises(ResourceError, match="1 calls are parked"):
            await cluster.barrier("worker-0", wait_s=5)
        await cluster.barrier("worker-1")
        assert (await task).released

    run(test, limits=Limits(parked_calls=1))


@pytest.mark.parametrize("wait_s", [-1.0, float("nan")])
def test_a_wait_is_a_length_of_time(wait_s: float) -> None:
    async def test(cluster: Cluster) -> None:
        with pytest.raises(InvalidRequestError, match="wait_s"):
            await cluster.barrier("worker-0", wait_s=wait_s)

    run(test)


# -- answers that are lost


def test_a_registration_that_is_sent_again_is_the_same_member() -> None:
    async def test(cluster: Cluster) -> None:
        def request(attempt: str, name: str = "") -> pb.RegisterRequest:
            return pb.RegisterRequest(
                protocol=1, role=pb.ROLE_WORKER, name=name, attempt=attempt, host="box", pid=7
            )

        first = await cluster.service.Register(request("a"))
        again = await cluster.service.Register(request("a"))
        assert again.identity.incarnation == first.identity.incarnation
        assert again.identity.name == first.identity.name == "worker-2"
        other = await cluster.service.Register(request("b"))
        assert other.identity.name == "worker-3"
        restarted = await cluster.service.Register(request("c", "worker-2"))
        assert restarted.identity.incarnation > other.identity.incarnation
        late = await cluster.service.Register(request("a", "worker-3"))
        assert late.identity.name == "worker-3", "whoever had it is gone"

    run(test)


# -- the end of a job


def test_the_job_ends_with_its_last_worker_and_the_next_begins_empty() -> None:
    async def test(cluster: Cluster) -> None:
        await cluster.group("m", "worker-0")
        await cluster.data("worker-0")
        for name in ("worker-0", "worker-1"):
            await cluster.finish(name)
            await cluster.finish(name)
        assert cluster.service.ended.is_set()
        view = await cluster.service.GetView(pb.GetViewRequest())
        assert view.state == pb.JOB_DONE
        assert (await cluster.service.GetGroup(pb.GetGroupRequest(group="m"))).spec.name == "m"
        old = cluster.who["worker-1"]
        await cluster.worker()
        assert not cluster.service.ended.is_set()
        assert (await cluster.service.GetView(pb.GetViewRequest())).job == 2
        with pytest.raises(NotFoundError):
            await cluster.service.GetGroup(pb.GetGroupRequest(group="m"))
        with pytest.raises(FencedError, match="job 1"):
            await cluster.service.Heartbeat(pb.HeartbeatRequest(member=old))
        server = pb.HeartbeatRequest(member=cluster.who["ps-0"])
        assert (await cluster.service.Heartbeat(server)).state == pb.JOB_WAITING

    run(test)


def test_a_scheduler_for_one_job_takes_no_second() -> None:
    async def test(cluster: Cluster) -> None:
        await cluster.finish("worker-0")
        await cluster.finish("worker-1")
        with pytest.raises(InvalidRequestError, match="one job"):
            await cluster.worker()

    run(test, once=True)


def test_a_fatal_failure_is_the_jobs_root_cause() -> None:
    async def test(cluster: Cluster) -> None:
        (task,) = await parked(cluster, cluster.barrier("worker-0", wait_s=5))
        for reason in ("ZeroDivisionError", "another"):
            await cluster.service.Fail(
                pb.FailRequest(
                    member=common.Identity(name="worker-1"), reason=reason, fatal=True, exit_code=1
                )
            )
        said = r"worker-1 \(rank 1, host box, pid 7\) failed with exit code 1: ZeroDivisionError"
        with pytest.raises(JobFailedError, match=said):
            await task
        with pytest.raises(JobFailedError, match=said):
            await cluster.next("worker-0", 0)
        beat = await cluster.service.Heartbeat(pb.HeartbeatRequest(member=cluster.who["worker-0"]))
        assert beat.state == pb.JOB_FAILED
        assert "ZeroDivisionError" in beat.message
        assert cluster.service.ended.is_set()

    run(test)


def test_a_silent_server_fails_the_job_by_name() -> None:
    async def test(cluster: Cluster) -> None:
        await cluster.pass_time(11.0, "worker-0", "worker-1")
        with pytest.raises(JobFailedError, match="server ps-0 was lost"):
            await cluster.barrier("worker-0")

    run(test)


def test_leases_lapse_while_the_scheduler_runs() -> None:
    async def test(cluster: Cluster) -> None:
        runner = asyncio.create_task(cluster.service.run())
        (task,) = await parked(cluster, cluster.barrier("worker-0", wait_s=5))
        cluster.time += 9.0
        for name in ("ps-0", "worker-0"):
            await cluster.service.Heartbeat(pb.HeartbeatRequest(member=cluster.who[name]))
        cluster.time += 2.0
        assert (await task).released
        runner.cancel()
        await asyncio.wait([runner])

    run(test, heartbeat_s=0.002)


# -- schedules, scalars, status


def test_the_newest_schedule_is_kept() -> None:
    async def test(cluster: Cluster) -> None:
        member = cluster.who["worker-0"]
        for epoch, clock, text in ((1, 5, "new"), (1, 4, "old"), (0, 9, "older")):
            await cluster.service.SaveSchedule(
                pb.SaveScheduleRequest(member=member, epoch=epoch, clock=clock, state=text)
            )
        found = await cluster.service.LoadSchedule(pb.LoadScheduleRequest(member=member))
        assert (found.found, found.state, found.clock, found.job_epoch) == (True, "new", 5, 1)

    run(test)


def test_status_shows_all_of_it() -> None:
    async def test(cluster: Cluster) -> None:
        await cluster.group("m", "worker-0")
        await cluster.data("worker-0")
        await cluster.next("worker-0", 0)
        member = cluster.who["worker-0"]
        await cluster.service.Log(pb.LogRequest(member=member, scalars={"loss": 0.5}))
        await cluster.service.Heartbeat(
            pb.HeartbeatRequest(
                member=member,
                clocks=[pb.GroupClock(group="m", clock=3)],
                stats={"samples": 8},
            )
        )
        cluster.time += 2.0
        shown = await cluster.service.Status(pb.StatusRequest())
        assert shown.uptime_s == 2.0
        assert shown.scalars["loss"] == 0.5
        assert [(w.name, w.heard_s) for w in shown.workers] == [
            ("worker-0", 2.0),
            ("worker-1", 2.0),
        ]
        assert shown.workers[0].clocks[0].clock == 3
        assert shown.datasets[0].leased == 1
        assert shown.groups[0].lead == "ps-0"
        assert shown.groups[0].server_bytes == [16000]
        assert shown.events[0] == "0.0 s: ps-0 registered"
        assert any("job 1 is running" in e for e in shown.events)
        assert (shown.expected_workers, shown.expected_servers) == (2, 1)

    run(test)


def test_a_bad_request_changes_nothing() -> None:
    async def test(cluster: Cluster) -> None:
        before = cluster.number
        member = cluster.who["worker-0"]
        bad: list[Awaitable[Any]] = [
            cluster.service.Join(pb.JoinRequest(member=member, name="a\nb")),
            cluster.service.Join(pb.JoinRequest(member=member)),
            cluster.data("worker-0", batch_size=0),
            cluster.group("a b", "worker-0"),
            cluster.service.Log(
                pb.LogRequest(member=member, scalars={str(n): 0.0 for n in range(2000)})
            ),
            cluster.service.SaveSchedule(
                pb.SaveScheduleRequest(member=member, state="x" * (9 << 20))
            ),
        ]
        for call in bad:
            with pytest.raises(ParameterServerError):
                await call
        assert cluster.number == before

    run(test)
