"""Where servers are now: a process that is lost may leave its servers to others."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from google.protobuf.message import Message

from paramserver.errors import ConnectionLostError, MovedError, ParameterServerError
from paramserver.v1 import scheduler_pb2
from paramserver.wire.transport import Channel, Transport

logger = logging.getLogger("paramserver")

FIRST_ATTEMPT_S = 0.5
LONG_ATTEMPT_S = 5.0  # where servers do not move
REFRESH_S = 1.0
PAUSE_S = 0.1
PATIENCE_S = 2.0  # with a process that has not heard yet that it is to take over


class Directory:
    """Present addresses by any that a server has had; thread-safe.

    Without places (durability "memory" or "wal") a server stays where it is.

    Args:
        scheduler: knows.
        check: raises when this client must not go on.
    """

    def __init__(self, scheduler: Channel, check: Callable[[], None]) -> None:
        self._scheduler, self._check = scheduler, check
        self._lock = threading.Lock()
        self._names: dict[str, str] = {}  # servers by address
        self._places: dict[str, scheduler_pb2.Place] = {}
        self._listeners: list[Callable[[], None]] = []
        self._never = threading.Event()

    def on_move(self, listener: Callable[[], None]) -> None:
        """Calls back when a server has moved, in any thread."""
        self._listeners.append(listener)

    def fetch(self, timeout: float = 30.0) -> scheduler_pb2.View:
        """The newest view; raises ConnectionLostError."""
        request = scheduler_pb2.GetViewRequest()
        view: scheduler_pb2.View = self._scheduler.call("GetView", request, timeout=timeout)
        return view

    def learn(self, view: scheduler_pb2.View) -> None:
        """Takes what a view says; older news of a server than what is known changes nothing."""
        moved = False
        with self._lock:
            for place in view.places:
                known = self._places.get(place.server)
                if known is None or known.epoch <= place.epoch:
                    moved |= known is not None and known.address != place.address
                    self._places[place.server] = place
                self._names[place.address] = place.server
        if moved:
            for listen in self._listeners:
                listen()

    def refresh(self) -> None:
        """Asks the scheduler, if servers can move at all; it may be away."""
        if not self._places:
            return
        try:
            self.learn(self.fetch(REFRESH_S))
        except ParameterServerError as error:
            logger.debug("where servers are is not known anew: %s", error)

    def locate(self, address: str) -> str:
        """Where the server that was, or is, at ``address`` can be reached now."""
        with self._lock:
            place = self._places.get(self._names.get(address, ""))
            return place.address if place is not None else address

    def call(
        self,
        transport: Transport,
        address: str,
        method: str,
        request: Message,
        *,
        timeout: float = 30.0,
    ) -> Any:
        """The reply of an rpc that may be sent again, from wherever the server is by then.

        Raises:
            ConnectionLostError, MovedError: not reached within ``timeout`` seconds.
            ParameterServerError: what the server raised.
        """
        began = time.monotonic()
        deadline = began + timeout
        attempt = FIRST_ATTEMPT_S if self._places else LONG_ATTEMPT_S
        while True:
            left = deadline - time.monotonic()
            try:
                channel = transport.server(self.locate(address))
                return channel.call(method, request, timeout=max(min(attempt, left), 0.001))
            except ConnectionLostError:
                self._check()  # a job that went back has other servers
                if left <= attempt:
                    raise
                attempt *= 2  # it may be at work on it
            except MovedError:
                if time.monotonic() - began > PATIENCE_S or not self._places:
                    raise  # not the server has moved, but slices
                self._never.wait(PAUSE_S)  # it may not know yet that it has taken over
            self.refresh()
