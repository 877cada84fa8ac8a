"""From what ``client.table`` is told to what all workers must agree on."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any

import torch

from paramserver.core.placement import GroupSpec, Option
from paramserver.core.slices import TensorSpec
from paramserver.core.tables import Initial, TableSpec
from paramserver.errors import ConfigurationError, UnsupportedError
from paramserver.initial import InitialValues, Normal, Uniform, Zeros
from paramserver.life_cycle import Admission, Eviction, checked
from paramserver.types import Consistency, canonical
from paramserver.wire.tensors import NAMES

# Rules of rows that are a class of torch, by its name.
OF_TORCH = ("SGD", "Adagrad", "RMSprop", "SparseAdam")
OWN = ("Momentum", "RowAdagrad", "RowAdam", "Ftrl")
# Default learning rates: said here already, so that schedules on the worker know where they start.
LR = {
    "SGD": 1e-3,
    "Adagrad": 1e-2,
    "RMSprop": 1e-2,
    "SparseAdam": 1e-3,
    "Momentum": 1e-3,
    "RowAdagrad": 1e-2,
    "RowAdam": 1e-3,
    "Ftrl": 0.05,
}

RowOptimizer = type[torch.optim.Optimizer] | str | None


def table_spec(
    name: str,
    dim: int,
    rows: int | None,
    dtype: torch.dtype,
    init: InitialValues,
    seed: int,
    optimizer: RowOptimizer,
    hyperparameters: Mapping[str, Any],
    consistency: Consistency,
    admit: Admission | None = None,
    evict: Eviction | None = None,
) -> GroupSpec:
    """The specification of a table.

    Raises:
        ConfigurationError, UnsupportedError: values or rules that cannot work.
    """
    if not isinstance(name, str):
        raise ConfigurationError(f"table {name!r}: the first argument is its name, a text")
    for what, value in (("dim", dim), ("rows", rows)):
        if what == "rows" and value is None:
            continue
        if not isinstance(value, Integral) or isinstance(value, bool):
            raise ConfigurationError(f"table {name!r}: {what}={value!r}: must be a whole number")
        if not 1 <= value < 1 << 63:
            raise ConfigurationError(f"table {name!r}: {what}={value}: must be 1 to 2^63 - 1")
    dim, rows = int(dim), None if rows is None else int(rows)  # of numpy, perhaps
    if dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        raise UnsupportedError(f"table {name!r}: rows of {dtype}: must be floating")
    if not 0 <= seed < 1 << 64:
        raise ConfigurationError(f"seed={seed}: must be 0 to 2^64 - 1")
    rule, options = row_optimizer(optimizer, hyperparameters)
    tensor = TensorSpec("rows", (rows or 0, dim), NAMES[dtype], "rows")
    table = TableSpec(dim, rows, initial(init, seed), *checked(admit, evict))
    groups = (options,) if rule else ()
    return GroupSpec(name, (tensor,), rule, groups, canonical(consistency), table=table)


def initial(init: InitialValues, seed: int) -> Initial:
    """First values as servers know them.

    Raises:
        ConfigurationError: not one of ours.
    """
    if isinstance(init, Normal):
        return Initial("normal", init.mean, init.std, seed)
    if isinstance(init, Uniform):
        return Initial("uniform", init.low, init.high, seed)
    if isinstance(init, Zeros):
        return Initial("zeros", seed=seed)
    raise ConfigurationError(f"init={init!r}: must be Normal(), Uniform() or Zeros()")


def row_optimizer(
    optimizer: RowOptimizer, hyperparameters: Mapping[str, Any]
) -> tuple[str, dict[str, Option]]:
    """The rule of rows that an optimizer stands for, and its hyper-parameters.

    Raises:
        UnsupportedError: there is none; says which there are.
        ConfigurationError: hyper-parameters without an optimizer, or torch's for dense tensors.
    """
    options = dict(hyperparameters)
    if optimizer is None:
        if options:
            raise ConfigurationError(f"{', '.join(options)}: hyper-parameters without an optimizer")
        return "", {}
    name = optimizer if isinstance(optimizer, str) else getattr(optimizer, "__name__", "")
    name = name or type(optimizer).__name__
    of_torch = name in OF_TORCH and getattr(torch.optim, name) is optimizer
    momentum = options.get("momentum", optimizer == "Momentum")
    if options.get("nesterov") and (not momentum or options.get("dampening")):
        raise ConfigurationError("nesterov=True: needs a momentum, and dampening=0")
    if name == "SGD" and options.get("momentum"):
        name = "Momentum"
    if not of_torch and not (isinstance(optimizer, str) and name in OWN):
        cure = "; for Adam say torch.optim.SparseAdam or 'RowAdam'" if "Adam" in name else ""
        raise UnsupportedError(
            f"optimizer {name!r} for a table: must be one of torch.optim's {', '.join(OF_TORCH)}, "
            f"or one of {', '.join(map(repr, OWN))}{cure}"
        )
    if name == "SGD":
        for key in ("momentum", "dampening", "nesterov"):
            options.pop(key, None)
    return name, {"lr": LR[name], **options}


def refuse_blocks(wire_dtype: str | None) -> None:
    """Raises UnsupportedError for a type that packs blocks of a tensor: rows travel one by one."""
    if wire_dtype == "int4":
        raise UnsupportedError(
            'wire_dtype="int4" of a table: rows travel in "bf16", "fp16" or "int8"'
        )
