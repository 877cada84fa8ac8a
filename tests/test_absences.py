"""A server that is lost under durability "wal" is waited for, and what ends the wait."""

from __future__ import annotations

import pytest

from paramserver.config import SchedulerConfig
from paramserver.core.members import Caller, JobState, Registered, Role
from paramserver.core.placement import GroupSpec
from paramserver.core.slices import TensorSpec
from paramserver.errors import ConfigurationError
from paramserver.scheduler.state import SchedulerState
from paramserver.types import Sync

SPEC = GroupSpec("g", (TensorSpec("w", (4,), "float32", "add", 0),), "", ({},), Sync())


class Job:
    """A scheduler with one server, one worker and a group."""

    def __init__(self, durability: str = "wal", *, stored: bool = True) -> None:
        config = SchedulerConfig(
            durability=durability,  # type: ignore[arg-type]
            server_timeout_s=60.0,
            lease_s=10.0,
        )
        self.state = SchedulerState(config, 0.0, first_incarnation=100)
        self.server = self.come(0.0, 0)
        worker = self.state.register(Role.WORKER, "", 0.0, address="", host="", pid=1).member
        self.worker = Caller(worker.name, worker.incarnation, self.state.members.job)
        self.state.register_group(self.worker, SPEC, 0.0)
        if stored:
            self.state.group_stored(self.worker, "g", 0.0)

    def come(self, now: float, resumes: int) -> Registered:
        """The server registers."""
        return self.state.register(
            Role.SERVER, "ps-0", now, address="127.0.0.1:7071", host="", pid=2, resumes=resumes
        )

    def pass_until(self, now: float) -> None:
        """The worker goes on heartbeating; the server does not."""
        self.state.members.renew(self.worker, now)
        self.state.tick(now)

    @property
    def ended(self) -> str:
        members = self.state.members
        return members.message if members.state is JobState.FAILED else ""


def test_a_server_that_brings_its_journal_back_goes_on() -> None:
    job = Job()
    job.pass_until(20.0)
    assert not job.ended
    assert job.state.absences.reason() == "ps-0 to come back"
    assert job.state.absences.servers() == [("ps-0", "127.0.0.1:7071")]
    back = job.come(30.0, job.server.member.incarnation)
    assert back.resumed
    assert not job.state.absences.reason()
    job.pass_until(35.0)
    assert not job.ended
    again = job.come(36.0, job.server.member.incarnation)  # it fell before it noted its new number
    assert again.resumed
    assert not job.ended


def test_a_server_without_its_journal_ends_the_job() -> None:
    job = Job()
    assert not job.come(1.0, 0).resumed
    assert "ps-0 came back without its journal" in job.ended
    assert "--state-dir" in job.ended


def test_a_server_that_fell_before_it_had_values_may_come_empty() -> None:
    """It was killed between its registration and the beginning of its journal."""
    job = Job(stored=False)
    assert not job.come(1.0, 0).resumed
    assert not job.ended
    job.state.group_stored(job.worker, "g", 1.0)
    job.come(2.0, 0)
    assert "ps-0 came back without its journal" in job.ended


def test_a_journal_of_another_scheduler_is_none() -> None:
    job = Job()
    assert not job.come(1.0, 99).resumed
    assert "without its journal" in job.ended


def test_the_wait_ends() -> None:
    job = Job()
    job.pass_until(20.0)
    job.pass_until(79.0)
    assert not job.ended
    job.pass_until(81.0)
    assert "did not come back within 60 s" in job.ended


def test_without_a_journal_a_lost_server_ends_the_job_at_once() -> None:
    job = Job("memory")
    job.pass_until(20.0)
    assert "the slices it held are gone" in job.ended


def test_a_server_that_holds_nothing_may_come_empty() -> None:
    job = Job()
    job.state.finish(job.worker, 1.0)
    assert job.state.members.state is JobState.DONE
    job.state.register(Role.WORKER, "", 2.0, address="", host="", pid=3)
    assert not job.come(3.0, 0).resumed
    assert not job.ended


def test_an_unknown_durability_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="must be one of memory, wal, replica"):
        SchedulerConfig(durability="paper")  # type: ignore[arg-type]
