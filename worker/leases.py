"""Leases on data shards of one data set, and reports on them to the scheduler."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import torch

from paramserver.errors import ConnectionLostError, InvalidRequestError, ParameterServerError
from paramserver.types import Span
from paramserver.v1 import common_pb2, scheduler_pb2
from paramserver.worker.batches import Report
from paramserver.worker.session import Session

logger = logging.getLogger("paramserver")

REPORT_S = 5.0  # for a report that the next one can carry too
_MIX = 0x9E3779B97F4A7C15


class Order:
    """Which sample stands at which position of an epoch; the same on every worker.

    Args:
        size: samples.
        seed: of the shuffle.
        shuffle: False keeps the order of the data set.
    """

    def __init__(self, size: int, seed: int, shuffle: bool) -> None:
        self._size = size
        self._seed = seed
        self._shuffle = shuffle
        self._epoch = -1
        self._order = torch.empty(0, dtype=torch.int64)

    def indices(self, epoch: int, start: int, stop: int) -> list[int]:
        """Sample indices at positions [start, stop)."""
        if not self._shuffle:
            return list(range(start, stop))
        if epoch != self._epoch:
            # Multiplied, so that epoch 1 of one seed is not epoch 0 of the next.
            seed = (self._seed + (epoch + 1) * _MIX) % (1 << 63)
            generator = torch.Generator().manual_seed(seed)
            self._order = torch.randperm(self._size, generator=generator)
            self._epoch = epoch
        indices: list[int] = self._order[start:stop].tolist()
        return indices


class LeaseSource:
    """Data shards of one data set, as the scheduler leases them to this worker.

    Args:
        spec: what all workers must agree on.
        on_active: called when a reply made this worker active: with its view, and whether the
            worker had been idle.

    Raises:
        MismatchError, InvalidRequestError: other workers opened it with another size, seed, shard
            size or assignment; the message names the difference.

    Attributes:
        spec: with the scheduler's defaults filled in.
        epoch: the epoch that shards are asked of.
        drained: no sample of the last epoch asked of is left anywhere; ``epoch`` is the next one.
        passes: passes begun; an iterator of an older one must stop.
        on_join: called with a lease before its first batch, where the parties of a replica have
            to agree on a clock.
    """

    def __init__(
        self,
        session: Session,
        spec: scheduler_pb2.DatasetSpec,
        on_active: Callable[[int, bool], None],
    ) -> None:
        self.session = session
        self._asked = spec
        self._on_active = on_active
        self._sequence = 0
        self._reporting = threading.RLock()  # a dying iterator may report within a report
        self._begun = False
        self._rest: scheduler_pb2.Shard | None = None
        self._drawing = threading.Lock()  # a recall comes in the heartbeat's thread
        self.drained = False
        self.passes = 0
        self.on_join: Callable[[int], None] | None = None
        self._joins: set[int] = set()
        self.spec = spec
        self.epoch = 0
        self._open()
        self.order = Order(self.spec.size, self.spec.seed, self.spec.shuffle)
        session.add_listener(self._hear)
        session.add_chore(self.report)  # after a recall was heard: the same heartbeat answers it

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def batch_size(self) -> int:
        """Of this worker; others may have another."""
        return int(self._asked.batch_size)

    def _open(self) -> None:
        request = scheduler_pb2.OpenDatasetRequest(member=self.session.identity(), spec=self._asked)
        reply = self.session.scheduler.call("OpenDataset", request)
        self.spec = reply.spec
        self.epoch = max(self.epoch, reply.epoch)

    def agrees(self, spec: scheduler_pb2.DatasetSpec) -> None:
        """Raises InvalidRequestError, naming the difference, unless ``spec`` is this data set's."""
        for field in spec.DESCRIPTOR.fields:
            here, there = getattr(self._asked, field.name), getattr(spec, field.name)
            if here != there:
                raise InvalidRequestError(
                    f"data set {spec.name!r} was opened with {field.name}={here}, now "
                    f"{field.name}={there}; give another name= to another data set"
                )

    def begin_pass(self, *, settle: bool) -> int:
        """Ends what an earlier pass left: its batches are done with ``settle``, else go back.

        Returns:
            The number of the new pass.
        """
        self.session.check()
        if settle and self.passes:
            self._give_back(self._rest)
            self.session.settle()  # what is still to be pushed carries what was drawn for it
            self.session.batches.settle_rest(self.name)
            self.settle()
        else:
            self.break_off()
        if not self.passes:
            self._open()
            self.session.run_file.begin()
        self.passes += 1
        return self.passes

    def first_shard(self) -> scheduler_pb2.Shard | None:
        """The first data shard of a pass; None if others have done all of its epoch.

        A pass after one that was broken off goes on with the rest of the same epoch, if there is
        any. So does the first pass of a loop that goes on behind an epoch that was over.
        """
        begun = self._begun
        shard = self.next_shard(wait=True)
        behind = self.passes == 1 and self.epoch <= self.session.epoch
        return self.next_shard(wait=True) if shard is None and (begun or behind) else shard

    def draw(self, shard: scheduler_pb2.Shard, *, whole: bool = False) -> Span | None:
        """The next batch of a shard, or all that is left of it; None: nothing is."""
        with self._drawing:
            start = shard.start
            if start >= shard.stop:
                return None
            whole = whole or bool(self.spec.balance)  # then a lease is one batch
            shard.start = shard.stop if whole else min(start + self.batch_size, shard.stop)
            return Span(shard.lease, start, shard.start)

    def _hear(self, reply: scheduler_pb2.HeartbeatReply) -> None:
        for recall in reply.recalls:
            if recall.dataset == self.name:
                self._recall(recall.span)

    def _recall(self, span: common_pb2.Span) -> None:
        """Gives back what was not drawn of a lease's tail, in whole batches."""
        with self._drawing:
            shard = self._rest
            if shard is None or shard.lease != span.lease:
                return
            batches = -(-max(0, span.start - shard.start) // self.batch_size)
            cut = shard.start + batches * self.batch_size
            if cut < shard.stop:
                rest, shard.stop = Span(shard.lease, cut, shard.stop), cut
                self.session.batches.give_back(self.name, [rest])

    def _give_back(self, shard: scheduler_pb2.Shard | None) -> None:
        with self._drawing:
            if shard is not None:
                span = Span(shard.lease, shard.start, shard.stop)
                self.session.batches.give_back(self.name, [span])
            self._rest = None

    def next_shard(self, *, wait: bool) -> scheduler_pb2.Shard | None:
        """The next data shard of the epoch, or None.

        ``draw`` moves its ``start`` on, a recall its ``stop`` back: what is left when the pass
        breaks off goes back.

        With None, ``drained`` says whether the epoch is over; then ``epoch`` has moved on.
        Without ``wait``, None and not drained: nothing is free, but samples are still out there.
        With ``wait`` this worker is idle until a shard returns or the epoch is drained.

        Raises:
            WaitTimeoutError: the wait passed ``wait_timeout``.
        """
        self._sequence += 1
        self.drained = False
        self.session.check()
        reply = self.session.scheduler.call("NextShard", self._request(0.0))
        waited = wait and not _answers(reply)
        if waited:
            self.session.settle()  # idle, this worker is waited for by nobody
            self.report()
            what = f"epoch {self.epoch} of data set {self.name!r}"
            reply = self.session.poll("NextShard", self._request, _answers, what)
        self.session.saw_view(reply.view)
        self.drained = reply.drained
        self.epoch += reply.drained
        leased = reply.HasField("shard")
        if leased and reply.shard.joins:
            self._joins.add(reply.shard.lease)
        self._begun = leased or (self._begun and not reply.drained)
        self._rest = reply.shard if leased else None
        if leased or waited:
            self._on_active(reply.view, waited)
        return self._rest

    def begin_lease(self, lease: int) -> None:
        """A batch of this lease is about to be worked on."""
        if lease in self._joins:
            self._joins.discard(lease)
            if self.on_join is not None:
                self.on_join(lease)

    def _request(self, wait_s: float) -> scheduler_pb2.NextShardRequest:
        return scheduler_pb2.NextShardRequest(
            member=self.session.identity(),
            dataset=self.name,
            epoch=self.epoch,
            sequence=self._sequence,
            wait_s=wait_s,
            clock=self.session.clock + self.session.batches.ahead(self.name),
            speed=self.session.speed.per_second,
        )

    def report(self, *, strict: bool = False) -> None:
        """Tells the scheduler which samples are done or returned.

        Args:
            strict: raise if it cannot be told; else the next report says it.
        """
        with self._reporting:
            report = self.session.batches.take_report(self.name)
            if not report:
                return
            try:
                self._send(report, None if strict else REPORT_S)
            except ConnectionLostError as error:
                self.session.batches.put_back(self.name, report)
                if strict:
                    raise
                logger.debug("samples of %s not reported yet: %s", self.name, error)

    def _send(self, report: Report, timeout: float | None) -> None:
        request = scheduler_pb2.ReportSamplesRequest(
            member=self.session.identity(),
            dataset=self.name,
            done=map(_span, report.done),
            returned=map(_span, report.returned),
            unpushed=report.unpushed,
        )
        reply = self.session.scheduler.call("ReportSamples", request, timeout=timeout)
        if reply.lost_leases:
            logger.warning(
                "data set %s: leases %s had gone to other workers; their samples are done twice",
                self.name,
                list(reply.lost_leases),
            )

    def settle(self) -> None:
        """Returns when every push is applied or dropped and the scheduler knows it."""
        self.session.settle()
        self.session.batches.end(self.name)
        self.report(strict=True)

    def finish(self) -> None:
        """The worker leaves: what a sampler drew is done, what a loop left undone goes back."""
        self._give_back(self._rest)
        if self.session.batches.is_automatic(self.name):
            self.session.batches.settle_rest(self.name)
        else:
            self.session.batches.break_off(self.name)

    def break_off(self) -> None:
        """Gives back what is undone, at once; silent if the scheduler is away or the job over."""
        if self.session.forked:
            return
        self._give_back(self._rest)
        self.session.batches.break_off(self.name)
        try:
            self.session.check()
            self.report()
        except ParameterServerError as error:
            logger.debug("undone samples of %s not given back: %s", self.name, error)


def _answers(reply: scheduler_pb2.NextShardReply) -> bool:
    return reply.drained or reply.HasField("shard")


def _span(span: Span) -> common_pb2.Span:
    return common_pb2.Span(lease=span.lease, start=span.start, stop=span.stop)
