"""Moves slices between servers, one move after the other, until each has its share."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol

from paramserver.errors import ConnectionLostError, FencedError, ParameterServerError
from paramserver.failpoints import failpoint
from paramserver.scheduler.recovery import AsyncServerChannel
from paramserver.scheduler.shape import Moving, Shape
from paramserver.scheduler.state import SchedulerState
from paramserver.v1 import server_pb2 as pb
from paramserver.wire.convert import map_to_proto

log = logging.getLogger("paramserver")

FIRST_PAUSE_S, LAST_PAUSE_S = 0.1, 2.0
DRAIN_S = 5.0


class Clock(Protocol):
    """Seconds on a monotonic clock."""

    def __call__(self) -> float: ...


class Reshaping:
    """One background task while there is something to move.

    Args:
        changed: called after every move.
        kept: returns when the scheduler's state so far outlasts its process.
    """

    def __init__(
        self,
        state: SchedulerState,
        now: Clock,
        connect: Callable[[str], AsyncServerChannel],
        changed: Callable[[], None],
        kept: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._state, self._now, self._connect, self._changed = state, now, connect, changed
        self._kept = kept
        self._channels: dict[str, AsyncServerChannel] = {}
        self._task: asyncio.Task[None] | None = None

    def look(self) -> None:
        """Begins what is to be done; to be called after every event."""
        idle = self._task is None or self._task.done()
        if idle and (self._shape.moving or not self._shape.finished):
            self._task = asyncio.get_running_loop().create_task(self._run())

    def stop(self) -> None:
        """Gives up: the job has ended."""
        if self._task is not None:
            self._task.cancel()

    @property
    def _shape(self) -> Shape:
        return self._state.shape

    async def _run(self) -> None:
        pause = FIRST_PAUSE_S
        if (left := self._shape.under_way) is not None:  # of the scheduler before this one
            await self._move(left, self._ask_again)
        while not self._shape.finished:
            saving = self._state.draft is not None  # a snapshot wants every slice in its place
            moving = None if saving else self._state.begin_move()
            if moving is not None and await self._move(moving, self._prepare):
                pause = FIRST_PAUSE_S
            else:
                await asyncio.sleep(pause)
                pause = min(2 * pause, LAST_PAUSE_S)

    async def _keep(self) -> None:
        """No server hears of what the next scheduler would not know."""
        if self._kept is not None:
            await self._kept()

    async def _move(self, moving: Moving, prepare: Callable[[Moving], Awaitable[None]]) -> bool:
        try:
            await self._keep()
            await prepare(moving)
        except (ParameterServerError, asyncio.CancelledError) as error:
            self._state.abort_move(moving, str(error), self._now())
            await self._tell(moving, moving.addresses, pb.MOVE_RELEASE)
            if isinstance(error, asyncio.CancelledError):
                raise
            return False
        failpoint("scheduler.before_move_commit")
        self._state.commit_move(moving, self._now())
        await self._keep()
        failpoint("scheduler.after_move_commit")
        self._changed()
        move = moving.move
        for end in (move.destination, move.source):
            try:
                await self._insist(moving, end)
            except ParameterServerError as error:  # it is gone, or finds out by itself
                log.warning("move %d of group %s: %s", moving.number, moving.group, error)
        rest = moving.addresses.keys() - {move.source, move.destination}
        await self._tell(moving, rest, pb.MOVE_FOLLOW)
        return True

    async def _prepare(self, moving: Moving) -> None:
        """Until the lead has followed: from then on the slices have moved."""
        move = moving.move
        ends = (move.source, move.destination)
        names = list(moving.addresses)
        replies = await asyncio.gather(
            *(self._step(moving, n, pb.MOVE_HOLD, pushes=n in ends) for n in names)
        )
        told: dict[str, pb.MoveReply] = dict(zip(names, replies, strict=True))
        opened: dict[tuple[int, int], int] = {}
        for end in ends:
            for w in told[end].workers:
                key = (w.rank, w.incarnation)
                opened[key] = max(w.clock, opened.get(key, 0))
        workers = [
            pb.WorkerClock(rank=rank, incarnation=incarnation, clock=clock)
            for (rank, incarnation), clock in opened.items()
        ]
        frontier = max(reply.frontier for reply in replies)
        drain = {"workers": workers, "frontier": frontier, "limit_s": DRAIN_S}
        await asyncio.gather(
            *(self._step(moving, n, pb.MOVE_DRAIN, **drain) for n in ends if told[n].holds)
        )
        await self._step(
            moving,
            move.destination,
            pb.MOVE_TAKE,
            slices=move.slices,
            source=moving.addresses[move.source],
            map=map_to_proto(moving.new),
        )
        failpoint("scheduler.before_move_follow")
        await self._insist(moving, moving.new.servers[moving.new.lead])

    async def _ask_again(self, moving: Moving) -> None:
        """Raises unless the lead has followed already; after that it does no more."""
        lead = moving.new.servers[moving.new.lead]
        await self._insist(moving, lead, pb.MOVE_RELEASE)
        await self._insist(moving, lead)

    async def _insist(self, moving: Moving, name: str, step: pb.MoveStep = pb.MOVE_FOLLOW) -> None:
        """A server is told of the new map until it answers: nobody knows what it heard else.

        Raises:
            FencedError: the job that the move is of is over, or goes on without it.
        """
        pause = FIRST_PAUSE_S
        members = self._state.members
        while members.job == moving.job and not members.ended() and members.awaits(name):
            try:
                new = map_to_proto(moving.new)
                await self._step(moving, name, step, map=new)
                return
            except ConnectionLostError as error:
                log.warning("%s does not hear of a new slice map: %s", name, error)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE_S)
        raise FencedError(f"move {moving.number}: {name} is not waited for any more")

    async def _tell(self, moving: Moving, names: Iterable[str], step: pb.MoveStep) -> None:
        """Those that do not hear it find out by themselves."""
        new = map_to_proto(moving.new)
        calls = (self._step(moving, name, step, map=new) for name in sorted(names))
        for error in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(error, BaseException):
                log.info("move %d of group %s: %s", moving.number, moving.group, error)

    async def _step(
        self, moving: Moving, name: str, step: pb.MoveStep, **fields: Any
    ) -> pb.MoveReply:
        address = moving.addresses[name]
        channel = self._channels.setdefault(address, self._connect(address))
        request = pb.MoveRequest(
            job=moving.job,
            move=moving.number,
            group=moving.group,
            map_version=moving.old.version,
            step=step,
            **fields,
        )
        reply: pb.MoveReply = await channel.call("Move", request)
        return reply
