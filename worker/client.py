"""The client API: what ``paramserver.connect`` returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from paramserver.types import Consistency, Sync
from paramserver.wire.transport import Transport
from paramserver.worker import exits, roster
from paramserver.worker.data import (
    LeaseBatchSampler,
    LeaseLoader,
    LeaseShards,
    check_options,
    default_shard_size,
)
from paramserver.worker.epochs import Schedule, Stateful, check_epochs
from paramserver.worker.group import Group
from paramserver.worker.optimizer import ServerOptimizer, open_optimizer
from paramserver.worker.parameters import Buffers, Model, plain_spec
from paramserver.worker.registry import Registry
from paramserver.worker.rounds import Rounds
from paramserver.worker.scalars import Scalars
from paramserver.worker.session import Session
from paramserver.worker.sources import Sources

SYNC = Sync()


class Client:
    """A worker of a job, or a reader; made by ``paramserver.connect``.

    A context manager: leaving it without an exception finishes, else the failure is reported.
    Belongs to the process that made it, and to one thread at a time.
    """

    def __init__(self, session: Session, transport: Transport) -> None:
        """Takes a session that is open."""
        self._session = session
        self._transport = transport
        self._registry = Registry(session, transport)
        self._optimizers: dict[str, ServerOptimizer] = {}
        self._sources = Sources(session, self._registry)
        self._rounds = Rounds(session, self._registry)
        self._scalars = Scalars(session)
        self._schedule = Schedule(
            session, lambda: self.is_chief, lambda: self._optimizers, lambda: self._registry.clock
        )
        exits.watch(self)

    def __repr__(self) -> str:
        return f"<paramserver.Client {self.name!r}, rank {self.rank}>"

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None or exits.is_clean(error, launched=self.launched):
            self.finish()
        else:
            exits.report(self, error)

    # Who this is

    @property
    def name(self) -> str:
        """The name in the job, such as "worker-0"."""
        return self._session.name

    @property
    def rank(self) -> int:
        """Bound to the name for the job; -1 for a reader."""
        return self._session.rank

    @property
    def num_workers(self) -> int:
        """Workers that are registered and neither finished nor lost."""
        return roster.live(self._session.view())

    @property
    def is_chief(self) -> bool:
        """Whether this is the lowest rank that was not lost; a finished chief stays chief."""
        return self.rank >= 0 and self.rank == roster.chief(self._session.view(), self.rank)

    # Groups

    def optimizer(
        self,
        model: Model,
        optimizer_class: type[torch.optim.Optimizer],
        *,
        consistency: Consistency = SYNC,
        group: str = "model",
        buffers: Buffers = "mean",
        wire_dtype: str | None = None,
        overlap: bool = False,
        **hyperparameters: Any,
    ) -> ServerOptimizer:
        """Registers a model; the optimizer whose step happens on the servers.

        The chief's values win: on return, all tensors of the model have them.

        Args:
            model: an ``nn.Module``, or (name, parameter) pairs, or torch param groups of such
                pairs. Wire names are ``state_dict`` names.
            optimizer_class: an elementwise class of ``torch.optim``.
            consistency: ``Sync()``, ``Stale(bound)`` or ``Async()``.
            group: name of the group.
            buffers: float buffers such as batch-norm statistics: "mean" of the workers, that of
                the "first" rank, or "local".
            wire_dtype: "bf16" or "fp16" casts gradients and pulled values on the way.
            overlap: send gradients while the backward pass still runs.
            hyperparameters: as for the class.

        Raises:
            ConfigurationError, UnsupportedError: what cannot work, and why.
            MismatchError: other workers registered the group otherwise; names the difference.
        """
        self._session.check()
        self._session.refuse_reader("client.optimizer")
        made = open_optimizer(
            self._registry,
            model,
            optimizer_class,
            hyperparameters,
            consistency=consistency,
            group=group,
            buffers=buffers,
            wire_dtype=wire_dtype,
            overlap=overlap,
        )
        self._optimizers[group] = made
        return made

    def register(
        self,
        group: str,
        tensors: Mapping[str, Tensor],
        optimizer_class: type[torch.optim.Optimizer] | None = None,
        *,
        consistency: Consistency = SYNC,
        **hyperparameters: Any,
    ) -> Group:
        """Registers tensors under a name, for pushes and pulls by hand.

        Args:
            group: its name.
            tensors: first values by name; the chief's win.
            optimizer_class: steps on pushed gradients; None adds what is pushed.
            consistency: ``Sync()``, ``Stale(bound)`` or ``Async()``.
            hyperparameters: as for the class.

        Raises:
            ConfigurationError, UnsupportedError: what cannot work, and why.
            MismatchError: other workers registered the group otherwise; names the difference.
        """
        self._session.check()
        self._session.refuse_reader("client.register")
        spec = plain_spec(group, tensors, optimizer_class, consistency, hyperparameters)
        opened = self._registry.open(spec, tensors, "")
        self._registry.add(opened, opened.activate)
        return opened

    def state_dict(self, group: str = "model") -> dict[str, Any]:
        """The newest values as a plain ``state_dict``, on the CPU, without waiting.

        For a model given as a module: every key of its own ``state_dict()``, tied and local ones
        included, so that it loads with ``strict=True``. Else the group's tensors by name.

        Raises:
            NotFoundError: no such group.
        """
        self._session.check()
        values = self._registry.find(group).read()
        made = self._optimizers.get(group)
        return values if made is None else made.full_state(values)

    # Data

    def loader(
        self,
        dataset: Dataset[Any],
        batch_size: int = 1,
        *,
        shuffle: bool = True,
        seed: int = 0,
        shard_size: int | None = None,
        assign: str | None = None,
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
        name: str = "train",
        drop_last: bool = False,
    ) -> LeaseBatchSampler:
        """A batch sampler for a DataLoader of one's own; arguments as for ``loader``.

        Args:
            dataset: it, or its number of samples.
        """
        size = dataset if isinstance(dataset, int) else check_options(dataset, {})
        source = self._sources.open(
            name, size, batch_size, shuffle=shuffle, seed=seed, shard_size=shard_size, assign=assign
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

    def log(self, **scalars: float | Tensor) -> None:
        """Scalars for status and the run file; the newest of each go with every heartbeat."""
        self._session.check()
        self._scalars.add(scalars)

    # Together

    def barrier(self, name: str) -> None:
        """Returns when every worker that has not finished has called it with this name.

        Raises:
            WaitTimeoutError: names those who have not come.
        """
        self._rounds.join(f"barrier/{name}")

    def all_reduce(self, tensor: Tensor, name: str, op: str = "mean") -> Tensor:
        """The reduction of everybody's tensor, as a new tensor, the same on every worker.

        Args:
            tensor: any shape, the same on every worker.
            name: of the round.
            op: "mean", "sum", "max" or "min".

        Raises:
            WaitTimeoutError: names those who have not come.
        """
        return self._rounds.reduce(tensor, f"all_reduce/{name}", op)

    # Leaving

    def finish(self) -> None:
        """Leaves the job: nothing waits for this worker any more. Again: nothing happens."""
        if self._session.left or self.forked:
            return
        try:
            self._flush()
            self._session.leave()
        finally:
            self._release()

    def close(self) -> None:
        """``finish``, under the name that ``contextlib.closing`` knows."""
        self.finish()

    def fail(self, reason: str, *, fatal: bool = False, code: int = 1) -> None:
        """Leaves the job with a failure; undone samples return to the queue.

        Args:
            reason: a traceback or a message; its last 8 KiB are kept.
            fatal: the whole job fails with this cause.
            code: exit code of the process.
        """
        if self.forked:
            return
        try:
            self._session.leave(reason, fatal=fatal, code=code)
        finally:
            self._release()

    def finish_at_exit(self) -> None:
        """``finish``, unless a launcher will do it, which sees the exit code."""
        if self._session.identity_file is None:
            self.finish()
        elif not self._session.left:
            try:
                self._flush()
            finally:
                self._session.stop()
                self._release()

    @property
    def forked(self) -> bool:
        """Whether this is a forked child of the process that connected."""
        return self._session.forked

    @property
    def launched(self) -> bool:
        """Whether a launcher started this process."""
        return self._session.launched

    def _flush(self) -> None:
        """Settles what was handed out, and tells the scheduler all it should know."""
        if self._session.over:
            return
        self._sources.finish()
        self._schedule.send()
        self._session.beat()  # the last figures, and what was logged since the one before

    def _release(self) -> None:
        exits.forget(self)
        self._registry.close()
        self._transport.close()
