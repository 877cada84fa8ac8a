"""One worker and its leased data, beside a scheduler in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.data import TensorDataset

from paramserver.types import WorkerId
from paramserver.worker.batches import Ticket
from paramserver.worker.data import LeaseBatchSampler, LeaseLoader, LeaseShards
from paramserver.worker.leases import LeaseSource
from paramserver.worker.session import Session
from paramserver.worker.sources import dataset_spec
from tests.fakes import FakeScheduler, fake_session


class Rig:
    """One worker with a data set of ``size`` samples, and what it was told."""

    def __init__(self, size: int, batch: int, *, shard: int | None = None, **how: Any) -> None:
        self.scheduler = FakeScheduler()
        self.session: Session = fake_session(self.scheduler)
        self.session.add_group("model", lambda: 0, lambda: None)
        self.active: list[bool] = []
        options = {"shuffle": False, "seed": 0, "assign": None, "shard_size": shard, **how}
        spec = dataset_spec("train", size, batch, **options)
        self.source = LeaseSource(self.session, spec, lambda view, idle: self.active.append(idle))
        self.dataset = TensorDataset(torch.arange(size))
        self.asked = 0

    @property
    def queue(self) -> Any:
        return self.scheduler.queues["train"]

    def sampler(self, drop_last: bool = False) -> LeaseBatchSampler:
        return LeaseBatchSampler(self.source, lambda: 1, drop_last)

    def loader(self, *, drop_last: bool = False, **options: Any) -> LeaseLoader:
        return LeaseLoader(self.dataset, self.sampler(drop_last), self._ask, **options)

    def shards(self) -> LeaseShards:
        return LeaseShards(self.source, self._ask)

    def _ask(self) -> None:
        self.asked += 1

    def push(self, *, dropped: bool = False) -> Ticket:
        ticket = self.session.begin_push("model")
        self.session.settle_push(ticket, dropped=dropped)
        return ticket

    def other(self, rank: int = 1) -> WorkerId:
        who = WorkerId(rank, 1)
        self.queue.join(who)
        self.queue.use(who)
        return who


@contextmanager
def rigs() -> Iterator[Callable[..., Rig]]:
    """Makes rigs; at the end no sample may be lost or held twice."""
    made: list[Rig] = []

    def make(*args: Any, **options: Any) -> Rig:
        made.append(Rig(*args, **options))
        return made[-1]

    yield make
    for each in made:
        each.session.stop()
        for queue in each.scheduler.queues.values():
            queue.check_invariants()


def indices(batch: Any) -> list[int]:
    values: list[int] = batch[0].tolist()
    return values
