"""One worker coordinates; what it announces reaches all; another goes on if it is lost."""

from __future__ import annotations

import threading
from typing import Any

import pytest

import paramserver as ps
from paramserver.errors import InvalidRequestError, ResourceError, WaitTimeoutError
from paramserver.scheduler.offices import TEXT_BYTES
from paramserver.worker.coordination import Coordination
from tests.cluster import cluster, in_threads

NEVER = threading.Event()


def coordination(client: ps.Client, name: str = "thing") -> Coordination:
    return Coordination(client._session, name)


def test_the_first_to_ask_coordinates_and_all_hear() -> None:
    def work(client: ps.Client) -> list[tuple[int, str]]:
        mine = coordination(client)
        if client.rank == 0:
            assert mine.take(NEVER) == (0, "")
            assert mine.take(NEVER) == (0, "")  # again
            assert mine.announce(1, "one") == 1
            assert mine.announce(1, "one") == 1  # a lost answer
            client.barrier("said")
            assert mine.announce(2, "two") == 2
        else:
            client.barrier("said")
        return [mine.hear(0), mine.hear(1)]

    with cluster(1, 2) as c:
        for heard in c.workers(work):
            assert heard[1] == (2, "two")


def test_another_takes_over_from_the_newest_announcement() -> None:
    with cluster(1, 2) as c:
        first, second = in_threads([lambda: c.connect("worker-0"), lambda: c.connect("worker-1")])
        with second:
            assert coordination(first).take(NEVER) == (0, "")
            coordination(first).announce(1, "so far")
            found: list[Any] = []
            waiter = threading.Thread(
                target=lambda: found.append(coordination(second).take(NEVER)), daemon=True
            )
            waiter.start()
            with pytest.raises(InvalidRequestError, match="which worker-0 coordinates"):
                coordination(second).announce(2, "mine")
            assert not found
            first.fail("lost")
            waiter.join(20)
            assert found == [(1, "so far")]
            assert coordination(second).announce(2, "mine") == 2
            assert any(
                "worker-1 coordinates thing" in e for e in c.scheduler.state.journal.events()
            )


def test_who_stops_waits_no_longer() -> None:
    with cluster(1, 2) as c:
        stop = threading.Event()

        def work(client: ps.Client) -> Any:
            if client.rank == 0:
                assert coordination(client).take(stop) == (0, "")
                client.barrier("taken")
                stop.set()
                client.barrier("stopped")
                return None
            client.barrier("taken")
            found = coordination(client).take(stop)
            client.barrier("stopped")
            return found

        assert c.workers(work) == [None, None]


def test_announcements_out_of_turn_are_refused() -> None:
    with cluster(1, 1) as c, c.connect("worker-0") as client:
        mine = coordination(client)
        with pytest.raises(InvalidRequestError, match="nobody coordinates"):
            mine.announce(1, "too early")
        mine.take(NEVER)
        mine.announce(1, "one")
        for number, text in ((1, "other"), (3, "three")):
            with pytest.raises(InvalidRequestError, match="the next must be 2"):
                mine.announce(number, text)
        assert mine.announce(0, "by anyone") == 2
        with pytest.raises(ResourceError, match="at most"):
            mine.announce(3, "x" * (TEXT_BYTES + 1))
        with pytest.raises(InvalidRequestError, match="name"):
            coordination(client, "../x").take(NEVER)


def test_a_wait_names_the_coordinator() -> None:
    with cluster(1, 1) as c, c.connect("worker-0", wait_timeout=0.2) as client:
        with pytest.raises(WaitTimeoutError, match="nobody coordinates it"):
            coordination(client).hear(0)
        coordination(client).take(NEVER)
        with pytest.raises(WaitTimeoutError, match="waits for worker-0"):
            coordination(client).hear(0)
