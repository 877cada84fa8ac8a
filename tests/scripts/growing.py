"""Counts its own pushes on the servers, as ``ledger.py``, while their number changes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

import paramserver as ps

SIZE = 60_000
IDS = torch.arange(0, 400, 7)


def scale(servers: int) -> subprocess.Popen[bytes]:
    """Asks for so many; ends when all has moved."""
    address = os.environ["PARAMSERVER_SCHEDULER"]
    command = [sys.executable, "-m", "paramserver", "scale", "--scheduler", address]
    return subprocess.Popen([*command, "--servers", str(servers)])


def main() -> None:
    """FILE STEPS SERVERS...: trains while slices move; the chief saves what is there at the end."""
    path, steps, shapes = Path(sys.argv[1]), int(sys.argv[2]), [int(n) for n in sys.argv[3:]]
    with ps.connect() as client:
        count = client.register("count", {"w": torch.zeros(SIZE)})
        rows = client.table("rows", 4, optimizer=None, init=ps.Zeros())
        net = client.register("net", {"w": torch.ones(SIZE)}, torch.optim.Adam, lr=0.01)
        seed = torch.Generator().manual_seed(client.rank)
        client.barrier("start")
        moving: subprocess.Popen[bytes] | None = None
        for _ in range(steps):
            count.push({"w": torch.ones(SIZE)})
            rows.push(IDS, torch.ones(len(IDS), 4))
            net.push_pull({"w": torch.randn(SIZE, generator=seed)})
            if client.is_chief and shapes and (moving is None or moving.poll() is not None):
                moving = scale(shapes.pop(0))
        while moving is not None:
            assert moving.wait() == 0
            moving = scale(shapes.pop(0)) if shapes else None
        client.barrier("moved")
        if client.is_chief:
            found = {"count": count.pull()["w"], "rows": rows.pull(IDS), "net": net.pull()["w"]}
            torch.save(found, path)
        client.barrier("saved")


if __name__ == "__main__":
    main()
