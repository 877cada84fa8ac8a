"""A job that does little but step, and writes down when each step was applied.

paramserver run -s 2 -w 2 benchmarks/steps.py --mib 16 --steps 200 --log FOLDER
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import paramserver as ps

BATCH = 4


class Sum(nn.Module):
    """So many parameters, and next to nothing to compute."""

    def __init__(self, mib: float) -> None:
        super().__init__()
        count = max(1, int(mib * (1 << 20) / 4))
        self.parts = nn.ParameterList(torch.zeros(part) for part in _cut(count, 1 << 20))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([part.sum() for part in self.parts]).sum() * x.mean()


def _cut(count: int, most: int) -> list[int]:
    return [min(most, count - start) for start in range(0, count, most)]


def main() -> None:
    """Steps until every sample is used."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=float, default=1.0, help="parameters, in MiB of float32")
    parser.add_argument("--steps", type=int, default=100, help="of every worker")
    parser.add_argument("--log", type=Path, required=True, help="folder")
    options = parser.parse_args()
    client = ps.connect()
    model = Sum(options.mib)
    optimizer = client.optimizer(model, torch.optim.Adam, lr=1e-3)
    workers = int(os.environ.get("PARAMSERVER_WORKERS", "1"))
    samples = TensorDataset(torch.ones(options.steps * BATCH * workers, 1))
    loader = client.loader(samples, BATCH, shuffle=False, assign="dynamic", shard_size=BATCH)
    with (options.log / f"{client.rank}.{os.getpid()}").open("w", buffering=1) as log:
        for _ in client.epochs(1):
            for (x,) in loader:
                optimizer.zero_grad()
                model(x).backward()
                optimizer.step()
                assert optimizer.last is not None
                log.write(f"{time.monotonic()} {optimizer.last.clock}\n")


if __name__ == "__main__":
    main()
