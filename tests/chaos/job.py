"""The job under test: trains a model, and counts every sample in a group that only adds.

    job.py FOLDER CONSISTENCY ASSIGN

Each worker writes to FOLDER/NAME.log what it began and what was acknowledged, and FOLDER/NAME.pt at
its end: the model and the counts.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import paramserver as ps

SAMPLES, EPOCHS, BATCH = 48, 2, 4
COPIES = 4  # of the counts, dealt over the servers
WAIT_S = 120.0
CONSISTENCIES: dict[str, ps.Sync | ps.Stale | ps.Async] = {
    "sync": ps.Sync(),
    "stale": ps.Stale(2, "none"),
    "async": ps.Async("none"),
}


class Log:
    """Lines that survive a kill: each is with the kernel when ``say`` returns."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def say(self, *words: object) -> None:
        os.write(self._file, (" ".join(map(str, words)) + "\n").encode())


def data() -> TensorDataset:
    """Numbered samples of a linear problem."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SAMPLES, 4, generator=generator, dtype=torch.float64)
    y = x @ torch.tensor([[1.0], [-2.0], [3.0], [0.5]], dtype=torch.float64)
    return TensorDataset(torch.arange(SAMPLES), x, y)


def counted(epoch: int, numbers: Tensor) -> dict[str, Tensor]:
    """One for each of these samples, in every copy."""
    ones = torch.zeros(EPOCHS * SAMPLES)
    ones[epoch * SAMPLES + numbers] = 1.0
    return {f"count-{copy}": ones for copy in range(COPIES)}


def first_model() -> nn.Module:
    """The model before the first step; the same in every worker."""
    model = nn.Linear(4, 1, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.3, -0.1, 0.2, 0.4]]))
        model.bias.zero_()
    return model


def work(client: ps.Client, log: Log, scheme: str, assign: str) -> dict[str, dict[str, Tensor]]:
    """Trains with the other workers; the counts and the model at the end."""
    consistency, model = CONSISTENCIES[scheme], first_model()
    empty = {f"count-{copy}": torch.zeros(EPOCHS * SAMPLES) for copy in range(COPIES)}
    counts = client.register("counts", empty, consistency=consistency)
    optimizer = client.optimizer(
        model, torch.optim.SGD, lr=0.02, momentum=0.9, consistency=consistency
    )
    loader = client.loader(data(), BATCH, seed=3, shard_size=BATCH, assign=assign)
    for epoch in client.epochs(EPOCHS):
        for numbers, x, y in loader:
            names = ",".join(map(str, numbers.tolist()))
            log.say("began", epoch, names)
            counts.push_pull(counted(epoch, numbers))  # first: this push carries the samples
            assert counts.last is not None
            log.say("dropped" if counts.last.dropped else "counted", epoch, names)
            optimizer.zero_grad()
            F.mse_loss(model(x), y).backward()
            optimizer.step()
    client.barrier("end")
    found = {"counts": counts.read(), "model": client.state_dict()}
    client.barrier("end")
    return found


def main() -> None:
    """Runs one worker."""
    folder = Path(sys.argv[1])
    log = Log(folder / f"{os.environ['PARAMSERVER_NAME']}.log")
    log.say("pid", os.getpid())
    client = ps.connect(timeout=60.0, wait_timeout=WAIT_S)
    log.say("joined", client.rank)
    found = work(client, log, sys.argv[2], sys.argv[3])
    path = folder / f"{client.name}.pt"
    torch.save(found, path.with_suffix(".part"))
    path.with_suffix(".part").rename(path)
    client.finish()
    log.say("finished")


if __name__ == "__main__":
    main()
