"""A whole cluster in virtual time: the real scheduler with its log, real servers with journals and
backups, and workers that add.

Every push adds one to an element of its own in every slice. So the values are the record of what
was applied, and how often.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import xxhash

from paramserver.config import SchedulerConfig, ServerConfig
from paramserver.errors import ConnectionLostError, ParameterServerError
from paramserver.ps.role import ServerRole
from paramserver.scheduler.durable import Durable
from paramserver.scheduler.event_log import EventLog
from paramserver.scheduler.service import SchedulerService
from paramserver.types import PROTOCOL_VERSION, Durability
from paramserver.v1 import common_pb2, scheduler_pb2
from paramserver.v1 import server_pb2 as pb
from paramserver.wire.frames import decode, encode
from paramserver.wire.status import from_failure
from tests.canonical import same
from tests.simulation.disk import Disk, disks
from tests.simulation.virtual import Channel, Machine, Network, Stuck, VirtualLoop
from tests.simulation.world import Broken

LEASE_S = 3.0
BEAT_S = 0.5
DEADLINE_S = 300.0
SCHEDULER = "scheduler:1"
PASSING = ("MOVED", "WAIT_TIMEOUT", "RESOURCE", "INTERNAL")  # worth another attempt
NOT_FILLED = "its backup was not complete"
STEPS = ("ps.before_write", "ps.after_write", "ps.before_fsync", "ps.after_fsync", "torn", "EIO")
DUMPS = ("ps.before_dump_write", "ps.before_rename", "ps.after_rename")
T = TypeVar("T")


class Scheduler:
    """The scheduler: one life after the other, on one state directory."""

    def __init__(self, world: ClusterWorld) -> None:
        self.world = world
        self._lives = 0
        self.log: EventLog | None = None
        self.service: SchedulerService
        self.machine: Machine

    def start(self) -> None:
        """A life begins with what the log says."""
        world = self.world
        self._lives += 1
        self.machine = machine = Machine("scheduler", SCHEDULER)
        self.log = machine.context.run(EventLog, world.folder / "scheduler")
        self.service = machine.context.run(self._service, self.log)
        servicer = Durable(self.service, self.log)
        machine.serve = lambda name, method: getattr(servicer, method)
        world.network.listen(machine)
        machine.spawn(self._live())

    async def _live(self) -> None:
        await self.service.snapshots.begin()
        await self.service.run()

    def _service(self, log: EventLog) -> SchedulerService:
        world = self.world
        return SchedulerService(
            world.config,
            now=lambda: world.loop.time() + 1000.0 / self._lives,  # each life has another clock
            connect=lambda address: Channel(world.network, address),
            first_incarnation=1,
            log=log,
        )

    def kill(self) -> None:
        """Ends at once: what is not written is lost."""
        assert self.log is not None
        self.machine.kill(self.world.loop)
        self.log._rows.clear()
        self.log.close()
        self.log = None


class Server:
    """A server process: one life after the other."""

    def __init__(self, world: ClusterWorld, number: int) -> None:
        self.world = world
        self.name = f"ps-{number}"
        self.disk = Disk(world.folder / self.name, f"{world.seed}/{self.name}")
        self.machine: Machine | None = None
        self.role: ServerRole

    def start(self) -> None:
        """A life begins."""
        world = self.world
        self.machine = machine = Machine(self.name, f"{self.name}:1")
        machine.disk = self.disk
        machine.dies = lambda: self.end(again=True, power=world.draw.random() < 0.5)
        machine.serve = self._find
        machine.spawn(self._live(machine))

    def _find(self, name: str, method: str) -> Any:
        if hasattr(type(self.role.host), method):
            return getattr(self.role.host, method)
        return getattr(self.role.host.hosted(name), method)

    async def _live(self, machine: Machine) -> None:
        world = self.world
        config = ServerConfig(
            scheduler=SCHEDULER,
            name=self.name,
            state_dir=str(self.disk.folder) if world.durability == "wal" else None,
            journal_bytes=world.journal_bytes,
        )
        self.role = ServerRole(
            config,
            Channel(world.network, SCHEDULER),
            lambda address: Channel(world.network, address),
        )
        work = asyncio.ensure_future(self._work(machine))
        ended = asyncio.ensure_future(self.role.ended.wait())
        await asyncio.wait({work, ended}, return_when=asyncio.FIRST_COMPLETED)
        error = work.exception() if work.done() else self.role.failure
        world.say(f"{self.name} ends: {error!r}")
        self.end(again=True)

    async def _work(self, machine: Machine) -> None:
        await self.role.recover()
        self.world.network.listen(machine)
        await self.role.register(machine.address)
        await self.role.run()

    def end(self, *, again: bool, power: bool = False) -> None:
        """The process ends at once, or the machine does; its launcher may start it again."""
        machine = self.machine
        if machine is None:
            return
        self.machine = None
        machine.kill(self.world.loop)
        self.role._lasting.close()  # lets go of its files, as the system does
        if power:
            self.disk.lose_power()
        if again:
            self.world.after(self.world.draw.uniform(0.1, 2.0), self.start)


class Worker:
    """Adds one to an element of its own with every push."""

    def __init__(self, world: ClusterWorld, rank: int) -> None:
        self.world = world
        self.name = f"worker-{rank}"
        self.number = rank
        self.machine = Machine(self.name)
        self.acknowledged: set[int] = set()
        self._scheduler = Channel(world.network, SCHEDULER)
        self._identity = common_pb2.Identity()
        self._map = common_pb2.SliceMap()
        self._addresses: dict[str, str] = {}

    # what it asks

    async def _call(self, method: str, request: Any) -> Any:
        """Asks the scheduler until it answers."""
        while True:
            try:
                return await self._scheduler.call(method, request, timeout=15.0)
            except ConnectionLostError:
                await asyncio.sleep(0.1)

    async def _until(self, ask: Callable[..., Awaitable[T]], server: str, *what: Any) -> T:
        """Asks a server until it answers, wherever it is by then."""
        while True:
            try:
                return await asyncio.wait_for(ask(self._addresses[server], *what), 8.0)
            except (ConnectionLostError, asyncio.TimeoutError):
                pass
            except ParameterServerError as error:
                if error.reason not in PASSING:
                    raise
            await asyncio.sleep(0.2)
            await self._look()

    async def _look(self) -> None:
        reply = await self._call("GetGroup", scheduler_pb2.GetGroupRequest(group="g"))
        self._map.CopyFrom(reply.map)
        self._addresses = dict(zip(reply.map.servers, reply.map.addresses, strict=True))

    async def _ask(
        self, address: str, records: Iterable[pb.Record], payload: bytes = b""
    ) -> list[tuple[pb.Record, bytes]]:
        """One frame on a stream of its own; the records that answer it, with their bytes."""
        over = asyncio.Event()

        async def frames() -> AsyncIterator[bytes]:
            yield encode(list(records), [payload] if payload else [])
            await over.wait()

        found = []
        replies = Channel(self.world.network, address).exchange(frames())
        async for frame in replies:
            answers, rest = decode(frame)
            at = 0
            for record in answers:
                size = sum(record.data.sizes)
                found.append((record, bytes(rest[at : at + size])))
                at += size
                if record.HasField("failure"):
                    raise from_failure(record.failure)
                if record.HasField("done"):
                    over.set()
                    await replies.aclose()  # type: ignore[attr-defined]
                    return found
        raise ConnectionLostError("the stream ended")

    # its life

    async def run(self) -> None:
        """From its start to its last push."""
        world = self.world
        request = scheduler_pb2.RegisterRequest(
            protocol=PROTOCOL_VERSION,
            role=scheduler_pb2.ROLE_WORKER,
            name=self.name,
            attempt=self.name,
        )
        self._identity = (await self._call("Register", request)).identity
        self.machine.spawn(self._beat())
        me = self._identity
        while True:
            asked = scheduler_pb2.AwaitStartRequest(member=me, wait_s=5)
            reply = await self._call("AwaitStart", asked)
            if not reply.pending:
                break
        me.view = reply.view.number
        spec = common_pb2.GroupSpec(
            name="g",
            tensors=[
                common_pb2.TensorSpec(
                    name=f"w{i}",
                    shape=[world.elements],
                    dtype=common_pb2.DTYPE_FLOAT32,
                    rule=common_pb2.RULE_ADD,
                )
                for i in range(world.slices)
            ],
            consistency=world.consistency,
        )
        await self._call("RegisterGroup", scheduler_pb2.RegisterGroupRequest(member=me, spec=spec))
        await self._look()
        await self._store()
        await self._train()

    async def _beat(self) -> None:
        while True:
            request = scheduler_pb2.HeartbeatRequest(member=self._identity)
            with suppress(ConnectionLostError):
                await self._scheduler.call("Heartbeat", request, timeout=1.0)
            await asyncio.sleep(BEAT_S)

    async def _store(self) -> None:
        me = self._identity
        while True:
            asked = scheduler_pb2.AwaitGroupRequest(member=me, group="g", wait_s=5)
            state = await self._call("AwaitGroup", asked)
            if state.initialize:
                for server, slices in self._held().items():
                    store = pb.Store(
                        worker=me, group="g", map_version=self._map.version, slices=slices
                    )
                    zeros = np.zeros(self.world.elements, np.float32)
                    record = pb.Record(request=1, store=store)
                    data, payload = _data(slices, zeros)
                    await self._until(self._ask, server, (record, data), payload)
                stored = scheduler_pb2.GroupStoredRequest(member=me, group="g")
                await self._call("GroupStored", stored)
            elif state.stored:
                return

    def _held(self) -> dict[str, list[int]]:
        """Slices by server."""
        found: dict[str, list[int]] = {}
        for index, owner in enumerate(self._map.owners):
            found.setdefault(self._map.servers[owner], []).append(index)
        return found

    async def _activate(self) -> int:
        request = pb.ActivateRequest(
            worker=self._identity, group="g", map_version=self._map.version
        )
        lead = self._map.servers[self._map.lead]

        async def ask(address: str) -> int:
            request.map_version = self._map.version
            reply = await Channel(self.world.network, address).call("Activate", request)
            return int(reply.clock)

        return await self._until(ask, lead)

    async def _train(self) -> None:
        active = scheduler_pb2.SetActiveRequest(member=self._identity, active=True)
        self._identity.view = (await self._call("SetActive", active)).view
        clock, activated = await self._activate(), True
        for number in range(self.world.pushes):
            await asyncio.sleep(self.world.draw.uniform(0.0, 0.2))
            while not await self._push(number, clock, activated):
                clock, activated = await self._activate(), True
            self.acknowledged.add(number)
            clock, activated = clock + 1, False
        inactive = scheduler_pb2.SetActiveRequest(member=self._identity, active=False)
        await self._call("SetActive", inactive)

    async def _push(self, number: int, clock: int, activated: bool) -> bool:
        """Adds one; False: it counts nowhere, and is to be sent again at another clock."""
        values = np.zeros(self.world.elements, np.float32)
        values[self.number * self.world.pushes + number] = 1.0
        answers = await asyncio.gather(
            *(
                self._until(self._push_to, server, slices, values, clock, activated)
                for server, slices in self._held().items()
            )
        )
        if len(set(answers)) > 1:
            raise Broken(f"{self.name}, clock {clock}: servers disagree on whether it counts")
        return answers[0]

    async def _push_to(
        self,
        address: str,
        slices: list[int],
        values: np.ndarray[Any, Any],
        clock: int,
        activated: bool,
    ) -> bool:
        push = pb.Push(
            worker=self._identity,
            group="g",
            map_version=self._map.version,
            clock=clock,
            weight=1.0,
            slices=slices,
            activated=activated,
        )
        data, payload = _data(slices, values)
        answers = await self._ask(address, (pb.Record(request=1, push=push), data), payload)
        return not answers[-1][0].done.dropped

    async def values(self) -> dict[int, np.ndarray[Any, Any]]:
        """What all servers have, by slice."""
        found: dict[int, np.ndarray[Any, Any]] = {}

        async def pull(address: str) -> list[tuple[pb.Record, bytes]]:
            asked = pb.Pull(
                worker=self._identity, group="g", map_version=self._map.version, latest=True
            )
            return await self._ask(address, [pb.Record(request=1, pull=asked)])

        await self._look()
        for server in self._held():
            for record, payload in await self._until(pull, server):
                size = 4 * self.world.elements
                for place, index in enumerate(record.data.slices):
                    part = payload[place * size : (place + 1) * size]
                    found[index] = np.frombuffer(part, np.float32)
        return found


def _data(slices: list[int], values: np.ndarray[Any, Any]) -> tuple[pb.Record, bytes]:
    """The same values for all of these slices."""
    piece = values.tobytes()
    data = pb.Data(
        slices=slices,
        sizes=[len(piece)] * len(slices),
        checksums=[xxhash.xxh3_64_intdigest(piece)] * len(slices),
    )
    return pb.Record(request=1, data=data), piece * len(slices)


class ClusterWorld:
    """One schedule of faults for a cluster.

    Attributes:
        story: what befell it, in words.
        took: virtual seconds until all was checked.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.draw = draw = random.Random(f"cluster/{seed}")
        self.loop = VirtualLoop()
        self.network = Network(
            self.loop,
            seed,
            loss=draw.choice((0.0, 0.0, 0.02)),
            delay=draw.choice(((0.001, 0.01), (0.001, 0.1))),
        )
        self.network.on_reply = self._on_reply
        self.durability: Durability = draw.choice(("replica", "wal"))
        count = draw.choice((2, 2, 3)) if self.durability == "replica" else draw.choice((1, 2))
        workers = draw.choice((1, 2))
        kind = draw.choice(("sync", "sync", "stale", "async"))
        self.consistency = common_pb2.Consistency(
            kind=kind, bound=1, scale_lr="none", deterministic=True
        )
        self.pushes, self.slices = draw.choice((4, 8)), count
        self.elements = workers * self.pushes
        self.journal_bytes = draw.choice((1000, 256 << 20))
        self.config = SchedulerConfig(
            workers=workers,
            servers=count,
            lease_s=LEASE_S,
            heartbeat_s=BEAT_S,
            durability=self.durability,
        )
        shm = Path("/dev/shm")
        self.folder = Path(tempfile.mkdtemp(prefix="ps-sim-", dir=shm if shm.is_dir() else None))
        self.story: list[str] = []
        self.broken = ""
        self.took = 0.0
        self._outside = contextvars.copy_context()
        self._spoke: dict[tuple[str, int], Machine] = {}
        self.scheduler = Scheduler(self)
        self.servers = [Server(self, i) for i in range(count)]
        self.workers = [Worker(self, i) for i in range(workers)]

    def __str__(self) -> str:
        return (
            f"a cluster of {len(self.servers)} servers, {len(self.workers)} workers, "
            f"{self.consistency.kind}, {self.durability}"
        )

    def after(self, seconds: float, do: Callable[[], None]) -> None:
        """Something that the world does."""
        self.loop.call_later(seconds, do, context=self._outside)

    def _on_reply(self, machine: Machine, server: str, reply: Any) -> None:
        """At most one process speaks for a server under one epoch."""
        if not machine.alive or not isinstance(reply, bytes) or self.durability != "replica":
            return
        name = server or machine.name
        role = next(s.role for s in self.servers if s.machine is machine)
        served = role.host._served.get(name)
        if served is not None:
            first = self._spoke.setdefault((name, served.epoch), machine)
            if first is not machine:
                self.broken = f"two processes answer for {name} under epoch {served.epoch}"

    # faults

    def _plan_faults(self) -> None:
        for _ in range(self.draw.choice((0, 1, 2, 3))):
            kinds = (self._kill_server, self._freeze, self._part, self._kill_scheduler)
            more = (self._kill_server, self._disk)[self.durability == "wal"]
            self.after(self.draw.uniform(0.1, 3.0), self.draw.choice((*kinds, more, more)))

    def say(self, text: str) -> None:
        """Something that befell it."""
        self.story.append(f"{self.loop.time():.3f} s: {text}")

    def _is_safe(self) -> bool:
        """Whether the loss of one server is survived, by what is promised."""
        if self.durability == "wal":
            return True
        places = self.scheduler.service.state.places.all
        return bool(places) and all(p.ready for p in places)

    def _server(self) -> Server | None:
        server = self.draw.choice(self.servers)
        safe = self._is_safe() or self.draw.random() < 0.1
        return server if server.machine is not None and safe else None

    def _kill_server(self) -> None:
        server = self._server()
        if server is not None:
            power = self.draw.random() < 0.5
            self.say(f"{server.name} {'loses power' if power else 'is killed'}")
            server.end(again=True, power=power)

    def _disk(self) -> None:
        server = self._server()
        if server is not None and self.durability == "wal":
            server.disk.plan = self.draw.choice(STEPS + DUMPS)
            self.say(f"{server.name} is to meet {server.disk.plan}")

    def _freeze(self) -> None:
        server = self._server()
        if server is None or server.machine is None:
            return
        machine, seconds = server.machine, self.draw.choice((1.0, LEASE_S + 2.0, 3 * LEASE_S))
        self.say(f"{server.name} stands still for {seconds:g} s")
        machine.frozen = True
        self.after(seconds, lambda: self.loop.thaw(machine))

    def _part(self) -> None:
        names = [*(s.name for s in self.servers), *(w.name for w in self.workers), "scheduler"]
        one, other = self.draw.sample(names, 2)
        if {one, other} <= {"scheduler", *(w.name for w in self.workers)}:
            return  # what becomes of a lost worker is another world's matter
        seconds = self.draw.uniform(0.5, 2 * LEASE_S)
        if "scheduler" in (one, other) and not self._is_safe():
            seconds = min(seconds, 1.0)
        self.say(f"{one} cannot reach {other} for {seconds:.1f} s")
        self.network.cut[one, other] = self.loop.time() + seconds
        if self.draw.random() < 0.5:
            self.network.cut[other, one] = self.network.cut[one, other]

    def _kill_scheduler(self) -> None:
        if self.scheduler.log is not None:
            self.say("the scheduler is killed")
            self.scheduler.kill()
            self.after(self.draw.uniform(0.05, 3.0), self.scheduler.start)

    # running

    def run(self) -> None:
        """To the end.

        Raises:
            Broken: a promise does not hold.
        """
        asyncio.set_event_loop(self.loop)
        try:
            with disks():
                self.loop.run_until_complete(self._run())
                self.took = self.loop.time()
        except Stuck as stuck:
            raise Broken(str(stuck)) from None
        finally:
            with disks():
                self._close()
            asyncio.set_event_loop(None)

    def _close(self) -> None:
        for server in self.servers:
            if server.machine is not None:
                server.end(again=False)
        if self.scheduler.log is not None:
            self.scheduler.kill()
        self.loop.end()
        shutil.rmtree(self.folder, ignore_errors=True)

    async def _run(self) -> None:
        self.scheduler.start()
        for server in self.servers:
            server.start()
        self._plan_faults()
        works = [w.machine.spawn(w.run()) for w in self.workers]
        try:
            done = asyncio.wait(works, return_when=asyncio.FIRST_EXCEPTION)
            for work in (await asyncio.wait_for(done, DEADLINE_S))[0]:
                work.result()
            await self._check()
        except asyncio.TimeoutError:
            if not self._failed():
                raise Broken(f"not over after {DEADLINE_S:g} s") from None
        except ParameterServerError as error:
            if not self._failed():
                raise Broken(f"{type(error).__name__}: {error}") from error

    def _failed(self) -> bool:
        """Whether the job failed, as it may where a server is lost before its backup is filled."""
        members = self.scheduler.service.state.members
        return self.durability == "replica" and NOT_FILLED in members.message

    async def _check(self) -> None:
        if self._failed():
            return
        worker = self.workers[0]
        found = await asyncio.wait_for(worker.machine.spawn(worker.values()), DEADLINE_S)
        self._check_values(found)
        if self.broken:
            raise Broken(self.broken)
        if self.network.surprises:
            raise Broken(self.network.surprises[0])
        while self.scheduler.log is None:
            await asyncio.sleep(0.1)
        state, log = self.scheduler.service.state, self.scheduler.log
        state.check_invariants()
        await log.durable()
        told = log.tell(self.config)
        assert told is not None
        same(told.state, state)

    def _check_values(self, found: dict[int, Any]) -> None:
        if sorted(found) != list(range(self.slices)):
            raise Broken(f"only slices {sorted(found)} are there")
        for index, values in found.items():
            for worker in self.workers:
                for number in range(self.pushes):
                    times = values[worker.number * self.pushes + number]
                    if times != 1:
                        raise Broken(
                            f"slice {index}: push {number} of {worker.name} was acknowledged, and "
                            f"applied {times:g} times"
                        )
