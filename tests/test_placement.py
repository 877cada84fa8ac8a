"""Specifications, their differences, and which server holds which slice."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paramserver.config import Limits
from paramserver.core.placement import (
    MAX_DIMENSIONS,
    Groups,
    GroupSpec,
    check_name,
    check_spec,
    difference,
    place,
)
from paramserver.core.slices import MAX_SLICE_ELEMENTS, TensorSpec, cut
from paramserver.errors import (
    ConfigurationError,
    InvalidRequestError,
    MismatchError,
    NotFoundError,
    ResourceError,
)
from paramserver.types import Async, Stale, Sync
from paramserver.v1 import common_pb2
from paramserver.wire import convert

LIMITS = Limits()
WEIGHT = TensorSpec("layer.weight", (3, 4), "float32")
SPEC = GroupSpec("model", (WEIGHT,), "SGD", ({"lr": 0.1, "nesterov": False},), Sync())
SERVERS = [(f"ps-{i}", f"h:{i}") for i in range(8)]


def with_tensor(**changes: object) -> GroupSpec:
    return replace(SPEC, tensors=(replace(WEIGHT, **changes),))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["model", "a/b", "layer.0.weight", "A_b-c", "a..b", "x" * 255])
def test_good_names(name: str) -> None:
    check_name(name, "group", LIMITS)


@pytest.mark.parametrize("name", ["", "..", "a/../b", "a b", "a\n", "ä", "x" * 256, "a\0", "/.."])
def test_bad_names(name: str) -> None:
    with pytest.raises(InvalidRequestError, match="group name"):
        check_name(name, "group", LIMITS)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (replace(SPEC, name="../x"), "group name"),
        (replace(SPEC, tensors=()), "has 0 tensors"),
        (replace(SPEC, tensors=(WEIGHT, WEIGHT)), "named twice"),
        (replace(SPEC, optimizer="os.system"), "name of a class"),
        (replace(SPEC, optimizer=""), "needs an optimizer"),
        (replace(SPEC, param_groups=({"lr": float("nan")},)), "must be finite"),
        (replace(SPEC, param_groups=({"betas": (0.9, float("inf"))},)), "must be finite"),
        (with_tensor(name="a b"), "tensor name"),
        (with_tensor(shape=(3, -1)), "negative"),
        (with_tensor(shape=(1 << 40, 1 << 40)), "too large"),
        (with_tensor(shape=(0, 1 << 40, 1 << 40)), "too large"),
        (with_tensor(shape=(1,) * (MAX_DIMENSIONS + 1)), "dimensions"),
        (with_tensor(dtype="O8"), "dtype 'O8'"),
        (with_tensor(rule="sum"), "rule 'sum'"),
        (with_tensor(dtype="int64"), "cannot step on int64"),
        (with_tensor(param_group=1), "param group 1 of 1"),
    ],
)
def test_what_cannot_work_is_refused_in_words(spec: GroupSpec, said: str) -> None:
    groups = Groups(LIMITS)
    with pytest.raises(InvalidRequestError, match=said):
        groups.register(spec, SERVERS, 1)
    assert not list(groups)


def test_scalars_empty_tensors_and_buffers_are_welcome() -> None:
    tensors = (
        TensorSpec("scalar", (), "float64"),
        TensorSpec("empty", (0, 5), "float32"),
        TensorSpec("count", (), "int64", "maximum"),
        TensorSpec("mask", (7,), "bool", "frozen"),
    )
    check_spec(replace(SPEC, tensors=tensors), LIMITS)


def test_limits() -> None:
    small = Limits(tensors=1, groups=1)
    two = replace(SPEC, tensors=(WEIGHT, replace(WEIGHT, name="b")))
    with pytest.raises(InvalidRequestError, match="2 tensors"):
        check_spec(two, small)
    groups = Groups(small)
    groups.register(SPEC, SERVERS, 1)
    with pytest.raises(ResourceError, match="at most 1"):
        groups.register(replace(SPEC, name="other"), SERVERS, 2)
    with pytest.raises(ResourceError, match="slices"):
        place(with_tensor(shape=(1 << 50,)), SERVERS, 1)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (replace(SPEC, optimizer="Adam"), "optimizer is SGD, not Adam"),
        (replace(SPEC, consistency=Async()), "consistency is Sync"),
        (with_tensor(shape=(4, 3)), r"shape of tensor 'layer.weight' is \(3, 4\), not \(4, 3\)"),
        (with_tensor(dtype="float64"), "dtype of tensor 'layer.weight' is float32, not float64"),
        (with_tensor(rule="frozen"), "rule of tensor"),
        (with_tensor(name="bias"), "'layer.weight' stands where 'bias'"),
        (replace(SPEC, tensors=(WEIGHT, replace(WEIGHT, name="b"))), "1 tensors, not 2"),
        (replace(SPEC, param_groups=({"lr": 0.2, "nesterov": False},)), "lr .* is 0.1, not 0.2"),
        (replace(SPEC, param_groups=({"lr": 0.1},)), "only the registered one has nesterov"),
        (replace(SPEC, param_groups=(*SPEC.param_groups, {})), "1 param groups, not 2"),
    ],
)
def test_another_specification_is_refused_by_its_first_difference(
    other: GroupSpec, said: str
) -> None:
    groups = Groups(LIMITS)
    made, new = groups.register(SPEC, SERVERS, 1)
    assert new
    with pytest.raises(MismatchError, match=said):
        groups.register(other, SERVERS, 2)
    assert groups.register(SPEC, SERVERS, 2) == (made, False)


def test_stale_0_is_sync() -> None:
    assert difference(SPEC, replace(SPEC, consistency=Stale(0))) is None


def test_an_unknown_group_is_not_found() -> None:
    with pytest.raises(NotFoundError, match="'nope' is not registered"):
        Groups(LIMITS).get("nope")


shapes = st.lists(st.integers(0, 3000), min_size=0, max_size=2).map(tuple)


@given(tensors=st.lists(shapes, min_size=1, max_size=12), servers=st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_every_element_has_one_owner(tensors: list[tuple[int, ...]], servers: int) -> None:
    """I1; the last key is owned, empty tensors have a slice, more servers than slices are fine."""
    specs = tuple(TensorSpec(f"t{i}", shape, "float32") for i, shape in enumerate(tensors))
    group = place(replace(SPEC, tensors=specs), SERVERS[:servers], 1)
    slices = cut(specs, group.map.slice_elements)
    assert len(slices) == len(group.map.owners)
    for number, tensor in enumerate(specs):
        own = [s for s in slices if s.tensor == number]
        assert own[0].start == 0
        assert own[-1].stop == tensor.elements
        assert all(a.stop == b.start for a, b in itertools.pairwise(own))
    assert set(group.map.owners) <= set(range(servers))
    assert group.map.lead == group.map.owners[0]
    assert sum(group.server_bytes) == group.spec.bytes


dims = st.integers(1, 9_000)


@given(
    large=st.lists(st.tuples(dims, dims), min_size=1, max_size=4),
    small=st.lists(st.integers(1, 5000), max_size=30),
    servers=st.integers(2, 8),
)
@settings(max_examples=25, deadline=None)
def test_bytes_are_balanced(large: list[tuple[int, int]], small: list[int], servers: int) -> None:
    """Largest / smallest server <= 1.05 for every model over 16 MiB."""
    shapes: list[tuple[int, ...]] = [*large, *((n,) for n in small), (1025, 4096)]
    tensors = tuple(TensorSpec(f"t{i}", shape, "float32") for i, shape in enumerate(shapes))
    group = place(replace(SPEC, tensors=tensors), SERVERS[:servers], 1)
    assert group.spec.bytes > 16 << 20
    assert max(group.server_bytes) <= 1.05 * min(group.server_bytes)
    assert group.map.slice_elements <= MAX_SLICE_ELEMENTS


# -- on the wire

option = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.floats(allow_nan=False),
    st.text("ab ", max_size=5),
    st.lists(st.floats(allow_nan=False), max_size=3).map(tuple),
)


@given(st.dictionaries(st.text("abc_", max_size=8), option, max_size=5))
@settings(max_examples=60, deadline=None)
def test_options_survive_the_wire(options: dict[str, object]) -> None:
    assert convert.options_from_proto(convert.options_to_proto(options)) == options


@pytest.mark.parametrize("consistency", [Sync(2, False), Sync(), Stale(3, "sqrt"), Async("none")])
def test_a_group_survives_the_wire(consistency: Sync | Stale | Async) -> None:
    spec = replace(
        SPEC,
        consistency=consistency,
        tensors=(WEIGHT, TensorSpec("n", (), "int64", "maximum", 0)),
    )
    message = common_pb2.GroupSpec.FromString(convert.group_to_proto(spec).SerializeToString())
    assert convert.group_from_proto(message) == spec
    made = place(spec, SERVERS[:2], 3).map
    assert convert.map_from_proto(convert.map_to_proto(made)) == made


@pytest.mark.parametrize("value", [1 << 63, object(), b"x", ("a",), {}])
def test_what_is_no_data_is_no_hyper_parameter(value: object) -> None:
    with pytest.raises(ConfigurationError, match="lr="):
        convert.options_to_proto({"lr": value})


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (common_pb2.TensorSpec(name="t", rule=common_pb2.RULE_STEP), "dtype number 0"),
        (common_pb2.TensorSpec(name="t", dtype=common_pb2.DTYPE_BOOL), "rule number 0"),
    ],
)
def test_unset_numbers_are_refused(message: common_pb2.TensorSpec, said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        convert.tensor_from_proto(message)


@pytest.mark.parametrize(
    "message",
    [
        common_pb2.Consistency(),
        common_pb2.Consistency(kind="eventual"),
        common_pb2.Consistency(kind="stale", bound=1, scale_lr="cube"),
    ],
)
def test_unknown_consistency_is_refused(message: common_pb2.Consistency) -> None:
    with pytest.raises(InvalidRequestError):
        convert.consistency_from_proto(message)


def test_an_empty_value_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="'lr' has no value"):
        convert.options_from_proto(common_pb2.Options(values={"lr": common_pb2.Value()}))
