"""The data sets of one client, by name."""

from __future__ import annotations

from typing import Any

from paramserver.errors import ConfigurationError
from paramserver.types import ASSIGNMENTS, BALANCES
from paramserver.v1 import scheduler_pb2
from paramserver.worker.leases import LeaseSource
from paramserver.worker.party import PartySums
from paramserver.worker.registry import Registry
from paramserver.worker.session import Session


class Sources:
    """Opens each data set once; loaders, samplers and shards of one name share it."""

    def __init__(self, session: Session, registry: Registry, sums: PartySums) -> None:
        self._session = session
        self._sums = sums
        self._registry = registry
        self._sources: dict[str, LeaseSource] = {}

    def open(self, name: str, size: int, batch_size: int, **how: Any) -> LeaseSource:
        """The source of a data set; arguments as for ``dataset_spec``.

        Raises:
            ConfigurationError: values that cannot work.
            MismatchError, InvalidRequestError: opened before with others; names the difference.
        """
        self._session.check()
        self._session.refuse_reader("leased data")
        spec = dataset_spec(name, size, batch_size, **how)
        source = self._sources.get(name)
        if source is None:
            source = LeaseSource(self._session, spec, self._registry.became_active)
            source.on_join = lambda lease: self._sums.fall_in(self._registry, f"{name}/{lease}")
            self._sources[name] = source
            self._registry.expect_data()
        source.agrees(spec)
        return source

    def finish(self) -> None:
        """The worker leaves: settles or returns all it holds, and says so."""
        self._session.settle()
        for source in self._sources.values():
            source.finish()
        self._session.settle()
        for source in self._sources.values():
            source.report()


def dataset_spec(
    name: str,
    size: int,
    batch_size: int,
    *,
    shuffle: bool,
    seed: int,
    shard_size: int | None,
    assign: str | None,
    backups: bool = False,
    balance: str | None = None,
) -> scheduler_pb2.DatasetSpec:
    """What all workers must agree on.

    Raises:
        ConfigurationError: a value that cannot work.
    """
    for what, value, least in (("samples", size, 1), ("batch_size", batch_size, 1)):
        if value < least:
            raise ConfigurationError(f"data set {name!r}: {what}={value}: must be >= {least}")
    if shard_size is not None and shard_size < 1:
        raise ConfigurationError(f"data set {name!r}: shard_size={shard_size}: must be >= 1")
    if assign is not None and assign not in ASSIGNMENTS:
        raise ConfigurationError(f"assign={assign!r}: must be one of {', '.join(ASSIGNMENTS)}")
    if balance is not None:
        assign = _check_balance(name, balance, assign, shard_size)
    return scheduler_pb2.DatasetSpec(
        name=name,
        size=size,
        batch_size=batch_size,
        shard_size=shard_size or 0,
        seed=seed,
        shuffle=shuffle,
        assign=assign or "",
        backups=backups,
        balance=balance or "",
    )


def _check_balance(name: str, balance: str, assign: str | None, shard_size: int | None) -> str:
    """The assignment that balanced batches need."""
    if balance not in BALANCES:
        raise ConfigurationError(f"balance={balance!r}: must be None or {', '.join(BALANCES)}")
    if assign not in (None, "dynamic"):
        raise ConfigurationError(
            f"data set {name!r}: balance={balance!r} with assign={assign!r}: a static deal gives "
            "every worker the same; use assign='dynamic' or leave it out"
        )
    if shard_size is not None:
        raise ConfigurationError(
            f"data set {name!r}: balance={balance!r} with shard_size={shard_size}: each batch is a "
            "lease of its own; leave shard_size out"
        )
    return "dynamic"
