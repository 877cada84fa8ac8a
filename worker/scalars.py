"""Scalars of a training run on their way to the scheduler."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from torch import Tensor

from paramserver.v1 import scheduler_pb2
from paramserver.worker.session import Session

SEND_S = 30.0


class Scalars:
    """Keeps the newest of each name and sends them with the heartbeat; at most once."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._lock = threading.Lock()
        self._newest: dict[str, float] = {}
        session.add_chore(self.send)

    def add(self, scalars: Mapping[str, float | Tensor]) -> None:
        """Takes numbers and tensors of one element."""
        values = {
            name: float(value.detach() if isinstance(value, Tensor) else value)
            for name, value in scalars.items()
        }
        self._session.run_file.log(values)
        with self._lock:
            self._newest.update(values)

    def send(self) -> None:
        """Sends what is new."""
        with self._lock:
            newest, self._newest = self._newest, {}
        if newest:
            request = scheduler_pb2.LogRequest(member=self._session.identity(), scalars=newest)
            self._session.scheduler.call("Log", request, timeout=SEND_S)
