"""Every scheme that has a state of its own goes on from a snapshot as if nothing had been."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import paramserver as ps
from paramserver.config import SnapshotConfig
from paramserver.core.adaptive import Change
from tests.cluster import Cluster, cluster, until
from tests.test_snapshots import set_values
from tests.test_vertical import Part
from tests.test_vertical import data as by_feature

SGD = torch.optim.SGD
SAMPLES, BATCH = 128, 4
NESTEROV = partial(SGD, lr=0.7, momentum=0.9, nesterov=True)


class Halves:
    """A script of one pass that stops after some steps, at a snapshot.

    Attributes:
        stop: steps of every worker before it; None: to the end.
    """

    def __init__(
        self, made: Cluster, scheme: Any, optimizer: Any, stop: int | None, hyper: dict[str, Any]
    ) -> None:
        self.made, self.scheme, self.optimizer = made, scheme, optimizer
        self.stop, self.hyper = stop, hyper
        self.saved = threading.Event()

    def __call__(self, client: ps.Client) -> tuple[list[int], dict[str, Tensor]]:
        model = nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 3))
        set_values(model, 4)
        x = torch.randn(SAMPLES, 5, generator=torch.Generator().manual_seed(1))
        loader = client.loader(TensorDataset(torch.arange(SAMPLES), x), BATCH, seed=3)
        optimizer = client.optimizer(model, self.optimizer, consistency=self.scheme, **self.hyper)
        seen: list[int] = []
        for _ in client.epochs(1):
            for steps, (index, inputs) in enumerate(loader):
                if steps == self.stop:
                    if client.is_chief:
                        self.made.snapshot("half")
                        self.saved.set()
                    assert self.saved.wait(30)
                    return seen, {}
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(inputs), index % 3).backward()
                optimizer.step()
                seen += index.tolist()
        return seen, client.state_dict()


@pytest.mark.parametrize(
    ("workers", "scheme", "optimizer", "hyper"),
    [
        (2, ps.Local(4, outer=NESTEROV), SGD, {"lr": 0.1}),
        (1, ps.Local(2, base=ps.Async(), outer=NESTEROV, nesterov_every=3), SGD, {"lr": 0.1}),
        (1, ps.Downpour(n_push=2, n_fetch=4), torch.optim.Adagrad, {"lr": 0.1}),
        (1, ps.Adaptive(4), torch.optim.Adam, {"lr": 0.01}),
        (1, ps.Stale(3), SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
        (1, ps.Async(), torch.optim.Adadelta, {}),
    ],
    ids=["diloco", "delayed-nesterov", "downpour", "adaptive", "stale", "async"],
)
def test_half_and_half_is_a_whole(
    tmp_path: Path, workers: int, scheme: Any, optimizer: Any, hyper: dict[str, Any]
) -> None:
    """Bit for bit: all of these are deterministic with so many workers."""
    where = SnapshotConfig(directory=str(tmp_path))
    with cluster(2, workers, snapshots=where) as made:
        before = made.workers(Halves(made, scheme, optimizer, 8, hyper))
    resume = SnapshotConfig(directory=str(tmp_path), resume="half")
    with cluster(3, workers, snapshots=resume) as made:
        after = made.workers(Halves(made, scheme, optimizer, None, hyper))
    with cluster(1, workers) as made:
        whole = made.workers(Halves(made, scheme, optimizer, None, hyper))
    for (first, _), (rest, values), (seen, wanted) in zip(before, after, whole, strict=True):
        assert first + rest == seen
        for name, value in wanted.items():
            assert torch.equal(values[name], value), name


def test_an_adaptive_bound_goes_on_where_it_was(tmp_path: Path) -> None:
    where = SnapshotConfig(directory=str(tmp_path))

    def bound(made: Cluster) -> int:
        return int(made.servers[0].views.current.bounds.get("g", 0))

    def register(client: ps.Client) -> ps.Group:
        return client.register("g", {"w": torch.zeros(3)}, consistency=ps.Adaptive(max_bound=9))

    with cluster(1, 1, snapshots=where) as made, made.connect() as client:
        register(client)
        scheduler = made.scheduler

        async def raise_it() -> None:
            change = {"g": Change(6, "told to")}
            scheduler.state.lapse({}, False, change, scheduler._now())
            scheduler._after()

        made.run(raise_it())
        until(lambda: bound(made) == 6)
        made.snapshot("six")
    resume = SnapshotConfig(directory=str(tmp_path), resume="six")
    with cluster(2, 1, snapshots=resume) as made, made.connect() as client:
        register(client)
        until(lambda: bound(made) == 6)
        assert made.scheduler.state.adaptation._controllers["g"].bound == 6


def test_parties_go_on_with_their_sums(tmp_path: Path) -> None:
    """Half of a by-feature training, and the other half on another number of servers."""
    columns = (5, 9)
    xs, y = by_feature(columns=columns)

    class Work:
        def __init__(self, made: Cluster, stop: int | None) -> None:
            self.made, self.stop, self.saved = made, stop, threading.Event()

        def __call__(self, client: ps.Client) -> tuple[list[int], dict[str, Tensor]]:
            model = Part(client, columns, 3, split=True)
            optimizer = client.optimizer(model, torch.optim.Adam, lr=0.02)
            dataset = TensorDataset(torch.arange(96), xs[client.party])
            seen: list[int] = []
            for _ in client.epochs(1):
                for step, (numbers, x) in enumerate(client.loader(dataset, 8, seed=5)):
                    if step == self.stop:
                        if client.is_chief:
                            self.made.snapshot("half")
                            self.saved.set()
                        assert self.saved.wait(30)
                        return seen, {}
                    optimizer.zero_grad()
                    model.backward(x, y[numbers])
                    optimizer.step()
                    seen += numbers.tolist()
            return seen, client.state_dict()

    where = SnapshotConfig(directory=str(tmp_path))
    with cluster(2, 2, parties=2, snapshots=where) as made:
        before = made.workers(Work(made, 5))
    resume = SnapshotConfig(directory=str(tmp_path), resume="half")
    with cluster(3, 2, parties=2, snapshots=resume) as made:
        after = made.workers(Work(made, None))
    with cluster(1, 2, parties=2) as made:
        whole = made.workers(Work(made, None))
    for (first, _), (rest, values), (seen, wanted) in zip(before, after, whole, strict=True):
        assert first + rest == seen
        for name, value in wanted.items():
            assert torch.equal(values[name], value), name
