"""What happened, in words: the last events, with seconds since the start."""

from __future__ import annotations

import logging
from collections import deque

KEPT = 200
_log = logging.getLogger(__name__)


class Journal:
    """The newest ``KEPT`` events."""

    def __init__(self, start: float) -> None:
        self._start = start
        self._events: deque[str] = deque(maxlen=KEPT)

    def say(self, text: str, now: float) -> None:
        # Names and reasons come from peers: a newline must not forge an entry.
        text = text.encode("unicode_escape").decode("ascii")
        self._events.append(f"{self.seconds(now):.1f} s: {text}")
        _log.info("%s", text)

    def seconds(self, now: float) -> float:
        """Since the start."""
        return now - self._start

    def events(self) -> list[str]:
        """The newest last."""
        return list(self._events)
