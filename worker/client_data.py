"""The part of the client API that hands out data, epochs and scalars."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from paramserver.errors import ConfigurationError
from paramserver.v1 import scheduler_pb2
from paramserver.worker import roster
from paramserver.worker.data import (
    LeaseBatchSampler,
    LeaseLoader,
    LeaseShards,
    check_options,
    default_shard_size,
)
from paramserver.worker.epochs import Schedule, Stateful, check_epochs
from paramserver.worker.scalars import Scalars
from paramserver.worker.session import Session
from paramserver.worker.sources import Sources


class DataMethods:
    """Methods of ``Client``."""

    _session: Session
    _sources: Sources
    _schedule: Schedule
    _scalars: Scalars

    @property
    def num_workers(self) -> int:
        """Workers that are registered and neither finished nor lost."""
        return roster.live(self._session.view())

    def loader(
        self,
        dataset: Dataset[Any],
        batch_size: int = 1,
        *,
        shuffle: bool = True,
        seed: int = 0,
        shard_size: int | None = None,
        assign: str | None = None,
        balance: str | None = None,
        name: str = "train",
        drop_last: bool = False,
        **dataloader_options: Any,
    ) -> LeaseLoader:
        """A torch DataLoader over leased data shards; one pass is one epoch of the job.

        Args:
            dataset: map-style, the same on every worker.
            batch_size: samples of a batch; batches never span data shards.
            shuffle: a permutation of each epoch from ``seed``, the same on every worker.
            shard_size: samples of a lease, rounded up to whole batches; default: 1 to 8 batches.
            assign: "round-robin", "random" or "dynamic"; default: the job's.
            balance: "speed": batch sizes in proportion to measured speed, ``batch_size`` x workers
                together; then ``assign`` is "dynamic" and each batch a lease of its own. What the
                environment names with its scheme (``paramserver run --scheme sync/dynamic``) wins
                over both.
            name: of the data set; all workers must agree on its size, seed, shard_size, assign.
            drop_last: leave out batches that are not full.
            dataloader_options: as for torch's DataLoader.

        Raises:
            ConfigurationError, UnsupportedError: options that leases cannot serve.
            MismatchError, InvalidRequestError: other workers opened the data set otherwise.
        """
        size = check_options(dataset, dataloader_options)
        sampler = self.sampler(
            size,
            batch_size,
            shuffle=shuffle,
            seed=seed,
            shard_size=shard_size,
            assign=assign,
            balance=balance,
            name=name,
            drop_last=drop_last,
        )
        return LeaseLoader(dataset, sampler, self._schedule.asked, **dataloader_options)

    def sampler(
        self,
        dataset: Dataset[Any] | int,
        batch_size: int = 1,
        *,
        shuffle: bool = True,
        seed: int = 0,
        shard_size: int | None = None,
        assign: str | None = None,
        balance: str | None = None,
        name: str = "train",
        drop_last: bool = False,
    ) -> LeaseBatchSampler:
        """A batch sampler for a DataLoader of one's own; arguments as for ``loader``.

        Args:
            dataset: it, or its number of samples.
        """
        size = dataset if isinstance(dataset, int) else check_options(dataset, {})
        chosen = self._session.config.scheme
        if chosen is not None:
            assign = chosen.assign or (None if chosen.balance else assign)
            balance = "speed" if chosen.balance else balance
        if balance is not None and drop_last:
            raise ConfigurationError(
                f"drop_last with balance={balance!r}: batch sizes differ, none of them is full; "
                "leave drop_last out"
            )
        source = self._sources.open(
            name,
            size,
            batch_size,
            shuffle=shuffle,
            seed=seed,
            shard_size=shard_size,
            assign=assign,
            balance=balance,
        )
        return LeaseBatchSampler(source, lambda: self.num_workers, drop_last)

    def shards(
        self,
        num_samples: int,
        *,
        shard_size: int | None = None,
        shuffle: bool = False,
        seed: int = 0,
        assign: str | None = None,
        name: str = "train",
    ) -> LeaseShards:
        """Raw data shards; one iteration is one epoch, a shard is done on leaving the loop body.

        Args:
            num_samples: of the data set.
            shard_size: samples of a shard; default: 64 shards an epoch.
            shuffle, seed, assign, name: as for ``loader``.
        """
        source = self._sources.open(
            name,
            num_samples,
            1,
            shuffle=shuffle,
            seed=seed,
            shard_size=shard_size or default_shard_size(num_samples),
            assign=assign,
        )
        return LeaseShards(source, self._schedule.asked)

    def epochs(self, n: int, *stateful: Stateful) -> Iterator[int]:
        """Epochs of the job, from the one that it is in to ``n - 1``.

        Args:
            n: epochs of the whole job.
            stateful: objects with ``state_dict`` and ``load_state_dict``, such as learning-rate
                schedulers: the chief's state is saved, joiners load it before their first epoch.

        Raises:
            UnsupportedError: a state that is neither JSON nor tensors.
        """
        check_epochs(n, stateful)
        self._session.check()
        self._session.refuse_reader("client.epochs")
        return self._schedule.epochs(n, stateful)

    def snapshot(self, name: str = "") -> str:
        """Saves a consistent snapshot of the whole job; others go on meanwhile.

        It has every step that this worker has taken, and no later one under ``Sync()``.

        Args:
            name: of the snapshot; empty: the scheduler gives one.

        Returns:
            Its name, once all of it is safe on the disk.

        Raises:
            InvalidRequestError: the scheduler keeps no snapshots, or the name is taken.
            UnsupportedError: a group has its values on the workers (``AllReduce``).
        """
        self._session.check()
        self._session.refuse_reader("client.snapshot")
        self._session.settle()
        key = uuid.uuid4().hex

        def request(wait_s: float) -> scheduler_pb2.TakeSnapshotRequest:
            return scheduler_pb2.TakeSnapshotRequest(name=name, key=key, wait_s=wait_s)

        with self._schedule.standing_still():
            reply = self._session.poll(
                "TakeSnapshot", request, lambda r: not r.pending, "a snapshot"
            )
        return str(reply.name)

    def log(self, **scalars: float | Tensor) -> None:
        """Scalars for status and the run file; the newest of each go with every heartbeat."""
        self._session.check()
        self._scalars.add(scalars)
