"""int8 and int4 blocks: the codec, what a push of them does, and what is refused."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import paramserver as ps
from paramserver.errors import ConfigurationError, NonFiniteError, UnsupportedError
from paramserver.v1 import common_pb2
from paramserver.v1 import server_pb2 as pb
from paramserver.wire.blocks import BLOCK, LEVELS, pack, unpack, wire_bytes
from paramserver.worker.group import Group
from tests.cluster import Cluster, cluster
from tests.stock import StockWorker

SIZE = 300_001  # two slices, the second of an odd number of elements
WIRES = ["int8", "int4"]
LOCK = threading.Lock()  # workers are threads here, and torch has one generator
KINDS = sorted(LEVELS)


def scales_of(values: Tensor, dtype: str) -> Tensor:
    """The scale of each element's block, from the definition."""
    padded = F.pad(values.double(), (0, -len(values) % BLOCK)).view(-1, BLOCK)
    highest = padded.abs().amax(1) if len(padded) else padded.new_empty(0)
    return (highest / LEVELS[dtype]).repeat_interleave(BLOCK)[: len(values)]


@settings(max_examples=60, deadline=None)
@given(
    size=st.sampled_from([0, 1, 2, 3, 255, 256, 257, 511, 512, 1023]),
    dtype=st.sampled_from(KINDS),
    kind=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    power=st.integers(-37, 37),
    seed=st.integers(0, 1 << 30),
)
def test_no_element_moves_by_more_than_half_a_scale(
    size: int, dtype: str, kind: torch.dtype, power: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(size, generator=generator, dtype=torch.float64) * 10.0**power
    values[torch.rand(size, generator=generator) < 0.3] = 0
    values = values.clamp(-torch.finfo(kind).max, torch.finfo(kind).max).to(kind)
    packed = pack(values, dtype)
    assert (packed.dtype, packed.numel()) == (torch.uint8, wire_bytes(size, dtype))
    arrived = unpack(packed, dtype, size)
    assert (arrived.dtype, arrived.numel()) == (torch.float32, size)
    # The smallest scale is the smallest normal number; one unit in the last place on top.
    scales = scales_of(values, dtype).clamp_min(torch.finfo(torch.float32).tiny)
    lost = (arrived.double() - values.double()).abs()
    assert bool((lost <= scales * 0.5 + values.double().abs() * 2.0**-22).all())


@pytest.mark.parametrize("dtype", KINDS)
def test_what_blocks_can_say_exactly_arrives_exactly(dtype: str) -> None:
    levels = LEVELS[dtype]
    values = torch.arange(-levels, levels + 1).repeat(3).float() * 0.25
    assert torch.equal(unpack(pack(values, dtype), dtype, len(values)), values)
    assert not unpack(pack(torch.zeros(700), dtype), dtype, 700).any()


def test_bytes_per_element() -> None:
    assert wire_bytes(1 << 18, "int8_block") / (1 << 18) == pytest.approx(1.016, abs=1e-3)
    assert wire_bytes(1 << 18, "int4_block") / (1 << 18) == pytest.approx(0.516, abs=1e-3)
    assert wire_bytes(3, "int4_block") == 2 + 4


# On a cluster


def push_in(client: ps.Client, wire: str, values: Tensor, **how: Any) -> Group:
    """A group of one tensor whose pushes travel in blocks."""
    model = [("w", nn.Parameter(values))]
    made = client.optimizer(model, torch.optim.SGD, lr=1.0, wire_dtype=wire, **how)
    return made.group


@pytest.mark.parametrize("consistency", [ps.Sync(), ps.Stale(2), ps.Async("none")], ids=str)
@pytest.mark.parametrize("wire", WIRES)
def test_gradients_arrive_as_their_blocks_say(wire: str, consistency: Any) -> None:
    gradient = torch.randn(SIZE, generator=torch.Generator().manual_seed(1))
    with cluster(2) as c, c.connect() as client:
        group = push_in(client, wire, torch.zeros(SIZE), consistency=consistency)
        moved = -group.push_pull({"w": gradient})["w"]
        for piece in group.plan.slices:
            part = gradient[piece.start : piece.stop]
            arrived = unpack(pack(part, f"{wire}_block"), f"{wire}_block", piece.elements)
            assert torch.equal(moved[piece.start : piece.stop], arrived)
        assert group.last is not None
        sent = sum(wire_bytes(s.elements, f"{wire}_block") for s in group.plan.slices)
        assert (group.last.sent_bytes, group.last.received_bytes) == (sent, 4 * SIZE)
        assert sent < (1.04 if wire == "int8" else 0.54) * SIZE


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_groups_of_other_floats(dtype: torch.dtype) -> None:
    """Whole numbers up to the levels are exact in every type."""
    gradient = (torch.arange(1000) % 15 - 7).to(dtype)
    with cluster() as c, c.connect() as client:
        group = push_in(client, "int4", torch.zeros(1000, dtype=dtype))
        assert torch.equal(group.push_pull({"w": gradient})["w"], -gradient)


def test_what_int4_sent_and_what_it_kept_is_what_was_pushed() -> None:
    generator = torch.Generator().manual_seed(2)
    total = torch.zeros(5000, dtype=torch.float64)
    with cluster(2) as c, c.connect() as client:
        group = push_in(client, "int4", torch.zeros(5000, dtype=torch.float64))
        for _ in range(30):
            gradient = torch.randn(5000, generator=generator, dtype=torch.float64)
            total += gradient
            group.push({"w": gradient})
        sent = -group.pull()["w"]
        (residual,) = group.uplink.residuals.values()
        assert bool(residual.any())
        torch.testing.assert_close(sent + residual, total, rtol=0, atol=1e-5)
        # Without what was kept, the sum of the rounding would be far off.
        assert float((sent - total).abs().max()) < 1.0


def test_int8_keeps_nothing() -> None:
    with cluster() as c, c.connect() as client:
        group = push_in(client, "int8", torch.zeros(50))
        group.push({"w": torch.randn(50)})
        assert group.uplink.residuals == {}


def test_a_push_that_does_not_count_leaves_the_residual() -> None:
    gradient = torch.linspace(0, 1, 100)
    with cluster() as c, c.connect() as client:
        group = push_in(client, "int4", torch.zeros(100))
        group.push_pull({"w": gradient})
        (before,) = group.uplink.residuals.values()
        group.push_pull({"w": gradient}, weight=0)
        assert group.uplink.residuals[0] is before
        leaving = group.uplink.leave({"w": gradient}, 2)
        assert not torch.equal(group.uplink.residuals[0], before)
        leaving.end(False)
        leaving.end(True)  # the first word holds
        assert group.uplink.residuals[0] is before
        first, second = (group.uplink.leave({"w": gradient}, clock) for clock in (2, 3))
        first.end(False)  # behind a later push only the difference can be undone
        second.end(False)
        torch.testing.assert_close(group.uplink.residuals[0], before)


def test_a_dropped_push_leaves_the_residual() -> None:
    closed = threading.Event()

    def work(client: ps.Client) -> float:
        group = push_in(client, "int4", torch.zeros(100), consistency=ps.Sync(backup=1))
        client.barrier("start")
        if client.rank == 0:
            group.push_pull({"w": torch.linspace(0, 1, 100)})
            closed.set()
        else:
            assert closed.wait(20)
            assert group.push({"w": torch.linspace(0, 1, 100)}).dropped
            group.settle()
        return float(group.uplink.residuals[0].abs().sum())

    with cluster(1, 2) as c:
        kept, dropped = c.workers(work)
    assert kept > 0
    assert dropped == 0


def test_a_refused_push_leaves_the_residual() -> None:
    with cluster() as c, c.connect() as client:
        group = push_in(client, "int4", torch.zeros(100))
        group.push({"w": torch.linspace(0, 1, 100)})
        (before,) = group.uplink.residuals.values()
        group.clock += 5
        with pytest.raises(ps.errors.ClockError):
            group.push({"w": torch.ones(100) / 3})
        assert group.uplink.residuals[0] is before


def test_blocks_over_breaking_connections_are_applied_once() -> None:
    """Whole numbers are exact in blocks, so a sum tells a slice applied twice or not at all."""
    steps, size = 12, 600_000
    gradient = (torch.arange(size) % 15 - 7).float()

    def work(client: ps.Client) -> Tensor:
        group = push_in(client, "int4", torch.zeros(size), consistency=ps.Async("none"))
        client.barrier("stored")
        if client.rank == 0:  # first values are not in blocks: from here on budgets are small
            c.run(break_connections(c))
        for _ in range(steps):
            group.push_pull({"w": gradient})
        client.barrier("end")
        return group.read()["w"]

    async def break_connections(c: Cluster) -> None:
        for proxy in c.proxies or ():
            proxy.cut_after = (200_000, 600_000)
            proxy.cut_all()

    with cluster(2, 2, proxies=True) as c:
        results = c.workers(work)
        assert sum(proxy.cuts for proxy in c.proxies or ()) >= 8
    for found in results:
        assert torch.equal(found, -2 * steps * gradient)


def test_overlap_sends_int8_and_refuses_int4() -> None:
    with cluster() as c, c.connect() as client:
        model = nn.Linear(3, 1, bias=False)
        nn.init.zeros_(model.weight)
        optimizer = client.optimizer(
            model, torch.optim.SGD, lr=1.0, wire_dtype="int8", overlap=True
        )
        model(torch.tensor([127.0, -3.0, 5.0])).backward()
        optimizer.step()
        assert model.weight.tolist() == [[-127.0, 3.0, -5.0]]
        assert optimizer.last is not None
        assert optimizer.last.sent_bytes == 3 + 4
        with pytest.raises(UnsupportedError, match="overlap=True with wire_dtype='int4'"):
            client.optimizer(
                nn.Linear(2, 2), torch.optim.SGD, lr=1.0, group="h", wire_dtype="int4", overlap=True
            )


def test_buffers_and_counters_travel_as_they_are() -> None:
    def work(client: ps.Client) -> dict[str, Any]:
        model = nn.BatchNorm1d(3)
        optimizer = client.optimizer(model, torch.optim.SGD, lr=0.1, wire_dtype="int4")
        model(torch.tensor([[1.0, 2.0, 3.0], [2.0, 4.0, 9.0]])).sum().backward()
        optimizer.step()
        return client.state_dict()

    with cluster() as c:
        (state,) = c.workers(work)
    assert state["running_mean"].tolist() == pytest.approx([0.15, 0.3, 0.6])
    assert int(state["num_batches_tracked"]) == 1


# What is refused


def test_what_is_not_finite_never_leaves() -> None:
    with cluster() as c, c.connect() as client:
        group = push_in(client, "int4", torch.zeros(3, dtype=torch.float64))
        with pytest.raises(NonFiniteError, match="NaN or infinity in 'w' at clock 0"):
            group.push({"w": torch.tensor([1.0, math.nan, 0.0], dtype=torch.float64)})
        with pytest.raises(NonFiniteError, match="scales are float32"):
            group.push({"w": torch.tensor([1.0, 1e300, 0.0], dtype=torch.float64)})
        assert (group.clock, group.uplink.residuals) == (0, {})
        assert not group.read()["w"].any()


def test_other_wire_types_are_refused() -> None:
    with (
        cluster() as c,
        c.connect() as client,
        pytest.raises(ConfigurationError, match="must be one of None, 'bf16', 'fp16', 'int8'"),
    ):
        push_in(client, "int2", torch.zeros(3))


def stock_push(worker: StockWorker, payload: bytes, wire: int) -> list[pb.Record]:
    """A push of one slice whose bytes are these."""
    data = pb.Data(slices=[0], sizes=[len(payload)], checksums=[xxhash.xxh3_64_intdigest(payload)])
    push = worker.push(0, wire_dtype=wire)
    return worker.ask([pb.Record(request=7, push=push), pb.Record(request=7, data=data)], payload)


def test_any_client_can_write_blocks() -> None:
    """By the words of the protocol, with nothing of ours: 300 elements are two blocks."""
    values = np.arange(-150, 150, dtype=np.float32) % 16 - 8
    scales = np.array([0.5, 2.0], "<f4")
    numbers = values.astype(np.int8)
    nibbles = numbers.view(np.uint8) & 15
    payload = scales.tobytes() + (nibbles[0::2] | nibbles[1::2] << 4).tobytes()
    with cluster() as c:
        worker = StockWorker(c.address, 300)
        answers = stock_push(worker, payload, common_pb2.DTYPE_INT4_BLOCK)
        assert answers[-1].WhichOneof("body") == "done"
        assert np.array_equal(worker.pull(), values * np.repeat(scales, BLOCK)[:300])
        worker.close()


@pytest.mark.parametrize(
    ("payload", "wire", "reason"),
    [
        (bytes(300 + 7), common_pb2.DTYPE_INT8_BLOCK, "307 bytes, must be 308"),
        (bytes(300 + 8), common_pb2.DTYPE_INT4_BLOCK, "308 bytes, must be 158"),
        (b"", common_pb2.DTYPE_INT8_BLOCK, "0 bytes, must be 308"),
        (b"\0\0\xc0\x7f" * 2 + b"\1" * 300, common_pb2.DTYPE_INT8_BLOCK, "NaN or infinity"),
        (bytes(300), common_pb2.DTYPE_INT8, "wire_dtype number 8: must be one of"),
    ],
    ids=["short", "other type", "empty", "NaN scale", "no wire type"],
)
def test_a_malformed_push_changes_nothing(payload: bytes, wire: int, reason: str) -> None:
    with cluster() as c:
        worker = StockWorker(c.address, 300)
        answers = stock_push(worker, payload, wire)
        (failure,) = [r.failure for r in answers if r.HasField("failure")]
        assert reason in failure.message
        assert not worker.pull().any()
        worker.close()


def test_values_do_not_travel_in_blocks() -> None:
    with cluster() as c:
        worker = StockWorker(c.address, 300)
        pull = pb.Pull(
            worker=worker.identity,
            group="g",
            map_version=worker.map.version,
            wire_dtype=common_pb2.DTYPE_INT8_BLOCK,
            latest=True,
        )
        (answer,) = worker.ask([pb.Record(request=9, pull=pull)])
        assert "wire_dtype number 11: must be one of 0 (), 3 (bfloat16)" in answer.failure.message
        worker.close()


# What is learnt


def learnt(wire: str | None) -> float:
    """Test accuracy on digits, in percent, after a few epochs of two synchronous workers."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[:1347], order[1347:]

    def work(client: ps.Client) -> float:
        with LOCK:
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        optimizer = client.optimizer(model, torch.optim.SGD, lr=0.1, momentum=0.9, wire_dtype=wire)
        loader = client.loader(TensorDataset(x[train], y[train]), batch_size=32)
        for _ in client.epochs(15):
            for inputs, targets in loader:
                optimizer.zero_grad()
                F.cross_entropy(model(inputs), targets).backward()
                optimizer.step()
        client.barrier("trained")
        return 100 * float((model(x[test]).argmax(1) == y[test]).float().mean())

    with cluster(2, 2) as c:
        return c.workers(work)[0]


@pytest.mark.slow
def test_digits_are_learnt_as_well() -> None:
    plain = learnt(None)
    assert plain > 96
    for wire in WIRES:
        assert learnt(wire) > plain - 0.3, wire
