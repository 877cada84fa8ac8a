"""What every part of the Scheduler service stands on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from paramserver.config import SchedulerConfig
from paramserver.core.members import Caller
from paramserver.scheduler.state import SchedulerState
from paramserver.v1 import common_pb2

T = TypeVar("T")


class Shell:
    """``SchedulerService`` as its parts see it."""

    state: SchedulerState
    _config: SchedulerConfig
    _now: Callable[[], float]

    def _enter(self, identity: common_pb2.Identity) -> Caller:
        raise NotImplementedError

    def _after(self) -> None:
        raise NotImplementedError

    async def _poll(
        self, topic: str, wait_s: float, attempt: Callable[[], T], pending: Callable[[T], bool]
    ) -> T:
        raise NotImplementedError
