"""Samples over which worker after worker is lost: after a few, nobody is given them any more."""

from __future__ import annotations

from collections.abc import Sequence

from paramserver.core.spans import Range

HOLDERS = 3  # lost in a row, before any of them had done a batch


class Quarantine:
    """What is set aside of one data set.

    Attributes:
        samples: of the open epoch.
        total: of all epochs.
        parts: positions of the open epoch.
        newest: positions that were set aside last.
    """

    def __init__(self) -> None:
        self.samples = self.total = 0
        self.parts: list[Range] = []
        self.newest: Sequence[Range] = ()
        self._lost: dict[int, int] = {}  # first position that a lost holder had not done: how often

    def takes(self, parts: Sequence[Range]) -> bool:
        """A holder was lost with these parts of a lease undone: whether they are set aside now.

        Whoever had done a batch before it was lost leaves another first position behind: only
        those that came no further than the one before count.
        """
        start = parts[0][0]
        self._lost[start] = self._lost.get(start, 0) + 1
        if self._lost[start] < HOLDERS:
            return False
        self.newest = tuple(parts)
        self.parts += parts
        count = sum(b - a for a, b in parts)
        self.samples += count
        self.total += count
        return True

    def open_epoch(self) -> None:
        """All samples are given out again: positions mean others now."""
        self.samples = 0
        self.parts = []
        self._lost.clear()

    @property
    def before(self) -> int:
        """Samples of the epochs before the open one."""
        return self.total - self.samples

    @property
    def words(self) -> str:
        """What was set aside last."""
        where = " and ".join(f"[{start}, {stop})" for start, stop in self.newest)
        return f"positions {where} set aside: {HOLDERS} workers were lost over them; INCOMPLETE"
