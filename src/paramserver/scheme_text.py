"""Schemes as one writes them on a command line: ``sync``, ``stale:4``, ``local:10,base=async``.

A text is KIND, KIND:VALUE or KIND:NAME=VALUE,..., then ``/ASSIGN`` and ``/balance`` if wanted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from paramserver.errors import ConfigurationError
from paramserver.schemes import Downpour, Local, Scheme
from paramserver.types import ASSIGNMENTS, Adaptive, AllReduce, Async, Stale, Sync

BALANCE = "balance"
OUTER = ("outer_lr", "outer_momentum")  # of local: SGD, with Nesterov if there is momentum
BASES: dict[str, Scheme] = {"sync": Sync(), "async": Async()}
_HEAD = re.compile(r"[^:/=,]*")


@dataclass(frozen=True, slots=True)
class _Kind:
    """A scheme's class, and the argument that may be given without its name."""

    made: Callable[..., Scheme]
    first: str | None = None
    required: bool = False


KINDS = {
    "sync": _Kind(Sync, "backup"),
    "stale": _Kind(Stale, "bound", required=True),
    "async": _Kind(Async),
    "adaptive": _Kind(Adaptive, "max_bound", required=True),
    "local": _Kind(Local, "steps", required=True),
    "downpour": _Kind(Downpour),
    "allreduce": _Kind(AllReduce, "backend"),
}


@dataclass(frozen=True, slots=True)
class Choice:
    """A scheme, and how data is dealt with it.

    Attributes:
        text: as it was written.
        scheme: for ``consistency=``.
        assign: for ``assign=`` of loaders; None leaves it as it is.
        balance: batch sizes by measured speed.
        outer: learning rate and momentum of the outer SGD of a ``Local`` scheme; with momentum, it
            is Nesterov's. None: the scheme's own.
    """

    text: str
    scheme: Scheme
    assign: str | None = None
    balance: bool = False
    outer: tuple[float, float] | None = None


def parse_scheme(text: str) -> Choice:
    """The scheme that a text names.

    Raises:
        ConfigurationError: it names none; says what it may be.
    """
    head, *parts = text.strip().split("/")
    kind, _, rest = head.partition(":")
    if kind not in KINDS:
        raise ConfigurationError(f"scheme {text!r}: {kind!r} must be one of {', '.join(KINDS)}")
    try:
        scheme, outer = _build(kind, rest, given=":" in head)
    except ConfigurationError as error:
        raise ConfigurationError(f"scheme {text!r}: {error}") from None
    assigns = [part for part in parts if part != BALANCE]
    if len(assigns) > 1 or parts.count(BALANCE) > 1 or not set(assigns) <= set(ASSIGNMENTS):
        raise ConfigurationError(
            f"scheme {text!r}: after the scheme may come one of "
            f"{', '.join(f'/{name}' for name in ASSIGNMENTS)}, and /{BALANCE}"
        )
    assign = assigns[0] if assigns else None
    return Choice(text.strip(), scheme, assign, balance=BALANCE in parts, outer=outer)


def split_schemes(text: str) -> list[str]:
    """The texts of a list with commas: ``sync,local:10,base=async`` has two.

    Raises:
        ConfigurationError: one of them is empty or given twice.
    """
    found: list[str] = []
    for part in text.split(","):
        head = _HEAD.match(part)
        assert head is not None
        # A part that begins with NAME= goes on with the arguments of the scheme before it.
        if found and part[head.end() : head.end() + 1] == "=":
            found[-1] += f",{part.strip()}"
        else:
            found.append(part.strip())
    if "" in found:
        raise ConfigurationError(f"schemes {text!r}: an empty one; write them as sync,stale:4")
    if twice := sorted({one for one in found if found.count(one) > 1}):
        raise ConfigurationError(f"schemes {text!r}: {', '.join(twice)} is given twice")
    return found


def _build(kind: str, rest: str, *, given: bool) -> tuple[Scheme, tuple[float, float] | None]:
    known = KINDS[kind]
    options = _options(kind, rest) if given else {}
    if known.required and known.first not in options:
        raise ConfigurationError(
            f"needs {known.first}: write {kind}:{str(known.first).upper()}, such as {kind}:4"
        )
    outer = [options.pop(name) for name in OUTER if name in options]
    if outer and len(outer) < len(OUTER):
        raise ConfigurationError("outer_lr and outer_momentum go together; momentum may be 0")
    scheme: Scheme = known.made(**options)
    return scheme, (outer[0], outer[1]) if outer else None


def _options(kind: str, rest: str) -> dict[str, Any]:
    converters = _converters(kind)
    found: dict[str, Any] = {}
    for number, part in enumerate(rest.split(",")):
        name, equals, value = part.strip().partition("=")
        if not equals:
            first = KINDS[kind].first
            name, value = (first, name) if number == 0 and first is not None else ("", name)
        if name not in converters:
            raise ConfigurationError(
                f"{part.strip()!r} is no argument of {kind}; it has {', '.join(converters)}"
            )
        if name in found:
            raise ConfigurationError(f"{name} is given twice")
        try:
            found[name] = converters[name](value)
        except ValueError as error:
            raise ConfigurationError(f"{name}={value}: {_reason(error)}") from None
    return found


def _reason(error: ValueError) -> str:
    text = str(error)
    return "must be a number" if "could not convert" in text or "invalid literal" in text else text


def _converters(kind: str) -> Mapping[str, Callable[[str], Any]]:
    """How the arguments of a scheme are read, by name, from the annotations of its fields."""
    made = KINDS[kind].made
    assert isinstance(made, type)
    found = {f.name: _BY_TYPE.get(str(f.type), str) for f in fields(made) if f.name != "outer"}
    if kind == "local":
        found |= dict.fromkeys(OUTER, float)
    return found


def _flag(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("must be true or false")
    return text == "true"


def _base(text: str) -> Scheme:
    if text not in BASES:
        raise ValueError(f"must be one of {', '.join(BASES)}")
    return BASES[text]


_BY_TYPE: dict[str, Callable[[str], Any]] = {
    "int": int,
    "float": float,
    "bool": _flag,
    "Sync | Async": _base,
}
