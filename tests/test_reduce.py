"""Sums over the parties of a replica: each once, from every party, whatever breaks."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

import paramserver as ps
from paramserver.config import Limits
from paramserver.errors import (
    ConfigurationError,
    FencedError,
    InvalidRequestError,
    MismatchError,
    ResourceError,
    UnsupportedError,
    UsageError,
    WaitTimeoutError,
)
from paramserver.ps import reduces
from tests.cluster import Cluster, cluster, in_threads

MIB = 1 << 20


@pytest.fixture
def summed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the servers summed: replica, name, key, first piece, ranks, in this order."""
    seen: list[tuple[Any, ...]] = []
    real = reduces._sum

    def spy(made: reduces.Sum) -> dict[int, Tensor]:
        first = made.first
        ranks = [made.came[p].rank for p in sorted(made.tensors)]
        seen.append((first.replica, first.name, first.key, first.pieces[0], *ranks))
        return real(made)

    monkeypatch.setattr(reduces, "_sum", spy)
    return seen


def part(client: ps.Client, step: int, size: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(100 * client.rank + step)
    return torch.randn(size, generator=generator)


@pytest.mark.parametrize("servers", [1, 3])
def test_each_key_once_from_every_party(servers: int, summed: list[tuple[Any, ...]]) -> None:
    def work(client: ps.Client) -> list[Tensor]:
        return [client.reduce("z", step, part(client, step)) for step in range(20)]

    with cluster(servers, 6, parties=3) as c:
        found = c.workers(work)
        kept = sum(len(s.reduces._sums) for s in c.servers)
        generators = [torch.Generator() for _ in range(3)]
    for step in range(20):
        for replica in range(2):
            ranks = range(3 * replica, 3 * replica + 3)
            parts = []
            for generator, rank in zip(generators, ranks, strict=True):
                generator.manual_seed(100 * rank + step)
                parts.append(torch.randn(5, generator=generator))
            for rank in ranks:
                assert torch.equal(found[rank][step], (parts[0] + parts[1]) + parts[2])
    assert Counter((r, k) for r, _, k, *_ in summed) == {
        (r, str(k)): 1 for r in range(2) for k in range(20)
    }
    assert all(ranks == [3 * r, 3 * r + 1, 3 * r + 2] for r, _, _, _, *ranks in summed)
    assert kept <= 2 * servers, "only the newest key of a replica is kept on each server"


@pytest.mark.parametrize("cuts", [(200, 60_000), (MIB, 12 * MIB)], ids=["small", "large"])
def test_broken_streams(cuts: tuple[int, int], summed: list[tuple[Any, ...]]) -> None:
    """Connections break at random bytes, between and within tensors of several pieces."""
    size = 700_001 if cuts[0] > MIB // 4 else 2_000

    def work(client: ps.Client) -> list[Tensor]:
        return [client.reduce("z", step, part(client, step, size)) for step in range(6)]

    with cluster(2, 2, parties=2, proxies=True) as c:
        assert c.proxies is not None
        for proxy in c.proxies:
            proxy.cut_after = cuts
        found = c.workers(work)
        assert sum(proxy.cuts for proxy in c.proxies) > 0
    for left, right in zip(*found, strict=True):
        assert torch.equal(left, right)
    assert max(Counter(summed).values()) == 1


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(2.5),
        torch.empty(0, 4),
        torch.arange(6).view(2, 3),
        torch.full((3,), 0.1, dtype=torch.bfloat16),
        torch.ones(2, 2, dtype=torch.float64).t(),
    ],
    ids=["scalar", "empty", "integer", "bfloat16", "transposed"],
)
def test_shapes_and_types(tensor: Tensor) -> None:
    with cluster(2, 2, parties=2) as c:
        for found in c.workers(lambda client: client.reduce("z", "a key", tensor)):
            assert found.dtype == tensor.dtype
            assert torch.equal(found, tensor + tensor)


def test_without_parties_the_sum_is_the_tensor() -> None:
    with cluster(1, 2) as c:
        found = c.workers(lambda client: client.reduce("z", 0, torch.tensor(client.rank)))
    assert [int(f) for f in found] == [0, 1]


def errors_of(c: Cluster, *works: Any) -> list[Any]:
    """What each worker's work raised, or returned."""

    def one(rank: int) -> Any:
        client = c.connect(f"worker-{rank}")
        try:
            return works[rank](client)
        except ps.ParameterServerError as error:
            return error
        finally:
            client.fail("test")

    return in_threads([lambda r=r: one(r) for r in range(len(works))])  # type: ignore[misc]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (torch.zeros(3, 2), r"gave shape \[\d, \d\], party \d \[\d, \d\]"),
        (torch.zeros(2, 3, dtype=torch.float64), "gave dtype float"),
    ],
)
def test_parties_that_disagree_are_all_told_in_what(other: Tensor, said: str) -> None:
    with cluster(1, 2, parties=2) as c:
        found = errors_of(
            c,
            lambda client: client.reduce("z", 7, torch.zeros(2, 3)),
            lambda client: client.reduce("z", 7, other),
        )
    for error in found:
        with pytest.raises(MismatchError, match=said):
            raise error
        assert "reduce 'reduce/z', key 7, of replica 0" in str(error)


def test_a_party_that_does_not_come_is_named() -> None:
    asked = threading.Event()

    def late(client: ps.Client) -> None:
        assert asked.wait(30)

    with cluster(1, 2, parties=2) as c:

        def early(rank: int) -> None:
            try:
                with c.connect(f"worker-{rank}", wait_timeout=0.3) as client:
                    if rank == 1:
                        return late(client)
                    client.reduce("z", 0, torch.zeros(1))
            finally:
                if rank == 0:
                    asked.set()

        with pytest.raises(WaitTimeoutError, match=r"waits for party 1 \(worker-1 .*: joined\)"):
            in_threads([lambda: early(0), lambda: early(1)])


def test_a_lost_party_ends_the_wait_of_the_others() -> None:
    gone = threading.Event()

    def dies(client: ps.Client) -> None:
        client._registry.became_active(0, True)
        client.barrier("there")
        assert gone.wait(30)
        client._session.stop()  # no heartbeat any more, and no word

    def waits(client: ps.Client) -> Tensor:
        client.barrier("there")
        gone.set()
        return client.reduce("z", 0, torch.zeros(1))

    with cluster(1, 3, parties=3, lease_s=1.0) as c:
        found = errors_of(c, waits, dies, waits)
    for error in (found[0], found[2]):
        with pytest.raises(FencedError, match=r"worker-1.* was lost"):
            raise error


def test_a_party_that_has_finished_ends_the_wait_of_the_others() -> None:
    with cluster(1, 2, parties=2) as c:
        found = errors_of(
            c, lambda client: client.reduce("z", 0, torch.zeros(1)), lambda client: client.finish()
        )
    with pytest.raises(InvalidRequestError, match=r"party 1 \(worker-1\) has finished"):
        raise found[0]


def test_sums_that_nobody_collects_are_bounded() -> None:
    """Names that are used once keep their sums: beyond the limit that is an error."""

    def work(client: ps.Client) -> None:
        for step in range(50):
            client.reduce(f"z{step}", 0, torch.zeros(1000))

    with cluster(1, 2, parties=2) as c:
        c.servers[0].reduces._limit = Limits(collective_bytes=20_000).collective_bytes
        found = errors_of(c, work, work)
    assert any(isinstance(error, ResourceError) for error in found)
    assert "the limit of 20000" in " ".join(map(str, found))


def test_names_without_end_are_refused() -> None:
    """A name keeps its last sum, however small."""

    def work(client: ps.Client) -> None:
        for number in range(100):
            client.reduce(f"z{number}", 0, torch.zeros(0))

    with cluster(1, 2, parties=2) as c:
        c.servers[0].reduces._limit = 20 << 10
        found = errors_of(c, work, work)
    assert any(isinstance(error, ResourceError) for error in found)


def test_what_cannot_be_is_refused_at_once() -> None:
    def work(client: ps.Client) -> None:
        with pytest.raises(ConfigurationError, match="name and key must have 1 to 255"):
            client.reduce("z" * 300, 0, torch.zeros(1))
        with pytest.raises(InvalidRequestError, match="convert the tensor first"):
            client.reduce("z", 0, torch.zeros(1, dtype=torch.complex64))
        with pytest.raises(InvalidRequestError, match="must be the parties of one replica"):
            client.party_sums.reduce("z", 1, torch.zeros(1), [1, 0])
        with pytest.raises(UnsupportedError, match="use backup=0"):
            client.register("g", {"w": torch.zeros(1)}, consistency=ps.Sync(backup=1))
        with pytest.raises(UnsupportedError, match="AllReduce with 2 parties"):
            client.register("g", {"w": torch.zeros(1)}, consistency=ps.AllReduce())
        alone = ps.Downpour(warm_start=5)
        with pytest.raises(UnsupportedError, match="use warm_start=0"):
            client.optimizer(torch.nn.Linear(1, 1), torch.optim.SGD, lr=0.1, consistency=alone)

    with cluster(1, 2, parties=2) as c:
        c.workers(work)
        with (
            c.connect(reader=True) as reader,
            pytest.raises(UsageError, match="a reader may only read"),
        ):
            reader.reduce("z", 0, torch.zeros(1))


def test_who_is_who() -> None:
    with cluster(1, 6, parties=3) as c:
        found = c.workers(lambda x: (x.rank, x.party, x.parties, x.replica))
    assert found == [(r, r % 3, 3, r // 3) for r in range(6)]


def test_groups_belong_to_a_party() -> None:
    def work(client: ps.Client) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        shape = (client.party + 1,)
        group = client.register("w", {"w": torch.full(shape, float(client.rank))})
        group.push_pull({"w": torch.ones(shape)})
        client.barrier("pushed")
        return client.state_dict("w"), client.state_dict(f"w/party-{1 - client.party}")

    with cluster(2, 4, parties=2) as c:
        found = c.workers(work)
    for rank, (own, other) in enumerate(found):
        party = rank % 2
        assert torch.equal(own["w"], torch.full((party + 1,), party + 2.0))
        assert torch.equal(other["w"], torch.full((2 - party,), 3.0 - party))
