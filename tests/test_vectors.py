"""Vectors on the servers: what they are, that each addition counts once, what is refused."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import pytest
import torch
from torch import Tensor

import paramserver as ps
from paramserver.errors import (
    InternalError,
    InvalidRequestError,
    NonFiniteError,
    NotFoundError,
    ResourceError,
    UnsupportedError,
    UsageError,
)
from paramserver.v1 import server_pb2 as pb
from tests.cluster import Cluster, cluster, in_threads

T = TypeVar("T")
ASYNC = ps.Async("none")


def tensors(seed: int = 0, scale: int = 1) -> dict[str, Tensor]:
    """Several slices, an empty one, two types; a buffer has no part in vectors."""
    made = torch.Generator().manual_seed(seed)
    return {
        "w": torch.randn(7_000 * scale, generator=made, dtype=torch.float64),
        "b": torch.randn(3, 5, generator=made, dtype=torch.float64),
        "none": torch.zeros(0, dtype=torch.float64),
        "single": torch.randn((), generator=made),
    }


def alone(work: Callable[[ps.Group], T], servers: int = 2) -> T:
    """``work`` with a group of ``tensors()`` on so many servers."""
    with cluster(servers, 1) as c:

        def one(client: ps.Client) -> T:
            return work(client.register("g", tensors(), consistency=ASYNC))

        return c.workers(one)[0]


@pytest.mark.parametrize("servers", [1, 2, 4])
def test_sums_and_products(servers: int) -> None:
    def work(group: ps.Group) -> tuple[dict[str, Tensor], list[float]]:
        group.lin("a", {"values": 2.0})
        group.lin("b", [(1.0, "a"), (-0.5, ""), (0.25, "a")])
        group.lin("b", {"b": 3.0, "a": 1.0})  # into one of its terms
        group.lin("zeros", [])
        return group.vector("b").pull(), group.dots([("a", "b"), ("b", ""), ("zeros", "b")])

    found, dots = alone(work, servers)
    wanted = {name: 8.0 * value for name, value in tensors().items()}
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)
    square = sum(float(v.double().square().sum()) for v in tensors().values())
    assert dots == pytest.approx([16 * square, 8 * square, 0.0], rel=1e-13)


def test_the_groups_own_values_are_a_vector() -> None:
    def work(group: ps.Group) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        group.pull()
        group.lin("twice", {"values": 2.0})
        group.lin("values", {"twice": 1.0})
        return group.pull(), group.vector("").pull()

    for found in alone(work):
        for name, value in tensors().items():
            assert torch.equal(found[name], 2 * value)


def test_a_part_counts_once_whoever_adds_it() -> None:
    def work(client: ps.Client) -> tuple[list[bool], ps.Group]:
        group = client.register("g", tensors(), consistency=ASYNC)
        if client.rank == 0:
            group.lin("sum", [])
        client.barrier("there")
        vector = group.vector("sum")
        parts = [(i, i + 3) for i in range(0, 30, 3)]
        counted = [vector.add(tensors(), part=part, total=0.1) for part in parts]
        client.barrier("added")
        tally = vector.tally()
        assert (tally.samples, tally.total) == (30, 1.0)
        found = vector.pull()
        for name, value in tensors().items():
            assert torch.allclose(found[name], 10 * value)
        client.barrier("seen")
        return counted, group

    with cluster(2, 3) as c:
        counted = [found for found, _ in c.workers(work)]
    for each in zip(*counted, strict=True):
        assert any(each)


def test_additions_over_breaking_connections_count_once() -> None:
    """Without a part, an addition counts by its number."""

    def work(client: ps.Client) -> Tensor:
        group = client.register("g", {"w": torch.zeros(400_000)}, consistency=ASYNC)
        if client.rank == 0:
            group.lin("sum", [])
        client.barrier("there")
        for _ in range(8):
            assert group.vector("sum").add({"w": torch.full((400_000,), 1.0 + client.rank)})
        client.barrier("added")
        found = group.vector("sum").pull()["w"]
        client.barrier("seen")
        return found

    with cluster(2, 2, proxies=True) as c:
        assert c.proxies is not None
        for proxy in c.proxies:
            proxy.cut_after = (200_000, 3_000_000)
        results = c.workers(work)
        assert sum(proxy.cuts for proxy in c.proxies) >= 2
    for found in results:
        assert torch.equal(found, torch.full((400_000,), 24.0))


def test_an_operation_sent_again_is_not_carried_out_again() -> None:
    with cluster(1, 1) as c, c.connect("worker-0") as client:
        group = client.register("g", {"w": torch.ones(3)}, consistency=ASYNC)
        (shard,) = group.plan.shards
        request = pb.VectorsRequest(
            worker=group.identity(),
            group="g",
            map_version=group.plan.map.version,
            operation=7,
            lin=[pb.Lin(out="values", terms=[pb.Term(coefficient=2.0, vector="values")])],
            dots=[pb.Dot(left="values", right="values")],
        )
        (service,) = c.servers

        async def send(number: int) -> list[float]:
            request.operation = number
            return list((await service.Vectors(request)).dots)

        assert [c.run(send(7)), c.run(send(7)), c.run(send(8))] == [[12.0], [12.0], [48.0]]
        with pytest.raises(InvalidRequestError, match="operation 8 of this worker came before"):
            c.run(send(7))
        assert shard.slices[0].elements == 3
        assert torch.equal(group.read()["w"], torch.full((3,), 4.0))


def test_a_request_that_is_refused_changes_nothing() -> None:
    def work(group: ps.Group) -> None:
        group.lin("a", {"values": 1.0})
        for refused, match in (
            (lambda: group.lin("b", {"nobody": 1.0}), "no vector 'nobody'; it has a, values"),
            (lambda: group.dots([("a", "nobody")]), "no vector 'nobody'"),
            (lambda: group.vector("nobody").pull(), "no vector 'nobody'"),
            (lambda: group.vector("nobody").add(tensors()), "no vector 'nobody'"),
            (lambda: group.vector("nobody").tally(), "no vector 'nobody'"),
        ):
            with pytest.raises(NotFoundError, match=match):
                refused()
        for call, match in (
            (lambda: group.lin("..", {}), "name"),
            (lambda: group.lin("b", {"a": float("inf")}), "must be finite"),
            (lambda: group.drop("a", "values"), "own values stay"),
            (lambda: group.vector("a").add({"x": torch.zeros(3)}), "no tensor 'x'"),
            (lambda: group.vector("a").add({"b": torch.zeros(3)}), "shape"),
        ):
            with pytest.raises(InvalidRequestError, match=match):
                call()
        with pytest.raises(NonFiniteError):
            group.vector("a").add({"single": torch.tensor(torch.nan)})
        assert group.vectors.operate(names=True).names == ["a"]
        for name, value in group.vector("a").pull().items():
            assert torch.equal(value, tensors()[name])
        group.drop("a", "nobody")
        assert group.vectors.operate(names=True).names == []

    alone(work)


def test_a_server_looks_for_itself_at_what_is_added() -> None:
    """Where the group takes NaN, no worker looks; a sum with NaN would be lost all the same."""

    def work(client: ps.Client) -> None:
        group = client.register("g", tensors(), consistency=ASYNC, on_nonfinite="apply")
        group.lin("a", [])
        with pytest.raises(NonFiniteError, match="added to vector 'a'; nothing was added"):
            group.vector("a").add({"single": torch.tensor(torch.nan)})
        assert float(group.vector("a").pull()["single"]) == 0.0

    with cluster(1, 1) as c:
        c.workers(work)


def test_buffers_have_no_part_in_vectors() -> None:
    with cluster(1, 1) as c, c.connect("worker-0") as client:
        model = torch.nn.BatchNorm1d(3)
        client.optimizer(model, torch.optim.SGD, lr=1.0, consistency=ASYNC)
        group = client._registry.find("model")
        group.lin("a", {"values": 1.0})
        assert set(group.vector("a").pull()) == {"weight", "bias"}
        with pytest.raises(UnsupportedError, match="running_mean"):
            group.vector("a").add({"running_mean": torch.zeros(3)})


def limited(c: Cluster, **limits: int) -> None:
    for service in c.servers:
        service.vectors.budget.limits = replace(service.vectors.budget.limits, **limits)


def test_vectors_and_their_bytes_are_bounded() -> None:
    with cluster(1, 1) as c, c.connect("worker-0") as client:
        group = client.register("g", {"w": torch.ones(1000)}, consistency=ASYNC)
        limited(c, vectors=2)
        group.lin("a", [])
        group.lin("b", [])
        group.lin("b", {"a": 1.0})
        with pytest.raises(ResourceError, match="at most 2 are allowed; drop some"):
            group.lin("c", [])
        group.drop("a", "b")
        limited(c, vectors=10, vector_bytes=9_000)
        group.lin("a", [])
        group.lin("b", [])
        with pytest.raises(ResourceError, match="the limit of 9000"):
            group.lin("c", [])
        with pytest.raises(ResourceError, match="the limit of 9000"):  # bytes on their way as well
            group.vector("b").add({"w": torch.ones(1000)})
        group.drop("a")
        group.vector("b").add({"w": torch.ones(1000)})
        assert c.servers[0].vectors.budget.held == 4_000


def test_servers_that_counted_differently_are_found_out() -> None:
    def work(group: ps.Group) -> None:
        group.lin("sum", [])
        group.vector("sum").add({"single": torch.tensor(1.0)}, part=(0, 4))
        for service in c.servers[:1]:
            service.vectors.of(c.run(_group(service))).vectors["sum"].parts[4, 6] = 0.0
        with pytest.raises(InternalError, match="different samples"):
            group.vector("sum").tally()

    async def _group(service: object) -> object:
        return await service._groups["g"]  # type: ignore[attr-defined]

    with cluster(2, 1) as c:
        c.workers(lambda client: work(client.register("g", tensors(), consistency=ASYNC)))


def test_a_reader_may_pull_a_vector_and_no_more() -> None:
    with cluster(1, 1) as c, c.connect("worker-0") as client:
        group = client.register("g", {"w": torch.ones(3)}, consistency=ASYNC)
        group.lin("a", {"values": 5.0})
        with ps.connect(c.address, reader=True) as reader:
            seen = reader._registry.find("g")
            assert torch.equal(seen.vector("a").pull()["w"], torch.full((3,), 5.0))
            with pytest.raises(UsageError, match="reader"):
                seen.lin("a", [])


def test_operations_and_additions_side_by_side() -> None:
    def work(client: ps.Client) -> float:
        group = client.register("g", {"w": torch.ones(1000)}, consistency=ASYNC)
        client.barrier("there")
        name = f"v{client.rank}"
        group.lin(name, [])
        threads = [
            threading.Thread(target=group.vector(name).add, args=({"w": torch.ones(1000)},))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        group.lin("other", {"values": 1.0})
        for thread in threads:
            thread.join(30)
        return group.dots([(name, "other")])[0]

    with cluster(2, 2) as c:
        assert c.workers(work) == [8000.0, 8000.0]


def test_a_lost_worker_operates_no_more() -> None:
    with cluster(1, 1) as c:
        old = c.connect("worker-0")
        group = old.register("g", {"w": torch.ones(3)}, consistency=ASYNC)
        group.lin("a", {"values": 1.0})
        with c.connect("worker-0") as new:
            new.register("g", {"w": torch.ones(3)}, consistency=ASYNC)
            calls: list[Callable[[], object]] = [
                lambda: group.lin("a", {"a": 2.0}),
                lambda: group.vector("a").add({"w": torch.ones(3)}),
            ]
            for call in calls:
                with pytest.raises(ps.errors.FencedError):
                    in_threads([call])
            assert torch.equal(new._registry.find("g").vector("a").pull()["w"], torch.ones(3))
        old.fail("fenced")
