"""Operations of one group that are under way, sent again where its slices have moved to."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from paramserver.errors import (
    ConnectionLostError,
    MovedError,
    ParameterServerError,
)
from paramserver.v1 import scheduler_pb2
from paramserver.wire.convert import map_from_proto
from paramserver.worker.operation import Operation
from paramserver.worker.plan import Plan
from paramserver.worker.session import Session

log = logging.getLogger("paramserver")

FIRST_PAUSE, LAST_PAUSE = 0.02, 0.5  # seconds between looks for a newer map
T = TypeVar("T")


class Moves:
    """Follows the slice map of a group. Thread-safe.

    A server that no longer has what a request names says so (MOVED). Then the map is fetched, and
    every operation under way is sent again by it, all shares of it, in the order in which they were
    begun: servers know what they had of them.

    Attributes:
        lock: held while an operation is sent, and while all are sent again. A link's thread takes
            it only where slices have moved: it must not wait for what is being sent.
    """

    def __init__(self, session: Session, plan: Plan) -> None:
        self._session, self._plan = session, plan
        self.lock = threading.RLock()
        self._under_way: dict[Operation, Callable[[], None]] = {}
        self._refused: list[tuple[Operation, MovedError]] = []
        self._thread: threading.Thread | None = None

    def begin(self, operation: Operation, send: Callable[[], None]) -> None:
        """Sends an operation.

        Args:
            send: sends every share of it by the plan of the moment; called again after a move.
        """
        with self.lock:
            self._under_way[operation] = send
            operation.moved = self._moved
            operation.map_version = self._plan.map.version
            operation.done.then(lambda: self._over(operation))
            send()

    def _over(self, operation: Operation) -> None:
        self._under_way.pop(operation, None)

    def _moved(self, operation: Operation, error: MovedError) -> None:
        """In a link's thread, which must not wait: another one does the rest."""
        with self.lock:
            self._refused.append((operation, error))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="moves", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        pause = FIRST_PAUSE
        deadline = time.monotonic() + self._session.config.wait_timeout
        while True:
            try:
                fetched = self._fetch()
            except ParameterServerError as error:
                self._give_up(error)
                return
            with self.lock:
                if fetched or any(o.map_version < self._plan.map.version for o, _ in self._refused):
                    self._refused.clear()
                    self._send_again()
                    pause = FIRST_PAUSE
                if not self._refused:
                    self._thread = None
                    return
                last = self._refused[-1][1]
            if time.monotonic() > deadline:
                self._give_up(last)
                return
            time.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE)

    def _give_up(self, error: ParameterServerError) -> None:
        with self.lock:
            refused, self._refused, self._thread = self._refused, [], None
        for operation, _ in refused:
            operation.moved = None
            operation.fail(error)

    def _send_again(self) -> None:
        for operation, send in self._under_way.copy().items():
            if operation.map_version < self._plan.map.version and not operation.done.happened:
                operation.map_version = self._plan.map.version
                try:
                    send()
                except ParameterServerError as error:
                    operation.fail(error)

    def _fetch(self) -> bool:
        """Whether there was a newer map.

        Raises:
            ParameterServerError: this client must not go on.
        """
        self._session.check()
        name, job = self._plan.spec.name, self._session.job
        request = scheduler_pb2.GetGroupRequest(group=name, job=job)
        try:
            reply = self._session.scheduler.call("GetGroup", request)
        except ConnectionLostError as error:
            log.info("no slice map from the scheduler, asking again: %s", error)
            return False
        with self.lock:
            return self._plan.follow(map_from_proto(reply.map))

    def retried(self, call: Callable[[], T]) -> T:
        """The result of a call that a server may refuse because slices have moved.

        Raises:
            MovedError: it is refused still, ``wait_timeout`` seconds later.
        """
        pause = FIRST_PAUSE
        deadline = time.monotonic() + self._session.config.wait_timeout
        while True:
            try:
                return call()
            except MovedError:
                if time.monotonic() > deadline:
                    raise
            if self._fetch():
                with self.lock:
                    self._send_again()
            else:
                time.sleep(pause)
                pause = min(2 * pause, LAST_PAUSE)
