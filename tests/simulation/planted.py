"""Mistakes in the roles themselves, for a cluster in virtual time to find."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from paramserver.core.ledger import Ledger
from paramserver.core.replication import Host as Process
from paramserver.core.replication import Replication
from paramserver.ps.peer import Peer
from paramserver.ps.shadow import Shadow
from paramserver.scheduler.event_log import EventLog
from tests.simulation.disk import StepWal, System


@contextmanager
def _kept_when_sent() -> Iterator[None]:
    """A primary that does not wait for its backup."""
    put = Peer.put

    def early(self: Peer, position: int, data: bytes) -> None:
        put(self, position, data)
        self._journal.reached(position)

    with patch.object(Peer, "put", early):
        yield


@contextmanager
def _same_epoch() -> Iterator[None]:
    """A backup that takes over under the epoch of its primary."""
    put = Replication._put

    def again(self: Replication, server: str, primary: Process) -> None:
        known = self.place(server)
        put(self, server, primary)
        if known is not None and known.primary != primary:
            self._places[server] = replace(self._places[server], epoch=known.epoch)

    with patch.object(Replication, "_put", again):
        yield


@contextmanager
def _promoted_unfilled() -> Iterator[None]:
    """A backup that takes over though it is not complete."""
    put = Replication._put

    def ready(self: Replication, server: str, primary: Process) -> None:
        put(self, server, primary)
        made = self._places[server]
        self._places[server] = replace(made, ready=made.backup is not None)

    with patch.object(Replication, "_put", ready):
        yield


@contextmanager
def _no_fence() -> Iterator[None]:
    """A backup that goes on following a primary whose epoch is over."""
    take = Shadow._apply

    async def anyhow(self: Shadow, stream: int, request: Any) -> None:
        async with self._lock:
            await take(self, request)

    with patch.object(Shadow, "_take", anyhow):
        yield


@contextmanager
def _record_lost() -> Iterator[None]:
    """What is read back has the values, but not who pushed them."""
    with (
        patch.object(Ledger, "restore", lambda self, *rest, **more: None),
        patch.object(Ledger, "load", lambda self, numbers: None),
    ):
        yield


@contextmanager
def _kept_when_written() -> Iterator[None]:
    """A journal that does not wait for its fsync."""
    write = StepWal._write

    def early(self: StepWal, batch: Sequence[tuple[int, bytes]]) -> int:
        size = write(self, batch)
        self._journal.reached(batch[-1][0])
        return size

    with patch.object(StepWal, "_write", early):
        yield


@contextmanager
def _kept_when_put() -> Iterator[None]:
    """A journal that does not wait for anything."""
    put = StepWal.put

    def early(self: StepWal, position: int, data: bytes) -> None:
        put(self, position, data)
        self._journal.reached(position)

    with patch.object(StepWal, "put", early):
        yield


@contextmanager
def _tail_not_cut() -> Iterator[None]:
    """A torn end that stays in the file, before what comes next."""

    with patch.object(System, "truncate", lambda *rest: None):
        yield


@contextmanager
def _dropped_too_much() -> Iterator[None]:
    """Segments that go though no dump has what is in them."""
    drop = StepWal.drop_before

    with patch.object(StepWal, "drop_before", lambda self, position: drop(self, 1 << 62)):
        yield


@contextmanager
def _event_not_written() -> Iterator[None]:
    """A scheduler that answers before its log is written."""

    async def durable(self: EventLog) -> None:
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.get_running_loop().create_task(self._flush())

    with patch.object(EventLog, "durable", durable):
        yield


@contextmanager
def _event_not_told() -> Iterator[None]:
    """A log that leaves out one kind of event."""
    record = EventLog.record

    def forgetful(self: EventLog, state: Any, now: float, method: str, *rest: Any) -> None:
        if method != "group_stored":
            record(self, state, now, method, *rest)

    with patch.object(EventLog, "record", forgetful):
        yield


PLANTED: dict[str, Callable[[], AbstractContextManager[None]]] = {
    made.__name__.strip("_"): made
    for made in (
        _kept_when_sent,
        _same_epoch,
        _promoted_unfilled,
        _no_fence,
        _record_lost,
        _kept_when_written,
        _kept_when_put,
        _tail_not_cut,
        _dropped_too_much,
        _event_not_written,
        _event_not_told,
    )
}


@contextmanager
def planted(mistake: str) -> Iterator[None]:
    """A mistake by its name; empty: none."""
    with ExitStack() as stack:
        if mistake:
            stack.enter_context(PLANTED[mistake]())
        yield
