"""Slices move to another server while training goes on: the steps of a move on one server."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from paramserver.core.placement import SliceMap
from paramserver.errors import (
    FencedError,
    InvalidRequestError,
    MovedError,
    ParameterServerError,
    ResourceError,
    UnsupportedError,
    WaitTimeoutError,
)
from paramserver.failpoints import failpoint
from paramserver.ps import records
from paramserver.ps.group import GroupState
from paramserver.ps.holds import LIMIT_S, GroupHold
from paramserver.ps.lead import Leadership, reports_of
from paramserver.ps.regroup import blank_map, lead_on, regroup, slices_at, way, without_pushes
from paramserver.ps.slice_parts import Fetched, gather, group_part, pushes_parts, state_parts
from paramserver.types import WorkerId
from paramserver.v1 import server_pb2 as pb
from paramserver.wire.convert import group_from_proto, map_from_proto, map_to_proto

if TYPE_CHECKING:
    from paramserver.ps.service import ServerService

log = logging.getLogger("paramserver")

ASK_EVERY_S = 1.0  # a server that must not let go by itself asks the scheduler
LOOK_EVERY_S = 0.02


@dataclass(slots=True, eq=False)
class Part:
    """This server's part in a move of one group.

    Attributes:
        move: its number.
        bound: slices were handed out or taken: only the scheduler may say that the move is over.
        taken: what came, on the destination, and the map by which it counts.
    """

    move: int
    group: GroupState | None
    lead: Leadership | None = None
    hold: GroupHold | None = None
    bound: bool = False
    taken: tuple[SliceMap, Fetched] | None = None
    timer: asyncio.Task[None] | None = field(default=None)


class Reshape:
    """The moves of one server; of one group at most one at a time."""

    def __init__(self, service: ServerService) -> None:
        self._service = service
        self._parts: dict[str, Part] = {}
        self._dumps = 0  # under way, of all that is here
        self._turn = asyncio.Lock()

    def clear(self) -> None:
        """Forgets everything (a new job)."""
        for name in list(self._parts):
            self._let_go(name, note=False)

    async def move(self, request: pb.MoveRequest) -> pb.MoveReply:
        """One step."""
        if request.job != self._service.views.current.job:
            raise FencedError(f"a move of job {request.job}: this is another job")
        if request.step == pb.MOVE_HOLD:
            return await self._hold(request)
        if request.step == pb.MOVE_DRAIN:
            await self._drain(request)
        elif request.step == pb.MOVE_TAKE:
            await self._take(request)
        elif request.step == pb.MOVE_FOLLOW:
            await self.follow(request.group, map_from_proto(request.map), request.move)
            await self._service.durable()
            failpoint("ps.after_move_follow")
        elif request.step == pb.MOVE_RELEASE:
            if self._is(request.group, request.move):
                self._let_go(request.group)
        else:
            raise InvalidRequestError(f"step {request.step} of a move: there is no such step")
        return pb.MoveReply()

    # Standing still

    async def _hold(self, request: pb.MoveRequest) -> pb.MoveReply:
        service, name = self._service, request.group
        group = await service.group(name, request.map_version)
        vectors = service.vectors.known(name)
        if vectors is not None and vectors.vectors:
            raise UnsupportedError(
                f"group {name!r} has vectors, which do not move: change the number of servers "
                "once the minimization is over"
            )
        known = self._parts.get(name)
        if known is not None and known.move != request.move:
            if known.move > request.move:
                raise ResourceError(f"move {known.move} of group {name!r} is not over; try again")
            self._let_go(name)  # the scheduler makes one move at a time, and is at the next
        if name not in self._parts:
            self._begin(request, group)
        part = self._parts[name]
        opened = part.hold.limits if part.hold is not None else {}
        frontier = group.frontier.value if part.lead is None else part.lead.clock.min_clock
        return pb.MoveReply(
            workers=[
                pb.WorkerClock(rank=w.rank, incarnation=w.incarnation, clock=c)
                for w, c in opened.items()
            ],
            frontier=frontier if group.sync else 0,
            holds=bool(group.slices),
        )

    def _begin(self, request: pb.MoveRequest, group: GroupState) -> None:
        if group.hold is not None:
            raise ResourceError(f"group {request.group!r} is being held already; try again")
        if self._dumps:
            raise ResourceError(f"{self._service.name} writes down all that it has; try again")
        part = Part(request.move, group)
        if request.pushes and group.slices:
            group.hold = part.hold = GroupHold(group)
        if group.sync and (lead := self._service.lead_of(request.group)) is not None:
            part.lead = lead
            lead.hold()
        self._parts[request.group] = part
        part.timer = asyncio.create_task(
            self._patience(request.group, part, request.limit_s or LIMIT_S)
        )

    async def _patience(self, name: str, part: Part, limit_s: float) -> None:
        await asyncio.sleep(limit_s)
        while not self._service.views.current.number:  # begun again, and not told yet who is here
            await asyncio.sleep(LOOK_EVERY_S)
        while part.bound:
            try:
                reply = await self._service.ask_for(name)
                if part.taken is not None or part.group is not None:
                    known = part.group.map.version if part.group is not None else 0
                    if reply.map.version > known:
                        await self.follow(name, map_from_proto(reply.map), part.move)
                        return
                if reply.moving != part.move:
                    break
            except ParameterServerError as error:
                log.warning("group %s stands still: move %d: %s", name, part.move, error)
            await asyncio.sleep(ASK_EVERY_S)
        log.warning("move %d of group %s did not come to an end; going on", part.move, name)
        part.timer = None
        if self._is(name, part.move):
            self._let_go(name)

    def _is(self, name: str, move: int) -> bool:
        part = self._parts.get(name)
        return part is not None and part.move == move

    def _mine(self, name: str, move: int) -> Part:
        part = self._parts.get(name)
        if part is None or part.move != move:
            raise FencedError(f"move {move} of group {name!r} is over here; begin again")
        return part

    def _let_go(self, name: str, *, note: bool = True) -> None:
        part = self._parts.pop(name)
        if note and part.bound and self._service.journal is not None:
            records.released(self._service.journal, name, part.move)
        if part.timer is not None:
            part.timer.cancel()
        if part.hold is not None and part.group is not None:
            part.group.hold = None
            part.hold.stir()
        if part.group is not None:
            part.group.resume()
        if part.lead is not None:
            part.lead.go_on()

    async def _drain(self, request: pb.MoveRequest) -> None:
        part = self._mine(request.group, request.move)
        group, hold = part.group, part.hold
        if group is None or hold is None:
            return
        hold.let_through({WorkerId(w.rank, w.incarnation): w.clock for w in request.workers})
        gone = self._service.views.gone
        end = asyncio.get_running_loop().time() + (request.limit_s or LIMIT_S)
        while not (hold.complete(gone) and group.settled.value >= request.frontier):
            self._mine(request.group, request.move)
            if asyncio.get_running_loop().time() > end:
                raise WaitTimeoutError(f"pushes of group {request.group!r} did not come through")
            await asyncio.sleep(LOOK_EVERY_S)

    # Giving and taking

    async def fetch(self, request: pb.FetchSlicesRequest) -> AsyncIterator[pb.SlicePart]:
        """All state of the slices, for the destination."""
        part = self._mine(request.group, request.move)
        group = part.group
        if group is None or part.hold is None:
            raise InvalidRequestError(f"move {request.move} does not hold {request.group!r} here")
        group.check_slices(request.slices)
        await group.pause()  # the lead may close the next clock before what leaves is forgotten
        await self._bind(request.group, part)
        failpoint("ps.after_move_bind")
        lead = self._service.lead_of(request.group)
        yield group_part(group, lead.clock.dump() if lead is not None else None)
        for cell in group.cells:
            wanted = [i for i in request.slices if i in cell.slices]
            if not wanted:
                continue
            states = await self._service.workshop.run(
                cell.lock, cell.nbytes, cell.bucket.dump, wanted
            )
            for index in wanted:
                for message in state_parts(index, states[index]):
                    yield message
        for message in pushes_parts(group, request.slices):
            yield message

    async def _take(self, request: pb.MoveRequest) -> None:
        name, service = request.group, self._service
        part = self._mine(name, request.move)
        if part.group is not None:  # a clock that closes now must close on what comes, too
            await part.group.pause()
        ask = pb.FetchSlicesRequest(
            job=request.job, move=request.move, group=name, slices=request.slices
        )
        channel = service.connect(request.source)
        try:
            fetched = await gather(channel.stream("FetchSlices", ask), list(request.slices))
        finally:
            await channel.close()
        self._mine(name, request.move)
        part.taken = map_from_proto(request.map), fetched
        await self._bind(name, part)
        failpoint("ps.after_move_take")

    # The new map

    async def follow(self, name: str, new: SliceMap, move: int = 0) -> GroupState | None:
        """As ``_follow``, one at a time."""
        async with self._turn:
            return await self._follow(name, new, move)

    async def _follow(self, name: str, new: SliceMap, move: int) -> GroupState | None:
        """The map holds from now on; again: nothing happens. None: nothing of the group is here.

        Args:
            move: 0: whichever makes this map.

        Raises:
            FencedError: the move is over here, and this server was to have a part in it.
            MovedError: slices are to be here that never came.
        """
        group, part = self._service.held(name), self._parts.get(name)
        if group is not None and group.map.version >= new.version:
            return group
        mine = slices_at(new, self._service.name)
        had = set(group.slices) if group is not None else set()
        taken = part.taken if part is not None else None
        if mine - had and (taken is None or taken[0].version != new.version):
            raise MovedError(f"slices of group {name!r} have not come to {self._service.name} yet")
        if move and self._service.lead_of(name) is not None and not self._is(name, move):
            raise FencedError(f"move {move} of group {name!r} is over here; begin again")
        if group is None or (taken is not None and not had):
            if taken is None:
                return None
            group = await self._empty(name, new)
            self._service.install(group)
        fetched = taken[1] if taken is not None and mine - had else None
        failpoint(f"ps.before_move_{way(had, mine)}")
        regroup(group, new, fetched, time.monotonic())
        self._lead(group, fetched)
        if part is not None and part.move == (move or part.move):
            self._let_go(name, note=False)
        if had - mine:
            for session in list(self._service.sessions):
                session.moved(group)
        return group

    async def catch_up(self, name: str, version: int) -> GroupState:
        """A group by a newer map, of which a client has heard first.

        Raises:
            MovedError: nobody knows that map yet.
        """
        reply = await self._service.ask_for(name)
        if reply.map.version < version:
            raise MovedError(f"group {name!r}: there is no slice map {version} yet; ask again")
        group = await self.follow(name, map_from_proto(reply.map))
        assert group is not None, "a group that is here does not vanish"
        return group

    async def leave(self) -> None:
        """Nothing is to be here any more: whoever waits here is told so."""
        for group in self._service.fetched():
            with suppress(ParameterServerError):  # else clients find out when this ends
                reply = await self._service.ask_for(group.spec.name)
                await self.follow(group.spec.name, map_from_proto(reply.map))

    async def _empty(self, name: str, new: SliceMap) -> GroupState:
        """A group of which nothing is here, and some slices are about to be."""
        reply = await self._service.ask_for(name)
        nothing = blank_map(new)
        if self._service.journal is not None and not self._service.has_group(name):
            reply.map.CopyFrom(map_to_proto(nothing))
            records.made(self._service.journal, reply)
        return self._service.make(group_from_proto(reply.spec), nothing)

    def _lead(self, group: GroupState, fetched: Fetched | None) -> None:
        """Who decides for the group, and who is told, by the new map."""
        service, name = self._service, group.spec.name
        if group.lead != service.name:
            service.leads.follow(group, reports_of(group))
            return
        came = lead_on(service, group, fetched)
        lead = service.lead_of(name)
        assert lead is not None
        if came:
            lead.observe(service.views)
        for staged in reports_of(group):
            lead.staged(service.name, staged)
        part = self._parts.get(name)
        if came and part is not None:
            part.lead = lead  # goes on with what else waits

    async def still(self) -> None:
        """Returns once nothing moves; until ``dumped``, no move begins here."""
        self._dumps += 1
        while self._parts:
            await asyncio.sleep(LOOK_EVERY_S)

    def dumped(self) -> None:
        """What began with ``still`` is over."""
        self._dumps -= 1

    @property
    def busy(self) -> bool:
        """Whether slices are on their way here or from here."""
        return bool(self._parts)

    async def _bind(self, name: str, part: Part) -> None:
        """From now on only the scheduler's word ends the move here, whatever process hears it."""
        part.bound = True
        journal, group = self._service.journal, part.group
        if journal is None or group is None:
            return
        if part.taken is None:
            records.bound(journal, name, part.move)
        else:
            new, fetched = part.taken
            for index, state in fetched.states.items():
                records.came(journal, name, index, state)
            told = without_pushes(group, fetched.group)
            records.bound(journal, name, part.move, new, told)
        await self._service.durable()
        self._mine(name, part.move)

    def remember(self, name: str, part: Part) -> None:
        """A journal tells of a part that has not ended."""
        self._parts[name] = part

    def remembered(self, name: str) -> Part | None:
        """A part that the journal told of so far; it is forgotten here."""
        return self._parts.pop(name, None)

    async def resume(self, group: GroupState) -> None:
        """All that a journal told is here again: a part that has not ended goes on."""
        name = group.spec.name
        part = self._parts.get(name)
        if part is None:
            return
        part.group = group
        if group.slices:
            group.hold = part.hold = GroupHold(group)
        await group.pause()
        part.timer = asyncio.create_task(self._patience(name, part, 0.0))

    def hold_lead(self, name: str) -> None:
        """After ``resume``, when leads go on: this one does not yet."""
        part, lead = self._parts.get(name), self._service.lead_of(name)
        if part is not None and lead is not None:
            part.lead = lead
            lead.hold()
