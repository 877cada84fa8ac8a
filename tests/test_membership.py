"""Names, incarnations, ranks, leases, job state: every event is refused or keeps the invariants."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from paramserver.core.members import LIVE, MOVES, Caller, JobState, Member, Role, State
from paramserver.core.membership import DESERTED_S, Membership
from paramserver.errors import FencedError, InvalidRequestError, JobFailedError

LEASE = 10.0


def expire(members: Membership, now: float) -> list[Member]:
    """Time has passed; those it lost."""
    lost = [members.lose(name, why, now) for name, why in members.silent(now).items()]
    if members.deserted(now):
        members.give_up()
    return [member for member in lost if member is not None]


def started(workers: int = 2, servers: int = 1) -> Membership:
    members = Membership(workers, servers, LEASE)
    for _ in range(servers):
        server(members)
    for _ in range(workers):
        worker(members)
    return members


def worker(members: Membership, name: str = "", now: float = 0.0) -> Member:
    return members.register(Role.WORKER, name, now, host="h", pid=1).member


def server(members: Membership, name: str = "", now: float = 0.0) -> Member:
    return members.register(Role.SERVER, name, now, address=f"h:{members.arrivals}").member


def caller(members: Membership, member: Member) -> Caller:
    return Caller(member.name, member.incarnation, members.job)


def job(members: Membership) -> JobState:
    return members.state


def test_names_and_ranks_are_the_lowest_free() -> None:
    members = started(2, 2)
    names = [(m.name, m.rank) for m in members.view().members]
    assert names == [("ps-0", -1), ("ps-1", -1), ("worker-0", 0), ("worker-1", 1)]
    members.lose("worker-0", "silent", 1.0)
    assert worker(members).name == "worker-0"
    assert worker(members).rank == 2


def test_a_rank_is_bound_to_its_name() -> None:
    members = started()
    again = worker(members, "worker-1")
    assert again.rank == 1
    assert worker(members, "late").rank == 2


def test_the_job_starts_when_all_are_there() -> None:
    members = Membership(2, 2, LEASE)
    assert members.missing() == "waiting for 2 of 2 servers and 2 of 2 workers"
    server(members)
    worker(members)
    worker(members)
    assert members.missing() == "waiting for 1 of 2 servers"
    assert job(members) is JobState.WAITING
    server(members)
    assert job(members) is JobState.RUNNING


def test_the_first_clock_waits_for_all_expected_workers() -> None:
    members = started()
    members.move(["worker-0"], State.ACTIVE)
    assert not members.started
    members.move(["worker-1"], State.IDLE, "waits")
    assert members.started
    members.move(["worker-0"], State.JOINED)
    worker(members, "late")
    assert members.started


def test_one_view_for_all_that_change_together() -> None:
    members = started()
    before = members.number
    members.move(["worker-0", "worker-1"], State.ACTIVE)
    assert members.number == before + 1
    members.move(["worker-0", "worker-1"], State.ACTIVE)
    assert members.number == before + 1


def test_an_older_incarnation_is_fenced() -> None:
    members = started()
    old = caller(members, members.live(Role.WORKER)[0])
    new = caller(members, worker(members, "worker-0"))
    assert new.incarnation > old.incarnation
    with pytest.raises(FencedError, match="incarnation"):
        members.check(old)
    members.check(new)


def test_who_never_registered_is_told_to() -> None:
    members = started()
    with pytest.raises(InvalidRequestError, match="register first"):
        members.check(Caller("nobody", 99, 1))
    with pytest.raises(InvalidRequestError, match="never given"):
        members.check(Caller("worker-0", 99, 1))


def test_a_caller_of_another_job_is_fenced_a_server_is_not() -> None:
    members = started()
    with pytest.raises(FencedError, match="job 7"):
        members.check(Caller("worker-0", 2, 7))
    members.check(Caller("ps-0", 1, 7))


def test_a_lapsed_lease_is_a_loss_and_fences() -> None:
    members = started()
    members.renew(caller(members, members.live(Role.WORKER)[0]), 9.0)
    members.renew(caller(members, members.live(Role.SERVER)[0]), 9.0)
    assert [m.name for m in expire(members, 10.5)] == ["worker-1"]
    lost = members.find("worker-1")
    assert lost is not None
    assert lost.state is State.LOST
    assert lost.reason == "not heard for 10.5 s"
    with pytest.raises(FencedError, match="register again"):
        members.check(caller(members, lost))


def test_time_that_this_process_stood_still_is_forgiven() -> None:
    members = started()
    members.forgive(20.0)
    assert not expire(members, 25.0)


def test_a_finished_chief_stays_chief_a_lost_one_does_not() -> None:
    members = started(3)
    members.finish("worker-0")
    assert members.chief() == members.find("worker-0")
    assert members.first() == members.find("worker-1")
    other = started(3)
    other.lose("worker-0", "silent", 0.0)
    assert other.chief() == other.find("worker-1")


def test_the_job_is_done_when_its_last_worker_finished() -> None:
    members = started()
    members.finish("worker-1")
    assert members.finish("worker-1") is None
    assert job(members) is JobState.RUNNING
    members.finish("worker-0")
    assert job(members) is JobState.DONE


def test_the_last_word_of_a_worker_may_come_after_its_lease() -> None:
    """Else the next job would begin as a part of this one."""
    members = started()
    members.finish("worker-0")
    members.lose("worker-1", "silent", 1.0)
    assert job(members) is JobState.RUNNING
    members.check(caller(members, members.view().members[-1]), finished=True, lost=True)
    members.finish("worker-1")
    assert job(members) is JobState.DONE
    members.check_invariants()


def test_numbered_names_get_their_ranks() -> None:
    members = Membership(3, 1, LEASE)
    assert worker(members, "worker-2").rank == 2
    assert worker(members, "worker-0").rank == 0
    assert worker(members, "worker-7").rank == 1  # no such rank is expected
    assert worker(members, "worker-1").rank == 3


def test_the_next_job_begins_empty_and_keeps_the_servers() -> None:
    members = started()
    members.finish("worker-0")
    members.finish("worker-1")
    done = members.register(Role.WORKER, "b", 1.0)
    assert done.new_job
    assert members.job == 2
    assert job(members) is JobState.WAITING
    assert [m.name for m in members.view().members] == ["ps-0", "b"]
    assert done.member.rank == 0


def test_a_server_after_the_end_begins_no_job() -> None:
    members = started()
    members.finish("worker-0")
    members.finish("worker-1")
    server(members, "ps-7")
    assert members.job == 1


def test_a_lost_server_fails_the_job_by_name() -> None:
    members = started()
    members.lose("ps-0", "not heard for 10.1 s", 11.0)
    assert job(members) is JobState.FAILED
    assert "ps-0" in members.message
    with pytest.raises(JobFailedError, match="ps-0"):
        members.require_job()


def test_a_restarted_server_fails_the_job_only_with_slices() -> None:
    members = started()
    server(members, "ps-0")
    assert job(members) is JobState.RUNNING
    members.hold(["ps-0"])
    server(members, "ps-0")
    assert job(members) is JobState.FAILED


def test_a_server_that_asks_again_counts_once() -> None:
    members = Membership(1, 2, LEASE)
    first = members.register(Role.SERVER, "", 0.0, address="h:1").member
    again = members.register(Role.SERVER, "", 0.0, address="h:1").member
    assert (first.name, again.name) == ("ps-0", "ps-0")
    assert members.missing() == "waiting for 1 of 2 servers and 1 worker"


def test_a_job_that_nobody_comes_back_to_fails() -> None:
    members = started(1)
    members.lose("worker-0", "killed", 5.0)
    members.renew(Caller("ps-0", 1, 1), 6.0 + DESERTED_S)
    expire(members, 4.0 + DESERTED_S)
    assert job(members) is JobState.RUNNING
    expire(members, 6.0 + DESERTED_S)
    assert job(members) is JobState.FAILED


def test_a_worker_that_comes_back_goes_on() -> None:
    members = started(1)
    members.lose("worker-0", "killed", 5.0)
    assert worker(members, "worker-0", 6.0).rank == 0
    assert members.job == 1
    members.renew(Caller("ps-0", 1, 1), 50.0)
    members.renew(Caller("worker-0", 3, 1), 50.0)
    expire(members, 55.0)
    assert job(members) is JobState.RUNNING


def test_leaving_before_the_start_fails_the_job() -> None:
    members = Membership(2, 1, LEASE)
    worker(members)
    members.finish("worker-0")
    assert job(members) is JobState.FAILED
    assert "before the job started" in members.message


def test_a_silent_reader_is_dropped() -> None:
    members = started()
    reader = members.register(Role.READER, "", 0.0).member
    assert reader.rank == -1
    members.renew(Caller("ps-0", 1, 1), 10.0)
    for member in members.live(Role.WORKER):
        members.renew(caller(members, member), 10.0)
    expire(members, 11.0)
    assert members.find("reader-0") is None
    assert job(members) is JobState.RUNNING
    with pytest.raises(FencedError):
        members.check(caller(members, reader))


def test_a_name_belongs_to_one_role() -> None:
    members = started()
    before = members.view()
    with pytest.raises(InvalidRequestError, match="belongs to a server"):
        members.register(Role.WORKER, "ps-0", 0.0)
    assert members.view() is before


@pytest.mark.parametrize("state", list(State))
def test_illegal_moves_raise_and_change_nothing(state: State) -> None:
    members = started()
    if state is State.FINISHED:
        members.finish("worker-0")
    elif state is State.LOST:
        members.lose("worker-0", "silent", 0.0)
    elif state is not State.JOINED:
        members.move(["worker-0"], state)
    for target in State:
        before = members.view()
        if target in LIVE and (target in MOVES[state] or target is state):
            continue
        with pytest.raises(InvalidRequestError):
            members.move(["worker-1", "worker-0"], target)
        assert members.view() is before


class MembershipMachine(RuleBasedStateMachine):
    """Any sequence of events is refused by a named error or keeps the invariants (I10)."""

    def __init__(self) -> None:
        super().__init__()
        self.members = Membership(2, 1, LEASE)
        self.now = 0.0
        self.seen: list[Caller] = []
        self.last = (self.members.job, self.members.number)

    names = st.sampled_from(["", "worker-0", "worker-1", "other"])

    @rule(name=names)
    def join(self, name: str) -> None:
        old = self.members.find(name)
        bound = old.rank if old and not self.members.ended() else None
        done = self.members.register(Role.WORKER, name, self.now)
        assert bound is None or done.member.rank == bound
        assert all(done.member.incarnation > c.incarnation for c in self.seen)
        self.seen.append(Caller(done.member.name, done.member.incarnation, self.members.job))

    @rule()
    def join_server(self) -> None:
        member = server(self.members, "ps-0", self.now)
        self.seen.append(Caller(member.name, member.incarnation, self.members.job))

    @rule(data=st.data(), state=st.sampled_from(list(State)))
    def move(self, data: st.DataObject, state: State) -> None:
        name = data.draw(self.names)
        before = self.members.view()
        try:
            self.members.move([name], state)
        except InvalidRequestError:
            assert self.members.view() is before

    @rule(name=names)
    def finish(self, name: str) -> None:
        self.members.finish(name)

    @rule(name=names)
    def lose(self, name: str) -> None:
        self.members.lose(name, "gone", self.now)

    @rule(seconds=st.floats(0.1, 15.0), data=st.data())
    def wait(self, seconds: float, data: st.DataObject) -> None:
        self.now += seconds
        for old in self.seen:
            if data.draw(st.booleans()):
                try:
                    self.members.renew(old, self.now)
                except (FencedError, InvalidRequestError):
                    newer = self.members.find(old.name)
                    assert (
                        newer is None
                        or newer.incarnation != old.incarnation
                        or not newer.live
                        or old.job != self.members.job
                    )
        for member in expire(self.members, self.now):
            assert self.now - member.incarnation >= 0

    @rule()
    def zombies_are_refused(self) -> None:
        newest = {c.name: c.incarnation for c in self.seen}
        for old in self.seen:
            if old.incarnation < newest[old.name]:
                with pytest.raises(FencedError):
                    self.members.check(old)

    @invariant()
    def parts_agree(self) -> None:
        self.members.check_invariants()

    @invariant()
    def numbers_grow(self) -> None:
        now = (self.members.job, self.members.number)
        assert now >= self.last
        self.last = now


MembershipMachine.TestCase.settings = settings(
    max_examples=40, stateful_step_count=25, deadline=None
)
TestMembership = MembershipMachine.TestCase
