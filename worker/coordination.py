"""One worker coordinates something, all hear what it announces; if it is lost, another goes on."""

from __future__ import annotations

import logging
import threading

from paramserver.errors import ConnectionLostError
from paramserver.v1 import scheduler_pb2
from paramserver.worker.session import Session

logger = logging.getLogger("paramserver")

POLL_S = 2.0  # short: a worker that leaves waits for it
ANSWER_S = 5.0


class Coordination:
    """This worker's view of one coordinated thing.

    Args:
        name: the same on all workers.
    """

    def __init__(self, session: Session, name: str) -> None:
        self._session = session
        self._name = name

    def take(self, stop: threading.Event) -> tuple[int, str] | None:
        """Waits until this worker coordinates; the newest announcement then, (0, "") for none, and
        0 with that of a snapshot where this job has none yet.

        Args:
            stop: set: to wait no longer; the result is None then.
        """
        session = self._session
        while not stop.is_set():
            session.check()
            request = scheduler_pb2.CoordinateRequest(
                member=session.identity(), name=self._name, wait_s=POLL_S
            )
            try:
                reply = session.scheduler.call("Coordinate", request, timeout=POLL_S + ANSWER_S)
            except ConnectionLostError as error:
                logger.debug("coordination of %s: %s", self._name, error)
                stop.wait(POLL_S)
                continue
            if reply.coordinates:
                session.saw_view(reply.view)  # servers that know it refuse who came before
                return reply.number, reply.text
        return None

    def announce(self, number: int, text: str) -> int:
        """Announces to all workers.

        Args:
            number: the one after the newest; 0 for an announcement of any worker.

        Raises:
            InvalidRequestError: another worker announced meanwhile.
        """
        request = scheduler_pb2.AnnounceRequest(
            member=self._session.identity(), name=self._name, number=number, text=text
        )
        return int(self._session.scheduler.call("Announce", request).number)

    def hear(self, after: int) -> tuple[int, str]:
        """Waits for an announcement with a larger number than ``after``.

        Raises:
            WaitTimeoutError: names the coordinator.
        """

        what = f"announcement of {self._name!r}"
        reply = self._session.poll(
            "Announced", lambda wait_s: self._ask(after, wait_s), lambda r: not r.pending, what
        )
        return reply.number, reply.text

    def newest(self) -> tuple[int, str]:
        """The newest announcement, without waiting; (0, "") for none."""
        reply = self._session.scheduler.call("Announced", self._ask(0, 0.0))
        return reply.number, reply.text

    def _ask(self, after: int, wait_s: float) -> scheduler_pb2.AnnouncedRequest:
        return scheduler_pb2.AnnouncedRequest(
            member=self._session.identity(), name=self._name, after=after, wait_s=wait_s
        )
