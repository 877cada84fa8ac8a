"""Who hosts a server and who takes over: pure, under any order of events."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from paramserver.core.replication import Host, Place, Replication
from paramserver.errors import ConfigurationError, FencedError


def host(name: str, incarnation: int = 1) -> Host:
    return Host(name, f"{name}.example:1", incarnation)


def begun(count: int) -> Replication:
    made = Replication()
    made.begin(host(f"ps-{i}") for i in range(count))
    return made


def fill(state: Replication) -> None:
    for place in state.places:
        if place.backup is not None:
            state.filled(place.server, place.epoch)


def where(state: Replication) -> list[tuple[str, str, str]]:
    return [(p.server, p.primary.name, p.backup.name if p.backup else "") for p in state.places]


def test_each_server_is_backed_up_by_the_next_host() -> None:
    state = begun(11)
    ring = [f"ps-{i}" for i in range(11)]
    assert where(state) == [(n, n, ring[(i + 1) % 11]) for i, n in enumerate(ring)]


def test_one_server_can_have_no_backup() -> None:
    with pytest.raises(ConfigurationError, match="at least 2"):
        begun(1)


def test_the_backup_takes_over_under_a_larger_epoch() -> None:
    state = begun(3)
    fill(state)
    before = state.place("ps-0")
    assert before is not None
    assert state.lose("ps-0", 1) == []
    after = state.place("ps-0")
    assert after is not None
    assert after.epoch > before.epoch
    assert (after.primary.name, after.address) == ("ps-1", "ps-1.example:1/ps-0")
    assert where(state) == [
        ("ps-0", "ps-1", "ps-2"),
        ("ps-1", "ps-1", "ps-2"),
        ("ps-2", "ps-2", "ps-1"),
    ]
    with pytest.raises(FencedError, match="epoch"):
        state.filled("ps-0", before.epoch)


def test_a_host_that_returns_fills_the_backups_that_are_missing() -> None:
    state = begun(2)
    fill(state)
    state.lose("ps-0", 1)
    assert where(state) == [("ps-0", "ps-1", ""), ("ps-1", "ps-1", "")]
    state.join(host("ps-0", 2))
    assert where(state) == [("ps-0", "ps-1", "ps-0"), ("ps-1", "ps-1", "ps-0")]
    assert state.missing() == "the backup of ps-0 on ps-0, ps-1 on ps-0 is being filled"
    fill(state)
    assert state.missing() == ""
    assert state.lose("ps-1", 1) == []
    assert [p.address for p in state.places] == ["ps-0.example:1", "ps-0.example:1/ps-1"]


def test_a_server_without_a_ready_backup_is_gone_with_its_host() -> None:
    state = begun(2)
    assert state.lose("ps-0", 1) == ["ps-0"]
    assert where(state) == [("ps-1", "ps-1", "")]


def test_a_host_of_a_new_name_serves_its_own_server() -> None:
    state = begun(2)
    state.join(host("ps-2"))
    assert where(state)[2] == ("ps-2", "ps-2", "ps-0")


def test_a_process_that_came_again_is_another_host() -> None:
    state = begun(2)
    fill(state)
    state.join(host("ps-0", 2))
    assert where(state) == [("ps-0", "ps-1", "ps-0"), ("ps-1", "ps-1", "ps-0")]
    assert not any(p.ready for p in state.places)
    assert state.lose("ps-0", 1) == ()  # the news of the first one comes late


class AnyOrder(RuleBasedStateMachine):
    """At most one primary per server and epoch, and only complete backups take over."""

    @initialize(count=st.integers(2, 4))
    def begin(self, count: int) -> None:
        self.state = begun(count)
        self.incarnations = {f"ps-{i}": 1 for i in range(count)}
        self.live = dict(self.incarnations)
        self.primaries: dict[tuple[str, int], Host] = {}
        self.places: dict[str, Place] = {p.server: p for p in self.state.places}
        self.gone: set[str] = set()

    @rule(data=st.data())
    @precondition(lambda self: self.live)
    def lose(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.live)))
        before = {p.server: p for p in self.state.places}
        gone = set(self.state.lose(name, self.live.pop(name)))
        self.gone |= gone
        for server, place in before.items():
            if place.primary.name != name:
                continue
            now = self.state.place(server)
            assert (now is None) == (server in gone) == (not place.ready)
            assert now is None or now.primary == place.backup

    @rule(data=st.data())
    def join(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.incarnations)))
        self.incarnations[name] += 1
        self.live[name] = self.incarnations[name]
        self.gone |= set(self.state.join(host(name, self.live[name])))
        self.gone -= {p.server for p in self.state.places}

    @rule(data=st.data(), late=st.integers(0, 3))
    def filled(self, data: st.DataObject, late: int) -> None:
        servers = sorted(self.places)
        place = self.places[data.draw(st.sampled_from(servers))]
        now = self.state.place(place.server)
        try:
            self.state.filled(place.server, place.epoch - late)
        except FencedError:
            assert late or now is None or now.backup is None
        else:
            assert now is not None
            assert now.epoch == place.epoch - late

    @invariant()
    def holds(self) -> None:
        self.state.check_invariants()
        for place in self.state.places:
            key = place.server, place.epoch
            assert self.primaries.setdefault(key, place.primary) == place.primary
            assert place.epoch >= self.places[place.server].epoch
            self.places[place.server] = place
        assert {p.server for p in self.state.places} == set(self.places) - self.gone


AnyOrder.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestAnyOrder = AnyOrder.TestCase
