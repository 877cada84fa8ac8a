"""A small convolutional network on scikit-learn's handwritten digits.

paramserver run -s 2 -w 4 examples/digits.py
paramserver run -s 2 -w 4 examples/digits.py --consistency stale:3
python examples/digits.py
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import paramserver as ps


def network() -> nn.Sequential:
    """A CNN with batch norm for images of 8 x 8; 20 k parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )


def data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test images (float32, n x 1 x 8 x 8, in [0, 1]) and their digits."""
    images, digits = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    y = torch.tensor(digits)
    train, test = train_test_split(range(len(y)), test_size=0.25, random_state=0, stratify=digits)
    return x[train], y[train], x[test], y[test]


def consistency_model(text: str) -> ps.Sync | ps.Stale | ps.Async:
    """sync, stale:BOUND or async."""
    kind, _, bound = text.partition(":")
    if kind == "stale" and bound.isdigit():
        return ps.Stale(int(bound))
    if text in ("sync", "async"):
        return ps.Sync() if text == "sync" else ps.Async()
    raise argparse.ArgumentTypeError(f"{text}: must be sync, stale:BOUND or async")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--consistency", type=consistency_model, default=ps.Sync())
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=16, help="samples per worker and step")
    parser.add_argument("--lr", type=float, default=3e-3)
    options = parser.parse_args()

    torch.manual_seed(0)
    x_train, y_train, x_test, y_test = data()
    with ps.connect() as client:
        model = network()
        optimizer = client.optimizer(
            model, torch.optim.Adam, lr=options.lr, consistency=options.consistency
        )
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs)
        loader = client.loader(TensorDataset(x_train, y_train), batch_size=options.batch_size)
        for _ in client.epochs(options.epochs, scheduler):
            for x, y in loader:
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                optimizer.step()
                client.log(loss=loss)
            scheduler.step()

        client.barrier("trained")
        if client.is_chief:
            # What the servers hold is an ordinary state_dict: from here on it is plain PyTorch.
            trained = network()
            trained.load_state_dict(client.state_dict())
            trained.eval()
            with torch.no_grad():
                hits = (trained(x_test).argmax(1) == y_test).float().mean()
            print(f"test accuracy {100 * hits:.1f} %", flush=True)


if __name__ == "__main__":
    main()
