"""Downpour SGD on handwritten digits: few pushes, few pulls, Adagrad on the servers.

paramserver run -s 2 -w 4 examples/downpour.py
paramserver run -s 2 -w 4 examples/downpour.py --every 8 --wire int4
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

import paramserver as ps

parser = argparse.ArgumentParser()
parser.add_argument("--every", type=int, default=4, help="steps between pushes, and pulls")
parser.add_argument("--warm-start", type=int, default=20, help="steps of the chief alone")
parser.add_argument("--wire", choices=("bf16", "int8", "int4"), help="how gradients travel")
parser.add_argument("--epochs", type=int, default=15)


def main() -> None:
    options = parser.parse_args()
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[:1347], order[1347:]

    torch.manual_seed(0)
    with ps.connect() as client:
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        scheme = ps.Downpour(options.every, options.every, warm_start=options.warm_start)
        optimizer = client.optimizer(
            model, torch.optim.Adagrad, consistency=scheme, wire_dtype=options.wire, lr=0.05
        )
        loader = client.loader(TensorDataset(x[train], y[train]), batch_size=16, assign="dynamic")
        steps = sent = 0
        for _ in client.epochs(options.epochs):
            for inputs, targets in loader:
                optimizer.zero_grad()
                loss = F.cross_entropy(model(inputs), targets)
                loss.backward()
                optimizer.step()
                steps += 1
                sent += optimizer.last.sent_bytes if optimizer.last else 0
                client.log(loss=loss)
        client.barrier("trained")
        if client.is_chief:
            model.load_state_dict(client.state_dict())
            hits = (model(x[test]).argmax(1) == y[test]).float().mean()
            print(
                f"test accuracy {100 * hits:.1f} %, sent {sent // steps} bytes a step", flush=True
            )


if __name__ == "__main__":
    main()
