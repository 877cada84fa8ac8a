"""Server-side rules: equal to torch bit for bit, sums and differences, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from paramserver.core.slices import TensorSpec, cut
from paramserver.errors import ConfigurationError, InvalidRequestError, UnsupportedError
from paramserver.ps.rules import DTYPES, OPTIMIZERS, Bucket, check_options, check_push_options
from paramserver.ps.rules import resolve as resolve_optimizer

UNDER_TEST: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.1, "weight_decay": 0.01}),
    ("SGD", {"lr": 0.1, "weight_decay": 0.01, "maximize": True}),
    ("Adam", {"lr": 0.01}),
    ("Adam", {"lr": 0.01, "amsgrad": True, "weight_decay": 0.01, "betas": [0.8, 0.99]}),
    ("AdamW", {"lr": 0.01, "decoupled_weight_decay": True}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.01, "initial_accumulator_value": 0.1}),
    ("RMSprop", {"lr": 0.01, "momentum": 0.9, "centered": True}),
    ("Adadelta", {}),
    ("Adamax", {}),
    ("NAdam", {}),
    ("RAdam", {}),
    ("ASGD", {"lr": 0.1, "t0": 2.0}),
    ("Rprop", {}),
]


class Group:
    """All slices of a group in buckets, as a few servers would hold them together."""

    def __init__(
        self,
        tensors: Sequence[TensorSpec],
        optimizer: str = "",
        param_groups: Sequence[Mapping[str, Any]] = ({},),
        elements: int = 7,
        buckets: int = 1,
    ) -> None:
        self.tensors = tensors
        self.slices = cut(tensors, elements)
        groups = param_groups if optimizer else ()
        self.buckets = [
            Bucket(self.slices[k::buckets], tensors, optimizer, groups) for k in range(buckets)
        ]

    def split(self, bucket: Bucket, values: Mapping[str, Tensor]) -> dict[int, Tensor]:
        found = {}
        for index in bucket.indices:
            piece = self.slices[index]
            whole = values.get(self.tensors[piece.tensor].name)
            if whole is not None:
                found[index] = whole.reshape(-1)[piece.start : piece.stop].clone()
        return found

    def store(self, values: Mapping[str, Tensor]) -> None:
        for bucket in self.buckets:
            for index, value in self.split(bucket, values).items():
                assert bucket.store(index, value)

    def close(
        self,
        contributions: Sequence[tuple[float, Mapping[str, Tensor]]],
        options: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        for bucket in self.buckets:
            bucket.close([(n, self.split(bucket, g)) for n, g in contributions], options)

    def arrive(
        self, gradients: Mapping[str, Tensor], late: int = 0, options: Sequence[Any] = ()
    ) -> list[float]:
        found = []
        for bucket in self.buckets:
            mine = self.split(bucket, gradients)
            bases = {index: bucket.versions[index] - late for index in mine}
            found.append(bucket.arrive(mine, options, bases, "inverse"))
        return found

    def values(self) -> dict[str, Tensor]:
        parts: dict[int, Tensor] = {}
        for bucket in self.buckets:
            parts.update(bucket.values)
        return {
            tensor.name: torch.cat(
                [parts[s.index] for s in self.slices if s.tensor == number]
            ).reshape(tensor.shape)
            for number, tensor in enumerate(self.tensors)
        }


def random(tensors: Sequence[TensorSpec], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        t.name: torch.randn(t.shape, generator=generator, dtype=torch.float64).to(DTYPES[t.dtype])
        for t in tensors
    }


def mean(contributions: Sequence[tuple[float, Mapping[str, Tensor]]]) -> dict[str, Tensor]:
    """The formula of the contract, written as a user would."""
    live = [(n, g) for n, g in contributions if n > 0]
    result: dict[str, Tensor] = {}
    for name in sorted({name for _, g in live for name in g}):
        like = next(g[name] for _, g in live if name in g)
        total = live[0][1].get(name, torch.zeros_like(like)).clone()
        for n, g in live[1:]:
            if name in g:
                total.add_(g[name], alpha=n / live[0][0])
        result[name] = total / sum(n / live[0][0] for n, _ in live)
    return result


def torch_step(
    parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, g: Mapping[str, Tensor]
) -> None:
    for name, value in parameters.items():
        value.grad = g[name].clone() if name in g else None
    optimizer.step()


def specs(dtype: str = "float32", rule: str = "step") -> list[TensorSpec]:
    return [
        TensorSpec("weight", (5, 7), dtype, rule),
        TensorSpec("bias", (3,), dtype, rule),
        TensorSpec("scale", (), dtype, rule),
        TensorSpec("none", (0, 4), dtype, rule),
    ]


def make(name: str, parameters: Any, options: Mapping[str, Any]) -> torch.optim.Optimizer:
    cls: Callable[..., torch.optim.Optimizer] = OPTIMIZERS[name]
    given = {k: v for k, v in options.items() if k != "decoupled_weight_decay"}
    return cls(parameters, **given)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("name", "options"), UNDER_TEST)
@pytest.mark.parametrize(
    ("workers", "elements", "buckets"), [(1, 64, 1), (2, 7, 1), (3, 5, 2), (3, 1, 3)]
)
def test_sync_equals_torch_bit_for_bit(
    name: str, options: dict[str, Any], dtype: str, workers: int, elements: int, buckets: int
) -> None:
    tensors = specs(dtype)
    group = Group(tensors, name, [options], elements, buckets)
    start = random(tensors, 0)
    group.store(start)
    parameters = {k: v.clone().requires_grad_() for k, v in start.items()}
    optimizer = make(name, parameters.values(), options)
    for clock in range(6):
        contributions = [
            (float(7 + 3 * rank - clock), random(tensors, 100 * clock + rank + 1))
            for rank in range(workers)
        ]
        torch_step(parameters, optimizer, mean(contributions))
        group.close(contributions)
    for key, value in group.values().items():
        assert torch.equal(value, parameters[key].detach()), key


@pytest.mark.parametrize(("name", "options"), UNDER_TEST)
def test_one_worker_on_arrival_equals_sequential_torch(name: str, options: dict[str, Any]) -> None:
    tensors = specs()
    group = Group(tensors, name, [options], 5, 2)
    start = random(tensors, 0)
    group.store(start)
    parameters = {k: v.clone().requires_grad_() for k, v in start.items()}
    optimizer = make(name, parameters.values(), options)
    for clock in range(6):
        gradients = random(tensors, clock + 1)
        torch_step(parameters, optimizer, gradients)
        assert group.arrive(gradients) == [0.0, 0.0]
    for key, value in group.values().items():
        assert torch.equal(value, parameters[key].detach()), key


def test_large_slices_equal_torch_wherever_they_are_cut() -> None:
    tensors = [TensorSpec("w", (100_003,), "float32")]
    start, options = random(tensors, 0), {"lr": 0.01}
    parameters = {k: v.clone().requires_grad_() for k, v in start.items()}
    optimizer = make("Adam", parameters.values(), options)
    group = Group(tensors, "Adam", [options], elements=33_331, buckets=2)
    group.store(start)
    for clock in range(3):
        contributions = [(7.0, random(tensors, clock)), (3.0, random(tensors, clock + 9))]
        torch_step(parameters, optimizer, mean(contributions))
        group.close(contributions)
    assert torch.equal(group.values()["w"], parameters["w"].detach())


def test_equal_weights_are_sum_over_workers() -> None:
    tensors = [TensorSpec("w", (9,), "float32")]
    group = Group(tensors, "SGD", [{"lr": 1.0}])
    group.store({"w": torch.zeros(9)})
    g = [random(tensors, k)["w"] for k in range(3)]
    group.close([(16.0, {"w": x}) for x in g])
    assert torch.equal(group.values()["w"], -((g[0] + g[1] + g[2]) / 3))


def test_contributors_of_weight_zero_are_left_out() -> None:
    tensors = [TensorSpec("w", (3,), "float32"), TensorSpec("seen", (), "int64", "maximum")]
    group = Group(tensors, "SGD", [{"lr": 1.0}])
    group.store({"w": torch.zeros(3), "seen": torch.tensor(1)})
    nothing = {"w": torch.full((3,), 7.0), "seen": torch.tensor(9)}
    group.close([(0.0, nothing), (5.0, {"w": torch.ones(3)}), (0.0, nothing)])
    assert group.values()["w"].tolist() == [-1.0] * 3
    assert group.values()["seen"] == 1
    group.close([(0.0, nothing)])
    assert group.values()["w"].tolist() == [-1.0] * 3
    assert group.buckets[0].versions == {0: 3, 1: 3}
    assert group.buckets[0].changed == {0: 2, 1: 1}


def test_a_gradient_that_one_worker_lacks_counts_as_zero() -> None:
    tensors = [TensorSpec("a", (2,), "float32"), TensorSpec("b", (2,), "float32")]
    group = Group(tensors, "SGD", [{"lr": 1.0}])
    group.store({"a": torch.zeros(2), "b": torch.zeros(2)})
    ones = torch.ones(2)
    group.close([(2.0, {"a": ones}), (6.0, {"b": ones * 4})])
    assert group.values()["a"].tolist() == [-0.25] * 2
    assert group.values()["b"].tolist() == [-3.0] * 2


def test_a_gradient_absent_from_all_is_not_stepped_as_in_torch() -> None:
    tensors = [TensorSpec("a", (2,), "float32"), TensorSpec("b", (2,), "float32")]
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.5}
    group = Group(tensors, "SGD", [options])
    start = random(tensors, 0)
    group.store(start)
    parameters = {k: v.clone().requires_grad_() for k, v in start.items()}
    optimizer = make("SGD", parameters.values(), options)
    for clock in range(4):
        g = random(tensors, clock + 1)
        if clock % 2:
            del g["b"]
        torch_step(parameters, optimizer, g)
        group.close([(1.0, g)])
    for key, value in group.values().items():
        assert torch.equal(value, parameters[key].detach())
    assert group.buckets[0].versions == {0: 5, 1: 5}
    assert group.buckets[0].changed == {0: 5, 1: 4}


def test_param_groups_and_a_learning_rate_that_changes() -> None:
    tensors = [
        TensorSpec("a", (6,), "float32", param_group=1),
        TensorSpec("b", (6,), "float32", param_group=0),
    ]
    registered = [{"lr": 0.5, "momentum": 0.9}, {"lr": 0.1, "weight_decay": 0.1}]
    group = Group(tensors, "SGD", registered, elements=4, buckets=2)
    start = random(tensors, 0)
    group.store(start)
    parameters = {k: v.clone().requires_grad_() for k, v in start.items()}
    optimizer = torch.optim.SGD(
        [
            {"params": [parameters["b"]], **registered[0]},
            {"params": [parameters["a"]], **registered[1]},
        ],
        lr=1.0,
    )
    for clock in range(4):
        options = [{**g, "lr": g["lr"] / (clock + 1)} for g in registered] if clock < 3 else []
        for torch_group, now in zip(optimizer.param_groups, options or registered, strict=True):
            torch_group["lr"] = now["lr"]
        g = random(tensors, clock + 1)
        torch_step(parameters, optimizer, g)
        group.close([(1.0, g)], options)
    for key, value in group.values().items():
        assert torch.equal(value, parameters[key].detach())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_summed_in_float32_and_rounded_once(dtype: str) -> None:
    tensors = [TensorSpec("w", (50,), dtype), TensorSpec("d", (50,), dtype, "delta")]
    tensors.append(TensorSpec("s", (50,), dtype, "add"))
    group = Group(tensors, "SGD", [{"lr": 1.0}], elements=13)
    start = random(tensors, 0)
    group.store(start)
    contributions = [(float(k + 1), random(tensors, k + 1)) for k in range(4)]
    exact = mean([(n, {k: v.float() for k, v in g.items()}) for n, g in contributions])
    group.close(contributions)
    found = group.values()
    assert torch.equal(found["w"], start["w"] - exact["w"].to(DTYPES[dtype]))
    assert torch.equal(found["d"], (start["d"].float() + exact["d"]).to(DTYPES[dtype]))
    total = start["s"].float()
    for _, g in contributions:
        total += g["s"].float()
    assert torch.equal(found["s"], total.to(DTYPES[dtype]))


def test_gradients_of_a_narrower_wire_are_aggregated_in_the_tensors_type() -> None:
    tensors = [TensorSpec("w", (20,), "float32")]
    group = Group(tensors, "SGD", [{"lr": 1.0}])
    group.store({"w": torch.zeros(20)})
    sent = [random(tensors, k)["w"].bfloat16() for k in range(3)]
    expected = mean([(float(k + 1), {"w": g.float()}) for k, g in enumerate(sent)])["w"]
    group.close([(float(k + 1), {"w": g}) for k, g in enumerate(sent)])
    assert torch.equal(group.values()["w"], -expected)
    group.arrive({"w": sent[0]})
    assert torch.equal(group.values()["w"], -expected - sent[0].float())


@pytest.mark.parametrize("dtype", ["float32", "int64"])
def test_sums_take_every_push_whatever_its_weight(dtype: str) -> None:
    tensors = specs(dtype, "add")
    together, one_by_one = Group(tensors), Group(tensors)
    start = random(tensors, 0)
    together.store(start)
    one_by_one.store(start)
    pushes = [random(tensors, k + 1) for k in range(3)]
    together.close([(float(k), g) for k, g in enumerate(pushes)])
    for g in pushes:
        one_by_one.arrive(g, late=5)
    for key, value in together.values().items():
        assert torch.equal(value, one_by_one.values()[key])


def test_buffers() -> None:
    tensors = [
        TensorSpec("running_mean", (2,), "float32", "delta"),
        TensorSpec("batches", (), "int64", "maximum"),
        TensorSpec("seen", (2,), "bool", "maximum"),
        TensorSpec("table", (2,), "float32", "first"),
    ]
    group = Group(tensors)
    group.store({t.name: torch.zeros(t.shape, dtype=DTYPES[t.dtype]) for t in tensors})
    one = {"running_mean": torch.ones(2), "batches": torch.tensor(3)}
    two = {
        "running_mean": torch.ones(2) * 5,
        "batches": torch.tensor(2),
        "seen": torch.tensor([True, False]),
        "table": torch.ones(2),
    }
    three = {"table": torch.ones(2) * 9}
    group.close([(1.0, one), (1.0, two), (2.0, three)])
    found = group.values()
    assert found["running_mean"].tolist() == [1.5, 1.5]
    assert found["batches"] == 3
    assert found["seen"].tolist() == [True, False]
    assert found["table"].tolist() == [1.0, 1.0]
    group.arrive({"running_mean": torch.ones(2), "table": torch.ones(2)}, late=2)
    assert group.values()["running_mean"].tolist() == [2.0, 2.0]
    assert group.values()["table"].tolist() == [2.0, 2.0]


def test_arrival_scales_the_learning_rate_by_the_largest_staleness() -> None:
    tensors = [TensorSpec("w", (4,), "float32")]
    group = Group(tensors, "SGD", [{"lr": 1.0}], elements=2)
    group.store({"w": torch.zeros(4)})
    bucket = group.buckets[0]
    bucket.tick(range(2))
    bucket.tick(range(2))
    bucket.tick([1])
    g = {0: torch.ones(2), 1: torch.ones(2)}
    assert bucket.arrive(g, (), {0: 3, 1: 0}, "inverse") == 2.0
    assert group.values()["w"].tolist() == [-0.25] * 4
    assert bucket.versions == {0: 4, 1: 5}
    assert bucket.changed == {0: 4, 1: 5}
    assert bucket.arrive({1: torch.ones(2)}, (), {1: 1}, "sqrt") == 4.0
    assert bucket.values[1].tolist() == [-0.75] * 2
    assert bucket.arrive({0: torch.ones(2)}, [{"lr": 0.25}], {0: 0}, "none") == 4.0
    assert bucket.values[0].tolist() == [-0.5] * 2
    assert bucket.arrive({0: torch.ones(2)}, (), {0: 5}, "inverse") == 0.0
    assert bucket.values[0].tolist() == [-1.5] * 2, "the registered learning rate is back"
    assert bucket.versions == {0: 6, 1: 6}


def test_first_values_are_kept_once() -> None:
    tensors = [TensorSpec("a", (2,), "float32"), TensorSpec("b", (2,), "float32")]
    group = Group(tensors, "SGD")
    bucket = group.buckets[0]
    first = torch.ones(2)
    assert bucket.store(0, first)
    first.zero_()
    assert not bucket.store(0, torch.zeros(2))
    assert bucket.values[0].tolist() == [1.0, 1.0]
    assert bucket.versions == {0: 1, 1: 0}
    with pytest.raises(InvalidRequestError, match=r"slices \[1\] have no first values"):
        bucket.close([])
    with pytest.raises(InvalidRequestError, match="the group has 2"):
        bucket.store(1, torch.zeros(3))
    with pytest.raises(InvalidRequestError, match="float64"):
        bucket.store(1, torch.zeros(2, dtype=torch.float64))
    assert bucket.versions == {0: 1, 1: 0}


def test_a_frozen_tensor_takes_no_pushes() -> None:
    group = Group([TensorSpec("w", (2,), "float32", "frozen")])
    group.store({"w": torch.ones(2)})
    with pytest.raises(InvalidRequestError, match="frozen"):
        group.close([(1.0, {"w": torch.ones(2)})])
    assert group.values()["w"].tolist() == [1.0, 1.0]


def test_bytes_are_counted() -> None:
    group = Group([TensorSpec("w", (10,), "float32")], "SGD", [{"momentum": 0.9}], elements=64)
    bucket = group.buckets[0]
    assert (bucket.nbytes, bucket.state_bytes) == (40, 0)
    group.store({"w": torch.zeros(10)})
    group.close([(1.0, {"w": torch.ones(10)})])
    assert (bucket.nbytes, bucket.state_bytes) == (40, 40)


def test_adagrad_accumulates() -> None:
    """Multiverso copied the accumulator and lost it at every push."""
    group = Group([TensorSpec("w", (1,), "float32")], "Adagrad", [{"lr": 1.0}])
    group.store({"w": torch.zeros(1)})
    for _ in range(2):
        group.arrive({"w": torch.ones(1)})
    assert math.isclose(group.values()["w"].item(), -1 - 1 / math.sqrt(2), rel_tol=1e-6)


@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": False}, {"foreach": True}])
def test_kernels_are_the_users_choice(options: dict[str, Any]) -> None:
    group = Group(specs(), "Adam", [options])
    start = random(specs(), 0)
    group.store(start)
    group.close([(1.0, random(specs(), 1))], [{"lr": 0.01, "foreach": None}])
    parameters = [v.clone().requires_grad_() for v in start.values()]
    optimizer = torch.optim.Adam(parameters, lr=0.01, **options)
    for value, g in zip(parameters, random(specs(), 1).values(), strict=True):
        value.grad = g
    optimizer.step()
    for value, expected in zip(group.values().values(), parameters, strict=True):
        torch.testing.assert_close(value, expected.detach())


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("LBFGS", "all parameters at once"),
        ("Muon", "whole matrices"),
        ("Adafactor", "whole matrices"),
        ("SparseAdam", "sparse"),
        ("Optimizer", "SGD, Adam"),
        ("os.system", "not one of"),
        ("", "not one of"),
    ],
)
def test_rules_that_no_server_runs(name: str, why: str) -> None:
    with pytest.raises(UnsupportedError, match=why):
        resolve_optimizer(name)


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("SGD", {"lr": -1.0}, ConfigurationError, "Invalid learning rate: -1.0"),
        ("SGD", {"lr": math.nan}, ConfigurationError, "lr=nan: must be a finite number"),
        ("SGD", {"lr": math.inf}, ConfigurationError, "finite"),
        ("SGD", {"lr": 10**400}, ConfigurationError, "finite"),
        ("SGD", {"lr": "0.1"}, ConfigurationError, "finite number"),
        ("SGD", {"lr": True}, ConfigurationError, "finite number"),
        ("SGD", {"lr": None}, ConfigurationError, "finite number"),
        ("SGD", {"lr": object()}, ConfigurationError, "must be a finite number, a flag"),
        ("SGD", {"lr": torch.tensor(0.1)}, UnsupportedError, r"use lr.item\(\)"),
        ("SGD", {"beta": 0.1}, ConfigurationError, "unknown; SGD has lr, momentum"),
        ("SGD", {"nesterov": True}, ConfigurationError, "Nesterov momentum requires"),
        ("SGD", {"nesterov": 1}, ConfigurationError, "True or False"),
        ("SGD", {"differentiable": True}, UnsupportedError, "leave it out"),
        ("Adam", {"capturable": True}, UnsupportedError, "leave it out"),
        ("Adam", {"betas": (0.9,)}, ConfigurationError, "2 finite numbers"),
        ("Adam", {"betas": (0.9, math.nan)}, ConfigurationError, "list of numbers"),
        ("Adam", {"betas": ([0.9], 0.9)}, ConfigurationError, "list of numbers"),
        ("Adam", {"betas": (0.9, 1.5)}, ConfigurationError, "Invalid beta"),
        ("Adam", {"fused": True, "foreach": True}, ConfigurationError, "cannot be"),
        ("Adam", {"fused": "yes"}, ConfigurationError, "True, False or None"),
        ("AdamW", {"decoupled_weight_decay": False}, ConfigurationError, "fixes it at True"),
        ("RMSprop", {"fused": True}, ConfigurationError, "unknown"),
        ("LBFGS", {}, UnsupportedError, "line search"),
    ],
)
def test_bad_hyper_parameters(
    name: str, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        check_options(name, [{}, options])


def test_good_hyper_parameters() -> None:
    for name, options in UNDER_TEST:
        check_options(name, [options])
        check_options(name, [{"foreach": None, "capturable": False} if name == "Adam" else {}])
    with pytest.raises(ConfigurationError, match="one for all param groups"):
        check_options("Adagrad", [{"initial_accumulator_value": 0.1}, {}])


def test_hyper_parameters_of_a_push() -> None:
    registered = [{"lr": 0.1}, {"lr": 0.2}]
    check_push_options("RMSprop", registered, [])
    check_push_options("RMSprop", registered, [{"lr": 0.2}, {"alpha": 0.9, "centered": False}])
    with pytest.raises(ConfigurationError, match="registered with 2"):
        check_push_options("RMSprop", registered, [{}])
    with pytest.raises(ConfigurationError, match=r"centered=True.*cannot change"):
        check_push_options("RMSprop", registered, [{"centered": True}, {}])
    with pytest.raises(ConfigurationError, match=r"momentum=0.9 was 0"):
        check_push_options("RMSprop", registered, [{}, {"momentum": 0.9}])
    with pytest.raises(ConfigurationError, match="Invalid learning rate"):
        check_push_options("RMSprop", registered, [{}, {"lr": -0.1}])
