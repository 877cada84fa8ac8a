"""Functions that workers of a local cluster run; importable there, as spawned processes need."""

from __future__ import annotations

import os
import signal

import torch

import paramserver as ps


def who() -> tuple[str | None, int, int]:
    """This worker's name, and the members' count and sum of ranks as all see them."""
    client = ps.connect()
    ranks = client.all_reduce(torch.tensor([1.0, client.rank]), "ranks", op="sum")
    return os.environ.get("PARAMSERVER_NAME"), int(ranks[0]), int(ranks[1])


def add(steps: int) -> float:
    """Pushes ones to a shared sum, and returns it once all have."""
    client = ps.connect()
    group = client.register("sum", {"total": torch.zeros(3)})
    for _ in range(steps):
        group.push({"total": torch.ones(3)})
    client.barrier("end")
    return float(group.pull()["total"][0])


def fails_beside_one_that_waits() -> None:
    """worker-1 raises; the others wait for it, without an end of their own."""
    client = ps.connect()
    if os.environ["PARAMSERVER_NAME"] == "worker-1":
        raise ValueError("told to go wrong")
    client.barrier("never")


def dies_beside_one_that_goes_on() -> int:
    """worker-1 dies; the others pass the barrier once its lease has lapsed."""
    client = ps.connect()
    client.barrier("begin")
    if os.environ["PARAMSERVER_NAME"] == "worker-1":
        os.kill(os.getpid(), signal.SIGKILL)
    client.barrier("after")
    return client.num_workers
