"""Workers and servers of the table benchmark: ours, torch.rpc's, and one process alone."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import rpc

import paramserver as ps
from paramserver.bench.torch_rpc import join_rpc

DIM = 64
BATCH, FIELDS = 4096, 26
PIECE = 100_000
LR = 0.01
IN_FLIGHT = 4


class Trainer:
    """An embedding model: rows from somewhere, a dense part of its own.

    Args:
        rows: of the table.
    """

    def __init__(self, rows: int, seed: int) -> None:
        torch.set_num_threads(1)
        self.rows = rows
        self._random = torch.Generator().manual_seed(seed)
        self._dense = nn.Sequential(nn.Linear(FIELDS * DIM, 64), nn.ReLU(), nn.Linear(64, 1))
        self._optimizer = torch.optim.SGD(self._dense.parameters(), lr=LR)
        self._grads = torch.full((PIECE, DIM), 1e-3)

    def pull(self, ids: Tensor) -> Tensor:
        """Rows [n, DIM]."""
        raise NotImplementedError

    def push(self, ids: Tensor, grads: Tensor) -> None:
        """Applies gradients [n, DIM]."""
        raise NotImplementedError

    def close(self) -> None:
        """Leaves."""

    def fill(self) -> None:
        """Touches every row once."""
        for start in range(0, self.rows, PIECE):
            ids = torch.arange(start, min(start + PIECE, self.rows))
            self.push(ids, self._grads[: len(ids)])

    def pulls(self, count: int) -> None:
        """So many pulls of 100k random rows."""
        for _ in range(count):
            self.pull(self._ids(PIECE))

    def pushes(self, count: int) -> None:
        """So many pushes of 100k random rows."""
        for _ in range(count):
            self.push(self._ids(PIECE), self._grads)

    def batches(self, count: int) -> float:
        """So many training steps; returns 0."""
        for _ in range(count):
            ids = self._ids(BATCH * FIELDS)
            leaf = self.pull(ids).requires_grad_()
            loss = self._dense(leaf.view(BATCH, -1)).square().mean()
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()
            assert leaf.grad is not None
            self.push(ids, leaf.grad)
        return 0.0

    def _ids(self, count: int) -> Tensor:
        return torch.randint(0, self.rows, (count,), generator=self._random)


class TableTrainer(Trainer):
    """Rows from a table."""

    def __init__(self, address: str, rows: int, seed: int) -> None:
        super().__init__(rows, seed)
        self._client = ps.connect(address)
        self._tables: dict[str, Any] = {}
        self.use("")
        self._rows = ps.Embedding(self._table)
        self._row_optimizer = self._client.optimizer(
            self._rows, torch.optim.Adagrad, lr=LR, tau=IN_FLIGHT
        )

    def batches(self, count: int, ahead: bool = True) -> float:
        """So many training steps, at most four in flight, rows of the next one pulled ahead or not.

        Returns:
            Mean seconds that a step waited for its rows.
        """
        rows, optimizer = self._rows, self._row_optimizer
        before, ids = self._table.stats.waited, self._batch()
        for _ in range(count):
            following = self._batch()
            loss = self._dense(rows(ids).flatten(1)).square().mean()
            if ahead:
                rows.prefetch(following)
            optimizer.zero_grad()
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()
            optimizer.step()
            ids = following
        return float(self._table.stats.waited - before) / count

    def _batch(self) -> Tensor:
        return self._ids(BATCH * FIELDS).view(BATCH, FIELDS)

    def use(self, wire: str) -> None:
        """Goes on with the table whose rows travel in this type; "" for float32."""
        if wire not in self._tables:
            self._tables[wire] = self._client.table(
                f"rows{wire}", DIM, lr=LR, consistency=ps.Async(), wire_dtype=wire or None
            )
        self._table = self._tables[wire]

    def pull(self, ids: Tensor) -> Tensor:
        rows: Tensor = self._table.pull(ids)
        return rows

    def push(self, ids: Tensor, grads: Tensor) -> None:
        self._table.push(ids, grads)

    def close(self) -> None:
        self._client.finish()
        self._client.close()


class Shelf:
    """A weight with torch's own sparse Adagrad, as a plain user writes a parameter server."""

    def __init__(self, rows: int) -> None:
        self.weight = nn.Parameter(torch.empty(rows, DIM).normal_(0, 0.01))
        self._optimizer = torch.optim.Adagrad([self.weight], lr=LR)

    def get(self, ids: Tensor) -> Tensor:
        """Rows [n, DIM]."""
        return self.weight.detach().index_select(0, ids)

    def step(self, ids: Tensor, grads: Tensor) -> None:
        """One step; duplicates are summed."""
        with torch.sparse.check_sparse_tensor_invariants(enable=False):
            self.weight.grad = torch.sparse_coo_tensor(ids[None], grads, self.weight.shape)
            self._optimizer.step()


_shelf: list[Shelf] = []


def get(ids: Tensor) -> Tensor:
    """On the server: rows."""
    return _shelf[0].get(ids)


def step(ids: Tensor, grads: Tensor) -> None:
    """On the server: one step."""
    _shelf[0].step(ids, grads)


class RpcShelf:
    """The server of torch.rpc."""

    def __init__(self, rows: int, world: int, meeting: str) -> None:
        _shelf.append(Shelf(rows))
        join_rpc("server", 0, world, meeting)

    def close(self) -> None:
        """Waits for the others, then leaves."""
        rpc.shutdown()


class RpcTrainer(Trainer):
    """Rows by torch.rpc."""

    def __init__(self, rank: int, world: int, meeting: str, rows: int) -> None:
        super().__init__(rows, rank)
        join_rpc(f"worker{rank}", rank, world, meeting)

    def pull(self, ids: Tensor) -> Tensor:
        rows: Tensor = rpc.rpc_sync("server", get, (ids,))
        return rows

    def push(self, ids: Tensor, grads: Tensor) -> None:
        rpc.rpc_sync("server", step, (ids, grads))

    def close(self) -> None:
        rpc.shutdown()


class AloneTrainer(Trainer):
    """Rows in this process."""

    def __init__(self, rows: int) -> None:
        super().__init__(rows, 1)
        self._shelf = Shelf(rows)

    def pull(self, ids: Tensor) -> Tensor:
        return self._shelf.get(ids)

    def push(self, ids: Tensor, grads: Tensor) -> None:
        self._shelf.step(ids, grads)


class Filler:
    """Grows a table, or pulls from it and watches how long that takes."""

    def __init__(self, address: str, dim: int, name: str) -> None:
        torch.set_num_threads(1)
        self._client = ps.connect(address)
        self._table = self._client.table(name, dim, consistency=ps.Async())
        self._dim = dim

    def fill(self, start: int, stop: int) -> None:
        """Gives birth to the rows of ids start to stop."""
        grads = torch.full((PIECE, self._dim), 1e-3)
        for at in range(start, stop, PIECE):
            ids = torch.arange(at, min(at + PIECE, stop))
            self._table.push(ids, grads[: len(ids)])

    def watch(self, rows: int, most: int, seconds: float) -> list[float]:
        """Seconds that each pull of ``rows`` random rows below ``most`` takes."""
        took = []
        deadline = time.perf_counter() + seconds
        while (began := time.perf_counter()) < deadline:
            self._table.pull(torch.randint(0, most, (rows,)))
            took.append(time.perf_counter() - began)
        return took

    def size(self) -> int:
        """Rows."""
        return len(self._table)

    def close(self) -> None:
        """Leaves."""
        self._client.finish()
        self._client.close()
