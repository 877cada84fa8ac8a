"""``--limit NAME=VALUE``: bounds on what a role holds, in words."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import click

from paramserver.config import Limits
from paramserver.errors import ConfigurationError

# What both sides of a connection must agree on is no option.
SIZES = ("peer_bytes", "staged_bytes", "work_bytes", "outbox_bytes")
SIZES_OF_ALL = ("collective_bytes", "vector_bytes")
COUNTS = ("parked_calls", "groups", "tensors", "vectors")
NAMES = (*SIZES, *SIZES_OF_ALL, *COUNTS, "stall_s")
_SIZE = re.compile(r"(\d{1,15})(B|KiB|MiB|GiB|TiB)?")
_UNITS = {None: 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


def parse_limits(texts: Iterable[str]) -> Limits:
    """Limits from NAME=VALUE; a later one counts.

    Raises:
        ConfigurationError: an unknown name, or a value that cannot work; says which would.
    """
    given: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or name not in NAMES:
            raise ConfigurationError(
                f"limit {text!r}: must be NAME=VALUE; use one of the names {', '.join(NAMES)}"
            )
        given[name] = _seconds(value) if name == "stall_s" else _whole(name, value)
    limits = Limits(**given)
    _check(limits)
    return limits


def _seconds(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ConfigurationError(f"limit stall_s={value!r}: must be > 0 seconds, such as 60")
    return seconds


def _whole(name: str, value: str) -> int:
    found = _SIZE.fullmatch(value)
    if found is not None and name in COUNTS and found[2] is None and int(found[1]):
        return int(found[1])
    if found is not None and name not in COUNTS and int(found[1]):
        return int(found[1]) * _UNITS[found[2]]
    if name in COUNTS:
        raise ConfigurationError(f"limit {name}={value!r}: must be a whole number >= 1")
    raise ConfigurationError(
        f"limit {name}={value!r}: must be bytes > 0, such as 1073741824, 512MiB or 4GiB"
    )


def _check(limits: Limits) -> None:
    for name in SIZES:
        if getattr(limits, name) < limits.frame_bytes:
            raise ConfigurationError(
                f"limit {name}={getattr(limits, name)}: must be at least one frame, "
                f"{limits.frame_bytes} bytes; use {name}=1MiB or more"
            )
    if limits.peer_bytes > limits.staged_bytes:
        raise ConfigurationError(
            f"limit peer_bytes={limits.peer_bytes}: one worker cannot have more than all, "
            f"staged_bytes={limits.staged_bytes}; raise that, or lower peer_bytes"
        )


def _parse(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> Limits:
    try:
        return parse_limits(value)
    except ConfigurationError as error:
        raise click.BadParameter(str(error), ctx, param) from None


limit_option = click.option(
    "--limit",
    "limits",
    multiple=True,
    envvar="PARAMSERVER_LIMITS",
    show_envvar=True,
    metavar="NAME=VALUE",
    callback=_parse,
    help=f"Bound of this role, such as peer_bytes=4GiB; names: {', '.join(NAMES)}.",
)
