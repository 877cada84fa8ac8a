"""Holds, cuts and snapshots of one server: groups are captured, and written to one file."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from paramserver.core.clock import Cut
from paramserver.errors import (
    FencedError,
    InvalidRequestError,
    ResourceError,
    SnapshotError,
    WaitTimeoutError,
)
from paramserver.failpoints import failpoint
from paramserver.ps.capture import GroupCapture, next_clock
from paramserver.ps.group import GroupState
from paramserver.ps.holds import Hold
from paramserver.snapshot_files import check_snapshot_name, file_name, open_store
from paramserver.snapshot_tensors import TensorWriter
from paramserver.types import WorkerId
from paramserver.v1 import server_pb2 as pb

if TYPE_CHECKING:
    from paramserver.ps.service import ServerService

log = logging.getLogger("paramserver")

PATIENCE_S = 30.0
UNCLAIMED_S = 60.0  # how long a cut waits for the request that belongs to it
SLICE_HEADER = 600  # bytes of the file's header for one slice, about


class Snapshots:
    """What the snapshot rpcs of one server do."""

    def __init__(self, service: ServerService) -> None:
        self._service = service
        self._hold: Hold | None = None
        self._cuts: dict[tuple[str, int], asyncio.Future[GroupCapture]] = {}
        self._captures: set[GroupCapture] = set()
        self._running: tuple[int, asyncio.Task[pb.SnapshotReply]] | None = None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="snapshot")

    # Holds

    async def hold(self, request: pb.HoldRequest) -> pb.HoldReply:
        """Groups stand still; what was opened, and which clocks are next."""
        groups = await self._groups(request.job, request.groups)
        if self._hold is None or request.hold > self._hold.number:
            if self._hold is not None:
                self._hold.end()
            service = self._service
            pairs = [(group, service.lead_of(group.spec.name)) for group in groups]
            self._hold = Hold(request.hold, pairs, request.limit_s)
        hold = self._held(request.hold)
        reply = pb.HoldReply()
        for group in groups:
            name = group.spec.name
            told = _clocks(group, hold.opened.get(name, {}))
            if name in hold.next_clocks:
                told.lead, told.next_clock = True, hold.next_clocks[name]
            reply.groups.append(told)
        return reply

    async def drain(self, request: pb.DrainRequest) -> pb.DrainReply:
        """Pushes up to the given clocks are let through; returns when they are complete."""
        groups = await self._groups(request.job, request.groups)
        hold = self._held(request.hold)
        gone = self._service.views.gone
        reply = pb.DrainReply()
        for group, told in zip(groups, request.groups, strict=True):
            if group.sync:
                continue
            limits = {WorkerId(w.rank, w.incarnation): w.clock for w in told.workers}
            if group.slices:
                limits = await hold.drain(group.spec.name, limits, gone)
            space = self._service.vectors.known(group.spec.name)
            if space is not None:
                await space.stand_still()
            reply.groups.append(_clocks(group, limits))
        return reply

    async def release(self, request: pb.ReleaseRequest) -> pb.ReleaseReply:
        """What waits goes on."""
        if self._hold is None or self._hold.number != request.hold:
            return pb.ReleaseReply()
        self._hold.end()
        return pb.ReleaseReply(held_s=self._hold.held_s)

    async def _groups(
        self, job: int, named: Sequence[pb.GroupClocks | pb.GroupCut]
    ) -> list[GroupState]:
        current = self._service.views.current.job
        if job != current:
            raise FencedError(f"snapshot of job {job}: this is job {current}")
        return [await self._service.group(each.group, each.map_version) for each in named]

    def _held(self, number: int) -> Hold:
        if self._hold is None or self._hold.number != number or self._hold.over:
            raise FencedError(f"hold {number} is over: it was released, gave up, or a newer came")
        return self._hold

    # Cuts

    def on_cut(self, group: GroupState, cut: Cut) -> None:
        """The lead's decision has come to this server: the group is as it is to be captured."""
        future = self._cut(group.spec.name, cut.id)
        if not future.done():
            future.set_result(self._begin(group, cut.clock))

    def _cut(self, group: str, id_: int) -> asyncio.Future[GroupCapture]:
        key = (group, id_)
        if key not in self._cuts:
            loop = asyncio.get_running_loop()
            self._cuts[key] = loop.create_future()
            loop.call_later(UNCLAIMED_S, self._forget, key)
        return self._cuts[key]

    def _forget(self, key: tuple[str, int]) -> None:
        """A cut that nobody claimed; one that is being written is kept."""
        claimed = self._running is not None and self._running[0] == key[1]
        if claimed and not self._running[1].done():  # type: ignore[index]
            asyncio.get_running_loop().call_later(UNCLAIMED_S, self._forget, key)
            return
        future = self._cuts.pop(key, None)
        if future is not None and future.done() and not future.cancelled():
            self._end([future.result()])

    def _begin(self, group: GroupState, clock: int) -> GroupCapture:
        for other in [c for c in self._captures if c.group is group]:
            self._end([other])  # of a snapshot that was given up
        capture = GroupCapture(group, clock, self._service.vectors.known(group.spec.name))
        self._captures.add(capture)
        return capture

    def _end(self, captures: Sequence[GroupCapture]) -> None:
        for capture in captures:
            capture.end()
            self._captures.discard(capture)

    # Snapshots

    async def snapshot(self, request: pb.SnapshotRequest) -> pb.SnapshotReply:
        """Captures groups and writes them to one file."""
        check_snapshot_name(request.name)
        running = self._running
        if running is None or (running[0] != request.id and running[1].done()):
            running = (request.id, asyncio.create_task(self._snapshot(request)))
            self._running = running
        if running[0] != request.id:
            raise ResourceError(f"snapshot {running[0]} is being written; try again")
        return await asyncio.shield(running[1])

    async def _snapshot(self, request: pb.SnapshotRequest) -> pb.SnapshotReply:
        groups = await self._groups(request.job, request.cuts)
        hold = self._held(request.hold) if request.hold else None
        captures: list[GroupCapture] = []
        try:
            waits = self._ask_cuts(request, groups, hold)
            for group, cut in zip(groups, request.cuts, strict=True):
                if group.slices and not group.sync:
                    captures.append(self._begin(group, next_clock(group)))
                    captures[-1].since = dict(cut.since)
            if hold is not None:
                hold.end()
            captures += await self._await_cuts(request, waits)
            reply = await self._write(request, captures)
            reply.held_s = hold.held_s if hold is not None else 0.0
            return reply
        except OSError as error:
            raise SnapshotError(
                f"snapshot {request.name!r} on {self._service.name}: {error.strerror or error}: "
                f"{request.directory}; training goes on, make room or choose another directory"
            ) from error
        finally:
            self._end(captures)
            for cut in request.cuts:
                self._cuts.pop((cut.group, request.id), None)
                lead = self._service.lead_of(cut.group)
                if lead is not None:
                    lead.clock.cuts.cancel(request.id)

    def _ask_cuts(
        self, request: pb.SnapshotRequest, groups: Sequence[GroupState], hold: Hold | None
    ) -> list[tuple[pb.GroupCut, asyncio.Future[GroupCapture]]]:
        """Asks for the cuts of groups that this server leads; what is to come of all."""
        waits = []
        for group, cut in zip(groups, request.cuts, strict=True):
            if group.sync:
                if group.slices:
                    waits.append((cut, self._cut(cut.group, request.id)))
                lead = self._service.lead_of(cut.group)
                if lead is not None:
                    lead.cut(request.id, cut.clock)
            elif group.slices and (hold is None or not hold.group(cut.group).drained):
                raise InvalidRequestError(
                    f"group {cut.group!r} has no clocks that close: hold and drain it first"
                )
        return waits

    async def _await_cuts(
        self,
        request: pb.SnapshotRequest,
        waits: Sequence[tuple[pb.GroupCut, asyncio.Future[GroupCapture]]],
    ) -> list[GroupCapture]:
        """The captures of groups under Sync, once each has come to its clock."""
        patience = request.patience_s or PATIENCE_S
        futures = [future for _, future in waits]
        if futures:
            await asyncio.wait(futures, timeout=patience)
            for cut, _ in waits:
                lead = self._service.lead_of(cut.group)
                if lead is not None:
                    lead.cut_now(request.id)
            await asyncio.wait(futures, timeout=patience)
        for cut, future in waits:
            if not future.done():
                raise WaitTimeoutError(
                    f"snapshot {request.name!r}: group {cut.group!r} was not cut at clock "
                    f"{cut.clock} within {patience:g} s; is its lead reachable?"
                )
            future.result().since = dict(cut.since)
        return [future.result() for future in futures]

    async def _write(
        self, request: pb.SnapshotRequest, captures: Sequence[GroupCapture]
    ) -> pb.SnapshotReply:
        if not captures:
            return pb.SnapshotReply()
        loop, began = asyncio.get_running_loop(), time.monotonic()
        name = file_name(self._service.name)
        path = f"{request.name}/{name}"
        size, sha256 = await loop.run_in_executor(
            self._writer, write_file, request.directory, path, self._service.name, captures
        )
        failpoint("ps.before_snapshot_reply")
        return pb.SnapshotReply(
            file=name,
            bytes=size,
            sha256=sha256,
            groups=[capture.describe() for capture in captures],
            wrote_s=time.monotonic() - began,
        )

    def stir(self) -> None:
        """The membership has changed: a hold may wait for nobody any more."""
        if self._hold is not None:
            self._hold.stir()

    def clear(self) -> None:
        """A new job begins."""
        if self._hold is not None:
            self._hold.end()
        if self._running is not None:
            self._running[1].cancel()
        self._end(list(self._captures))
        self._hold, self._running = None, None
        self._cuts.clear()

    def close(self) -> None:
        """Ends the thread."""
        self.clear()
        self._writer.shutdown(wait=False, cancel_futures=True)


def _clocks(group: GroupState, clocks: dict[WorkerId, int]) -> pb.GroupClocks:
    return pb.GroupClocks(
        group=group.spec.name,
        map_version=group.map.version,
        workers=[
            pb.WorkerClock(rank=w.rank, incarnation=w.incarnation, clock=clock)
            for w, clock in sorted(clocks.items())
        ],
    )


def write_file(
    directory: str, path: str, server: str, captures: Sequence[GroupCapture]
) -> tuple[int, str]:
    """Writes captures to one file of a store; its size and SHA-256. Blocks.

    Raises:
        SnapshotError, OSError: nothing is there then.
    """
    reserve = 4096 + sum(SLICE_HEADER * len(c.group.slices) for c in captures)
    with open_store(directory).create(path) as made:
        writer = TensorWriter(made.stream, reserve)
        groups: list[dict[str, Any]] = []
        for number, capture in enumerate(captures):
            numbers = {}
            for index, state in capture.states():
                for name, tensor in state.tensors.items():
                    writer.add(f"{number}/{index}/{name}", tensor)
                numbers[index] = state.numbers
            for name, index, tensor in capture.vector_parts():
                writer.add(f"{number}/{index}/{name}", tensor)
            groups.append(capture.metadata(numbers))
        writer.finish({"server": server, "groups": groups})
    return made.bytes, made.sha256
