"""Counts the samples it trains on, and can be told to die over one of them."""

from __future__ import annotations

import argparse
import os
import signal
import threading
from pathlib import Path

import torch
from torch.utils.data import Dataset

import paramserver as ps


class Indices(Dataset[torch.Tensor]):
    """Sample i is the number i."""

    def __len__(self) -> int:
        return 48

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(index)


def main() -> None:
    """Runs one worker; a line in FILE for each sample that was trained on."""
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("--poison", type=int, default=-1, help="a sample that nobody survives")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds of a step")
    parser.add_argument("--until-asked", metavar="NAME", help="its step lasts until it is to end")
    options = parser.parse_args()
    with ps.connect() as client:
        group = client.register("m", {"w": torch.zeros(1)})
        loader = client.loader(Indices(), batch_size=4, shuffle=False, shard_size=8)
        for batch in loader:
            print(f"rank {client.rank} has {batch.tolist()}", flush=True)
            if options.poison in batch.tolist():
                os.kill(os.getpid(), signal.SIGKILL)
            while options.until_asked == client.name and not client._session.drain.asked:
                threading.Event().wait(0.01)
            threading.Event().wait(options.pause)
            group.push_pull({"w": torch.ones(1)})
            with options.file.open("a") as file:
                file.write("".join(f"{i}\n" for i in batch.tolist()))


if __name__ == "__main__":
    main()
