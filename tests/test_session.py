"""Joining, keeping the lease, waiting, leaving."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paramserver.config import ClientConfig
from paramserver.errors import (
    ConnectionLostError,
    FencedError,
    ForkedClientError,
    JobFailedError,
    UsageError,
    VersionError,
    WaitTimeoutError,
)
from paramserver.types import StepResult
from paramserver.v1 import scheduler_pb2
from paramserver.worker import exits
from paramserver.worker.identity import REASON_BYTES
from paramserver.worker.session import Session
from tests.fakes import FakeScheduler, FakeTime, fake_session


@pytest.fixture
def scheduler() -> FakeScheduler:
    return FakeScheduler()


@pytest.fixture
def session(scheduler: FakeScheduler) -> Iterator[Session]:
    opened = fake_session(scheduler)
    yield opened
    opened.stop()


def test_registering_gives_name_rank_and_incarnation(session: Session) -> None:
    who = session.identity()
    assert (who.name, who.rank, who.incarnation, who.view, who.job) == ("worker-0", 0, 7, 1, 1)


def test_a_reader_has_no_rank_and_may_not_push(scheduler: FakeScheduler) -> None:
    session = fake_session(scheduler, reader=True)
    assert scheduler.heard("Register")[0].role == scheduler_pb2.ROLE_READER
    assert session.rank == -1
    with pytest.raises(UsageError, match="reader"):
        session.refuse_reader("push")
    session.stop()


def test_another_protocol_version_is_refused(scheduler: FakeScheduler) -> None:
    scheduler.answers["Register"] = lambda r: scheduler_pb2.RegisterReply(protocol=99)
    with pytest.raises(VersionError, match="99"):
        fake_session(scheduler)


def test_identity_file_is_whole(scheduler: FakeScheduler, tmp_path: Path) -> None:
    path = tmp_path / "identity.json"
    session = Session(ClientConfig(), scheduler, identity_file=path)
    session.open()
    assert json.loads(path.read_text()) == {
        "name": "worker-0",
        "incarnation": 7,
        "rank": 0,
        "job": 1,
    }
    assert [p.name for p in tmp_path.iterdir()] == ["identity.json"]
    session.stop()


def test_timeout_counts_from_the_last_arrival(scheduler: FakeScheduler) -> None:
    now = FakeTime()
    arrivals = iter([1, 1, 2, 2, 2, 2, 2, 2])

    def waiting(request: Any) -> Any:
        now.now += 4.0
        return scheduler_pb2.AwaitStartReply(
            pending="waiting for 1 of 2 servers", arrivals=next(arrivals)
        )

    scheduler.answers["AwaitStart"] = waiting
    session = Session(ClientConfig(timeout=10.0), scheduler, now=now)
    with pytest.raises(WaitTimeoutError, match="waiting for 1 of 2 servers"):
        session.open()
    assert now.now == 24.0  # the last arrival was heard of at 12 s
    assert scheduler.heard("Finish")  # it does not stay behind as a member


def test_a_wait_says_why_every_ten_seconds_and_ends(
    session: Session, scheduler: FakeScheduler, caplog: pytest.LogCaptureFixture
) -> None:
    now = FakeTime()
    session._now = now

    def pending(request: Any) -> Any:
        now.now += 4.0
        return scheduler_pb2.JoinReply(pending="rank 3, heard 2 s ago, has not come")

    scheduler.answers["Join"] = pending
    session.config = ClientConfig(wait_timeout=25.0)
    with (
        caplog.at_level(logging.WARNING, "paramserver"),
        pytest.raises(WaitTimeoutError, match="rank 3, heard 2 s ago"),
    ):
        session.poll(
            "Join",
            lambda wait: scheduler_pb2.JoinRequest(wait_s=wait),
            lambda reply: reply.released,
            "barrier",
        )
    assert [r.getMessage() for r in caplog.records] == [
        "barrier: 12 s so far: rank 3, heard 2 s ago, has not come",
        "barrier: 24 s so far: rank 3, heard 2 s ago, has not come",
    ]
    assert max(request.wait_s for request in scheduler.heard("Join")) <= 10.0


def test_views_only_go_forward(session: Session, scheduler: FakeScheduler) -> None:
    session.saw_view(5)
    session.saw_view(3)
    assert session.identity().view == 5
    scheduler.view.number = 5
    assert session.view().number == 5
    calls = len(scheduler.calls)
    assert session.view().number == 5
    assert len(scheduler.calls) == calls  # known: not asked again


def test_heartbeat_carries_clocks_and_figures(session: Session, scheduler: FakeScheduler) -> None:
    session.add_group("model", lambda: 12, lambda: None)
    session.count(StepResult(11, 12, 1.5, 0.25, 100, 200))
    session.count(StepResult(12, 13, 0.5, 0.25, 100, 200), 32)
    session.beat()
    beat = scheduler.heard("Heartbeat")[-1]
    assert [(c.group, c.clock) for c in beat.clocks] == [("model", 12)]
    assert dict(beat.stats) == {
        "steps": 2,
        "samples": 32,
        "waited_s": 0.5,
        "sent_bytes": 200,
        "received_bytes": 400,
        "staleness": 0.5,
    }


def test_a_chore_that_fails_stops_nothing(
    session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    done = []

    def broken() -> None:
        raise ConnectionLostError("gone")

    session.add_chore(broken)
    session.add_chore(lambda: done.append(1))
    session.beat()
    assert done == [1]
    assert "gone" in caplog.text


def test_fenced_by_a_newer_incarnation(session: Session, scheduler: FakeScheduler) -> None:
    def fenced(request: Any) -> Any:
        raise FencedError("incarnation 7 of worker-0 was followed by 8")

    scheduler.answers["Heartbeat"] = fenced
    session.beat()
    with pytest.raises(FencedError, match="followed by 8"):
        session.check()
    session.leave()
    assert not scheduler.heard("Finish")  # the name belongs to another


def test_a_failed_job_reaches_every_wait(session: Session, scheduler: FakeScheduler) -> None:
    scheduler.answers["Heartbeat"] = lambda r: scheduler_pb2.HeartbeatReply(
        state=scheduler_pb2.JOB_FAILED, message="ps-1 lost"
    )
    session.beat()
    with pytest.raises(JobFailedError, match="ps-1 lost"):
        session.poll("Join", lambda w: scheduler_pb2.JoinRequest(), lambda r: True, "barrier")


def test_scheduler_away_is_said_once_and_survived(
    session: Session, scheduler: FakeScheduler, caplog: pytest.LogCaptureFixture
) -> None:
    def away(request: Any) -> Any:
        raise ConnectionLostError("nobody at 1.2.3.4:5")

    scheduler.answers["Heartbeat"] = away
    session.beat()
    session.beat()
    session.check()
    del scheduler.answers["Heartbeat"]
    session.beat()
    assert caplog.text.count("away") == 1
    assert caplog.text.count("is back") == 1


def test_finish_is_told_once_and_ends_everything(
    session: Session, scheduler: FakeScheduler
) -> None:
    session.leave()
    session.leave("later")
    assert len(scheduler.heard("Finish")) == 1
    assert not scheduler.heard("Fail")
    with pytest.raises(UsageError, match="has finished"):
        session.check()


def test_fail_keeps_the_end_of_the_traceback(session: Session, scheduler: FakeScheduler) -> None:
    session.leave("é" * REASON_BYTES + "ValueError: no", fatal=True, code=1)
    (request,) = scheduler.heard("Fail")
    assert request.reason.endswith("ValueError: no")
    assert len(request.reason.encode()) <= REASON_BYTES
    assert request.fatal
    assert request.exit_code == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_is_refused(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with pytest.raises(ForkedClientError, match="forked"):
        session.check()


class Leaver:
    """Stands for a client at the end of a process."""

    forked = False

    def __init__(self, launched: bool = False) -> None:
        self.launched = launched
        self.said: list[Any] = []

    def fail(self, reason: str, *, fatal: bool = False, code: int = 1) -> None:
        self.said.append((reason.splitlines()[-1], fatal, code))

    def finish_at_exit(self) -> None:
        self.said.append("finish")


@pytest.mark.parametrize(
    ("launched", "error", "said"),
    [
        (False, ValueError("x"), ("ValueError: x", False, 1)),
        (True, ValueError("x"), ("ValueError: x", True, 1)),
        (True, KeyboardInterrupt(), ("KeyboardInterrupt", False, 130)),
        (True, SystemExit(3), ("SystemExit: 3", True, 3)),
    ],
)
def test_how_an_exception_is_reported(launched: bool, error: BaseException, said: Any) -> None:
    leaver = Leaver(launched)
    exits.report(leaver, error)
    assert leaver.said == [said]


@pytest.mark.parametrize(
    ("error", "launched", "clean"),
    [
        (SystemExit(0), True, True),
        (SystemExit(None), True, True),
        (SystemExit(3), True, False),
        (SystemExit(3), False, True),
        (GeneratorExit(), True, True),
        (ValueError(), False, False),
    ],
)
def test_which_exits_are_no_failure(error: BaseException, launched: bool, clean: bool) -> None:
    assert exits.is_clean(error, launched=launched) is clean


SCRIPT = """
import os, sys
from paramserver.worker import exits

class Leaver:
    forked = False
    launched = False
    def fail(self, reason, *, fatal=False, code=1):
        print("fail", code, flush=True)
        exits.forget(self)
    def finish_at_exit(self):
        print("finish", flush=True)

exits.watch(Leaver())
{end}
"""


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ("pass", "finish\n"),
        ("sys.exit(2)", "finish\n"),
        ("raise ValueError", "fail 1\n"),
        ("raise KeyboardInterrupt", "fail 130\n"),
        ("os._exit(9)", ""),
    ],
)
def test_the_end_of_a_process(end: str, said: str) -> None:
    command = [sys.executable, "-c", SCRIPT.format(end=end)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == said
