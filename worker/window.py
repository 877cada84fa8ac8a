"""Pushes of one group that are under way: how many there may be, and when all are over."""

from __future__ import annotations

import threading
import time

from paramserver.errors import WaitTimeoutError
from paramserver.worker.batches import Ticket
from paramserver.worker.operation import Operation
from paramserver.worker.session import Session


class Window:
    """Counts pushes until they are applied or dropped. Thread-safe.

    Args:
        name: of the group, for words.
    """

    def __init__(self, session: Session, name: str) -> None:
        self._session = session
        self._name = name
        self._changed = threading.Condition()
        self._unsettled = 0

    def track(self, operation: Operation, ticket: Ticket) -> None:
        """Settles the ticket when the push is applied or dropped; waits for room first.

        Raises:
            WaitTimeoutError: none of those under way was applied in time.
        """
        session = self._session
        deadline = time.monotonic() + session.config.wait_timeout
        with session.speed.waiting(), self._changed:
            while self._unsettled >= session.config.limits.in_flight:
                session.check()
                if time.monotonic() > deadline:
                    raise WaitTimeoutError(
                        f"{self._unsettled} pushes of group {self._name!r} wait for their clocks "
                        "to close (wait_timeout); pull now and then, so that this worker waits as "
                        "well"
                    )
                self._changed.wait(timeout=0.5)
            self._unsettled += 1

        def settled() -> None:
            if operation.done.error is not None:
                session.abort_push(ticket)
            else:
                session.settle_push(ticket, dropped=operation.dropped)
            with self._changed:
                self._unsettled -= 1
                self._changed.notify_all()

        operation.done.then(settled)

    def settle(self) -> None:
        """Returns when every push is applied or dropped."""
        deadline = time.monotonic() + self._session.config.wait_timeout
        with self._session.speed.waiting(), self._changed:
            while self._unsettled and time.monotonic() < deadline:
                self._changed.wait(timeout=0.5)
                self._session.check()
