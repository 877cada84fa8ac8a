"""A scheduler in memory: replies at once, and remembers what it heard."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from google.protobuf.message import Message

from paramserver.config import ClientConfig
from paramserver.core.dataset import DatasetSpec, Drained, Leased, complete
from paramserver.core.shards import ShardQueue
from paramserver.types import PROTOCOL_VERSION, Span, WorkerId
from paramserver.v1 import common_pb2, scheduler_pb2
from paramserver.worker.session import Session


class FakeTime:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class FakeScheduler:
    """Answers as the scheduler would; data shards come from the real queue.

    Attributes:
        calls: methods and requests, in order.
        answers: by method, takes the place of the built-in answer; may raise.
        others: called when a worker would wait for a data shard; what other workers do then.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.answers: dict[str, Callable[[Any], Any]] = {}
        self.queues: dict[str, ShardQueue] = {}
        self.others: Callable[[], None] = lambda: None
        self.view = scheduler_pb2.View(number=1, job=1, state=scheduler_pb2.JOB_RUNNING)
        self.leases = itertools.count(1)
        self.saved: scheduler_pb2.SaveScheduleRequest | None = None

    def call(self, method: str, request: Message, *, timeout: float = 30.0) -> Any:
        self.calls.append((method, request))
        answer = self.answers.get(method) or getattr(self, f"_{method}", None)
        if answer is not None:
            return answer(request)
        return getattr(scheduler_pb2, f"{method}Reply")()

    def exchange(self, outgoing: Any) -> Any:
        raise NotImplementedError

    def close(self) -> None:
        pass

    def heard(self, method: str) -> list[Any]:
        """The requests of one method."""
        return [request for name, request in self.calls if name == method]

    def _Register(self, request: Any) -> Any:
        reader = request.role == scheduler_pb2.ROLE_READER
        who = common_pb2.Identity(
            name=request.name or "worker-0",
            incarnation=7,
            rank=-1 if reader else 0,
            view=1,
            job=1,
        )
        self.view.members.add(name=who.name, role=request.role, rank=who.rank, incarnation=7)
        return scheduler_pb2.RegisterReply(
            identity=who, protocol=PROTOCOL_VERSION, lease_s=10.0, heartbeat_s=60.0
        )

    def _AwaitStart(self, request: Any) -> Any:
        return scheduler_pb2.AwaitStartReply(view=self.view)

    def _GetView(self, request: Any) -> Any:
        return self.view

    def _Heartbeat(self, request: Any) -> Any:
        return scheduler_pb2.HeartbeatReply(view=self.view.number, state=self.view.state)

    def _SetActive(self, request: Any) -> Any:
        return scheduler_pb2.SetActiveReply(view=self.view.number)

    def _OpenDataset(self, request: Any) -> Any:
        asked = request.spec
        if asked.name not in self.queues:
            spec = complete(
                DatasetSpec(
                    asked.name,
                    asked.size,
                    asked.batch_size,
                    asked.shard_size,
                    asked.seed,
                    asked.shuffle,
                    asked.assign or "dynamic",
                ),
                1,
            )
            self.queues[asked.name] = ShardQueue(spec, self.leases)
        queue = self.queues[asked.name]
        self._join(queue, request.member)
        filled = scheduler_pb2.DatasetSpec()
        filled.CopyFrom(asked)
        filled.shard_size = queue.spec.shard_size
        filled.assign = queue.spec.assign
        return scheduler_pb2.OpenDatasetReply(spec=filled, epoch=max(queue.epoch, 0))

    def _join(self, queue: ShardQueue, member: Any) -> WorkerId:
        who = WorkerId(member.rank, member.incarnation)
        queue.join(who)
        queue.use(who)
        return who

    def _NextShard(self, request: Any) -> Any:
        queue = self.queues[request.dataset]
        who = WorkerId(request.member.rank, request.member.incarnation)
        if request.wait_s:
            self.others()
        found = queue.next(who, request.epoch, request.sequence)
        reply = scheduler_pb2.NextShardReply(view=self.view.number)
        if isinstance(found, Leased):
            reply.shard.lease, reply.shard.id = found.lease, found.shard
            reply.shard.epoch = found.epoch
            reply.shard.start, reply.shard.stop = found.start, found.stop
        elif isinstance(found, Drained):
            reply.drained = True
        else:
            reply.pending = found.reason
        return reply

    def _ReportSamples(self, request: Any) -> Any:
        queue = self.queues[request.dataset]
        who = WorkerId(request.member.rank, request.member.incarnation)
        done = [Span(s.lease, s.start, s.stop) for s in request.done]
        returned = [Span(s.lease, s.start, s.stop) for s in request.returned]
        reported = queue.report(who, done, returned, request.unpushed)
        return scheduler_pb2.ReportSamplesReply(lost_leases=reported.lost)

    def _SaveSchedule(self, request: Any) -> Any:
        self.saved = request
        return scheduler_pb2.SaveScheduleReply()

    def _LoadSchedule(self, request: Any) -> Any:
        kept = self.saved
        if kept is None:
            return scheduler_pb2.LoadScheduleReply()
        return scheduler_pb2.LoadScheduleReply(
            found=True, epoch=kept.epoch, clock=kept.clock, state=kept.state, job_epoch=kept.epoch
        )


def fake_session(scheduler: FakeScheduler, **config: Any) -> Session:
    """A session that is open; its heartbeat comes once a minute."""
    session = Session(ClientConfig(**config), scheduler)
    session.open()
    return session
