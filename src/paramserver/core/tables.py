"""Tables: what must agree between all that speak of one, and where its rows lie."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from paramserver.core.slices import Slice
from paramserver.errors import ConfigurationError, InvalidRequestError
from paramserver.life_cycle import Admission, Eviction

SUB_TABLE_BITS = 6
SUB_TABLES = 1 << SUB_TABLE_BITS
MAX_DIM = 1 << 16
INITIALS = ("zeros", "uniform", "normal")


@dataclass(frozen=True, slots=True)
class Initial:
    """How rows begin.

    Attributes:
        kind: "zeros", "uniform" on [low, high), or "normal" with mean low and deviation high.
        low, high: its parameters.
        seed: rows of two tables with unlike seeds are independent.
    """

    kind: str = "zeros"
    low: float = 0.0
    high: float = 0.0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class TableSpec:
    """Of a group that is a table, beside its one tensor of rule "rows".

    Attributes:
        dim: floats of a row.
        rows: ids are 0 to rows - 1; None: any 64-bit number.
        initial: what an unseen row reads as.
        admit: which rows are born; None: all that are pushed.
        evict: which rows are forgotten; None: none.
    """

    dim: int
    rows: int | None
    initial: Initial
    admit: Admission | None = None
    evict: Eviction | None = None


def check_table(spec: TableSpec) -> None:
    """Raises InvalidRequestError for a table that cannot be."""
    if not 1 <= spec.dim <= MAX_DIM:
        raise InvalidRequestError(f"table of dim={spec.dim}: must be 1 to {MAX_DIM}")
    if spec.rows is not None and spec.rows < 1:
        raise InvalidRequestError(f"table of rows={spec.rows}: must be >= 1, or None for any id")
    if spec.initial.kind not in INITIALS:
        raise InvalidRequestError(
            f"initial values {spec.initial.kind!r}: must be one of {', '.join(INITIALS)}"
        )


def check_row_option(key: str, value: Any, like: Any) -> None:
    """Raises ConfigurationError for a hyper-parameter that no step of rows can take.

    Args:
        like: one that can: its default, or what was registered.
    """
    numbers = value if isinstance(value, tuple) else (value,)
    if not all(isinstance(v, (int, float)) and math.isfinite(v) and v >= 0 for v in numbers):
        raise ConfigurationError(f"{key}={value!r}: must be finite and >= 0")
    pair = isinstance(like, tuple)
    if pair and (len(numbers) != 2 or max(numbers) >= 1):
        raise ConfigurationError(f"{key}={value!r}: must be two numbers, each below 1")
    if not pair and (isinstance(value, tuple) or (key == "alpha" and value > 1)):
        must = "at most 1" if key == "alpha" else "one number"
        raise ConfigurationError(f"{key}={value!r}: must be {must}")


def sub_tables(item_size: int) -> list[Slice]:
    """The slices of a table: each holds the keys that share its highest bits."""
    return [Slice(i, 0, 0, 0, item_size) for i in range(SUB_TABLES)]


def sub_table_owners(servers: int) -> list[int]:
    """The server of each sub-table: neighbours lie together, counts differ by at most 1."""
    return [i * servers // SUB_TABLES for i in range(SUB_TABLES)]
