"""Calls to a scheduler that is away for a while."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import Message

from paramserver.errors import ConnectionLostError, FencedError
from paramserver.v1 import scheduler_pb2 as pb
from paramserver.worker.patience import ATTEMPT_S, PatientChannel


class Away:
    """A scheduler that answers after so many calls; each that it does not takes its time."""

    def __init__(self, calls: int) -> None:
        self.left, self.time = calls, 0.0
        self.timeouts: list[float] = []

    def call(self, method: str, request: Message, *, timeout: float = 30.0) -> Any:
        self.timeouts.append(timeout)
        if not self.left:
            return "answer"
        self.left -= 1
        self.time += timeout
        raise ConnectionLostError("nobody there")

    def exchange(self, outgoing: Any) -> Any:
        raise AssertionError

    def close(self) -> None:
        self.left = -1


def patient(away: Away, check: Any = lambda: None) -> PatientChannel:
    def pause(seconds: float) -> None:
        away.time += seconds

    return PatientChannel(away, 300.0, check, pause, lambda: away.time)


def test_what_has_no_timeout_of_its_own_waits() -> None:
    away = Away(5)
    assert patient(away).call("GetView", pb.GetViewRequest()) == "answer"
    assert away.timeouts == [ATTEMPT_S] * 6


def test_what_has_one_does_not() -> None:
    away = Away(1)
    with pytest.raises(ConnectionLostError):
        patient(away).call("GetView", pb.GetViewRequest(), timeout=2.0)
    assert away.timeouts == [2.0]


def test_patience_ends_and_so_does_what_is_over() -> None:
    away = Away(1000)
    with pytest.raises(ConnectionLostError, match="nobody there"):
        patient(away).call("GetView", pb.GetViewRequest())
    assert 300.0 <= away.time <= 300.0 + 2 * ATTEMPT_S

    def check() -> None:
        raise FencedError("lost")

    with pytest.raises(FencedError):
        patient(Away(1), check).call("GetView", pb.GetViewRequest())
