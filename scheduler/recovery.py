"""What a lost worker leaves behind: which samples were applied, by the servers' word."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import reduce
from typing import Any, Protocol

from google.protobuf.message import Message

from paramserver.core.members import worker_id
from paramserver.core.placement import Group
from paramserver.core.spans import common
from paramserver.errors import ParameterServerError
from paramserver.scheduler.facts import Loss
from paramserver.scheduler.replicas import replicated
from paramserver.scheduler.state import SchedulerState
from paramserver.types import Span, Sync, canonical
from paramserver.v1 import server_pb2
from paramserver.wire.convert import spans_from_proto

FIRST_PAUSE_S = 0.1
LAST_PAUSE_S = 2.0


class AsyncServerChannel(Protocol):
    """To one server."""

    async def call(self, method: str, request: Message, *, timeout: float = 30.0) -> Any:
        """The reply of a unary rpc; raises ParameterServerError."""


Spans = dict[str, frozenset[Span]]  # by group


class Recovery:
    """One background task for each worker that left with leases.

    Args:
        connect: a channel to the server at an address; kept open.
        recovered: called after each worker's leases are settled.
    """

    def __init__(
        self,
        state: SchedulerState,
        now: Callable[[], float],
        connect: Callable[[str], AsyncServerChannel],
        recovered: Callable[[], None],
    ) -> None:
        self._state, self._now, self._connect = state, now, connect
        self._recovered = recovered
        self._channels: dict[str, AsyncServerChannel] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, loss: Loss) -> None:
        """Begins to settle the leases of a worker; needs a running loop."""
        told = self._state.replicas.told(worker_id(loss.member))
        groups = [
            g
            for g in self._state.groups
            if g.spec.name in loss.member.groups and not replicated(g.spec)
        ]
        if not groups:  # it never pushed
            self._settle(loss, told)
            return
        task = asyncio.get_running_loop().create_task(self._recover(loss, groups, told))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def stop(self) -> None:
        """Gives up: the job has ended."""
        for task in self._tasks:
            task.cancel()

    async def drain(self) -> None:
        """Returns when no task is left; for tests and a clean end."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _settle(self, loss: Loss, applied: frozenset[Span]) -> None:
        self._state.recover(loss, applied, self._now())
        self._recovered()

    async def _recover(self, loss: Loss, groups: list[Group], known: frozenset[Span]) -> None:
        addresses = sorted({a for g in groups for a in _witnesses(g)})
        answers = await asyncio.gather(*(self._ask(loss, a) for a in addresses))
        by_address = dict(zip(addresses, answers, strict=True))
        applied = set(known)
        for group in groups:
            told = [by_address[a].get(group.spec.name, frozenset()) for a in _witnesses(group)]
            applied |= reduce(common, told)
        self._settle(loss, frozenset(applied))

    async def _ask(self, loss: Loss, address: str) -> Spans:
        """Until it answers: a server that stays away fails the job, and that ends this."""
        request = server_pb2.AppliedSpansRequest(
            view=loss.view,
            job=loss.job,
            rank=loss.member.rank,
            incarnation=loss.member.incarnation,
        )
        pause = FIRST_PAUSE_S
        while True:
            try:
                channel = self._channels.setdefault(address, self._connect(address))
                reply = await channel.call("AppliedSpans", request)
                return {g.group: frozenset(spans_from_proto(g.spans)) for g in reply.groups}
            except ParameterServerError as error:
                self._state.journal.say(
                    f"asked {address} for the samples of {loss.member.name}: {error}", self._now()
                )
            await asyncio.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE_S)


def _witnesses(group: Group) -> tuple[str, ...]:
    """Addresses of the servers whose word counts: the lead closes Sync clocks for all; a push of
    another model counts when every server that has slices of the group has applied it."""
    if isinstance(canonical(group.spec.consistency), Sync):
        return (group.map.addresses[group.map.lead],)
    return tuple(group.map.addresses[owner] for owner in sorted(set(group.map.owners)))
