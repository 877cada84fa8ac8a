"""A small network on scikit-learn's handwritten digits, to compare schemes on.

paramserver compare -s 2 -w 4 --schemes sync,stale:4,async --budget-samples 40000 \
    --target accuracy=0.95 --sample-time 0.0005 --straggler 5 examples/compare.py
"""

import argparse
import os

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.utils.data import TensorDataset

import paramserver as ps


def network() -> nn.Sequential:
    """64 pixels to 10 digits; 4.8 k parameters."""
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=16, help="samples per worker and step")
    parser.add_argument("--lr", type=float, default=0.2)
    parser.add_argument("--every", type=int, default=10, help="steps between two evaluations")
    options = parser.parse_args()

    seed = int(os.environ.get("PARAMSERVER_SEED", "0"))
    torch.manual_seed(seed)
    images, digits = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(digits)
    train, test = train_test_split(range(len(y)), test_size=0.2, random_state=0, stratify=digits)
    with ps.connect() as client:
        model, judged = network(), network()
        optimizer = client.optimizer(model, torch.optim.SGD, lr=options.lr)
        loader = client.loader(TensorDataset(x[train], y[train]), options.batch_size, seed=seed)
        step = 0
        for _ in client.epochs(options.epochs):
            for inputs, targets in loader:
                optimizer.zero_grad()
                loss = F.cross_entropy(model(inputs), targets)
                loss.backward()
                optimizer.step()
                client.log(loss=loss)
                step += 1
                if client.is_chief and step % options.every == 0:
                    judged.load_state_dict(client.state_dict())
                    with torch.no_grad():
                        out = judged(x[test])
                    right = (out.argmax(1) == y[test]).double().mean()
                    client.log(test_loss=F.cross_entropy(out, y[test]), accuracy=right)


if __name__ == "__main__":
    main()
