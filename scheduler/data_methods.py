"""The rpcs of the Scheduler service that deal data."""

from __future__ import annotations

from paramserver.core.dataset import Drained, Empty, Leased
from paramserver.scheduler.convert import dataset_from_proto, dataset_to_proto, shard_to_proto
from paramserver.scheduler.shell import Shell
from paramserver.scheduler.topics import data_topic
from paramserver.v1 import scheduler_pb2 as pb
from paramserver.wire.convert import spans_from_proto


class DataMethods(Shell):
    """Methods of ``SchedulerService``."""

    async def OpenDataset(self, request: pb.OpenDatasetRequest) -> pb.OpenDatasetReply:
        caller = self._enter(request.member)
        spec = dataset_from_proto(request.spec, self._config.assign)
        queue = self.state.open_dataset(caller, spec, self._now())
        self._after()
        return pb.OpenDatasetReply(
            spec=dataset_to_proto(queue.spec, spec.batch_size), epoch=max(queue.epoch, 0)
        )

    async def NextShard(self, request: pb.NextShardRequest) -> pb.NextShardReply:
        caller = self._enter(request.member)
        waits = request.wait_s > 0

        def attempt() -> Leased | Drained | Empty:
            return self.state.next_shard(
                caller,
                request.dataset,
                request.epoch,
                request.sequence,
                waits,
                self._now(),
                request.clock,
                request.speed,
            )

        found = await self._poll(
            data_topic(request.dataset),
            request.wait_s,
            attempt,
            lambda f: isinstance(f, Empty),
        )
        return pb.NextShardReply(
            shard=self._shard(request.dataset, found) if isinstance(found, Leased) else None,
            drained=isinstance(found, Drained),
            pending=found.reason if isinstance(found, Empty) else "",
            view=self.state.members.number,
        )

    def _shard(self, name: str, leased: Leased) -> pb.Shard:
        return shard_to_proto(leased, self.state.data.joins(name, leased.lease))

    async def ReportSamples(self, request: pb.ReportSamplesRequest) -> pb.ReportSamplesReply:
        lost = self.state.report(
            self._enter(request.member),
            request.dataset,
            spans_from_proto(request.done),
            spans_from_proto(request.returned),
            request.unpushed,
            self._now(),
        )
        self._after()
        return pb.ReportSamplesReply(lost_leases=lost)
