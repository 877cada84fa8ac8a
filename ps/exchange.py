"""One client's stream: records in, answers out, in the order that Exchange promises."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any

from paramserver.core.ledger import MASK, Receipt, digest
from paramserver.errors import (
    InvalidRequestError,
    MovedError,
    NonFiniteError,
    ResourceError,
    ReusedClockError,
)
from paramserver.ps.answers import accepted, settled
from paramserver.ps.group import GroupState
from paramserver.ps.outbox import Outbox
from paramserver.ps.pulls import answer_pull
from paramserver.ps.push import (
    PUSHABLE,
    Incoming,
    Parcel,
    arrive_all,
    check_payload,
    check_sizes,
    checked_weight,
    incoming_push,
    open_gradients,
    read_options,
    split,
)
from paramserver.ps.requests import REQUESTS, Request
from paramserver.ps.tables.lookup import Lookup
from paramserver.ps.workshop import INLINE_BYTES
from paramserver.v1 import server_pb2 as pb
from paramserver.wire.convert import spans_from_proto
from paramserver.wire.frames import Piece, decode
from paramserver.wire.serve import as_refusal
from paramserver.wire.status import to_failure

if TYPE_CHECKING:
    from paramserver.ps.service import ServerService

FRAMES_AT_WORK = 4  # frames of one stream whose tensor work may overlap
_numbers = itertools.count()
ALL_REQUESTS = {**REQUESTS, "lookup": Lookup}


class Session:
    """The server's end of one Exchange.

    Attributes:
        number: of two streams of one client, the one with the larger number is the newer.
        closed: it takes part in nothing any more.
    """

    def __init__(self, service: ServerService, send: Callable[[bytes], Awaitable[None]]) -> None:
        self.service = service
        self.number = next(_numbers)
        self.closed = False
        self.outbox = Outbox(send, service.config.limits, service.sent, service.journal)
        self._inbound: dict[int, Incoming | Request] = {}
        self._pulls: dict[int, asyncio.Task[None]] = {}
        self._work: set[asyncio.Task[None]] = set()
        self._most = service.config.limits.parked_calls

    async def run(self, frames: AsyncIterator[bytes]) -> None:
        """Handles frames until the client ends the stream."""
        writer = asyncio.create_task(self.outbox.write())
        self.service.sessions.add(self)
        try:
            await self.outbox.while_taken(self._read(frames))
        finally:
            await self.close()
            self.service.sessions.discard(self)
            writer.cancel()

    async def _read(self, frames: AsyncIterator[bytes]) -> None:
        async for message in frames:
            self.service.received_bytes += len(message)
            await self.receive(message)
            if self.service.journal is None:  # else the writer waits until it may be sent
                await self.outbox.send()
        await self.settle()
        await asyncio.gather(*self._pulls.values(), return_exceptions=True)

    def arriving(self) -> list[Incoming]:
        """Pushes whose bytes are coming in."""
        return [i for i in self._inbound.values() if isinstance(i, Incoming) and i.open]

    async def close(self) -> None:
        """Frees what never got its last frame; work under way ends first."""
        self.closed = True
        self.outbox.close()
        for pull in self._pulls.values():
            pull.cancel()
        await self.settle()
        for inbound in self._inbound.values():
            if isinstance(inbound, Incoming):
                inbound.open = False
                inbound.progress.set()
                self.service.release(inbound, self)
            else:
                inbound.close()
        self._inbound.clear()

    def moved(self, group: GroupState) -> None:
        """Slices of a group have left: answers that wait for it will not come from here."""
        name = group.spec.name
        error = MovedError(f"slices of group {name!r} have moved; fetch the slice map")
        for request in [r for r, task in self._pulls.items() if task.get_name() == name]:
            self._fail(request, error)

    async def receive(self, message: bytes) -> None:
        """Handles one frame.

        Raises:
            InvalidRequestError: the frame itself cannot be read; the stream ends with it.
        """
        if self.closed:
            return
        records, payload = decode(message)
        check_payload(records, payload)
        at = 0
        for record in records:
            kind = record.WhichOneof("body")
            if kind == "data":
                pieces, at = split(record.data, payload, at)
                await self._guard(record.request, self._data(record.request, record.data, pieces))
            elif kind in _HANDLERS:
                handle = getattr(self, f"_{kind}")
                await self._guard(record.request, handle(record.request, getattr(record, kind)))
            elif kind in _OPENING:
                await self._guard(record.request, self._begin(record, _OPENING[kind]))
            else:
                raise InvalidRequestError(f"frame: a client does not send {kind!r} records")

    async def _begin(self, record: pb.Record, kind: str) -> None:
        """Opens a request under a number of its own, while not too many are open."""
        number, pull = record.request, self._pulls.get(record.request)
        if number in self._inbound or (pull is not None and not pull.done()):
            raise InvalidRequestError(f"request {number} is open already; it ends")
        if len(self._inbound) + len(self._pulls) >= self._most:
            raise ResourceError(f"{self._most} requests of this stream are open: read first")
        await getattr(self, f"_{kind}")(record)

    async def _guard(self, request: int, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:
            self._fail(request, error)

    def _fail(self, request: int, error: Exception) -> None:
        inbound = self._inbound.pop(request, None)
        if isinstance(inbound, Incoming):
            inbound.open = False
            inbound.progress.set()
            self.service.release(inbound, self, rejected=True)
        elif inbound is not None:
            inbound.close()
        pull = self._pulls.pop(request, None)
        if pull is not None:
            pull.cancel()
        self.service.refusals += 1
        self.service.non_finite += isinstance(error, NonFiniteError)
        refusal = as_refusal(error)
        failure = pb.Record(request=request, failure=to_failure(refusal))
        if self.service.journal is not None and self.service.journal.blocked:
            self.outbox.put_first(failure)  # what is queued waits for room on the disk
        else:
            self.outbox.put(failure)

    async def settle(self) -> None:
        """Returns when no tensor work of this stream is under way."""
        while self._work:
            await asyncio.wait(self._work)

    # Pushes

    async def _push(self, record: pb.Record) -> None:
        request, push = record.request, record.push
        await self.settle()  # gradients of one worker reach a bucket in the order of their clocks
        service = self.service
        worker = await service.views.admit(push.worker)
        group = await service.group(push.group, push.map_version)
        group.check_slices(push.slices, PUSHABLE)
        if not group.stored:
            raise InvalidRequestError(f"group {push.group!r} has no first values yet; store them")
        incoming = incoming_push(request, push, group, worker)
        service.inflow.admit(incoming, group.declared_bytes(push.slices), service)
        receipt = None if push.deferred else await service.begin(incoming, self, push.activated)
        if push.HasField("pull"):
            incoming.pull = push.pull
            # Values of the first buckets go back while others come.
            if receipt is None and len(group.cells) > 1:
                self._start_pull(request, push.pull, incoming, None)
        self._inbound[request] = incoming
        if receipt is not None:
            incoming.open, incoming.known = False, receipt
            self._recognize(incoming)
            return
        if not incoming.waiting and not push.deferred:
            await self._complete(incoming)

    async def _data(self, request: int, data: pb.Data, pieces: list[Piece]) -> None:
        inbound = self._inbound.get(request)
        if isinstance(inbound, Incoming):
            await self._gradients(inbound, data, pieces)
        elif inbound is not None:
            await inbound.take(data, pieces)
            if inbound.whole:
                del self._inbound[request]

    async def _open(self, record: pb.Record) -> None:
        """Opens a request that is neither push nor pull."""
        made = ALL_REQUESTS[str(record.WhichOneof("body"))](self.service, self, record)
        self._inbound[record.request] = made
        await made.begin()
        if made.whole:
            self._inbound.pop(record.request, None)

    def _recognize(self, push: Incoming) -> None:
        """Answers a push that came before, once it is seen to be the same."""
        receipt, group = push.known, push.group
        digest = group.ledger.digest(push.worker, push.clock)
        if receipt is None or (push.waiting and digest is not None):
            return
        push.known = None
        if digest is not None and digest != push.digest & MASK:
            raise ReusedClockError(
                f"clock {push.clock} of rank {push.worker.rank} in group {group.spec.name!r} came "
                "before with other bytes, which stand; a new push takes the next clock"
            )
        if push.pull is not None:
            self._start_pull(push.request, push.pull, None, receipt)
        self._accepted(push, receipt)

    async def _gradients(self, push: Incoming, data: pb.Data, pieces: list[Piece]) -> None:
        if push.known is not None:
            push.seen(data.slices)
            push.digest += digest(dict(zip(data.slices, data.checksums, strict=True)))
            self._recognize(push)
        if not push.open:
            return
        push.group.check_map(push.map_version)  # a deferred one: slices may have moved meanwhile
        undeclared = [s for s in data.slices if s not in push.declared]
        if undeclared:
            raise InvalidRequestError(f"data: slice {undeclared[0]} was not declared by its push")
        dtypes = check_sizes(push.group, data.slices, pieces, push.wire)
        parcel = Parcel(list(data.slices), pieces, list(data.checksums), dtypes)
        if push.group.spec.table is not None:
            self.service.inflow.admit(push, parcel.size, self.service)
        if parcel.size <= INLINE_BYTES:
            await self._take(push, parcel)
            return
        while len(self._work) >= FRAMES_AT_WORK:
            await asyncio.wait(self._work, return_when=asyncio.FIRST_COMPLETED)
        work = self._guard(push.request, self._take(push, parcel))
        task = await self.service.inflow.start(parcel.size, work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    async def _take(self, push: Incoming, parcel: Parcel) -> None:
        service = self.service
        if push.deferred:
            good, bad = await service.workshop.offload(parcel.size, open_gradients, push, parcel)
            push.held.update({i: parcel.only([i]) for i in good})
        else:
            service.views.check(push.worker, push.job)
            bad = await self._apply(push, service.claim(push, self, parcel))
            push.group.ledger.untake(push.worker, push.clock, bad)
        push.refused.extend(bad)
        push.seen(parcel.slices)
        if not push.waiting and push.open and not push.deferred:
            await self._complete(push)

    async def _apply(self, push: Incoming, parcel: Parcel) -> list[int]:
        """Stages or applies slices; those whose checksum does not match."""
        workshop, group = self.service.workshop, push.group
        if group.sync:
            good, bad = await workshop.offload(parcel.size, open_gradients, push, parcel)
            push.gradients.update(good)
            return bad
        if not push.counts:
            return []
        staleness, refused = await arrive_all(workshop, push, parcel)
        push.staleness += staleness
        return refused

    async def _commit(self, request: int, commit: pb.Commit) -> None:
        await self.settle()
        push = self._inbound.get(request)
        if not isinstance(push, Incoming) or not push.deferred:
            raise InvalidRequestError("commit: no deferred push has this request number")
        push.group.check_map(push.map_version)
        push.weight = checked_weight(commit.weight)
        push.samples = spans_from_proto(commit.samples)
        push.options = read_options(push.group, commit.options)
        push.declared = set(commit.slices)
        missing = push.declared - set(push.held)
        if missing:
            raise InvalidRequestError(f"commit: slice {min(missing)} was never sent whole")
        push.deferred = False
        push.waiting = set(push.declared)
        receipt = await self.service.begin(push, self, activated=True)
        if receipt is not None:
            push.open, push.known = False, receipt
            push.waiting.clear()
            push.digest += digest({i: push.held[i].checksums[0] for i in push.declared})
            self._recognize(push)
            return
        for index in sorted(push.declared):
            await self._apply(push, self.service.claim(push, self, push.held.pop(index)))
        push.seen(list(push.declared))
        await self._complete(push)

    async def _complete(self, push: Incoming) -> None:
        if push.refused:
            refused, push.refused = push.refused, []
            push.waiting.update(refused)
            self.outbox.put(pb.Record(request=push.request, accepted=pb.Accepted(refused=refused)))
            return
        push.open = False
        receipt = await self.service.complete(push, self)
        push.complete = True
        push.progress.set()
        request, pull = push.request, push.pull
        if pull is None or request in self._pulls:
            self._accepted(push, receipt)
        elif receipt.settled and push.group.readable_now(pull.clock):  # Done says it all, at once
            await answer_pull(self.service, self.outbox, request, pull, push, receipt)
            self._end_pull(request)
        else:
            self._accepted(push, receipt)
            self._start_pull(request, pull, push, receipt)

    def _accepted(self, push: Incoming, receipt: Receipt) -> None:
        self.outbox.put(accepted(push, receipt, self.service.durability))
        if push.pull is not None:
            return
        if receipt.settled:
            self.outbox.put(settled(push, receipt, self.service.durability))
            self._end_pull(push.request)
        else:
            self.start(push.request, self._until_settled(push), push.group.spec.name)

    async def _until_settled(self, push: Incoming) -> None:
        """Done, once the clock of a staged push has closed."""
        await push.group.settled.reach(push.clock + 1)
        receipt = push.group.ledger.receipt(push.worker, push.clock)
        if receipt is not None:
            self.outbox.put(settled(push, receipt, self.service.durability))

    # Pulls

    async def _pull(self, record: pb.Record) -> None:
        await self.settle()  # read-my-writes: what this stream sent before is applied first
        self._start_pull(record.request, record.pull, None, None)

    def _start_pull(
        self, request: int, pull: pb.Pull, push: Incoming | None, receipt: Receipt | None
    ) -> None:
        found = answer_pull(self.service, self.outbox, request, pull, push, receipt)
        self.start(request, found, pull.group)

    def start(self, request: int, answer: Coroutine[Any, Any, None], group: str = "") -> None:
        """Answers a request, about a group or none, in a task that ends with the stream."""
        task = asyncio.create_task(self._guard(request, answer), name=group)
        self._pulls[request] = task
        task.add_done_callback(lambda _: self._end_pull(request))
        task.add_done_callback(lambda _: answer.close())  # cancelled before it began

    def _end_pull(self, request: int) -> None:
        self._pulls.pop(request, None)
        inbound = self._inbound.get(request)
        if isinstance(inbound, Incoming) and not inbound.open:
            del self._inbound[request]

    async def _cancel(self, request: int, _: pb.Cancel) -> None:
        pull = self._pulls.pop(request, None)
        if pull is not None:
            pull.cancel()
        inbound = self._inbound.pop(request, None)
        if isinstance(inbound, Incoming):
            inbound.open = False
            self.service.release(inbound, self)
        elif inbound is not None:
            inbound.close()


_HANDLERS = frozenset({"commit", "cancel"})
_OPENING = {"push": "push", "pull": "pull", **dict.fromkeys(ALL_REQUESTS, "open")}
