"""Leased data for a training loop: a DataLoader, a batch sampler, raw data shards.

All three run in the main process, so that no connection is ever used in a forked child; only
indices reach the DataLoader's own workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sized
from typing import Any

from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from paramserver.errors import MismatchError, UnsupportedError, UsageError
from paramserver.types import DataShard, Span
from paramserver.v1 import scheduler_pb2
from paramserver.worker.batches import Batch
from paramserver.worker.leases import LeaseSource

DEFAULT_SHARDS = 64


def default_shard_size(num_samples: int) -> int:
    """For raw data shards: 64 of them in an epoch."""
    return max(1, -(-num_samples // DEFAULT_SHARDS))


class LeaseBatchSampler(Sampler[list[int]]):
    """Batches of sample indices from leased data shards: for a DataLoader of one's own.

    One iteration is one epoch; it ends when no shard is free. Samples that another worker loses
    after that are drawn by the next iteration, which is then a short one. Each push settles the
    oldest drawn batch, the next iteration or ``client.finish()`` the rest. ``client.loader`` knows
    more precisely which batch is being worked on; prefer it.

    Attributes:
        batch_size: samples of a full batch; batches never span data shards.
        drop_last: leave out a batch that is smaller.
        source: where its data shards come from.
    """

    def __init__(self, source: LeaseSource, workers: Callable[[], int], drop_last: bool) -> None:
        self.source = source
        self._workers = workers
        self._batches = source.session.batches
        self._given: scheduler_pb2.Shard | None = None
        self.batch_size = source.batch_size
        self.drop_last = drop_last

    def __len__(self) -> int:
        """Batches of this worker in one epoch, if all workers take the same share; rounded up."""
        spec = self.source.spec
        whole, rest = divmod(spec.size, spec.shard_size)
        full = whole * self._count(spec.shard_size) + self._count(rest)
        return -(-full // max(1, self._workers()))

    def _count(self, samples: int) -> int:
        whole, rest = divmod(samples, self.batch_size)
        return whole + bool(rest and not self.drop_last)

    def __iter__(self) -> Iterator[list[int]]:
        # A generator: a DataLoader with workers makes two iterators and uses one.
        given, self._given = self._given, None
        number = self.source.passes
        if given is None:
            self._batches.automatic(self.source.name, True)
            self.source.session.speed.stop()
            number = self.source.begin_pass(settle=True)
            given = self.source.first_shard()
        if given is not None:
            yield from self._draw(given, number)

    def draw_from(self, shard: scheduler_pb2.Shard) -> None:
        """The next iteration draws this shard first, as part of a pass that a loop runs."""
        self._batches.automatic(self.source.name, False)
        self._given = shard

    def _draw(self, shard: scheduler_pb2.Shard, number: int) -> Iterator[list[int]]:
        source = self.source
        following: scheduler_pb2.Shard | None = shard
        while following is not None:
            shard = following
            while (span := source.draw(shard)) is not None:
                if self.drop_last and span.stop - span.start < self.batch_size:
                    self._batches.skip(source.name, span)
                    continue
                self._batches.draw(Batch(source.name, span))
                yield source.order.indices(shard.epoch, span.start, span.stop)
                if number != source.passes:
                    return
            following = source.next_shard(wait=False)

    def state_dict(self) -> dict[str, Any]:
        """Which data set this is. Progress is the scheduler's and is not part of it."""
        spec = self.source.spec
        return {f.name: getattr(spec, f.name) for f in spec.DESCRIPTOR.fields}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Checks that the state is of the same data set; moves nothing.

        Raises:
            MismatchError: it is of another one.
        """
        for name, here in self.state_dict().items():
            if state.get(name, here) != here:
                raise MismatchError(
                    f"sampler state of a data set with {name}={state[name]!r}, this one has "
                    f"{name}={here!r}"
                )


class LeaseLoader(DataLoader[Any]):
    """A DataLoader over leased data shards; one pass is one epoch of the job.

    A pass goes on until every sample of the epoch was worked on by some worker: this one waits idle
    for what others hold, and takes over what they lose. A batch is done when the loop asks for the
    next one and every push issued meanwhile is applied. Leaving the loop early returns the rest;
    the next pass goes on with what is left of that epoch.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        sampler: LeaseBatchSampler,
        on_ask: Callable[[], None],
        **options: Any,
    ) -> None:
        self._source = sampler.source
        self._leases = sampler
        self._on_ask = on_ask
        super().__init__(dataset, batch_sampler=sampler, **options)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        source = self._source
        number = source.begin_pass(settle=False)
        try:
            shard = source.first_shard()
            while shard is not None:
                self._leases.draw_from(shard)
                yield from self._round(super().__iter__(), number)
                source.settle()
                shard = None if source.drained else source.next_shard(wait=True)
        finally:
            source.session.lookahead.show(None, None)
            if number == source.passes and not source.drained:
                source.break_off()

    def _round(self, inner: Iterator[Any], number: int) -> Iterator[Any]:
        """What is free now, batch by batch."""
        session = self._source.session
        batches = session.batches
        for data, following in session.lookahead.pairs(inner):
            batch = batches.hand_out(self._source.name)
            self._source.begin_lease(batch.span.lease)
            session.lookahead.show(data, following)
            session.speed.begin(batch.samples)
            yield data
            _refuse_old(self._source, number)
            session.speed.end(session.rank)
            batches.leave(batch)
            session.drain.step_over()
            self._on_ask()


class LeaseShards:
    """Raw data shards; one iteration is one epoch. A shard is done on leaving the loop body.

    Leaving the loop early returns the shard. Pushes made in the body are no part of the account: a
    worker that dies within it leaves the whole shard to others.
    """

    def __init__(self, source: LeaseSource, on_ask: Callable[[], None]) -> None:
        self._source = source
        self._on_ask = on_ask

    def __iter__(self) -> Iterator[DataShard]:
        source, session = self._source, self._source.session
        batches = session.batches
        number = source.begin_pass(settle=False)
        try:
            shard = source.first_shard()
            while shard is not None:
                span = source.draw(shard, whole=True)
                assert span is not None, "nobody leases an empty shard"
                batches.draw(Batch(source.name, span, whole=True))
                batch = batches.hand_out(source.name)
                source.begin_lease(span.lease)
                session.speed.begin(batch.samples)
                yield self._shard(shard, span)
                _refuse_old(source, number)
                session.speed.end(session.rank)
                batches.leave(batch)
                session.drain.step_over()
                self._on_ask()
                shard = self._next()
        finally:
            if number == source.passes and not source.drained:
                source.break_off()

    def _next(self) -> scheduler_pb2.Shard | None:
        shard = self._source.next_shard(wait=False)
        if shard is None and not self._source.drained:
            self._source.settle()
            shard = self._source.next_shard(wait=True)
        return shard

    def _shard(self, shard: scheduler_pb2.Shard, span: Span) -> DataShard:
        indices = self._source.order.indices(shard.epoch, span.start, span.stop)
        return DataShard(
            id=shard.id,
            epoch=shard.epoch,
            start=span.start,
            stop=span.stop,
            indices=tuple(indices),
            lease=shard.lease,
        )


def _refuse_old(source: LeaseSource, number: int) -> None:
    if number != source.passes:
        raise UsageError(
            f"data set {source.name!r}: a newer pass has begun, this iterator is over; "
            "one data set has one pass at a time on each worker"
        )


def check_options(dataset: Dataset[Any], options: Mapping[str, Any]) -> int:
    """The number of samples.

    Raises:
        UnsupportedError: a DataLoader option or kind of data set that leases cannot serve.
    """
    for name in ("sampler", "batch_sampler"):
        if options.get(name) is not None:
            raise UnsupportedError(
                f"{name}=: batches come from leased data shards; for a sampler of one's own use "
                "torch's DataLoader"
            )
    if not options.get("in_order", True):
        raise UnsupportedError(
            "in_order=False: batches must arrive in the order drawn to know which one is done"
        )
    if isinstance(dataset, IterableDataset) or not isinstance(dataset, Sized):
        raise UnsupportedError(
            f"{type(dataset).__name__} has no length: leases are on ranges of indices; "
            "give a map-style data set"
        )
    return len(dataset)
