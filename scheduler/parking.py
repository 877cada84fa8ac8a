"""Long polls: callers parked on a topic until it is woken or their time is over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import TypeVar

from paramserver.errors import ResourceError
from paramserver.scheduler.topics import EVERYTHING

CAP_S = 10.0
T = TypeVar("T")


class Parking:
    """Parked callers by topic. For one event loop; not thread-safe.

    Args:
        limit: callers that may be parked at a time.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parked: dict[str, dict[asyncio.Future[None], None]] = {}  # who came first is first
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def wake(self, topics: Iterable[str]) -> None:
        """Callers parked on these topics look again."""
        wanted = set(topics)
        if EVERYTHING in wanted:
            wanted = set(self._parked)
        for topic in [t for t in self._parked if t in wanted]:
            for future in self._parked[topic]:
                if not future.done():
                    future.set_result(None)

    async def wait(self, topic: str, seconds: float | None) -> None:
        """Returns when the topic is woken or the time is over (None: never).

        Raises:
            ResourceError: too many callers are parked.
        """
        if self._count >= self._limit:
            raise ResourceError(f"{self._count} calls are parked here: no more are admitted")
        future = asyncio.get_running_loop().create_future()
        self._parked.setdefault(topic, {})[future] = None
        self._count += 1
        try:
            await asyncio.wait((future,), timeout=seconds)
        finally:
            self._count -= 1
            self._parked[topic].pop(future, None)
            if not self._parked[topic]:
                del self._parked[topic]

    async def poll(
        self, topic: str, wait_s: float, attempt: Callable[[], T], pending: Callable[[T], bool]
    ) -> T:
        """Tries now, and again whenever the topic is woken, for at most min(wait_s, 10) seconds.

        Returns:
            The last answer, pending or not.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + min(wait_s, CAP_S)
        answer = attempt()
        while pending(answer) and (left := end - loop.time()) > 0:
            await self.wait(topic, left)
            answer = attempt()
        return answer
