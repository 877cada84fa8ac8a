"""Tensor work off the event loop, one bucket at a time under its lock."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

INLINE_BYTES = 64 << 10  # below this a hop to another thread costs more than the work


class Workshop:
    """A few threads for tensor operations."""

    def __init__(self, threads: int = 0) -> None:
        count = threads or min(4, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="tensor")

    async def run(
        self, lock: threading.Lock, size: int, function: Callable[..., T], *args: object
    ) -> T:
        """``function(*args)`` under ``lock``: here if small and the lock free, else in a thread."""
        if size <= INLINE_BYTES and lock.acquire(blocking=False):
            try:
                return function(*args)
            finally:
                lock.release()
        return await asyncio.get_running_loop().run_in_executor(
            self._pool, _locked, lock, function, args
        )

    async def offload(self, size: int, function: Callable[..., T], *args: object) -> T:
        """As ``run``, for work that no bucket has part in."""
        if size <= INLINE_BYTES:
            return function(*args)
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *args)

    def close(self) -> None:
        """Ends the threads once they are idle."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _locked(lock: threading.Lock, function: Callable[..., T], args: tuple[object, ...]) -> T:
    with lock:
        return function(*args)
