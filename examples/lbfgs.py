"""Softmax regression on scikit-learn's handwritten digits by L-BFGS, to the optimum.

paramserver run -s 2 -w 3 examples/lbfgs.py
python examples/lbfgs.py
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import paramserver as ps


def data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test images (float64, n x 64, in [0, 1]) and their digits."""
    images, digits = load_digits(return_X_y=True)
    x, y = torch.tensor(images) / 16, torch.tensor(digits)
    train, test = train_test_split(range(len(y)), test_size=0.25, random_state=0, stratify=digits)
    return x[train], y[train], x[test], y[test]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--l2", type=float, default=1e-3)
    parser.add_argument("--history", type=int, default=10)
    options = parser.parse_args()

    x_train, y_train, x_test, y_test = data()
    model = nn.Linear(64, 10, dtype=torch.float64)

    def losses(x: Tensor, y: Tensor) -> Tensor:
        """One for each sample of a batch."""
        return F.cross_entropy(model(x), y, reduction="none")

    with ps.connect() as client:
        result = ps.minimize(
            losses,
            TensorDataset(x_train, y_train),
            model=model,
            client=client,
            l2=options.l2,
            history=options.history,
            max_iter=500,
        )
        if client.is_chief:
            print(f"{result.iterations} iterations, {result.evaluations} evaluations")
            print(f"{result.message}; loss {result.loss:.10f}")
            hits = (model(x_test).argmax(1) == y_test).double().mean()
            print(f"test accuracy {100 * hits:.1f} %", flush=True)


if __name__ == "__main__":
    main()
