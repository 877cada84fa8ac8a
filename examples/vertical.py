"""Logistic regression on features that belong to several parties; only one has the labels.

paramserver run -s 1 -w 3 --parties 3 examples/vertical.py
"""

import torch
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import paramserver as ps

loss_of = nn.BCEWithLogitsLoss()


def data() -> list[Tensor]:
    """Training and test rows (float64, n x 30, standardised), training and test labels (n x 1)."""
    rows, labels = load_breast_cancer(return_X_y=True)
    rows, labels = (rows - rows.mean(0)) / rows.std(0), labels[:, None]
    parts = train_test_split(rows, labels, test_size=0.25, random_state=0, stratify=labels)
    return [torch.tensor(part, dtype=torch.float64) for part in parts]


def zeroed(layer: nn.Module) -> nn.Module:
    """The layer, starting from zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def main() -> None:
    x_train, x_test, y_train, y_test = data()
    with ps.connect() as client:
        mine = torch.arange(30).tensor_split(client.parties)[client.party]  # my columns
        layer = ps.VerticalLinear(len(mine), 1, client=client, dtype=torch.float64)
        optimizer = client.optimizer(zeroed(layer), torch.optim.Adam, lr=0.02)
        central = zeroed(nn.Linear(30, 1, dtype=torch.float64))  # to compare with
        central_optimizer = torch.optim.Adam(central.parameters(), lr=0.02)
        loader = client.loader(TensorDataset(torch.arange(len(x_train))), batch_size=32)
        for _ in client.epochs(20):
            for (rows,) in loader:
                optimizer.zero_grad()
                z = layer(x_train[rows][:, mine])  # the same on every party
                layer.backward(z, loss_of(z, y_train[rows]) if client.party == 0 else None)
                optimizer.step()
                central_optimizer.zero_grad()
                loss_of(central(x_train[rows]), y_train[rows]).backward()
                central_optimizer.step()
        with torch.no_grad():
            z, wanted = layer(x_test[:, mine]), central(x_test)
        if client.is_chief:
            hits = (z > 0) == (y_test > 0.5)
            print(f"test accuracy {100 * hits.double().mean():.1f} %", flush=True)
            apart = (z - wanted).abs().max()
            print(f"largest difference to one process with all columns: {apart:.1e}", flush=True)


if __name__ == "__main__":
    main()
