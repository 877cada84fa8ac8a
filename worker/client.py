"""The client API: what ``paramserver.connect`` returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from paramserver.initial import InitialValues, Normal
from paramserver.life_cycle import Admission, Eviction
from paramserver.schemes import Scheme
from paramserver.types import Consistency, OnNonFinite, Sync
from paramserver.wire.transport import Transport
from paramserver.worker import drain, exits, roster
from paramserver.worker.client_data import DataMethods
from paramserver.worker.epochs import Schedule
from paramserver.worker.group import Group
from paramserver.worker.job_optimizer import JobOptimizer
from paramserver.worker.optimizer import wire_name
from paramserver.worker.parameters import Buffers, Model, plain_spec
from paramserver.worker.party import PartySums, check_scheme, own_name
from paramserver.worker.registry import Registry
from paramserver.worker.rounds import Rounds
from paramserver.worker.scalars import Scalars
from paramserver.worker.schemes import open_optimizer
from paramserver.worker.schemes.chosen import scheme_of
from paramserver.worker.session import Session
from paramserver.worker.sources import Sources
from paramserver.worker.table import Table
from paramserver.worker.table_optimizer import with_tables
from paramserver.worker.table_spec import RowOptimizer, refuse_blocks, table_spec

SYNC = Sync()
NORMAL = Normal(0.01)


class Client(DataMethods):
    """A worker of a job, or a reader; made by ``paramserver.connect``.

    A context manager: leaving it without an exception finishes, else the failure is reported.
    Belongs to the process that made it, and to one thread at a time.

    Attributes:
        party_sums: this party's part in the sums of its replica.
    """

    def __init__(self, session: Session, transport: Transport) -> None:
        """Takes a session that is open."""
        self._session = session
        self._transport = transport
        self._registry = Registry(session, transport)
        self._optimizers: dict[str, JobOptimizer] = {}
        self.party_sums = PartySums(session, self._registry.links)
        self._sources = Sources(session, self._registry, self.party_sums)
        self._rounds = Rounds(session, self._registry)
        self._scalars = Scalars(session)
        self._schedule = Schedule(
            session, lambda: self.is_chief, lambda: self._optimizers, lambda: self._registry.clock
        )
        exits.watch(self)
        self._session.drain.leave = self._leave_early

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
    def is_chief(self) -> bool:
        """Whether this is the lowest rank that was not lost; a finished chief stays chief."""
        return self.rank >= 0 and self.rank == roster.chief(self._session.view(), self.rank)

    @property
    def party(self) -> int:
        """Which features are this worker's, 0 to ``parties - 1``; party 0 has the labels."""
        return self._session.party

    @property
    def parties(self) -> int:
        """Parties of one replica (``run --parties``); 1 where every worker has all features."""
        return self._session.parties

    @property
    def replica(self) -> int:
        """The replica of this party; its parties work on the same samples, in the same order."""
        return self._session.replica

    # Groups

    def optimizer(
        self,
        model: Model,
        optimizer_class: type[torch.optim.Optimizer],
        *,
        consistency: Scheme = SYNC,
        group: str = "model",
        buffers: Buffers = "mean",
        wire_dtype: str | None = None,
        overlap: bool = False,
        on_nonfinite: OnNonFinite = "reject",
        tau: int | None = None,
        **hyperparameters: Any,
    ) -> JobOptimizer:
        """Registers a model; the optimizer whose step happens on the servers.

        The chief's values win: on return, all tensors of the model have them.

        Args:
            model: an ``nn.Module``, or (name, parameter) pairs, or torch param groups of such
                pairs. Wire names are ``state_dict`` names.
            optimizer_class: an elementwise class of ``torch.optim``.
            consistency: ``Sync()``, ``Stale(bound)``, ``Async()``, ``Adaptive(max_bound)``,
                ``AllReduce()``, ``Local(steps, base)`` or ``Downpour(...)``. A scheme that the
                environment names (``paramserver run --scheme``) wins.
            group: name of the group.
            buffers: float buffers such as batch-norm statistics: "mean" of the workers, that of
                the "first" rank, or "local".
            wire_dtype: "bf16" or "fp16" casts gradients and pulled values on the way; "int8" or
                "int4" packs gradients into blocks of small integers, values travel uncast.
            overlap: send gradients while the backward pass still runs.
            on_nonfinite: of a step with NaN or infinity in a gradient: "reject" raises
                NonFiniteError; "skip" pushes nothing, with weight 0; "apply" lets it through.
            tau: most batches of tables with ``Async()`` between the lookup of their rows and the
                word that their push is applied; None: no bound. 1: no prefetch, nothing overlaps.
            hyperparameters: as for the class.

        A module with ``ps.Embedding`` or ``ps.EmbeddingBag`` in it brings their tables along: each
        step pushes to every one of them, by the consistency and the optimizer of the table.

        Raises:
            ConfigurationError, UnsupportedError: what cannot work, and why.
            MismatchError: other workers registered the group otherwise; names the difference.
        """
        self._session.check()
        self._session.refuse_reader("client.optimizer")
        consistency = scheme_of(self._session.config.scheme, consistency)
        check_scheme(self._session, consistency)

        def dense() -> JobOptimizer:
            return open_optimizer(
                self._registry,
                model,
                optimizer_class,
                hyperparameters,
                consistency=consistency,
                group=own_name(self._session, group),
                buffers=buffers,
                wire_dtype=wire_dtype,
                overlap=overlap,
                on_nonfinite=on_nonfinite,
            )

        made = with_tables(model, dense, tau)
        self._optimizers[group] = made
        return made

    def register(
        self,
        group: str,
        tensors: Mapping[str, Tensor],
        optimizer_class: type[torch.optim.Optimizer] | None = None,
        *,
        consistency: Consistency = SYNC,
        on_nonfinite: OnNonFinite = "reject",
        **hyperparameters: Any,
    ) -> Group:
        """Registers tensors under a name, for pushes and pulls by hand.

        Args:
            group: its name.
            tensors: first values by name; the chief's win.
            optimizer_class: steps on pushed gradients; None adds what is pushed.
            consistency: ``Sync()``, ``Stale(bound)``, ``Async()`` or ``Adaptive(max_bound)``.
            on_nonfinite: as for ``optimizer``.
            hyperparameters: as for the class.

        Raises:
            ConfigurationError, UnsupportedError: what cannot work, and why.
            MismatchError: other workers registered the group otherwise; names the difference.
        """
        self._session.check()
        self._session.refuse_reader("client.register")
        check_scheme(self._session, consistency)
        own = own_name(self._session, group)
        spec = plain_spec(own, tensors, optimizer_class, consistency, hyperparameters)
        opened = self._registry.open(replace(spec, on_nonfinite=on_nonfinite), tensors, "")
        self._registry.add(opened, opened.activate)
        return opened

    def table(
        self,
        name: str,
        dim: int,
        *,
        rows: int | None = None,
        dtype: torch.dtype = torch.float32,
        init: InitialValues = NORMAL,
        seed: int = 0,
        optimizer: RowOptimizer = torch.optim.Adagrad,
        consistency: Consistency = SYNC,
        wire_dtype: str | None = None,
        admit: Admission | None = None,
        evict: Eviction | None = None,
        on_nonfinite: OnNonFinite = "reject",
        **hyperparameters: Any,
    ) -> Table:
        """Registers a table: rows by 64-bit id, born by the first push that touches them.

        Args:
            name: of the table; groups and tables share their names.
            dim: floats of a row.
            rows: ids are 0 to rows - 1; None: any int64, negative ones too.
            dtype: of the rows as they are handed out; servers keep rows and state in float32.
            init: what an unseen row reads as: ``Normal()``, ``Uniform()`` or ``Zeros()``.
            seed: of the first values; they depend on seed and id alone.
            optimizer: ``torch.optim.SGD``, ``Adagrad``, ``RMSprop`` or ``SparseAdam``; or
                "RowAdagrad" (one accumulator a row), "RowAdam" (a step count of each row's own),
                "Momentum", "Ftrl"; None adds what is pushed. It acts on touched rows only.
            consistency: ``Sync()``, ``Stale(bound)`` or ``Async()``.
            wire_dtype: "bf16", "fp16" or "int8" (a scale per row) casts rows on the way.
            admit: ``CountFilter(n)`` or ``Probability(p)``: rows that are not admitted take no
                memory of their own and read as first values; None: the first push gives birth.
            evict: ``TTL(clocks=...)``, ``TTL(seconds=...)``, ``LRU(max_rows)`` or ``Decay(rate,
                threshold)``: rows that are forgotten, and begin again; None: none.
            on_nonfinite: as for ``optimizer``.
            hyperparameters: of the optimizer.

        Raises:
            ConfigurationError, UnsupportedError: what cannot work, and why.
            MismatchError: other workers registered the table otherwise; names the difference.
        """
        self._session.check()
        self._session.refuse_reader("client.table")
        refuse_blocks(wire_dtype)
        values = (name, dim, rows, dtype, init, seed, optimizer, hyperparameters, consistency)
        spec = table_spec(*values, admit, evict)
        spec = replace(spec, on_nonfinite=on_nonfinite)
        group = self._registry.open(spec, {}, wire_name(wire_dtype))
        self._registry.add(group, group.activate)
        return Table(group, self._transport)

    def state_dict(self, group: str = "model") -> dict[str, Any]:
        """The newest values as a plain ``state_dict``, on the CPU, without waiting.

        For a model given as a module: every key of its own ``state_dict()``, tied and local ones
        included, so that it loads with ``strict=True``. Else the group's tensors by name.

        Raises:
            NotFoundError: no such group.
        """
        self._session.check()
        made = self._optimizers.get(group)
        if made is None:
            own = own_name(self._session, group)
            return self._registry.find(own if self._registry.has(own) else group).read()
        return made.full_state(made.newest())

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

    def reduce(self, name: str, key: int | str, tensor: Tensor) -> Tensor:
        """The sum of the tensors of this replica's parties, in party order, on the servers.

        No worker is idle in it: clocks go on waiting for this worker.

        Args:
            name: of a series of sums.
            key: of one of them; every party asks for the keys of a name in the same order.
            tensor: any shape, the same for every party.

        Raises:
            MismatchError: parties disagree in shape or type; names the difference.
            FencedError: a party was lost.
            WaitTimeoutError: names the party that did not come.
        """
        return self.party_sums.reduce(f"reduce/{name}", key, tensor)

    # Leaving

    def finish(self) -> None:
        """Leaves the job: nothing waits for this worker any more. Again: nothing happens."""
        if self._session.left or self.forked:
            return
        try:
            self._flush()
            self._session.leave()
        except BaseException as error:
            exits.report(self, error)
            raise
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
        if self.forked or self._session.left:
            return
        try:
            self._session.leave(reason, fatal=fatal, code=code)
        finally:
            self._release()

    def _leave_early(self) -> None:
        self._session.settle()
        self._session.beat()  # and what was done is reported
        self.fail("SIGTERM: left after its step", code=drain.TERMINATED)

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
        drain.forget(self._session.drain)
        self._registry.close()
        self._transport.close()
