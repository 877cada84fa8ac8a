"""Signals that end a command."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator


def ending() -> list[signal.Signals]:
    """The signals that end a command; not SIGHUP where it is ignored, as ``nohup`` does."""
    wanted = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return wanted[:-1] if ignored else wanted


@contextlib.contextmanager
def handled(handler: Callable[[int, object], None]) -> Iterator[None]:
    """Signals that end a command go to ``handler`` while inside."""
    numbers = ending()
    before = [signal.signal(number, handler) for number in numbers]
    try:
        yield
    finally:
        for number, old in zip(numbers, before, strict=True):
            signal.signal(number, old)
