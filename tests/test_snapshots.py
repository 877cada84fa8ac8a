"""Snapshots of a whole cluster, and going on from them: bit for bit where that is promised."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import paramserver as ps
from paramserver.config import SnapshotConfig
from paramserver.snapshot_files import complete, open_store
from tests.cluster import Cluster, cluster

BATCH, SAMPLES, EPOCHS = 4, 96, 5
Step = tuple[int, int, tuple[int, ...]]  # epoch, clock before it, samples


class Run:
    """A training script on every worker: what it trained on, and what came of it.

    Attributes:
        stop: clock at which the chief asks for a snapshot, and all leave.
    """

    def __init__(
        self,
        made: Cluster,
        stop: int | None = None,
        *,
        shuffle: bool = True,
        optimizer: type[torch.optim.Optimizer] = torch.optim.SGD,
        **hyper: Any,
    ) -> None:
        self.made, self.stop = made, stop
        self.shuffle = shuffle
        self.optimizer, self.hyper = optimizer, hyper or {"lr": 0.05, "momentum": 0.9}
        self.saved = threading.Event()

    def __call__(self, client: ps.Client) -> tuple[list[Step], dict[str, Tensor], float]:
        torch.manual_seed(7 + client.rank)  # the chief's values win
        model = nn.Sequential(nn.Linear(5, 17), nn.Tanh(), nn.Linear(17, 3))
        optimizer = client.optimizer(model, self.optimizer, **self.hyper)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
        warm = torch.optim.lr_scheduler.LambdaLR  # noqa: F841
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(SAMPLES, 5, generator=generator)
        y = torch.randint(3, (SAMPLES,), generator=generator)
        data = TensorDataset(torch.arange(SAMPLES), x, y)
        loader = client.loader(data, BATCH, shuffle=self.shuffle, seed=3)
        steps: list[Step] = []
        for epoch in client.epochs(EPOCHS, schedule):
            for index, features, target in loader:
                clock = self._clock(client)
                if clock == self.stop:
                    self._save(client)
                    return steps, client.state_dict(), 0.0
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(features), target).backward()
                optimizer.step()
                steps.append((epoch, clock, tuple(index.tolist())))
            schedule.step()
        return steps, client.state_dict(), float(optimizer.param_groups[0]["lr"])

    def _clock(self, client: ps.Client) -> int:
        return client._registry.clock

    def _save(self, client: ps.Client) -> None:
        if client.is_chief:
            self.made.snapshot("half")
            self.saved.set()
        assert self.saved.wait(30)


def trained(
    folder: Path,
    workers: int,
    servers: tuple[int, int],
    stop: int,
    assign: str,
    make: Callable[..., Run] = Run,
    **options: Any,
) -> tuple[list[Any], list[Any], list[Any]]:
    """What every worker did: up to a snapshot; from it, on a new cluster; and all in one."""
    where = SnapshotConfig(directory=str(folder))
    with cluster(servers[0], workers, assign=assign, snapshots=where) as made:
        before = made.workers(make(made, stop, **options))
    resume = SnapshotConfig(directory=str(folder), resume="half")
    with cluster(servers[1], workers, assign=assign, snapshots=resume) as made:
        after = made.workers(make(made, **options))
    with cluster(1, workers, assign=assign) as made:
        whole = made.workers(make(made, **options))
    return before, after, whole


@pytest.mark.parametrize("assign", ["round-robin", "random"])
@pytest.mark.parametrize(("workers", "stop"), [(1, 31), (2, 17), (2, 24), (3, 9)])
def test_going_on_is_bit_for_bit_what_would_have_been(
    tmp_path: Path, assign: str, workers: int, stop: int
) -> None:
    before, after, whole = trained(tmp_path, workers, (2, 1), stop, assign)
    for (steps, *_), (rest, values, lr), (all_steps, expected, rate) in zip(
        before, after, whole, strict=True
    ):
        assert steps + rest == all_steps
        assert lr == rate
        for name, value in expected.items():
            assert torch.equal(values[name], value), name
    assert open_store(str(tmp_path)).folders() == ["half"]
    (manifest,) = complete(open_store(str(tmp_path)))
    assert manifest.state["groups"][0]["clock"] == stop
