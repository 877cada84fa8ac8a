"""Which server of a process a call is for: a process may host several."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

SERVER_KEY = "paramserver-server"

Metadata = tuple[tuple[str, str], ...]


def call_target(address: str) -> tuple[str, Metadata]:
    """What to connect to, and what every call says; HOST:PORT/NAME names a server there."""
    target, _, server = address.partition("/")
    return target, ((SERVER_KEY, server),) if server else ()


def called_server(metadata: Iterable[Any] | None) -> str:
    """The name of the server that a call is for; empty: the process's own."""
    return next((str(value) for key, value in metadata or () if key == SERVER_KEY), "")
