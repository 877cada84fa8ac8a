"""Measured speeds, the emulated machine, and what a worker is told of the fastest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

import paramserver as ps
from paramserver.core.speeds import fastest
from paramserver.emulation import Emulation, parse_emulation
from paramserver.errors import ConfigurationError
from paramserver.worker.speed import Speed
from tests.cluster import cluster
from tests.fakes import FakeTime
from tests.rig import Rig


class Machine:
    """A stop watch on a fake clock; pausing lets the clock go on."""

    def __init__(self, emulation: Emulation | None = None) -> None:
        self.time = FakeTime()
        self.pauses: list[float] = []
        self.speed = Speed(self.time, self._pause, emulation)

    def _pause(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.time.now += seconds

    def batch(self, samples: int, compute: float, wait: float = 0.0, rank: int = 0) -> None:
        self.speed.begin(samples)
        self.time.now += compute
        with self.speed.waiting():
            self.time.now += wait / 2
            with self.speed.waiting():
                self.time.now += wait / 2
        self.speed.end(rank)


def test_waits_for_others_are_no_computing_and_the_first_batch_does_not_count() -> None:
    machine = Machine()
    machine.batch(10, compute=50.0)
    assert machine.speed.per_second == 0.0
    machine.batch(10, compute=2.0, wait=30.0)
    assert machine.speed.per_second == 5.0
    for _ in range(8):
        machine.batch(30, compute=2.0)
    assert machine.speed.per_second == 15.0
    for compute in (2.0, 200.0, 2.0, 2.0, 200.0, 2.0):
        machine.batch(30, compute)
    assert machine.speed.per_second == 15.0, "a slow step now and then is not the machine"
    for _ in range(5):
        machine.batch(30, compute=10.0)
    assert machine.speed.per_second == 3.0


def test_time_between_passes_is_no_computing() -> None:
    machine = Machine()
    machine.batch(1, 1.0)
    machine.speed.end(0)
    machine.time.now += 100
    machine.batch(8, 1.0)
    assert machine.speed.per_second == 8.0


def test_an_emulated_machine_takes_what_is_left_of_its_time() -> None:
    machine = Machine(Emulation(sample_s=0.5, slow=((3, 4.0),)))
    machine.batch(10, compute=2.0)
    machine.batch(10, compute=2.0, wait=100.0)
    machine.batch(10, compute=7.0)
    machine.batch(10, compute=0.0, rank=3)
    assert machine.pauses == [3.0, 3.0, 20.0]


def test_laps_of_a_sampler_begin_with_the_second_push() -> None:
    machine = Machine(Emulation(sample_s=1.0))
    for _ in range(3):
        machine.speed.lap(0, 4)
        machine.time.now += 1.0
    assert machine.pauses == [3.0, 3.0]
    assert machine.speed.per_second == 1.0


def test_jitter_is_the_same_in_every_run_and_hits_its_share() -> None:
    machine = parse_emulation("sample=0.001,jitter=0.1:5")
    times = [machine.seconds(1, step, 10) for step in range(5_000)]
    assert times == [machine.seconds(1, step, 10) for step in range(5_000)]
    assert times != [machine.seconds(2, step, 10) for step in range(5_000)]
    assert set(times) == {0.01, 0.05}
    assert times.count(0.05) / len(times) == pytest.approx(0.1, abs=0.02)


def test_the_form_of_the_environment() -> None:
    made = parse_emulation("sample=0.001, slow=3:5,slow=1:2,jitter=0.1:5")
    assert made == Emulation(sample_s=0.001, slow=((3, 5.0), (1, 2.0)), jitter=(0.1, 5.0))


@pytest.mark.parametrize(
    "text",
    ["slow=3:5", "sample=fast", "sample=1:2", "sample=1,slow=3", "sample=1,fast=3:2", "sample=1,,"],
)
def test_a_malformed_emulation_shows_the_form(text: str, monkeypatch: Any) -> None:
    monkeypatch.setenv("PARAMSERVER_EMULATE", text)
    with pytest.raises(ConfigurationError, match="is not of the form sample=SECONDS"):
        ps.connect("127.0.0.1:1")


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("sample=-1", "must be >= 0 seconds"),
        ("sample=nan", "must be >= 0 seconds"),
        ("sample=1,slow=0:0", "must be > 0"),
        ("sample=1,jitter=0.1:inf", "must be > 0"),
        ("sample=1,jitter=2:5", r"must be in \[0, 1\]"),
    ],
)
def test_an_emulation_that_cannot_be(text: str, rule: str) -> None:
    with pytest.raises(ConfigurationError, match=rule):
        parse_emulation(text)


@given(st.lists(st.floats(0.1, 1e6), min_size=1))
def test_the_fastest_is_no_outlier_and_no_laggard(speeds: list[float]) -> None:
    assert sorted(speeds)[len(speeds) // 2 - (len(speeds) % 2 == 0)] <= fastest(speeds)
    assert fastest(speeds) <= max(speeds)


def test_the_fastest_of_few() -> None:
    assert fastest([]) == fastest([0.0]) == 0.0
    assert fastest([7.0, 0.0]) == 7.0
    assert fastest([1.0] * 19 + [100.0]) == pytest.approx(1.0)


def test_loader_sampler_and_shards_are_measured() -> None:
    for kind in ("loader", "sampler", "shards"):
        rig = Rig(64, 4, shard=8)
        rig.session.speed = machine = Machine(Emulation(sample_s=0.5)).speed
        batches: Iterable[Any]
        if kind == "sampler":
            batches = DataLoader(rig.dataset, batch_sampler=rig.sampler())
        else:
            batches = rig.loader() if kind == "loader" else rig.shards()
        for _ in batches:
            rig.push()
        assert machine.per_second == pytest.approx(2.0), kind
        rig.session.stop()


def test_a_slow_worker_learns_its_pace(monkeypatch: Any) -> None:
    monkeypatch.setenv("PARAMSERVER_EMULATE", "sample=0.002,slow=2:4")

    def work(client: ps.Client) -> tuple[float, float]:
        assert client._session.pace() == 1.0
        model = torch.nn.Linear(1, 1)
        optimizer = client.optimizer(model, torch.optim.SGD, lr=0.1, consistency=ps.Async())
        for (x,) in client.loader(TensorDataset(torch.ones(96, 1)), 4, shard_size=4):
            model(x).sum().backward()
            optimizer.step()
        own = client._session.speed.per_second
        client.barrier("measured")
        for name in ("told", "heard"):
            client._session.beat()
            client.barrier(name)
        return own, client._session.pace()

    with cluster(1, 3) as made:
        results = made.workers(work)
        assert made.scheduler.state.fastest() == 0.0, "all have left"
    speeds, paces = zip(*results, strict=True)
    assert max(speeds) <= 500.0 * 1.001
    assert speeds[2] <= 125.0 * 1.001
    assert paces[2] == pytest.approx(speeds[2] / fastest(speeds), rel=1e-6)
    assert paces[2] < 0.6
    assert max(paces) == 1.0
