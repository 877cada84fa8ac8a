"""Protobuf messages <-> core values that every role speaks of. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

from paramserver.core.placement import RULES, GroupSpec, Option, SliceMap
from paramserver.core.slices import BLOCK_WIRES, TensorSpec
from paramserver.core.tables import Initial, TableSpec
from paramserver.errors import ConfigurationError, InvalidRequestError
from paramserver.life_cycle import checked, from_numbers, to_numbers
from paramserver.types import (
    ITEM_SIZES,
    Adaptive,
    AllReduce,
    Async,
    Consistency,
    ScaleLr,
    Span,
    Stale,
    Sync,
)
from paramserver.v1 import common_pb2 as pb

_DTYPES = {n: cast(pb.DType, pb.DType.Value(f"DTYPE_{n.upper()}")) for n in ITEM_SIZES}
_DTYPE_NAMES = {int(value): name for name, value in _DTYPES.items()}
_WIRES = {
    int(pb.DTYPE_UNSPECIFIED): "",
    int(pb.DTYPE_BFLOAT16): "bfloat16",
    int(pb.DTYPE_FLOAT16): "float16",
    int(pb.DTYPE_INT8_BLOCK): "int8",
    int(pb.DTYPE_INT4_BLOCK): "int4",
}
_RULES = {n: cast(pb.Rule, pb.Rule.Value(f"RULE_{n.upper()}")) for n in RULES}
_RULE_NAMES = {int(value): name for name, value in _RULES.items()}


def dtype_to_proto(name: str) -> pb.DType:
    """Raises ConfigurationError for a name that is not in ``types.ITEM_SIZES``."""
    if name not in _DTYPES:
        raise ConfigurationError(f"dtype {name!r}: must be one of {', '.join(_DTYPES)}")
    return _DTYPES[name]


def dtype_from_proto(value: int) -> str:
    """Raises InvalidRequestError for an unknown or unset number."""
    if value not in _DTYPE_NAMES:
        raise InvalidRequestError(f"dtype number {value}: must be one of {_known(_DTYPE_NAMES)}")
    return _DTYPE_NAMES[value]


def wire_to_proto(name: str) -> pb.DType:
    """The number of a wire data type; "" is unspecified."""
    if name in BLOCK_WIRES:
        return cast(pb.DType, pb.DType.Value(f"DTYPE_{name.upper()}_BLOCK"))
    return dtype_to_proto(name) if name else pb.DTYPE_UNSPECIFIED


def wire_from_proto(value: int, *, blocks: bool) -> str:
    """The name of a wire data type; "" when none is asked for.

    Args:
        blocks: whether blocks of integers are allowed: in pushes.

    Raises:
        InvalidRequestError: nothing can travel in this type.
    """
    if value not in _WIRES or (_WIRES[value] in BLOCK_WIRES and not blocks):
        known = _known({n: w for n, w in _WIRES.items() if blocks or w not in BLOCK_WIRES})
        raise InvalidRequestError(f"wire_dtype number {value}: must be one of {known}")
    return _WIRES[value]


def rule_to_proto(name: str) -> pb.Rule:
    """Raises ConfigurationError for a name that is not in ``placement.RULES``."""
    if name not in _RULES:
        raise ConfigurationError(f"rule {name!r}: must be one of {', '.join(_RULES)}")
    return _RULES[name]


def rule_from_proto(value: int) -> str:
    """Raises InvalidRequestError for an unknown or unset number."""
    if value not in _RULE_NAMES:
        raise InvalidRequestError(f"rule number {value}: must be one of {_known(_RULE_NAMES)}")
    return _RULE_NAMES[value]


def _known(names: Mapping[int, str]) -> str:
    return ", ".join(f"{number} ({name})" for number, name in names.items())


def value_to_proto(value: object, name: str = "value") -> pb.Value:
    """A hyper-parameter as data; sequences of numbers become floats.

    Raises:
        ConfigurationError: a value that is neither number, flag, text, None nor numbers.
    """
    if value is None:
        return pb.Value(none=True)
    if isinstance(value, bool):  # before int: True is one
        return pb.Value(flag=value)
    if isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
        return pb.Value(integer=value)
    if isinstance(value, float):
        return pb.Value(number=value)
    if isinstance(value, str):
        return pb.Value(text=value)
    if isinstance(value, (tuple, list)) and all(isinstance(v, (int, float)) for v in value):
        return pb.Value(numbers=pb.Numbers(values=[float(v) for v in value]))
    raise ConfigurationError(
        f"{name}={value!r}: a hyper-parameter must be a number, a flag, text, None "
        "or a tuple of numbers"
    )


def value_from_proto(message: pb.Value, name: str = "value") -> Option:
    """Raises InvalidRequestError for a value without a kind."""
    kind = message.WhichOneof("kind")
    if kind == "none":
        return None
    if kind == "numbers":
        return tuple(message.numbers.values)
    if kind is None:
        raise InvalidRequestError(f"hyper-parameter {name!r} has no value")
    return cast(Option, getattr(message, kind))


def options_to_proto(options: Mapping[str, object]) -> pb.Options:
    """Raises ConfigurationError as ``value_to_proto``."""
    return pb.Options(values={name: value_to_proto(v, name) for name, v in options.items()})


def options_from_proto(message: pb.Options) -> dict[str, Option]:
    """Raises InvalidRequestError as ``value_from_proto``; names are sorted."""
    return {name: value_from_proto(message.values[name], name) for name in sorted(message.values)}


def consistency_to_proto(consistency: Consistency) -> pb.Consistency:
    if isinstance(consistency, Sync):
        return pb.Consistency(
            kind="sync", backup=consistency.backup, deterministic=consistency.deterministic
        )
    if isinstance(consistency, Stale):
        return pb.Consistency(kind="stale", bound=consistency.bound, scale_lr=consistency.scale_lr)
    if isinstance(consistency, Adaptive):
        return pb.Consistency(
            kind="adaptive", bound=consistency.max_bound, scale_lr=consistency.scale_lr
        )
    if isinstance(consistency, AllReduce):
        return pb.Consistency(kind="allreduce", backend=consistency.backend)
    return pb.Consistency(kind="async", scale_lr=consistency.scale_lr)


def consistency_from_proto(message: pb.Consistency) -> Consistency:
    """Raises InvalidRequestError for an unknown kind or a value that cannot work."""
    scale = cast(ScaleLr, message.scale_lr or "inverse")
    try:
        if message.kind == "sync":
            return Sync(message.backup, message.deterministic)
        if message.kind == "stale":
            return Stale(message.bound, scale)
        if message.kind == "async":
            return Async(scale)
        if message.kind == "adaptive":
            return Adaptive(message.bound, scale)
        if message.kind == "allreduce":
            return AllReduce(message.backend)
    except ConfigurationError as error:
        raise InvalidRequestError(str(error)) from None
    raise InvalidRequestError(
        f"consistency kind {message.kind!r}: must be 'sync', 'stale', 'async', 'adaptive' or "
        "'allreduce'"
    )


def tensor_to_proto(tensor: TensorSpec) -> pb.TensorSpec:
    return pb.TensorSpec(
        name=tensor.name,
        shape=tensor.shape,
        dtype=dtype_to_proto(tensor.dtype),
        rule=rule_to_proto(tensor.rule),
        param_group=tensor.param_group,
    )


def tensor_from_proto(message: pb.TensorSpec) -> TensorSpec:
    return TensorSpec(
        message.name,
        tuple(message.shape),
        dtype_from_proto(message.dtype),
        rule_from_proto(message.rule),
        message.param_group,
    )


def group_to_proto(spec: GroupSpec) -> pb.GroupSpec:
    return pb.GroupSpec(
        name=spec.name,
        tensors=[tensor_to_proto(t) for t in spec.tensors],
        optimizer=spec.optimizer,
        param_groups=[options_to_proto(o) for o in spec.param_groups],
        consistency=consistency_to_proto(spec.consistency),
        scheme=spec.scheme,
        table=None if spec.table is None else table_to_proto(spec.table),
        on_nonfinite=spec.on_nonfinite,
    )


def table_to_proto(table: TableSpec) -> pb.TableSpec:
    first = table.initial
    admit, admit_numbers = to_numbers(table.admit)
    evict, evict_numbers = to_numbers(table.evict)
    return pb.TableSpec(
        dim=table.dim,
        rows=table.rows or 0,
        initial=first.kind,
        low=first.low,
        high=first.high,
        seed=first.seed,
        admit=admit,
        admit_numbers=admit_numbers,
        evict=evict,
        evict_numbers=evict_numbers,
    )


def table_from_proto(message: pb.TableSpec) -> TableSpec:
    first = Initial(message.initial, message.low, message.high, message.seed)
    admit, evict = checked(
        from_numbers(message.admit, message.admit_numbers),
        from_numbers(message.evict, message.evict_numbers),
    )
    return TableSpec(message.dim, message.rows or None, first, admit, evict)


def group_from_proto(message: pb.GroupSpec) -> GroupSpec:
    """The specification as given; what it may say is checked by ``placement.check_spec``.

    Raises:
        InvalidRequestError: unknown numbers, a kind or value that cannot work.
    """
    return GroupSpec(
        message.name,
        tuple(tensor_from_proto(t) for t in message.tensors),
        message.optimizer,
        tuple(options_from_proto(o) for o in message.param_groups),
        consistency_from_proto(message.consistency),
        message.scheme,
        table_from_proto(message.table) if message.HasField("table") else None,
        message.on_nonfinite or "reject",
    )


def map_to_proto(made: SliceMap) -> pb.SliceMap:
    return pb.SliceMap(
        version=made.version,
        servers=made.servers,
        addresses=made.addresses,
        slice_elements=made.slice_elements,
        owners=made.owners,
        lead=made.lead,
    )


def map_from_proto(message: pb.SliceMap) -> SliceMap:
    return SliceMap(
        message.version,
        tuple(message.servers),
        tuple(message.addresses),
        message.slice_elements,
        tuple(message.owners),
        message.lead,
    )


def spans_to_proto(spans: Iterable[Span]) -> list[pb.Span]:
    return [pb.Span(lease=s.lease, start=s.start, stop=s.stop) for s in spans]


def spans_from_proto(messages: Iterable[pb.Span]) -> tuple[Span, ...]:
    return tuple(Span(m.lease, m.start, m.stop) for m in messages)
