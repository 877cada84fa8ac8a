"""Changes that take a while, and onlookers who must see none of them half done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Stillness:
    """Many changes at a time, or onlookers; an onlooker goes first. On one event loop."""

    def __init__(self) -> None:
        self._changes = self._onlookers = 0
        self._stirred = asyncio.Condition()

    @asynccontextmanager
    async def change(self) -> AsyncIterator[None]:
        """Something is changed inside."""
        if self._onlookers:
            async with self._stirred:
                await self._stirred.wait_for(lambda: not self._onlookers)
        self._changes += 1
        try:
            yield
        finally:
            self._changes -= 1
            if self._onlookers:
                async with self._stirred:
                    self._stirred.notify_all()

    @asynccontextmanager
    async def look(self) -> AsyncIterator[None]:
        """Nothing is being changed inside."""
        self._onlookers += 1
        async with self._stirred:
            try:
                await self._stirred.wait_for(lambda: not self._changes)
                yield
            finally:
                self._onlookers -= 1
                self._stirred.notify_all()
