"""Trains a linear model whose columns belong to parties; one party is killed on the way."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

import paramserver as ps


def main() -> None:
    """Runs one party: MARK is a file that is made by whoever was killed."""
    mark = Path(sys.argv[1])
    with ps.connect() as client:
        x = torch.randn(256, 6, generator=torch.Generator().manual_seed(0))
        y = x @ torch.tensor([[1.0], [-2.0], [3.0], [0.5], [0.0], [1.0]])
        mine = torch.arange(6).tensor_split(client.parties)[client.party]
        layer = ps.VerticalLinear(len(mine), 1, client=client)
        optimizer = client.optimizer(layer, torch.optim.SGD, lr=0.05)
        loader = client.loader(TensorDataset(torch.arange(len(x))), batch_size=16)
        loss = None
        for epoch in client.epochs(6):
            for step, (rows,) in enumerate(loader):
                if client.rank == 1 and epoch == 1 and step == 2 and not mark.exists():
                    mark.touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                while client.replica == 1 and client.num_workers < 4:
                    threading.Event().wait(0.1)  # the job must not end before the others are back
                optimizer.zero_grad()
                z = layer(x[rows][:, mine])
                loss = F.mse_loss(z, y[rows]) if client.party == 0 else None
                layer.backward(z, loss)
                optimizer.step()
        with torch.no_grad():
            z = layer(x[:, mine])
        if client.is_chief:
            print(f"final loss {F.mse_loss(z, y).item():.6f}", flush=True)


if __name__ == "__main__":
    main()
