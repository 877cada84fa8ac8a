"""A group by hand: what pulls return, what travels, what a push tells."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import paramserver as ps
from tests.cluster import cluster, in_threads

SIZE = 300_000


@pytest.fixture
def client() -> Iterator[ps.Client]:
    with cluster(2, 1) as c, c.connect() as made:
        yield made


def test_pulls_are_tensors_of_their_own(client: ps.Client) -> None:
    group = client.register("g", {"w": torch.zeros(3)})
    before = group.pull()["w"]
    group.push({"w": torch.ones(3)})
    after = group.pull()["w"]
    after += 5
    assert torch.equal(before, torch.zeros(3))
    assert torch.equal(group.pull()["w"], torch.ones(3))


def test_unchanged_slices_do_not_travel_again(client: ps.Client) -> None:
    values = {"moves": torch.zeros(SIZE), "rests": torch.ones(SIZE)}
    group = client.register("g", values)
    group.pull()
    group.push_pull({"moves": torch.ones(SIZE)})
    assert group.last is not None
    assert group.last.received_bytes == SIZE * 4
    result = group.push_pull({})
    assert group.last.received_bytes == 0
    assert torch.equal(result["moves"], torch.ones(SIZE))
    assert torch.equal(result["rests"], torch.ones(SIZE))


def test_a_tensor_that_was_written_to_is_filled_again(client: ps.Client) -> None:
    group = client.register("g", {"w": torch.ones(SIZE)})
    into = {"w": torch.zeros(SIZE)}
    group.push_pull({}, into=into)
    into["w"].zero_()
    group.push_pull({}, into=into)
    assert torch.equal(into["w"], torch.ones(SIZE))


def test_a_push_tells_what_it_did(client: ps.Client) -> None:
    group = client.register("g", {"w": torch.zeros(SIZE)}, consistency=ps.Async())
    for clock in range(3):
        result = group.push({"w": torch.ones(SIZE)})
        assert (result.clock, result.version) == (clock, clock + 1)
        assert result.sent_bytes == SIZE * 4
        assert result.staleness == clock  # never pulled: all are computed on the first values
        assert not result.dropped


def test_a_bare_sync_push_has_no_version_yet(client: ps.Client) -> None:
    group = client.register("g", {"w": torch.zeros(3)})
    assert group.push({"w": torch.ones(3)}).version is None
    group.push_pull({"w": torch.ones(3)})
    assert group.last is not None
    assert group.last.version == 2


def test_pushes_in_flight_are_applied_in_order(client: ps.Client) -> None:
    group = client.register("g", {"w": torch.zeros(3)}, torch.optim.SGD, lr=1.0, momentum=0.5)
    futures = [group.push_async({"w": torch.full((3,), float(i))}) for i in range(100)]
    assert [f.result(20).clock for f in futures] == list(range(100))
    value, velocity = 0.0, 0.0
    for i in range(100):
        velocity = 0.5 * velocity + i
        value -= velocity
    assert torch.allclose(group.pull()["w"], torch.full((3,), value))


@pytest.mark.parametrize(
    ("tensors", "error", "words"),
    [
        ({"v": torch.ones(3)}, ps.errors.InvalidRequestError, "no tensor 'v'"),
        ({"w": torch.ones(4)}, ps.errors.InvalidRequestError, "registered was"),
        ({"w": torch.tensor([1.0, float("nan"), 1.0])}, ps.errors.NonFiniteError, "NaN or inf"),
    ],
    ids=["name", "shape", "nan"],
)
def test_a_bad_push_changes_nothing(
    client: ps.Client, tensors: dict[str, Tensor], error: type[Exception], words: str
) -> None:
    group = client.register("g", {"w": torch.zeros(3)})
    with pytest.raises(error, match=words):
        group.push_pull(tensors)
    assert group.clock == 0
    group.push_pull({"w": torch.ones(3)})
    assert torch.equal(group.pull()["w"], torch.ones(3))


def test_a_clock_does_not_wait_for_a_backup() -> None:
    steps = 4
    over = threading.Event()

    def work(client: ps.Client) -> Tensor | None:
        group = client.register("g", {"w": torch.zeros(3)}, consistency=ps.Sync(backup=1))
        client.barrier("start")
        if client.rank == 2:  # slow: its first push comes when the others have done all
            assert over.wait(20)
            group.push_pull({"w": torch.full((3,), 100.0)})
            assert group.last is not None
            dropped = group.last.dropped
            group.push_pull({"w": torch.full((3,), 10.0)})
            assert dropped
            assert group.clock > steps
            return None
        for _ in range(steps):
            group.push_pull({"w": torch.ones(3)})
        done.append(client.rank)
        if len(done) == 2:
            over.set()
        over.wait(20)
        return group.read()["w"]

    done: list[int] = []
    with cluster(2, 3) as c:
        results = c.workers(work)
    assert results[0] is not None
    assert results[0][0] in (2.0 * steps, 2.0 * steps + 10)


def test_bf16_on_the_wire_keeps_float32_on_the_servers() -> None:
    def work(client: ps.Client) -> tuple[Tensor, int]:
        model = torch.nn.Linear(200, 200)
        with torch.no_grad():
            model.weight.fill_(1.0)
        optimizer = client.optimizer(
            model, torch.optim.SGD, lr=2.0**-12, wire_dtype="bf16", buffers="local"
        )
        for _ in range(8):
            optimizer.zero_grad()
            model.weight.grad = torch.ones_like(model.weight)
            optimizer.step()
        assert optimizer.last is not None
        return client.state_dict()["weight"], optimizer.last.sent_bytes

    with cluster(1, 1) as c:
        ((weight, sent),) = c.workers(work)
    assert torch.equal(weight, torch.full((200, 200), 1.0 - 8 * 2.0**-12))  # bf16 has 8 bits
    assert sent == 200 * 200 * 2


def test_two_clients_in_threads_see_one_another() -> None:
    with cluster(1, 2) as c:

        def one(name: str) -> float:
            with c.connect(name) as client:
                total = client.all_reduce(torch.tensor([float(client.rank + 1)]), "t", op="sum")
                return float(total)

        assert in_threads([lambda: one("worker-0"), lambda: one("worker-1")]) == [3.0, 3.0]


def test_results_of_collectives_do_not_pile_up() -> None:
    def work(client: ps.Client) -> float:
        total = 0.0
        for step in range(150):
            total += float(client.all_reduce(torch.ones(3), f"step-{step}", op="sum")[0])
        return total

    with cluster(1, 2) as c:
        assert c.workers(work) == [300.0, 300.0]
        assert len(c.servers[0].collectives._results) <= 64


def test_a_consistency_in_words_is_refused_with_the_cure(client: ps.Client) -> None:
    with pytest.raises(ps.errors.ConfigurationError, match="must be Sync"):
        client.register("g", {"w": torch.zeros(3)}, consistency="sync")  # type: ignore[arg-type]


def test_an_address_without_a_port_is_refused_at_once() -> None:
    with pytest.raises(ps.errors.ConfigurationError, match="must be HOST:PORT"):
        ps.connect("localhost")


def test_a_finished_push_holds_on_to_nothing(client: ps.Client) -> None:
    """Gradients of a large model must not wait for the collector of cycles."""
    group = client.register("g", {"w": torch.zeros(SIZE)})
    gc.disable()
    try:
        update = torch.ones(SIZE)
        gone = weakref.ref(update)
        group.push_pull({"w": update})
        del update
        assert gone() is None
    finally:
        gc.enable()
