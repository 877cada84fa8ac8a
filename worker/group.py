"""A group of dense tensors as a worker sees it: pushes and pulls, exactly once, in order."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

from torch import Tensor

from paramserver.core.placement import GroupSpec, SliceMap
from paramserver.core.slices import BLOCK_WIRES
from paramserver.errors import InvalidRequestError, RefusedError, ResourceError
from paramserver.types import StepResult, Sync
from paramserver.v1 import common_pb2
from paramserver.v1 import server_pb2 as pb
from paramserver.wire.convert import options_to_proto, spans_to_proto, wire_to_proto
from paramserver.wire.frames import Piece
from paramserver.wire.transport import Transport
from paramserver.worker.batches import Ticket
from paramserver.worker.link import Links
from paramserver.worker.moves import Moves
from paramserver.worker.operation import Operation, Outcome
from paramserver.worker.plan import Plan, empty_like
from paramserver.worker.pushes import Dense, Payload, Started, checked
from paramserver.worker.sends import send_pull, send_push, send_store
from paramserver.worker.session import Session
from paramserver.worker.uplink import Uplink
from paramserver.worker.values import Held, Landing
from paramserver.worker.vectors import VectorMethods, VectorSpace
from paramserver.worker.window import Window


class Group(VectorMethods):
    """Dense tensors under one name, with one optimizer and one consistency model.

    Made by ``client.register`` or ``client.optimizer``. One thread at a time.

    Attributes:
        name: of the group.
        spec: what was registered.
        clock: the 0-based index of the step this worker is on.
        last: what the newest push did; None before the first.
        wire_dtype: "bfloat16" or "float16" casts what travels; "int8" or "int4" packs pushes into
            blocks; "" for none.
        pull_dtype: what values travel in.
    """

    def __init__(
        self,
        session: Session,
        transport: Transport,
        links: Links,
        spec: GroupSpec,
        slice_map: SliceMap,
        *,
        wire_dtype: str = "",
    ) -> None:
        self.name = spec.name
        self.spec = spec
        self.wire_dtype = wire_dtype
        self.clock = 0
        self.last: StepResult | None = None
        self.pull_dtype = "" if wire_dtype in BLOCK_WIRES else wire_dtype
        self.plan = Plan(spec, slice_map)
        self.moves = Moves(session, self.plan)
        self.uplink = Uplink(self.plan, wire_dtype)
        self.session = session
        self._transport = transport
        self.links = links
        self.vectors = VectorSpace(session, transport, links, self.plan)
        self.held = Held(self.plan)
        self._activated = True  # the next push is the first since an activation
        self._dropped_to = 0  # the clock that a dropped push in flight was told to go on with
        self.window = Window(session, self.name)

    # What users call

    def pull(self) -> dict[str, Tensor]:
        """The values that this worker may read at its clock, as new tensors.

        Waits as the group's consistency says.

        Raises:
            WaitTimeoutError: names whom it waited for.
        """
        into = empty_like(self.spec, self.plan.number, self.plan)
        self.pull_into(into)
        return into

    def push(
        self,
        tensors: Mapping[str, Tensor],
        weight: float | None = None,
        *,
        options: Sequence[Mapping[str, Any]] | None = None,
    ) -> StepResult:
        """Pushes gradients (or, without an optimizer, updates) and ticks the clock.

        Does not wait for other workers. Returns when every server has accepted it.

        Args:
            tensors: by name, in the registered shapes; absent ones count as zero.
            weight: samples that the gradients are a mean over; default: those handed out by a
                loader since the last push, else 1.
            options: hyper-parameters of each param group; default: as registered.

        Raises:
            NonFiniteError: NaN or infinity; nothing was sent, the clock stays.
            InvalidRequestError: an unknown name or a wrong shape; nothing was sent.
        """
        return self.finish_push(*self._start_push(tensors, weight, options, None))

    def push_async(
        self, tensors: Mapping[str, Tensor], weight: float | None = None
    ) -> Future[StepResult]:
        """As ``push``, without waiting; a 65th one that is not applied waits for room."""
        copies = {name: t.detach().clone() for name, t in tensors.items()}
        return self.future(*self._start_push(copies, weight, None, None))

    def future(self, operation: Operation, clock: int, began: float) -> Future[StepResult]:
        """The result of a push under way, once every server has accepted it."""
        result: Future[StepResult] = Future()

        def answered() -> None:
            error = operation.accepted.error
            self._dropped_to = max(self._dropped_to, operation.next_clock)
            if error is not None:
                result.set_exception(error)
            else:
                result.set_result(self._result(operation, clock, began))

        operation.accepted.then(answered)
        return result

    def push_pull(
        self,
        tensors: Mapping[str, Tensor],
        weight: float | None = None,
        *,
        into: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """``push`` and ``pull`` in one round trip; what the push did is in ``last``.

        Args:
            into: tensors to write the values to; default: new ones.
        """
        place = into if into is not None else empty_like(self.spec, self.plan.number, self.plan)
        self.exchange(tensors, place, weight=weight)
        return dict(place)

    # What the client and the optimizer call

    def exchange(
        self,
        gradients: Mapping[str, Tensor],
        into: Mapping[str, Tensor],
        *,
        weight: float | None = None,
        options: Sequence[Mapping[str, Any]] | None = None,
    ) -> StepResult:
        """Pushes ``gradients`` and copies the next clock's values to ``into``, in place."""
        began = time.monotonic()
        return self.start_exchange(gradients, into, weight=weight, options=options)(began)

    def start_exchange(
        self,
        gradients: Mapping[str, Tensor],
        into: Mapping[str, Tensor],
        *,
        weight: float | None = None,
        options: Sequence[Mapping[str, Any]] | None = None,
    ) -> Callable[[float], StepResult]:
        """As ``exchange``, without waiting: to be called, with the time that waiting began.

        ``into`` is not to be touched until then.
        """
        landing = Landing(self.plan, self.held, into, self.pull_dtype)
        operation, clock, _ = self._start_push(gradients, weight, options, landing)
        return partial(self._complete, operation, clock, landing)

    def _complete(
        self, operation: Operation, clock: int, landing: Landing, began: float
    ) -> StepResult:
        self._wait_push(operation, operation.done, clock)
        landing.finish()
        self._go_on_at(operation.next_clock)
        self.last = self._result(operation, clock, began)
        return self.last

    def pull_into(self, into: Mapping[str, Tensor], *, latest: bool = False) -> int:
        """Copies the values of this clock to ``into``, in place; ``latest``: without waiting.

        Returns:
            Payload bytes.
        """
        self.session.check()
        self.plan.check_names(into)
        for name, tensor in into.items():
            self.plan.check_shape(name, tensor)
        held = Held(self.plan) if latest else self.held
        landing = Landing(self.plan, held, into, "" if latest else self.pull_dtype)
        operation = Operation()
        send = partial(send_pull, self, operation, landing, held, latest=latest)
        self.moves.begin(operation, send)
        self.wait(operation, operation.done, f"pull at clock {self.clock} of group {self.name!r}")
        landing.finish()
        return operation.received_bytes

    def read(self) -> dict[str, Tensor]:
        """The newest values, uncast, whatever their clock, as new tensors."""
        into = empty_like(self.spec, self.plan.number, self.plan)
        self.pull_into(into, latest=True)
        return into

    def store(self, values: Mapping[str, Tensor]) -> None:
        """Stores first values on all servers; those that are stored already stay."""
        self.session.check()
        missing = set(self.plan.number) - set(values)
        if missing:
            raise InvalidRequestError(f"first values of {sorted(missing)[0]!r} are missing")
        operation = Operation()
        self.moves.begin(operation, partial(send_store, self, operation, values))
        self.wait(operation, operation.done, f"storing first values of group {self.name!r}")

    @property
    def fresh(self) -> bool:
        """Whether nothing was pushed since this worker became active."""
        return self._activated

    def activate(self, *, skip: bool = False) -> None:
        """Learns this worker's clock from the lead; the values of that clock are to be pulled.

        Args:
            skip: leave the open clock to the others, and start with the next.
        """
        self.session.check()
        self.settle()

        def ask() -> pb.ActivateReply:
            now = self.plan.map
            request = pb.ActivateRequest(
                worker=self.identity(), group=self.name, map_version=now.version, skip=skip
            )
            address = now.addresses[now.lead]
            reply: pb.ActivateReply = self.session.directory.call(
                self._transport, address, "Activate", request
            )
            return reply

        reply = self.moves.retried(ask)
        self.clock = max(self.clock, reply.clock)
        self._activated = True

    def settle(self) -> None:
        """Returns when every push of this group is applied or dropped."""
        self.window.settle()

    def identity(self) -> common_pb2.Identity:
        """Who speaks."""
        return self.session.identity()

    # How a push goes

    def _start_push(
        self,
        tensors: Mapping[str, Tensor],
        weight: float | None,
        options: Sequence[Mapping[str, Any]] | None,
        landing: Landing | None,
    ) -> Started:
        take = landing.take if landing else None
        return self.start_push(
            lambda whole: Dense(self, tensors if whole else {}, landing), weight, options, take
        )

    def start_push(
        self,
        make: Callable[[bool], Payload],
        weight: float | None,
        options: Sequence[Mapping[str, Any]] | None,
        take: Callable[[pb.Data, Sequence[Piece]], None] | None = None,
    ) -> Started:
        """Sends a push on its way, and ticks.

        Args:
            make: checks what is to be pushed; False: the same of nothing, as for a step skipped.
            take: receives values, for a push that pulls.

        Returns:
            The operation, its clock, and when it began: what ``finish_push`` and ``future`` take.
        """
        began = time.monotonic()
        self.session.check()
        self.session.refuse_reader("push")
        self._go_on_at(self._dropped_to)
        clock = self.clock
        payload, skipped = checked(make, self.spec)
        weight, ticket = self.begin(0.0 if skipped else weight)
        try:
            push = self.push_record(clock, weight, ticket, options)
            operation = Operation()
            operation.skipped = skipped
            # First: whoever waits for the window to settle sees what the payload left behind.
            operation.done.then(lambda: payload.end(self._counted(operation, weight)))
            self.window.track(operation, ticket)
            self.moves.begin(operation, partial(send_push, self, operation, payload, push, take))
        except BaseException:
            self.session.abort_push(ticket)
            payload.end(False)
            raise
        self.ticked()
        return operation, clock, began

    def begin(self, weight: float | None) -> tuple[float, Ticket]:
        """A push starts: its weight, and the ticket with the samples it carries."""
        samples = self.session.samples_since(self.name)
        ticket = self.session.begin_push(self.name)
        if weight is not None:
            return float(weight), ticket
        return float(samples) if samples else 1.0, ticket

    def finish_deferred(
        self, operation: Operation, clock: int, began: float, into: Mapping[str, Tensor]
    ) -> StepResult:
        """Waits for a committed push, then for the values of the next clock."""
        self._wait_push(operation, operation.accepted, clock)
        self._go_on_at(operation.next_clock)
        self.pull_into(into)
        self.last = self._result(operation, clock, began)
        return self.last

    def ticked(self) -> None:
        """A push was sent: the worker is on the next clock."""
        self.clock += 1
        self._activated = False

    def push_record(
        self,
        clock: int,
        weight: float,
        ticket: Ticket | None,
        options: Sequence[Mapping[str, Any]] | None,
    ) -> pb.Push:
        """What opens a push on every server."""
        return pb.Push(
            worker=self.identity(),
            group=self.name,
            map_version=self.plan.map.version,
            clock=clock,
            weight=weight,
            wire_dtype=wire_to_proto(self.wire_dtype),
            samples=spans_to_proto(ticket.spans) if ticket else [],
            options=[options_to_proto(o) for o in options or ()],
            activated=self._activated,
        )

    def finish_push(self, operation: Operation, clock: int, began: float) -> StepResult:
        """Waits until every server has accepted a push."""
        self._wait_push(operation, operation.accepted, clock)
        self._go_on_at(operation.next_clock)
        self.last = self._result(operation, clock, began)
        return self.last

    def wait(self, operation: Operation, outcome: Outcome, what: str) -> None:
        """Waits for the servers, at most ``wait_timeout``."""
        with self.session.speed.waiting():
            operation.wait(outcome, self.session.config.wait_timeout, self.session.check, what)

    def _wait_push(self, operation: Operation, outcome: Outcome, clock: int) -> None:
        try:
            self.wait(operation, outcome, f"step {clock} of group {self.name!r}")
        except (RefusedError, ResourceError):
            self.clock = clock  # a refused push does not tick
            self._activated = True
            raise

    def _counted(self, operation: Operation, weight: float) -> bool:
        """Whether a push changed values, as far as this worker knows; sums ignore weights."""
        lost = operation.done.error is not None or operation.dropped
        return not lost and (weight > 0 or not self.spec.optimizer)

    def _go_on_at(self, clock: int) -> None:
        """A dropped push set the clock; 0 or a passed one changes nothing."""
        if clock > self.clock:
            self.clock = clock
            self._activated = True

    def _result(self, operation: Operation, clock: int, began: float) -> StepResult:
        sync = isinstance(self.spec.consistency, Sync)
        waited = time.monotonic() - began
        result = operation.result(clock, sync=sync, waited=waited)
        self.session.count(result)
        return result
