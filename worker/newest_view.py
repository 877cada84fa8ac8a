"""The newest view of the job that a client knows of, and the one that it has."""

from __future__ import annotations

import threading
from collections.abc import Callable

from paramserver.errors import ConnectionLostError
from paramserver.v1 import scheduler_pb2


class NewestView:
    """Grows by what replies name; thread-safe.

    Args:
        fetch: asks the scheduler; None while it is away.
        learnt: told of every view that comes.

    Attributes:
        number: of the newest view that any reply named.
    """

    def __init__(
        self,
        fetch: Callable[[], scheduler_pb2.View | None],
        learnt: Callable[[scheduler_pb2.View], None],
    ) -> None:
        self.number = 0
        self._fetch, self._learnt = fetch, learnt
        self._lock = threading.Lock()
        self._view = scheduler_pb2.View()

    def saw(self, number: int) -> None:
        """A reply named this view."""
        with self._lock:
            self.number = max(self.number, number)

    def learn(self, view: scheduler_pb2.View) -> None:
        """A view came."""
        self._learnt(view)
        with self._lock:
            if view.number >= self._view.number:
                self._view = view
            self.number = max(self.number, view.number)

    def get(self) -> scheduler_pb2.View:
        """The newest view, fetched if it is not here; else the last one known."""
        if self._view.number < self.number:
            try:
                found = self._fetch()
            except ConnectionLostError:
                found = None
            if found is not None:
                self.learn(found)
        return self._view
