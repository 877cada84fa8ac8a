"""All that a server is, as entries of its journal."""

from __future__ import annotations

from collections.abc import AsyncIterator

from paramserver.ps.service import ServerService


async def dump(service: ServerService) -> AsyncIterator[bytes]:
    """Entries that rebuild the server, each true as of a position in its journal."""
    for _ in service._groups:
        raise NotImplementedError
    if False:
        yield b""
