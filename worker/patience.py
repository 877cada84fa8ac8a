"""The scheduler may be away for a while: what can wait for it, waits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from google.protobuf.message import Message

from paramserver.errors import ConnectionLostError
from paramserver.wire.transport import Channel, FrameStream
from paramserver.worker.waiting import Waiting

ATTEMPT_S = 30.0
PAUSE_S = 0.5


class PatientChannel:
    """To a scheduler that may be started again: calls are made again until it answers.

    Every rpc of the scheduler may be sent again.

    Args:
        channel: to the scheduler.
        patience: seconds that a call without a timeout of its own waits for it.
        check: raises when there is nothing to wait for any more.
        pause: waits for so many seconds.
    """

    def __init__(
        self,
        channel: Channel,
        patience: float,
        check: Callable[[], None],
        pause: Callable[[float], object],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._channel, self._patience = channel, patience
        self._check, self._pause, self._now = check, pause, now

    def call(self, method: str, request: Message, *, timeout: float | None = None) -> Any:
        """As ``Channel.call``; without ``timeout``, for as long as this channel is patient."""
        if timeout is not None:
            return self._channel.call(method, request, timeout=timeout)
        deadline = self._now() + self._patience
        waiting = Waiting("the scheduler", self._now)
        while True:
            try:
                return self._channel.call(method, request, timeout=ATTEMPT_S)
            except ConnectionLostError as error:
                self._check()
                if self._now() >= deadline:
                    raise
                waiting.say(str(error))
            self._pause(PAUSE_S)

    def exchange(self, outgoing: Iterator[bytes]) -> FrameStream:
        """As ``Channel.exchange``."""
        return self._channel.exchange(outgoing)

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()
