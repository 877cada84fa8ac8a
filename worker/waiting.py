"""Nothing waits in silence."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from paramserver.errors import WaitTimeoutError

logger = logging.getLogger("paramserver")

SAY_EVERY_S = 10.0
POLL_S = 10.0  # the scheduler parks a call no longer


class Waiting:
    """Says every ten seconds, as a warning, what is waited for and why."""

    def __init__(self, what: str, now: Callable[[], float] = time.monotonic) -> None:
        self._what = what
        self._now = now
        self._start = self._said = now()

    def due(self) -> bool:
        """Whether it is time to say something."""
        return self._now() - self._said >= SAY_EVERY_S

    def say(self, reason: str) -> None:
        """Logs the newest reason if it is time to."""
        if self.due():
            now = self._said = self._now()
            logger.warning("%s: %.0f s so far: %s", self._what, now - self._start, reason)


def long_poll(
    ask: Callable[[float], Any],
    done: Callable[[Any], bool],
    what: str,
    wait_timeout: float,
    now: Callable[[], float],
) -> Any:
    """Asks until ``done(reply)``; the reply.

    Args:
        ask: from the seconds that the call may be parked; its reply has ``pending``.
        what: what is waited for, in words.
        wait_timeout: seconds that it may take in all.

    Raises:
        WaitTimeoutError: it took longer; says whom it waited for.
    """
    deadline = now() + wait_timeout
    waiting = Waiting(what, now)
    while True:
        reply = ask(min(POLL_S, max(deadline - now(), 0.0)))
        if done(reply):
            return reply
        if now() >= deadline:
            raise WaitTimeoutError(
                f"{what}: waited {wait_timeout:g} s (wait_timeout): "
                f"{reply.pending or 'no reason given'}"
            )
        waiting.say(reply.pending)
