"""Nothing waits in silence."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

logger = logging.getLogger("paramserver")

SAY_EVERY_S = 10.0


class Waiting:
    """Says every ten seconds, as a warning, what is waited for and why."""

    def __init__(self, what: str, now: Callable[[], float] = time.monotonic) -> None:
        self._what = what
        self._now = now
        self._start = self._said = now()

    def say(self, reason: str) -> None:
        """Logs the newest reason if it is time to."""
        now = self._now()
        if now - self._said >= SAY_EVERY_S:
            self._said = now
            logger.warning("%s: %.0f s so far: %s", self._what, now - self._start, reason)
