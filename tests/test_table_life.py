"""Admission and eviction: on one sub-table against a model, then over a cluster."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from rich.console import Console

import paramserver as ps
from paramserver.cli.state import Source
from paramserver.cli.status import render
from paramserver.core.tables import SUB_TABLES, Initial
from paramserver.errors import (
    ConfigurationError,
    InvalidRequestError,
    MismatchError,
    UnsupportedError,
)
from paramserver.ps.tables.bucket import RowBucket
from paramserver.ps.tables.life import NEVER, Oldest
from paramserver.ps.tables.store import Layout, Rows, SubTable
from paramserver.wire.rows import keys_of
from tests.cluster import cluster

DIM = 3
IDS = st.lists(st.integers(0, 25), unique=True, max_size=12)


def sub_table(admit: Any = None, evict: Any = None) -> SubTable:
    return SubTable(Layout(DIM, None, {}, Initial(seed=5), admit, evict))


def keys(ids: Any) -> np.ndarray:
    return keys_of(np.asarray(ids, np.int64))


def push(table: SubTable, ids: Any, version: int) -> None:
    table.push(Rows(keys(ids), torch.ones(len(ids), DIM)), {}, version, version)


def values(table: SubTable, ids: Any) -> list[float]:
    return [float(v) for v in table.read(keys(ids))[0][:, 0]]


def test_a_row_is_born_by_the_nth_push() -> None:
    table = sub_table(ps.CountFilter(3))
    for version in range(2, 7):
        push(table, [1, 2] if version < 4 else [1], version)
    assert values(table, [1, 2, 3]) == [3.0, 0.0, 0.0]
    assert len(table) == 1
    assert table.not_admitted == 4


def test_pushes_of_one_clock_are_counted_one_by_one() -> None:
    layout = Layout(DIM, None, {}, Initial(), ps.CountFilter(2))
    bucket = RowBucket(0, layout, 0)
    ones = torch.ones(2, DIM)
    bucket.close([(1.0, {0: Rows(keys([1, 2]), ones)}), (1.0, {0: Rows(keys([2, 3]), ones)})])
    assert values(bucket.table, [1, 2, 3]) == [0.0, 2.0, 0.0]


def test_probability_draws_for_every_push_and_repeats() -> None:
    born = []
    for _ in range(2):
        table = sub_table(ps.Probability(0.25))
        counts = []
        for version in range(2, 6):
            push(table, range(4000), version)
            counts.append(len(table))
        table.check_invariants()
        born.append(counts)
    assert born[0] == born[1]
    for pushes, count in enumerate(born[0], start=1):
        assert abs(count / 4000 - (1 - 0.75**pushes)) < 0.03


def test_rows_of_an_old_clock_are_forgotten_and_begin_again() -> None:
    table = sub_table(evict=ps.TTL(clocks=16))
    push(table, [1, 2], 2)
    for version in range(3, 25):
        push(table, [1], version)
    assert len(table) == 1
    assert table.evicted == 1
    assert values(table, [1, 2]) == [23.0, 0.0]
    push(table, [2], 25)
    assert values(table, [2]) == [1.0]
    table.check_invariants()


def test_shrink_is_exact() -> None:
    table = sub_table(evict=ps.TTL(clocks=1000))
    push(table, [1], 2)
    push(table, [2], 3)
    assert table.evict(1001) == 0
    assert table.evict(1002) == 1
    assert values(table, [1, 2]) == [0.0, 1.0]


def test_seconds_are_told_apart_by_marks() -> None:
    now = [0.0]
    oldest = Oldest(ps.TTL(seconds=8.0), 0, now=lambda: now[0])
    changed = np.array([2, NEVER, 3, 4])
    entries = np.array([7, 8, 9], np.uint64), np.array([0, 2, 3], np.int32)
    for version, at in ((2, 0.0), (3, 2.0), (4, 6.0)):
        now[0] = at
        oldest.pushed(version)
    for at, gone in {
        7.9: [],
        8.1: [2],
        9.9: [2],
        10.1: [2, 3],
        13.9: [2, 3],
        14.1: [2, 3, 4],
    }.items():
        now[0] = at
        assert changed[oldest.gone(changed, None, 4, entries)].tolist() == gone


def test_the_least_recently_pushed_rows_go() -> None:
    table = sub_table(evict=ps.LRU(SUB_TABLES * 20))
    for version in range(2, 42):
        push(table, [version, version + 1000], version)
        assert len(table) <= 20
    assert table.evicted == 80 - len(table)
    assert values(table, [41, 1041, 2]) == [1.0, 1.0, 0.0]
    table.check_invariants()


def test_a_score_fades_and_grows() -> None:
    table = sub_table(evict=ps.Decay(0.5, 0.2))
    for version in range(2, 6):
        push(table, [1], version)  # 1.875
    push(table, [2], 6)
    assert table.evict(8) == 0  # 0.23 and 0.25
    assert table.evict(9) == 2


def test_counts_are_forgotten_with_rows() -> None:
    table = sub_table(ps.CountFilter(2), ps.TTL(clocks=8))
    push(table, [1], 2)
    push(table, [2], 20)
    push(table, [1], 21)
    assert len(table) == 0
    push(table, [1], 22)
    assert values(table, [1]) == [1.0]


def test_a_reader_hears_of_rows_that_were_forgotten() -> None:
    table = sub_table(evict=ps.TTL(clocks=4))
    push(table, [1, 2], 2)
    push(table, [1], 6)
    assert table.evict(6) == 0 or len(table) == 1
    _, chosen = table.read(keys([1, 2, 3]), since=5)
    assert chosen.tolist() == [True, True, True]
    assert values(table, [2]) == [0.0]


def test_memory_is_given_back() -> None:
    table = sub_table(evict=ps.TTL(clocks=1_000_000))
    push(table, range(50_000), 2)
    push(table, range(100), 1_000_002)
    before = table.nbytes
    table.evict(1_000_002)
    table.compact()
    table.check_invariants()
    assert len(table) == 100
    assert table.nbytes < before / 100
    assert values(table, [0, 99, 100]) == [2.0, 2.0, 0.0]


class AgainstAModel(RuleBasedStateMachine):
    """CountFilter(2) with TTL(clocks=5), shrunk at will, against dicts."""

    def __init__(self) -> None:
        super().__init__()
        self.table = sub_table(ps.CountFilter(2), ps.TTL(clocks=5))
        self.version = 1
        self.rows: dict[int, tuple[float, int]] = {}
        self.counts: dict[int, tuple[int, int]] = {}

    @rule(ids=IDS)
    def push(self, ids: list[int]) -> None:
        self.version += 1
        push(self.table, ids, self.version)
        for i in ids:
            value = self.rows.get(i, (0.0, 0))[0]
            count = self.counts.pop(i, (0, 0))[0] + 1
            if i in self.rows or count == 2:
                self.rows[i] = (value + 1, self.version)
            else:
                self.counts[i] = (count, self.version)
        self.forget() if ids else None

    @rule()
    def shrink(self) -> None:
        before = len(self.rows)
        self.forget()
        assert self.table.evict(self.version) == before - len(self.rows)
        self.table.compact()

    def forget(self) -> None:
        """With so short a life rows are looked through at every push."""
        for held in (self.rows, self.counts):
            for i in [i for i, (_, at) in held.items() if at <= self.version - 5]:
                del held[i]

    @invariant()
    def agrees(self) -> None:
        self.table.check_invariants()
        wanted = [self.rows.get(i, (0.0, 0))[0] for i in range(26)]
        assert values(self.table, range(26)) == wanted
        assert len(self.table) == len(self.rows)


AgainstAModel.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestAgainstAModel = AgainstAModel.TestCase


@pytest.mark.parametrize(
    "make",
    [
        lambda: ps.CountFilter(0),
        lambda: ps.Probability(0.0),
        lambda: ps.Probability(1.5),
        lambda: ps.TTL(),
        lambda: ps.TTL(clocks=3, seconds=2.0),
        lambda: ps.TTL(seconds=-1.0),
        lambda: ps.LRU(10),
        lambda: ps.LRU(float("inf")),  # type: ignore[arg-type]
        lambda: ps.CountFilter(float("inf")),  # type: ignore[arg-type]
        lambda: ps.Decay(1.0, 0.5),
        lambda: ps.Decay(0.5, float("nan")),
    ],
)
def test_rules_that_cannot_be_are_refused(make: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"must be|give one"):
        make()


def test_over_a_cluster() -> None:
    """Counts do not depend on the number of servers; both are told in words and numbers."""

    def work(client: ps.Client) -> tuple[Any, ...]:
        table = client.table(
            "t", DIM, optimizer=None, init=ps.Zeros(), admit=ps.CountFilter(2), evict=ps.TTL(6)
        )
        for step in range(10):
            ids = torch.arange(20) if step < 2 else torch.arange(3)
            if client.rank == 0 or step >= 2:
                table.push(ids, torch.ones(len(ids), DIM))
            else:
                table.push(torch.tensor([0]), torch.ones(1, DIM))
        client.barrier("pushed")
        evicted = table.shrink() if client.rank == 0 else 0
        client.barrier("shrunk")
        counts = table.counts()
        assert len(table) == counts.rows
        plain = client.table("u", DIM)
        with pytest.raises(UnsupportedError, match="evict"):
            plain.shrink()
        with pytest.raises(ConfigurationError, match="admit="):
            client.table("v", DIM, admit=ps.LRU(100))  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="evict="):
            client.table("v", DIM, evict=ps.CountFilter(3))  # type: ignore[arg-type]
        return table.pull(torch.arange(20))[:, 0].tolist(), counts, evicted

    results = []
    for servers in (1, 3):
        with cluster(servers, 2) as c:
            results.append(c.workers(work)[0])
    one, three = results
    assert one[0] == three[0]
    # Row 0: two pushes at once in the first clock; rows 1 and 2 by the second clock.
    assert one[0] == [20.0, 17.0, 17.0] + [0.0] * 17
    for _, counts, _ in results:
        assert (counts.rows, counts.evicted, counts.not_admitted) == (3, 17, 19)


@pytest.mark.parametrize("consistency", [ps.Async("none"), ps.Sync(), ps.Stale(2)], ids=str)
def test_a_retried_push_counts_once(consistency: Any) -> None:
    """Row i is pushed i times; connections break all the while; it is born at the fifth push."""
    rows, steps = 3000, 8

    def work(client: ps.Client) -> tuple[torch.Tensor, Any]:
        table = client.table(
            "t",
            16,
            optimizer=None,
            init=ps.Zeros(),
            consistency=consistency,
            admit=ps.CountFilter(5),
            evict=ps.LRU(SUB_TABLES * 15),
        )
        for step in range(steps):
            ids = torch.arange(rows)[torch.arange(rows) % (steps + 1) > step]
            table.push(ids, torch.ones(len(ids), 16))
        client.barrier("pushed")
        return table.pull(torch.arange(rows))[:, 0], table.counts()

    with cluster(2, 1, proxies=True) as c:
        assert c.proxies is not None
        for proxy in c.proxies:
            proxy.cut_after = (30_000, 300_000)
        ((found, counts),) = c.workers(work)
        assert sum(proxy.cuts for proxy in c.proxies) >= 2
    wanted = (torch.arange(rows) % (steps + 1) - 4).clamp(min=0).float()
    there = found > 0
    assert torch.equal(found[there], wanted[there])
    assert counts.rows == int(there.sum())
    assert counts.rows + counts.evicted == int((wanted > 0).sum())
    assert counts.evicted > 0
    pushes = torch.arange(rows) % (steps + 1)
    again = (wanted - 1)[(wanted > 0) & ~there].sum()  # pushes of rows that had been forgotten
    assert counts.not_admitted == int(pushes.clamp(max=4).sum() + again)


def test_status_tells_of_tables() -> None:
    with cluster(2) as c, c.connect() as client:
        table = client.table("t", DIM, admit=ps.CountFilter(2))
        for ids in (torch.arange(30), torch.arange(10)):
            table.push(ids, torch.ones(len(ids), DIM))
        client.register("g", {"w": torch.zeros(3)})
        source = Source(c.address)
        state = source.gather()
        source.close()
        told = {g["name"]: g["table"] for g in state["groups"]}
        assert told["g"] is None
        counts = told["t"]
        assert (counts["rows"], counts["evicted"], counts["not_admitted"]) == (10, 0, 30)
        assert counts["bytes"] == table.counts().bytes
        assert counts["bytes_per_row"] == round(counts["bytes"] / 10, 1)
        console = Console(width=140, record=True, file=io.StringIO())
        console.print(render(state))
        text = console.export_text()
        assert "not admitted" in text
        assert f"{counts['bytes_per_row']:.0f}" in text


def test_workers_must_agree() -> None:
    def work(client: ps.Client) -> None:
        if client.rank == 0:
            client.table("t", DIM, admit=ps.CountFilter(2))
        client.barrier("there")
        if client.rank == 1:
            with pytest.raises(MismatchError, match=r"CountFilter\(n=2\)"):
                client.table("t", DIM, admit=ps.CountFilter(3))

    with cluster(1, 2) as c:
        c.workers(work)


def test_a_group_that_forgets_nothing_is_not_shrunk() -> None:
    def work(client: ps.Client) -> None:
        table = client.table("t", DIM)
        table._table = client.table("u", DIM, evict=ps.LRU(64))._table
        with pytest.raises(InvalidRequestError, match="evict="):
            table.shrink()

    with cluster(1) as c:
        c.workers(work)
