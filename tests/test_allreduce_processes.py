"""Replicas in real processes: beside DistributedDataParallel, and through a kill in mid-epoch."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import paramserver as ps
from tests.cluster import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

SIZE, BATCH, EPOCHS, WORKERS = 600, 4, 3, 3


def beside_ddp(store: str) -> float:
    """The largest difference to DistributedDataParallel after some steps on equal batches."""
    with ps.connect() as client:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{store}", rank=client.rank, world_size=2
        )
        models = []
        for _ in range(2):
            torch.manual_seed(0)
            models.append(nn.Sequential(nn.Linear(20, 50), nn.ReLU(), nn.Linear(50, 3)))
        ours, theirs = models[0], nn.parallel.DistributedDataParallel(models[1])
        optimizer = client.optimizer(ours, torch.optim.Adam, lr=0.01, consistency=ps.AllReduce())
        plain = torch.optim.Adam(theirs.parameters(), lr=0.01)
        for step in range(10):
            torch.manual_seed(2 * step + client.rank)
            x = torch.randn(8, 20)
            for model, rule in ((ours, optimizer), (theirs, plain)):
                rule.zero_grad()
                F.cross_entropy(model(x), x.argmax(1) % 3).backward()
                rule.step()
        torch.distributed.destroy_process_group()
        pairs = zip(ours.parameters(), models[1].parameters(), strict=True)
        return max(float((a - b).detach().abs().max()) for a, b in pairs)


def test_it_is_what_ddp_does(tmp_path: Path) -> None:
    with ps.local_cluster() as cluster:
        assert max(cluster.run(beside_ddp, workers=2, args=(str(tmp_path / "store"),))) < 1e-6


class Count(torch.optim.Optimizer):
    """Adds 1 to every element that has a gradient: how often each sample was trained on."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                p.add_((p.grad != 0).to(p))


def trained(folder: str) -> dict[str, Tensor]:
    """Trains on the number of each sample; the model is how often each was seen."""
    client = ps.connect()
    count = nn.Parameter(torch.zeros(SIZE))
    optimizer = client.optimizer([("count", count)], Count, consistency=ps.AllReduce())
    loader = client.loader(TensorDataset(torch.arange(SIZE)), BATCH, shard_size=2 * BATCH)
    for epoch in client.epochs(EPOCHS):
        for step, (rows,) in enumerate(loader):
            count.grad = F.one_hot(rows, SIZE).sum(0).to(count)
            optimizer.step()
            Path(folder, f"{client.name}-{os.getpid()}").write_text(f"{epoch} {step}")
    client.barrier("trained")
    return client.state_dict()


def places(folder: Path, name: str) -> list[tuple[int, int]]:
    """Epoch and step of each process that had a name."""
    found = []
    for file in folder.glob(f"{name}-*"):
        epoch, _, step = file.read_text().partition(" ")
        if step:
            found.append((int(epoch), int(step)))
    return found


@pytest.mark.parametrize(("victim", "restarts"), [("worker-1", 0), ("worker-0", 1)])
def test_a_kill_in_mid_epoch(tmp_path: Path, victim: str, restarts: int) -> None:
    """The job goes on; every sample of every epoch is in the model once; replicas are equal.

    The first worker has the store at which replicas meet, and gives the first values.
    """
    with ps.local_cluster(assign="dynamic", lease=3.0) as cluster:
        job = cluster.start(trained, workers=WORKERS, args=(str(tmp_path),), max_restarts=restarts)
        until(lambda: any(at >= (1, 2) for at in places(tmp_path, victim)), 90)
        os.kill(cluster.processes[victim], signal.SIGKILL)
        outcomes = job.outcomes(120)
    good = [outcome for outcome in outcomes.values() if outcome.code == 0]
    assert len(good) == WORKERS - 1 + restarts
    for outcome in good:
        assert torch.equal(outcome.value["count"], torch.full((SIZE,), float(EPOCHS)))


def test_a_replica_that_stands_still(tmp_path: Path) -> None:
    """The store at which replicas meet answers nobody, and breaks no connection: others go on.

    As when a machine loses its power. Whoever waits for that store keeps its own heartbeat.
    """
    with ps.local_cluster(assign="dynamic", lease=10.0) as cluster:
        job = cluster.start(trained, workers=WORKERS, args=(str(tmp_path),))
        until(lambda: any(at >= (1, 2) for at in places(tmp_path, "worker-0")), 90)
        process = cluster.processes["worker-0"]
        os.kill(process, signal.SIGSTOP)
        try:
            others = [f"worker-{rank}" for rank in range(1, WORKERS)]
            until(
                lambda: all(
                    max(places(tmp_path, o), default=(0, 0)) >= (EPOCHS - 1, 2) for o in others
                ),
                90,
            )
        finally:
            os.kill(process, signal.SIGKILL)
        outcomes = job.outcomes(120)
    good = [outcome for outcome in outcomes.values() if outcome.code == 0]
    assert len(good) == WORKERS - 1
    for outcome in good:
        assert torch.equal(outcome.value["count"], torch.full((SIZE,), float(EPOCHS)))
