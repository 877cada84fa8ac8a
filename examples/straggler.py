"""Digits on workers of which one may be much slower: batches by speed, or a bound that adapts.

paramserver run -s 2 -w 4 examples/straggler.py
PARAMSERVER_EMULATE=sample=0.002,slow=3:5 paramserver run -s 2 -w 4 examples/straggler.py

The second plays four machines, one 5 x slower. For slow steps: jitter=0.1:5 and --adapt at the end.
"""

import argparse
import time

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

import paramserver as ps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--adapt", action="store_true", help="a staleness bound, not batch sizes")
    parser.add_argument("--plain", action="store_true", help="Sync with equal, static shares")
    parser.add_argument("--epochs", type=int, default=12)
    options = parser.parse_args()

    torch.manual_seed(0)
    images, digits = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(digits)
    train, test = slice(0, 1347), slice(1347, None)
    with ps.connect() as client:
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        consistency, lr = (ps.Adaptive(10), 0.2) if options.adapt else (ps.Sync(), 0.5)
        optimizer = client.optimizer(model, torch.optim.SGD, lr=lr, consistency=consistency)
        balance = None if options.adapt or options.plain else "speed"
        assign = "round-robin" if options.plain else None
        data = TensorDataset(x[train], y[train])
        loader = client.loader(data, batch_size=16, assign=assign, balance=balance)
        client.barrier("ready")
        began, samples = time.monotonic(), 0
        for _ in client.epochs(options.epochs):
            for images, labels in loader:
                optimizer.zero_grad()
                loss = F.cross_entropy(model(images), labels)
                loss.backward()
                optimizer.step()
                client.log(loss=loss)
                samples += len(images)
        seconds = time.monotonic() - began
        print(f"rank {client.rank}: {samples} samples in {seconds:.1f} s", flush=True)
        client.barrier("trained")
        if client.is_chief:
            model.load_state_dict(client.state_dict())
            hits = (model(x[test]).argmax(1) == y[test]).float().mean()
            print(f"test accuracy {100 * hits:.1f} %", flush=True)


if __name__ == "__main__":
    main()
