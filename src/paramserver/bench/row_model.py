"""An embedding model as users write it, its rows prefetched or not."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import paramserver as ps
from paramserver.bench.row_agents import BATCH, DIM, FIELDS, LR


class Recommender(nn.Module):
    """Rows of a table, then a dense part."""

    def __init__(self, client: ps.Client, ahead: bool) -> None:
        super().__init__()
        name = "ahead" if ahead else "behind"
        table = client.table(name, DIM, lr=LR, consistency=ps.Async("none"))
        self.rows = ps.Embedding(table, prefetch=ahead)
        self.dense = nn.Sequential(nn.Linear(FIELDS * DIM, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, ids: Tensor) -> Tensor:
        found: Tensor = self.dense(self.rows(ids).flatten(1))
        return found


class ModelTrainer:
    """Trains with tables Async and the dense part Sync, at most four batches in flight."""

    def __init__(self, address: str, rows: int, seed: int) -> None:
        torch.set_num_threads(1)
        self._client = ps.connect(address)
        self._rows = rows
        self._random = torch.Generator().manual_seed(seed)
        self._models = {ahead: Recommender(self._client, ahead) for ahead in (False, True)}
        self._optimizers = {
            ahead: self._client.optimizer(
                model, torch.optim.SGD, lr=LR, group=f"dense-{ahead}", tau=4
            )
            for ahead, model in self._models.items()
        }

    def train(self, count: int, ahead: bool) -> float:
        """So many steps; the mean seconds that a forward pass waited for its rows."""
        model, optimizer = self._models[ahead], self._optimizers[ahead]
        stats = model.rows.table.stats
        before, ids = stats.waited, self._ids()
        for _ in range(count):
            following = self._ids()
            loss = model(ids).square().mean()
            if ahead:
                model.rows.prefetch(following)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            ids = following
        return (stats.waited - before) / count

    def _ids(self) -> Tensor:
        return torch.randint(0, self._rows, (BATCH, FIELDS), generator=self._random)

    def close(self) -> None:
        """Leaves."""
        self._client.finish()
        self._client.close()
