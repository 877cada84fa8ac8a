"""A client waits until all whom the job starts with are there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from paramserver.config import ClientConfig
from paramserver.errors import WaitTimeoutError
from paramserver.v1 import common_pb2, scheduler_pb2
from paramserver.worker.patience import PatientChannel
from paramserver.worker.waiting import POLL_S, Waiting


class Starting(Protocol):
    """A session that has registered."""

    config: ClientConfig
    goes_on: bool
    scheduler: PatientChannel

    def identity(self) -> common_pb2.Identity: ...

    def check(self) -> None: ...


def await_start(session: Starting, now: Callable[[], float]) -> scheduler_pb2.View:
    """Returns when the job may start: the view then.

    Raises:
        WaitTimeoutError: no role arrived for ``config.timeout`` seconds, and some are missing.
    """
    timeout = session.config.timeout
    patience = session.config.wait_timeout if session.goes_on else timeout
    deadline = now() + patience
    arrivals = -1
    waiting = Waiting("the start of the job", now)
    while True:
        session.check()
        wait = min(POLL_S, max(deadline - now(), 0.0))
        request = scheduler_pb2.AwaitStartRequest(member=session.identity(), wait_s=wait)
        reply = session.scheduler.call("AwaitStart", request, timeout=wait + timeout)
        if not reply.pending:
            view: scheduler_pb2.View = reply.view
            return view
        if arrivals not in (-1, reply.arrivals):
            deadline = now() + patience
        elif now() >= deadline:
            raise WaitTimeoutError(
                f"{reply.pending}: nobody came for {patience:g} s; start the missing "
                "processes, or raise timeout= of paramserver.connect"
            )
        arrivals = reply.arrivals
        waiting.say(reply.pending)
