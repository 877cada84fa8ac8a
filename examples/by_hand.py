"""The level below the optimizer: logistic regression with the pulls and pushes written out.

paramserver run -s 1 -w 2 examples/by_hand.py
"""

import argparse

import torch
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import Tensor

import paramserver as ps


def data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test rows (float32, n x 30, standardised) and labels 0.0 or 1.0."""
    rows, labels = load_breast_cancer(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(
        rows, labels, test_size=0.25, random_state=0, stratify=labels
    )
    scaler = StandardScaler().fit(x_train)
    parts = (scaler.transform(x_train), y_train, scaler.transform(x_test), y_test)
    x0, y0, x1, y1 = (torch.tensor(part, dtype=torch.float32) for part in parts)
    return x0, y0, x1, y1


def probability(values: dict[str, Tensor], x: Tensor) -> Tensor:
    """P(label = 1) of each row."""
    return torch.sigmoid(x @ values["weight"] + values["bias"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--lr", type=float, default=0.5)
    options = parser.parse_args()

    x_train, y_train, x_test, y_test = data()
    with ps.connect() as client:
        group = client.register(
            "logistic",
            {"weight": torch.zeros(x_train.shape[1]), "bias": torch.zeros(())},
            torch.optim.SGD,
            lr=options.lr,
            consistency=ps.Stale(2),
        )
        for _ in client.epochs(options.epochs):
            for shard in client.shards(len(x_train), shard_size=32, shuffle=True):
                rows = list(shard.indices)
                error = probability(group.pull(), x_train[rows]) - y_train[rows]
                gradients = {"weight": x_train[rows].T @ error / len(rows), "bias": error.mean()}
                group.push(gradients, weight=len(rows))

        client.barrier("trained")
        if client.is_chief:
            hits = (probability(group.pull(), x_test) > 0.5).float() == y_test
            print(f"test accuracy {100 * hits.float().mean():.1f} %", flush=True)


if __name__ == "__main__":
    main()
