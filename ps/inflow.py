"""How much of what comes in a server holds: refused before it is read, or not read yet."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import TYPE_CHECKING, Any

from paramserver.config import Limits
from paramserver.errors import ResourceError

if TYPE_CHECKING:
    from paramserver.ps.group import GroupState
    from paramserver.ps.push import Incoming
    from paramserver.ps.service import ServerService
    from paramserver.types import WorkerId


class Inflow:
    """Two bounds: on gradients that wait for their clock, and on frames that are worked on.

    What is held is counted when somebody asks, from what is there: nothing can be forgotten.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._at_work = 0
        self._room = asyncio.Event()
        self._room.set()

    def admit(self, push: Incoming, size: int, service: ServerService) -> None:
        """Lets in so many bytes more of a push, if it is to wait for its clock or its commit.

        Raises:
            ResourceError: its worker, or all workers together, would have too much here.
        """
        push.size += size
        if not push.size or not (push.group.sync or push.deferred):
            return
        others = (other for session in service.sessions for other in session.arriving())
        theirs = every = push.size
        for worker, size in _held(push, others, service.fetched()):
            every += size
            theirs += size if worker == push.worker else 0
        limits = self._limits
        for held, limit, whose in (
            (theirs, limits.peer_bytes, f"rank {push.worker.rank} has"),
            (every, limits.staged_bytes, "all workers have"),
        ):
            if held > limit:
                raise ResourceError(
                    f"group {push.group.spec.name!r}, clock {push.clock}: {whose} {held} bytes of "
                    f"pushes here whose clocks are open, at most {limit} are held; wait for the "
                    "results of earlier pushes, or start more servers"
                )

    async def start(self, size: int, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Starts work on so many bytes as a task; first waits while too many are worked on.

        Meanwhile the stream is not read, so that gRPC's flow control stops the sender.
        """
        try:
            while self._at_work >= self._limits.work_bytes:
                self._room.clear()
                await self._room.wait()
        except BaseException:
            work.close()
            raise
        self._at_work += size
        task = asyncio.create_task(work)
        task.add_done_callback(lambda _: self._end(size))
        return task

    def _end(self, size: int) -> None:
        self._at_work -= size
        self._room.set()


def _held(
    push: Incoming, others: Iterable[Incoming], groups: Iterable[GroupState]
) -> Iterable[tuple[WorkerId, int]]:
    """Who holds how much, besides an earlier try of the same push."""
    key = (push.group, push.worker, push.clock)
    for other in others:
        if (other.group, other.worker, other.clock) != key:
            yield other.worker, other.size
    for group in groups:
        for staged in group.staged.values():
            if (group, staged.worker, staged.clock) != key:
                yield staged.worker, staged.nbytes
