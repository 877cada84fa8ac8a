"""NaN and infinity: refused, skipped or applied as the group says; numbers too large to square."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import paramserver as ps
from paramserver.core.slices import Slice, TensorSpec
from paramserver.errors import InvalidRequestError, MismatchError, NonFiniteError
from paramserver.ps.rules import Bucket
from paramserver.v1 import server_pb2 as pb
from tests.cluster import Cluster, cluster

NAN = float("nan")
SIZE = 300_000  # two slices: one on each of two servers
MODELS = [ps.Sync(), ps.Stale(1), ps.Async()]


def poisoned(at: int = SIZE - 1) -> Tensor:
    value = torch.ones(SIZE)
    value[at] = NAN
    return value


@pytest.mark.parametrize("consistency", MODELS, ids=str)
@pytest.mark.parametrize("rule", [None, torch.optim.Adam], ids=["add", "Adam"])
def test_rejected_names_tensor_and_clock_and_nothing_is_applied(
    consistency: Any, rule: Any
) -> None:
    with cluster(2, 1) as c, c.connect() as client:
        group = client.register("g", {"w": torch.zeros(SIZE)}, rule, consistency=consistency)
        group.push({"w": torch.ones(SIZE)})
        before = group.pull()["w"]
        with pytest.raises(NonFiniteError, match="'w' at clock 1"):
            group.push({"w": poisoned()})
        assert group.clock == 1
        assert torch.equal(group.read()["w"], before)
        group.push({"w": torch.ones(SIZE)})
        assert torch.isfinite(group.pull()["w"]).all()


@pytest.mark.parametrize("consistency", MODELS, ids=str)
@pytest.mark.parametrize("rule", [None, torch.optim.Adam], ids=["add", "Adam"])
@pytest.mark.parametrize("wire", [None, "int8"])
def test_skipped_is_a_push_of_nothing(consistency: Any, rule: Any, wire: str | None) -> None:
    with cluster(2, 1) as c, c.connect() as client:
        options: dict[str, Any] = {"consistency": consistency, "on_nonfinite": "skip"}
        if rule is None:
            group = client.register("g", {"w": torch.zeros(SIZE)}, **options)
        else:
            weight = nn.Parameter(torch.zeros(SIZE))
            made = client.optimizer([("w", weight)], rule, group="g", wire_dtype=wire, **options)
            group = made.group
        group.push({"w": torch.ones(SIZE)})
        before = group.pull()["w"]
        result = group.push({"w": poisoned()}, weight=5)
        assert (result.skipped, result.clock, group.clock) == (True, 1, 2)
        assert torch.equal(group.pull()["w"], before)
        assert not group.push({"w": torch.ones(SIZE)}).skipped
        assert client._session._figures.now()["skipped"] == 1.0


def test_applied_goes_through() -> None:
    with cluster(2, 1) as c, c.connect() as client:
        group = client.register("g", {"w": torch.zeros(SIZE)}, on_nonfinite="apply")
        group.push({"w": poisoned()})
        value = group.pull()["w"]
        assert value[-1].isnan()
        assert torch.equal(value[:-1], torch.ones(SIZE - 1))


@pytest.mark.parametrize(
    ("consistency", "overlap"),
    [
        (ps.Sync(), False),
        (ps.Sync(), True),
        (ps.AllReduce(), False),
        (ps.Local(1), False),
        (ps.Downpour(2, 1), False),
    ],
    ids=["sync", "overlap", "allreduce", "local", "downpour"],
)
def test_a_step_of_an_optimizer_is_skipped(consistency: Any, overlap: bool) -> None:
    with cluster(2, 1) as c, c.connect() as client:
        torch.manual_seed(0)
        layer = nn.Linear(3, 1)
        optimizer = client.optimizer(
            layer,
            torch.optim.SGD,
            lr=0.1,
            consistency=consistency,
            overlap=overlap,
            on_nonfinite="skip",
        )

        def step(x: Tensor) -> None:
            optimizer.zero_grad()
            layer(x).sum().backward()
            optimizer.step()

        step(torch.ones(1, 3))
        before = {n: t.clone() for n, t in client.state_dict().items()}
        step(torch.full((1, 3), NAN))
        assert all(torch.isfinite(p).all() for p in layer.parameters())
        assert optimizer.last is not None
        if isinstance(consistency, ps.Downpour):  # the good half of its sum is pushed
            before = client.state_dict()
        else:
            assert optimizer.last.skipped
        assert all(torch.equal(t, before[n]) for n, t in client.state_dict().items())
        step(torch.ones(1, 3))
        if isinstance(consistency, ps.Downpour):
            step(torch.ones(1, 3))
        after = client.state_dict()
        assert all(torch.isfinite(t).all() for t in after.values())
        assert not torch.equal(after["weight"], before["weight"])


@pytest.mark.parametrize("policy", ["reject", "skip", "apply"])
def test_rows_of_a_table(policy: Any) -> None:
    with cluster(2, 1) as c, c.connect() as client:
        table = client.table("t", 2, init=ps.Zeros(), optimizer=None, on_nonfinite=policy)
        ids, grads = torch.tensor([1, 7]), torch.tensor([[1.0, 1.0], [NAN, 1.0]])
        if policy == "reject":
            with pytest.raises(NonFiniteError, match="row 7"):
                table.push(ids, grads)
        else:
            assert table.push(ids, grads).skipped is (policy == "skip")
        got = table.pull(ids)
        assert bool(got.isnan().any()) is (policy == "apply")
        assert bool((got[0] == 1).all()) is (policy == "apply")


@pytest.mark.parametrize("policy", ["skip", "reject"])
def test_rows_of_a_model(policy: Any) -> None:
    with cluster(1, 1) as c, c.connect() as client:
        table = client.table("t", 2, optimizer=torch.optim.SGD, on_nonfinite=policy, lr=0.1)
        model = nn.Sequential(ps.Embedding(table), nn.Linear(2, 1))
        optimizer = client.optimizer(model, torch.optim.SGD, lr=0.1, on_nonfinite=policy)
        before = table.pull(torch.tensor([3]))
        (model(torch.tensor([3])) * NAN).sum().backward()
        if policy == "reject":
            with pytest.raises(NonFiniteError):
                optimizer.step()
        else:
            optimizer.step()
            assert table.last is not None
            assert table.last.skipped
        assert torch.equal(table.pull(torch.tensor([3])), before)
        assert all(torch.isfinite(p).all() for p in model.parameters())


def test_workers_must_agree() -> None:
    def work(client: ps.Client) -> str:
        policy: Any = "skip" if client.rank else "reject"
        try:
            client.register("g", {"w": torch.zeros(3)}, on_nonfinite=policy)
        except MismatchError as error:
            return str(error)
        return ""

    with cluster(1, 2) as c:
        said = c.workers(work)
    assert [s for s in said if "on_nonfinite is" in s]


def test_an_unknown_policy_is_refused() -> None:
    wrong: Any = "ignore"
    with (
        cluster(1, 1) as c,
        c.connect() as client,
        pytest.raises(InvalidRequestError, match="on_nonfinite='ignore': must be one of"),
    ):
        client.register("g", {"w": torch.zeros(3)}, on_nonfinite=wrong)


# Finite, and too large


def bucket(rule: str, optimizer: str, **options: float) -> Bucket:
    tensors = [TensorSpec("w", (2,), "float32", rule), TensorSpec("v", (2,), "float32", rule)]
    pieces = [Slice(0, 0, 0, 2, 8), Slice(1, 1, 0, 2, 8)]
    made = Bucket(pieces, tensors, optimizer, [options] if optimizer else [])
    for index in (0, 1):
        made.store(index, torch.zeros(2))
    return made


@pytest.mark.parametrize("way", ["close", "arrive"])
@pytest.mark.parametrize(
    ("rule", "optimizer"), [("step", "Adam"), ("step", "Adagrad"), ("step", "SGD"), ("add", "")]
)
def test_what_the_optimizer_would_overflow_on_is_left_out(
    way: str, rule: str, optimizer: str
) -> None:
    """A finite gradient whose square is infinite would end Adam's state for good."""
    made = bucket(rule, optimizer, **({"lr": 0.1} if optimizer else {}))
    huge, fine = torch.tensor([1e38, 1.0]), torch.ones(2)
    for gradients in ({0: huge, 1: fine}, {0: fine.clone(), 1: fine.clone()}):
        if way == "close":
            made.close([(1.0, {i: g.clone() for i, g in gradients.items()})])
        else:
            made.arrive({i: g.clone() for i, g in gradients.items()}, (), {}, "none")
    assert made.overflows == 1
    assert made.versions == {0: 3, 1: 3}
    assert torch.isfinite(made.values[0]).all()
    assert (made.values[0] != 0).all()  # the second step moved it: the state is sound
    once = bucket(rule, optimizer, **({"lr": 0.1} if optimizer else {}))
    once.close([(1.0, {0: fine.clone()})])
    assert torch.equal(made.values[0], once.values[0])


def test_a_sum_of_workers_that_overflows_is_left_out() -> None:
    made = bucket("step", "SGD", lr=0.1)
    parts = [(1.0, {0: torch.full((2,), 3e38)}) for _ in range(2)]
    made.close(parts)
    assert made.overflows == 1
    assert torch.equal(made.values[0], torch.zeros(2))


def test_a_row_too_large_is_left_out_alone() -> None:
    with cluster(1, 1) as c, c.connect() as client:
        table = client.table("t", 2, init=ps.Zeros(), optimizer=torch.optim.Adagrad, lr=0.1)
        ids = torch.arange(64)
        grads = torch.ones(64, 2)
        grads[5] = 1e30
        table.push(ids, grads)
        got = table.pull(ids)
        assert torch.equal(got[5], torch.zeros(2))
        assert (got[:5] < 0).all()
        assert (got[6:] < 0).all()
        assert counters(c) == (0, 1)


def counters(c: Cluster) -> tuple[int, int]:
    """Refused for NaN, and steps left out, as servers say for status."""
    described = [c.run(s.Describe(pb.DescribeRequest())) for s in c.servers]
    return (
        sum(d.non_finite for d in described),
        sum(g.overflows for d in described for g in d.groups),
    )
