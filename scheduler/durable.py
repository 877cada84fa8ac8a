"""A scheduler that outlives its process: told from its log, and silent until that is written."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

from paramserver.config import SchedulerConfig
from paramserver.scheduler.event_log import EventLog
from paramserver.scheduler.state import SchedulerState
from paramserver.wire.methods import SCHEDULER_METHODS


def remembered(
    log: EventLog, config: SchedulerConfig, now: Callable[[], float], first_incarnation: int
) -> tuple[SchedulerState, Callable[[], float]]:
    """The state that the log leads to, or an empty one; and a clock that goes on where it stood.

    Members have fresh leases: while there was no scheduler, none could be heard.
    """
    told = log.tell(config)
    shift = max(0.0, told.at - now()) if told is not None else 0.0

    def clock() -> float:
        return now() + shift

    if told is None:
        state = SchedulerState(config, clock(), first_incarnation)
    else:
        state = told.state
        state.come_back(config, clock())
        state.journal.say(f"the scheduler is back: {told.events} events told again", clock())
    state.recorder = lambda method, args, named: log.record(state, clock(), method, args, named)
    log.begin(state, config, clock())
    return state, clock


class Durable:
    """A servicer that answers once all that its answer rests on is written.

    Args:
        servicer: the Scheduler service.
    """

    def __init__(self, servicer: Any, log: EventLog) -> None:
        self._servicer = servicer
        self._log = log

    def __getattr__(self, name: str) -> Callable[[Any], Any]:
        method = getattr(self._servicer, name)

        async def answer(request: Any) -> Any:
            try:
                return await method(request)
            finally:  # a refusal tells of the state too
                await self._log.durable()

        async def answers(request: Any) -> AsyncIterator[Any]:
            async for reply in method(request):
                await self._log.durable()
                yield reply

        return answers if SCHEDULER_METHODS[name].server_streams else answer
