"""Groups: what a specification may say, who agrees with it, which server holds which slice."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from paramserver.config import Limits
from paramserver.core.slices import Slice, TensorSpec, cut, deal, slice_elements
from paramserver.core.tables import TableSpec, check_table, sub_table_owners, sub_tables
from paramserver.errors import InvalidRequestError, MismatchError, NotFoundError, ResourceError
from paramserver.types import FLOATING, ITEM_SIZES, ON_NONFINITE, Consistency, canonical

RULES = ("step", "add", "delta", "maximum", "first", "frozen", "rows")
MAX_DIMENSIONS = 64
MAX_SLICES = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9_.\-/]+")
_NOT_NEGATIVE = frozenset({"lr", "momentum", "weight_decay", "eps"})
_CLASS = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_INT64 = 1 << 63

Option = bool | int | float | str | tuple[float, ...] | None


@dataclass(frozen=True, slots=True)
class GroupSpec:
    """What must agree between all that speak of a group.

    Attributes:
        name: of the group.
        tensors: in the order in which slices are numbered.
        optimizer: class name in ``torch.optim``; empty: pushes are added.
        param_groups: hyper-parameters of each param group, as data.
        consistency: who waits for whom.
        scheme: what workers do between two pushes, in words; empty: nothing.
        table: set: the group is a table, and has one tensor of rule "rows".
        on_nonfinite: what becomes of a push with NaN or infinity in it.
    """

    name: str
    tensors: tuple[TensorSpec, ...]
    optimizer: str
    param_groups: tuple[Mapping[str, Option], ...]
    consistency: Consistency
    scheme: str = ""
    table: TableSpec | None = None
    on_nonfinite: str = "reject"

    @property
    def elements(self) -> int:
        return sum(t.elements for t in self.tensors)

    @property
    def bytes(self) -> int:
        return sum(t.bytes for t in self.tensors)


@dataclass(frozen=True, slots=True)
class SliceMap:
    """Which server holds which slice: ``servers[owners[i]]`` holds slice i.

    Attributes:
        version: grows with every map that the scheduler makes.
        servers, addresses: side by side.
        slice_elements: how tensors were cut.
        lead: index of the server of slice 0.
    """

    version: int
    servers: tuple[str, ...]
    addresses: tuple[str, ...]
    slice_elements: int
    owners: tuple[int, ...]
    lead: int


@dataclass(slots=True)
class Group:
    """A registered group; ``stored`` once first values are on all servers.

    Attributes:
        moving: number of the move of slices that is under way; 0: none.
        reshaped: slices have moved since the group was placed.
    """

    spec: GroupSpec
    map: SliceMap
    server_bytes: tuple[int, ...]
    stored: bool = False
    moving: int = 0
    reshaped: bool = False


def check_name(name: str, what: str, limits: Limits) -> None:
    """A name of a group, data set, member, tensor or round.

    Raises:
        InvalidRequestError: empty, too long, other characters, or a part that is "..".
    """
    if not 1 <= len(name) <= limits.name_length:
        raise InvalidRequestError(
            f"{what} name of {len(name)} characters: must have 1 to {limits.name_length}"
        )
    if not _NAME.fullmatch(name) or ".." in name.split("/"):
        raise InvalidRequestError(
            f"{what} name {name!r}: only letters, digits and _ . - / are allowed, "
            "and no '..' part; rename it"
        )


def check_spec(spec: GroupSpec, limits: Limits) -> None:
    """All that can be said of a specification without a server.

    Raises:
        InvalidRequestError: with value, rule and cure.
    """
    check_name(spec.name, "group", limits)
    if not 1 <= len(spec.tensors) <= limits.tensors:
        raise InvalidRequestError(
            f"group {spec.name!r} has {len(spec.tensors)} tensors: must have 1 to {limits.tensors}"
        )
    if spec.optimizer and not _CLASS.fullmatch(spec.optimizer):
        raise InvalidRequestError(
            f"optimizer {spec.optimizer!r}: must be the name of a class in torch.optim, or empty"
        )
    if len(spec.scheme) > limits.name_length or not spec.scheme.isprintable():
        raise InvalidRequestError(
            f"scheme of {len(spec.scheme)} characters: must be printable, at most "
            f"{limits.name_length} of them"
        )
    check_on_nonfinite(spec.on_nonfinite)
    for number, options in enumerate(spec.param_groups):
        _check_options(number, options)
    seen: set[str] = set()
    for tensor in spec.tensors:
        if tensor.name in seen:
            raise InvalidRequestError(f"tensor {tensor.name!r} is named twice: names are unique")
        seen.add(tensor.name)
        _check_tensor(tensor, spec, limits)
    if spec.table is not None or any(t.rule == "rows" for t in spec.tensors):
        _check_table(spec)
    if spec.bytes >= _INT64:
        raise InvalidRequestError(f"group {spec.name!r} of {spec.bytes} bytes: too large")


def check_on_nonfinite(value: str) -> None:
    """Raises InvalidRequestError unless it is one of ``types.ON_NONFINITE``."""
    if value not in ON_NONFINITE:
        known = ", ".join(map(repr, ON_NONFINITE))
        raise InvalidRequestError(f"on_nonfinite={value!r}: must be one of {known}")


def _check_table(spec: GroupSpec) -> None:
    only = spec.tensors[0]
    if spec.table is None or len(spec.tensors) > 1 or only.rule != "rows":
        raise InvalidRequestError(
            f"group {spec.name!r}: a table has exactly one tensor, of rule 'rows'"
        )
    if only.dtype not in FLOATING:
        raise InvalidRequestError(f"table {spec.name!r}: dtype {only.dtype}: must be floating")
    check_table(spec.table)


def _check_options(number: int, options: Mapping[str, Option]) -> None:
    for name, value in options.items():
        numbers = value if isinstance(value, tuple) else (value,)
        if any(isinstance(v, float) and not math.isfinite(v) for v in numbers):
            raise InvalidRequestError(
                f"param group {number}: {name}={value}: hyper-parameters must be finite"
            )
        if name in _NOT_NEGATIVE and any(isinstance(v, (int, float)) and v < 0 for v in numbers):
            raise InvalidRequestError(f"param group {number}: {name}={value}: must be >= 0")


def _check_tensor(tensor: TensorSpec, spec: GroupSpec, limits: Limits) -> None:
    check_name(tensor.name, "tensor", limits)
    _check_shape(tensor)
    if tensor.dtype not in ITEM_SIZES:
        raise InvalidRequestError(
            f"tensor {tensor.name!r}: dtype {tensor.dtype!r} must be one of {', '.join(ITEM_SIZES)}"
        )
    if tensor.rule not in RULES:
        raise InvalidRequestError(
            f"tensor {tensor.name!r}: rule {tensor.rule!r} must be one of {', '.join(RULES)}"
        )
    if tensor.rule == "step":
        _check_step(tensor, spec)


def _check_step(tensor: TensorSpec, spec: GroupSpec) -> None:
    if not spec.optimizer:
        raise InvalidRequestError(
            f"tensor {tensor.name!r}: rule 'step' needs an optimizer; a group without one adds"
        )
    if tensor.dtype not in FLOATING:
        raise InvalidRequestError(
            f"tensor {tensor.name!r}: an optimizer cannot step on {tensor.dtype}; "
            "use rule 'maximum' or 'frozen'"
        )
    if not 0 <= tensor.param_group < len(spec.param_groups):
        raise InvalidRequestError(
            f"tensor {tensor.name!r}: param group {tensor.param_group} of "
            f"{len(spec.param_groups)}: must be an index into them"
        )


def _check_shape(tensor: TensorSpec) -> None:
    if len(tensor.shape) > MAX_DIMENSIONS:
        raise InvalidRequestError(
            f"tensor {tensor.name!r} has {len(tensor.shape)} dimensions: "
            f"at most {MAX_DIMENSIONS} are allowed"
        )
    if any(d < 0 for d in tensor.shape):
        raise InvalidRequestError(
            f"tensor {tensor.name!r}: shape {tensor.shape} has a negative dimension"
        )
    # Empty tensors too: a zero must not hide a product that overflows elsewhere.
    if math.prod(d for d in tensor.shape if d) * 8 >= _INT64:
        raise InvalidRequestError(f"tensor {tensor.name!r}: shape {tensor.shape} is too large")


def difference(old: GroupSpec, new: GroupSpec) -> str | None:
    """The first thing in which two specifications of a group differ, in words; None: the same."""
    if canonical(old.consistency) != canonical(new.consistency):
        return f"consistency is {old.consistency}, not {new.consistency}"
    if old.scheme != new.scheme:
        return f"scheme is {old.scheme or 'none'}, not {new.scheme or 'none'}"
    if old.on_nonfinite != new.on_nonfinite:
        return f"on_nonfinite is {old.on_nonfinite!r}, not {new.on_nonfinite!r}"
    if old.table != new.table:
        return f"table is {old.table}, not {new.table}"
    if old.optimizer != new.optimizer:
        return f"optimizer is {old.optimizer or 'none'}, not {new.optimizer or 'none'}"
    for left, right in zip(old.tensors, new.tensors, strict=False):
        if left != right:
            return _tensor_difference(left, right)
    if len(old.tensors) != len(new.tensors):
        return f"it has {len(old.tensors)} tensors, not {len(new.tensors)}"
    return _options_difference(old.param_groups, new.param_groups)


def _tensor_difference(old: TensorSpec, new: TensorSpec) -> str:
    if old.name != new.name:
        return f"tensor {old.name!r} stands where {new.name!r} was given"
    for field in ("shape", "dtype", "rule", "param_group"):
        left, right = getattr(old, field), getattr(new, field)
        if left != right:
            break
    return f"{field} of tensor {old.name!r} is {left}, not {right}"


def _options_difference(
    old: Sequence[Mapping[str, Option]], new: Sequence[Mapping[str, Option]]
) -> str | None:
    if len(old) != len(new):
        return f"it has {len(old)} param groups, not {len(new)}"
    for number, (left, right) in enumerate(zip(old, new, strict=True)):
        for name in sorted({*left, *right}):
            if name not in left or name not in right:
                having = "the registered one" if name in left else "the new one"
                return f"only {having} has {name} in param group {number}"
            if left[name] != right[name]:
                return f"{name} of param group {number} is {left[name]}, not {right[name]}"
    return None


def place(
    spec: GroupSpec, servers: Sequence[tuple[str, str]], version: int, elements: int = 0
) -> Group:
    """Cuts a group and deals its slices over servers, given as (name, address).

    Args:
        elements: of a slice, where the group was cut before; 0: not yet.

    Raises:
        ResourceError: more slices than a map may have.
    """
    if spec.table is not None:
        return _place_table(spec, servers, version)
    elements = elements or slice_elements(spec.tensors, len(servers))
    count = sum(-(-max(t.elements, 1) // elements) for t in spec.tensors)
    if count > MAX_SLICES:
        raise ResourceError(
            f"group {spec.name!r} would have {count} slices: at most {MAX_SLICES}; "
            "split it into several groups"
        )
    slices = cut(spec.tensors, elements)
    owners = deal(slices, len(servers))
    loads = [0] * len(servers)
    for piece in slices:
        loads[owners[piece.index]] += piece.bytes
    names, addresses = zip(*servers, strict=True)
    made = SliceMap(version, names, addresses, elements, tuple(owners), owners[0])
    return Group(spec, made, tuple(loads))


def _place_table(spec: GroupSpec, servers: Sequence[tuple[str, str]], version: int) -> Group:
    names, addresses = zip(*servers, strict=True)
    made = SliceMap(version, names, addresses, 1, tuple(sub_table_owners(len(servers))), 0)
    return Group(spec, made, (0,) * len(servers), stored=True)


def slices_of(spec: GroupSpec, slice_map: SliceMap) -> list[Slice]:
    """All slices of a group, by number."""
    if spec.table is not None:
        return sub_tables(ITEM_SIZES[spec.tensors[0].dtype])
    return cut(spec.tensors, slice_map.slice_elements)


class Groups:
    """The groups of one job, by name."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._groups: dict[str, Group] = {}

    def __iter__(self) -> Iterator[Group]:
        return iter(self._groups.values())

    def find(self, name: str) -> Group | None:
        return self._groups.get(name)

    def get(self, name: str) -> Group:
        """Raises NotFoundError for a name that nobody registered."""
        group = self._groups.get(name)
        if group is None:
            raise NotFoundError(f"group {name!r} is not registered; call client.register first")
        return group

    def register(
        self, spec: GroupSpec, servers: Sequence[tuple[str, str]], version: int
    ) -> tuple[Group, bool]:
        """The group of that name, and whether this call made it.

        Raises:
            InvalidRequestError: a specification that cannot work.
            MismatchError: registered with another specification; names the difference.
            ResourceError: too many groups.
        """
        check_spec(spec, self._limits)
        known = self._groups.get(spec.name)
        if known is not None:
            differs = difference(known.spec, spec)
            if differs is not None:
                raise MismatchError(
                    f"group {spec.name!r} is registered otherwise: {differs}; "
                    "all workers must register the same, or use another group name"
                )
            return known, False
        if len(self._groups) >= self._limits.groups:
            raise ResourceError(f"group {spec.name!r}: a job has at most {self._limits.groups}")
        group = place(spec, servers, version)
        self._groups[spec.name] = group
        return group, True

    def restore(
        self, spec: GroupSpec, servers: Sequence[tuple[str, str]], version: int, elements: int
    ) -> Group:
        """A group of a snapshot, whose values are stored; arguments as for ``place``."""
        group = self._groups[spec.name] = place(spec, servers, version, elements)
        group.stored = True
        return group
