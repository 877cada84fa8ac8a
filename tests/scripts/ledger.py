"""Counts its own pushes on the servers: additive groups and tables are the ledger, and Adam and
momentum tell whether every step was taken once and in order."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import paramserver as ps

SHAPES = {"large": (30_000, 3), "small": (7,)}
IDS = torch.arange(0, 400, 7)
MODELS: dict[str, ps.Sync | ps.Stale | ps.Async] = {
    "sync": ps.Sync(),
    "stale": ps.Stale(2),
    "async": ps.Async(),
}


def main() -> None:
    """MODEL STEPS FILE DURABILITIES: trains as one worker; the chief saves what the servers hold at
    the end."""
    model, steps, path = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    allowed = sys.argv[4].split(",")
    consistency = MODELS[model]
    zeros = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    with ps.connect() as client:
        count = client.register("count", zeros, consistency=consistency)
        rows = client.table("rows", 4, optimizer=None, init=ps.Zeros(), consistency=consistency)
        first = {name: torch.ones(shape) for name, shape in SHAPES.items()}
        net = client.register("net", first, torch.optim.Adam, consistency=consistency, lr=0.01)
        words = client.table("words", 4, optimizer="Momentum", consistency=consistency, lr=0.01)
        client.barrier("start")
        seed = torch.Generator().manual_seed(client.rank)
        client.barrier("begin")  # so that every clock waits for all workers
        for _ in range(steps):
            result = count.push({name: torch.ones(shape) for name, shape in SHAPES.items()})
            assert result.durability in allowed, result
            rows.push(IDS, torch.ones(len(IDS), 4))
            net.push_pull({n: torch.randn(s, generator=seed) for n, s in SHAPES.items()})
            words.push(IDS, torch.randn(len(IDS), 4, generator=seed))
        client.barrier("end")
        if client.is_chief:
            found = {f"{g.name}/{n}": t for g in (count, net) for n, t in g.read().items()}
            found |= {"rows": rows.pull(IDS), "words": words.pull(IDS)}
            torch.save(found, path)
        client.barrier("saved")


if __name__ == "__main__":
    main()
