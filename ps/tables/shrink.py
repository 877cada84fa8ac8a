"""Forgetting rows on request, between two clocks."""

from __future__ import annotations

import time

from paramserver.errors import InvalidRequestError
from paramserver.ps.group import GroupState
from paramserver.ps.workshop import INLINE_BYTES, Workshop


async def shrink(
    group: GroupState, workshop: Workshop, clock: int, park_seconds: float
) -> int | None:
    """Forgets the rows whose time has come; how many.

    Returns:
        None: the worker could not read at its clock within the time; nothing was done.

    Raises:
        InvalidRequestError: the group is no table that forgets.
    """
    if group.spec.table is None or group.spec.table.evict is None:
        raise InvalidRequestError(f"group {group.spec.name!r} is no table with evict=")
    if not park_seconds >= 0:
        raise InvalidRequestError(f"park_seconds={park_seconds}: must be >= 0 (0: do not wait)")
    deadline = time.monotonic() + park_seconds
    for cell in group.cells:
        if not await group.readable(cell, clock, max(0.0, deadline - time.monotonic())):
            return None
    evicted = 0
    for cell in group.cells:
        evicted += await cell.change(workshop, INLINE_BYTES + 1, cell.shrink)
    return evicted
