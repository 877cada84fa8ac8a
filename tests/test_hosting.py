"""Durability "replica": a server that is lost goes on elsewhere, with all that was acknowledged."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
import torch

import paramserver as ps
from paramserver.core.replication import Place
from tests.cluster import Cluster, cluster

STEPS = 12


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Waits for it."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.01)  # noqa: TID251


class Killer:
    """Calls back once, when the first worker has come to a step."""

    def __init__(self, step: int, call: Callable[[], None]) -> None:
        self._step, self._call = step, call
        self._lock = threading.Lock()
        self._done = False

    def at(self, step: int) -> None:
        """A worker has come to this step."""
        with self._lock:
            if step >= self._step and not self._done:
                self._done = True
                self._call()


def gradient(rank: int, step: int) -> dict[str, torch.Tensor]:
    made = torch.Generator().manual_seed(1000 * rank + step)
    return {
        "a": torch.randn(300, 7, generator=made),
        "b": torch.randn(64, generator=made),
    }


def train(made: Cluster, killer: Killer | None, consistency: ps.types.Consistency) -> list[object]:
    """What every worker has at the end."""

    def work(client: ps.Client) -> dict[str, torch.Tensor]:
        first = {"a": torch.ones(300, 7), "b": torch.zeros(64)}
        options = {"lr": 0.1, "momentum": 0.9}
        group = client.register("m", first, torch.optim.SGD, consistency=consistency, **options)
        for step in range(STEPS):
            if killer is not None:
                killer.at(step)
            group.push_pull(gradient(client.rank, step), weight=1 + client.rank)
        client.barrier("end")
        return group.read()

    return made.workers(work)


def places(made: Cluster) -> dict[str, Place]:
    return {p.server: p for p in made.scheduler.state.places.all}


@pytest.mark.parametrize("victim", ["ps-0", "ps-1"])
def test_a_lost_server_costs_nothing_under_sync(victim: str) -> None:
    with cluster(2, 2) as made:
        plain = train(made, None, ps.Sync())
    with cluster(2, 2, durability="replica", lease_s=1.5) as made:
        killer = Killer(5, lambda: made.kill(victim))
        found = train(made, killer, ps.Sync())
        other = "ps-1" if victim == "ps-0" else "ps-0"
        assert places(made)[victim].primary.name == other
        for left, right in zip(plain, found, strict=True):
            assert all(torch.equal(left[n], right[n]) for n in left)
