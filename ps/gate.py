"""A number that only grows, and coroutines parked until it has reached theirs."""

from __future__ import annotations

import asyncio
import heapq
import itertools


class Gate:
    """Used on one event loop; ``advance`` wakes everybody who waits for no more than the value."""

    __slots__ = ("_order", "_waiters", "value")

    def __init__(self, value: int = 0) -> None:
        self.value = value
        self._order = itertools.count()
        self._waiters: list[tuple[int, int, asyncio.Future[None]]] = []

    def advance(self, value: int) -> None:
        """Raises the value; a lower one changes nothing."""
        self.value = max(self.value, value)
        while self._waiters and self._waiters[0][0] <= self.value:
            waiter = heapq.heappop(self._waiters)[2]
            if not waiter.done():
                waiter.set_result(None)

    async def reach(self, value: int, timeout: float | None = None) -> bool:
        """Waits until the value is at least ``value``; False when ``timeout`` seconds passed, or
        everybody was stirred before."""
        if self.value >= value:
            return True
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (value, next(self._order), waiter)
        heapq.heappush(self._waiters, entry)
        try:
            await asyncio.wait_for(waiter, timeout)
        except asyncio.TimeoutError:
            return self.value >= value
        finally:
            if entry in self._waiters:
                self._waiters.remove(entry)
                heapq.heapify(self._waiters)
        return self.value >= value

    def stir(self) -> None:
        """Everybody who waits looks again at what for."""
        waiters, self._waiters = self._waiters, []
        for _, _, waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def __len__(self) -> int:
        return len(self._waiters)
