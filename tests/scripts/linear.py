"""Trains a linear model on made-up data; can be told to go wrong on the way."""

from __future__ import annotations

import argparse
import os
import signal
import threading
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset

import paramserver as ps


def main() -> None:
    """Runs one worker."""
    options = parse()
    client = ps.connect()
    torch.manual_seed(0)
    x = torch.randn(512, 4)
    y = x @ torch.tensor([[1.0], [-2.0], [3.0], [0.5]])
    model = torch.nn.Linear(4, 1)
    consistency = ps.Local(options.local) if options.local else ps.Sync()
    optimizer = client.optimizer(model, torch.optim.SGD, lr=0.1, consistency=consistency)
    loader = client.loader(TensorDataset(x, y), batch_size=16)
    step = 0
    for _ in client.epochs(options.epochs):
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss = F.mse_loss(model(inputs), targets)
            loss.backward()
            optimizer.step()
            client.log(loss=loss.detach())
            step += 1
            if step == 3:
                print(f"rank {client.rank} at step 3", flush=True)
                go_wrong(options)
            threading.Event().wait(options.pause)
    if client.is_chief:
        print(f"final loss {F.mse_loss(model(x), y).item():.6f}", flush=True)


def parse() -> argparse.Namespace:
    """The options of this script."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds between steps")
    parser.add_argument("--local", type=int, default=0, help="local steps of a round")
    parser.add_argument("--who", default="", help="the worker that goes wrong")
    parser.add_argument("--how", choices=["raise", "exit", "die"], default="raise")
    parser.add_argument("--mark", type=Path, help="goes wrong only if this file is not there")
    return parser.parse_args()


def go_wrong(options: argparse.Namespace) -> None:
    """Raises, exits or dies, if this worker is to."""
    if os.environ.get("PARAMSERVER_NAME") != options.who:
        return
    if options.mark is not None:
        if options.mark.exists():
            return
        options.mark.touch()
    if options.how == "raise":
        raise ValueError("told to go wrong")
    if options.how == "exit":
        raise SystemExit(3)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
