"""Wide and deep: a click or a census answer from a table of fields, with hashed crosses of them.

paramserver run -s 2 -w 2 examples/wide_and_deep.py --synthetic
paramserver run -s 2 -w 2 examples/wide_and_deep.py --data adult.csv
paramserver run -s 2 -w 2 examples/wide_and_deep.py --data adult.csv --tables async --tau 4

A CSV has a header row, and its last column (or --target) has two values. Every value of a field and
every pair of values is hashed to 64 bits: that is the id of its row, there is no vocabulary.
"""

import argparse
import csv
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import paramserver as ps

BUCKETS = 12  # of the values of a number
MIX = -7046029254386353131  # odd: its multiples modulo 2^64 are a good hash


def hashed(field: int, values: Tensor) -> Tensor:
    """An id for each value of a field; int64 as ``values``."""
    mixed = (values + (field + 1) * 1_000_003) * MIX
    return (mixed ^ (mixed >> 29)) * MIX


def crossed(ids: Tensor) -> Tensor:
    """Ids of fields [n, f], and behind them those of all pairs of fields [n, f + f(f-1)/2]."""
    pairs = [
        (ids[:, i] ^ (ids[:, j] >> 7)) * MIX + j for i, j in combinations(range(ids.shape[1]), 2)
    ]
    return torch.cat([ids, torch.stack(pairs, 1)], 1)


def from_csv(path: str, target: str | None) -> tuple[Tensor, Tensor, Tensor]:
    """Ids [n, fields and crosses], standardised numbers [n, k], labels 0.0 or 1.0 [n]."""
    with open(path, newline="") as file:
        header, *rows = [[cell.strip() for cell in row] for row in csv.reader(file) if row]
    columns = dict(zip(header, zip(*rows, strict=True), strict=True))
    answers = columns.pop(target or header[-1])
    rarer = min(set(answers), key=answers.count)
    ids, numbers = [], []
    for field, cells in enumerate(columns.values()):
        try:
            number = torch.tensor([float(cell) for cell in cells])
        except ValueError:
            known = {cell: place for place, cell in enumerate(sorted(set(cells)))}
            ids.append(hashed(field, torch.tensor([known[cell] for cell in cells])))
        else:
            edges = number.quantile(torch.linspace(0, 1, BUCKETS + 1)[1:-1])
            ids.append(hashed(field, torch.bucketize(number, edges)))
            numbers.append((number - number.mean()) / number.std().clamp_min(1e-6))
    labels = torch.tensor([float(answer == rarer) for answer in answers])
    return crossed(torch.stack(ids, 1)), torch.stack(numbers or [labels * 0], 1), labels


def synthetic(size: int = 20_000, fields: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Clicks drawn from a model: ids by Zipf's law, a hidden weight for each."""
    draw = torch.Generator().manual_seed(0)
    ranks = (500 ** torch.rand(size, fields, generator=draw)).long()  # density falls as 1 / rank
    ids = torch.stack([hashed(field, ranks[:, field]) for field in range(fields)], 1)
    weights = torch.sin(ids.double())  # of each id, in [-1, 1]: as good as random
    logits = 1.5 * weights.sum(1) + 2 * weights[:, 0] * weights[:, 1] - 1
    labels = torch.rand(size, generator=draw) < torch.sigmoid(logits)
    return crossed(ids), torch.randn(size, 1, generator=draw), labels.float()


class WideAndDeep(nn.Module):
    """A linear model over ids and crosses, and a network over the fields (Cheng et al., 2016)."""

    def __init__(self, wide: nn.Module, deep: nn.Module, fields: int, width: int) -> None:
        super().__init__()
        self.wide, self.deep, self.fields = wide, deep, fields
        self.network = nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, ids: Tensor, numbers: Tensor) -> Tensor:
        """Logits [n]."""
        deep = torch.cat([self.deep(ids[:, : self.fields]).flatten(1), numbers], 1)
        return (self.wide(ids) + self.network(deep)).squeeze(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--data", metavar="CSV")
    source.add_argument("--synthetic", action="store_true", help="clicks drawn from a known model")
    parser.add_argument("--target", help="column to predict; default: the last")
    parser.add_argument("--tables", choices=("sync", "async"), default="sync")
    parser.add_argument("--tau", type=int, help="batches in flight, with --tables async")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=128, help="samples per worker and step")
    parser.add_argument("--dim", type=int, default=8)
    options = parser.parse_args()

    torch.manual_seed(0)
    if options.synthetic:
        ids, numbers, labels = synthetic()
    else:
        ids, numbers, labels = from_csv(options.data, options.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    test, train = order[: len(order) // 5], order[len(order) // 5 :]
    fields = round((2 * ids.shape[1] + 0.25) ** 0.5 - 0.5)

    with ps.connect() as client:
        how: dict[str, Any] = {"client": client, "optimizer": torch.optim.Adagrad}
        if options.tables == "async":
            how["consistency"] = ps.Async(scale_lr="none")  # two batches seldom share a row
        wide = ps.EmbeddingBag("wide", 1, mode="sum", init=ps.Zeros(), lr=0.01, **how)
        deep = ps.Embedding("deep", options.dim, init=ps.Normal(0.05), lr=0.05, **how)
        model = WideAndDeep(wide, deep, fields, fields * options.dim + numbers.shape[1])
        optimizer = client.optimizer(model, torch.optim.Adam, lr=2e-3, tau=options.tau)
        data = TensorDataset(ids[train], numbers[train], labels[train])
        loader = client.loader(data, batch_size=options.batch_size)
        for _ in client.epochs(options.epochs):
            for x, n, y in loader:
                optimizer.zero_grad()
                loss = F.binary_cross_entropy_with_logits(model(x, n), y)
                loss.backward()
                optimizer.step()
                client.log(loss=loss)

        client.barrier("trained")
        if client.is_chief:
            with torch.no_grad():
                logits = model(ids[test], numbers[test])
            kind = "synthetic clicks" if options.synthetic else options.data
            print(f"{kind}: {len(train)} samples, {len(wide.table)} + {len(deep.table)} rows")
            print(f"test AUC {roc_auc_score(labels[test], logits):.4f}", flush=True)


if __name__ == "__main__":
    main()
