"""RPC chaos: the draws replay, each fate is what it says, and a cluster does not mind."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import torch

import paramserver as ps
from paramserver import rpc_chaos
from paramserver.errors import ConfigurationError, ConnectionLostError
from paramserver.rpc_chaos import Chaos, ChaosPlan, Fate, parse_chaos
from paramserver.v1 import scheduler_pb2
from paramserver.wire.client import AsyncGrpcChannel, GrpcChannel
from tests.cluster import Cluster, cluster


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    rpc_chaos.arm(None)


def fates(chaos: Chaos, method: str, count: int) -> list[Fate]:
    return [chaos.fate(method) for _ in range(count)]


def test_draws_depend_on_the_seed_and_the_method_alone() -> None:
    plan = ChaosPlan(rate=0.5, seed=3)
    one, other = Chaos(plan), Chaos(plan)
    mixed = [one.fate(name) for _ in range(50) for name in ("Register", "Finish")]
    assert mixed[::2] == fates(other, "Register", 50)
    assert fates(Chaos(ChaosPlan(rate=0.5, seed=4)), "Register", 50) != mixed[::2]
    assert set(mixed) == set(Fate)


def test_the_rate_is_kept_and_only_named_methods_meet_faults() -> None:
    chaos = Chaos(ChaosPlan(rate=0.2, methods=frozenset({"A"})))
    drawn = fates(chaos, "A", 2000)
    assert 300 < sum(f is not Fate.WELL for f in drawn) < 500
    assert chaos.faults == {"A": sum(f is not Fate.WELL for f in drawn)}
    assert set(fates(chaos, "B", 100)) == {Fate.WELL}


def test_a_plan_in_words() -> None:
    found = parse_chaos("rate=0.02, seed=7, methods=Register|Finish")
    assert found == ChaosPlan(rate=0.02, seed=7, methods=frozenset({"Register", "Finish"}))
    for bad in ("", "seed=1", "rate=2", "rate=x", "rate=0.1,sead=1", "rate=0.1,seed=x"):
        with pytest.raises(ConfigurationError, match="must be rate=SHARE"):
            parse_chaos(bad)


class Fixed(Chaos):
    """Fates told beforehand; then all goes well."""

    def __init__(self, *told: Fate) -> None:
        super().__init__(ChaosPlan(rate=0.0))
        self._told = list(told)

    def fate(self, method: str, *, message: bool = False) -> Fate:
        return self._told.pop(0) if self._told and not message else Fate.WELL


def register() -> scheduler_pb2.RegisterRequest:
    return scheduler_pb2.RegisterRequest(protocol=1, role=scheduler_pb2.ROLE_WORKER, name="w")


def incarnations(made: Cluster) -> int:
    """Incarnations given so far: the servers' and one for each Register that arrived."""
    return int(made.scheduler.state.members._incarnation)


@pytest.mark.parametrize("fate", [f for f in Fate if f is not Fate.WELL], ids=str)
def test_each_fate_is_what_it_says(fate: Fate, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller tries again by itself, and the peer has heard it once or twice."""
    with cluster(chaos="rate=0") as made:
        before = incarnations(made)
        channel = GrpcChannel(made.address)
        monkeypatch.setattr(rpc_chaos, "armed", Fixed(fate))
        channel.call("Register", register(), timeout=20)
        assert incarnations(made) - before in ((1,) if fate is Fate.REQUEST_LOST else (1, 2))
        if fate is Fate.REPLY_LOST:
            assert incarnations(made) - before == 2
        monkeypatch.setattr(rpc_chaos, "armed", Fixed(*[fate] * 50))
        with pytest.raises(ConnectionLostError, match=fate.value):
            channel.call("Register", register(), timeout=0.2)
        channel.close()

        async def role() -> object:
            there = AsyncGrpcChannel(made.address)
            try:
                return await there.call("Register", register(), timeout=20)
            finally:
                await there.close()

        monkeypatch.setattr(rpc_chaos, "armed", Fixed(fate))
        assert asyncio.run(role())
        monkeypatch.setattr(rpc_chaos, "armed", None)


@pytest.mark.parametrize("consistency", [ps.Sync(), ps.Async("none")], ids=str)
def test_a_sum_is_exact_however_many_calls_are_lost(consistency: ps.Sync | ps.Async) -> None:
    def work(client: ps.Client) -> float:
        group = client.register("sum", {"w": torch.zeros(70_000)}, consistency=consistency)
        for step in range(10):
            group.push_pull({"w": torch.full((70_000,), float(1 + step))})
        client.barrier("end")
        values = group.read()["w"]
        assert torch.equal(values, values[:1].expand_as(values))
        return float(values[0])

    with cluster(2, 2, chaos="rate=0.3,seed=5") as made:
        assert made.workers(work) == [110.0, 110.0]
        assert rpc_chaos.armed is not None
        assert rpc_chaos.armed.faults
