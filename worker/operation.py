"""One operation over all servers of a group: many requests, one outcome."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence

from paramserver.errors import MovedError, ParameterServerError, WaitTimeoutError
from paramserver.types import DURABILITIES, Durability, StepResult
from paramserver.v1 import server_pb2 as pb
from paramserver.wire.frames import Piece
from paramserver.worker.link import Link, Part, Request

CHECK_EVERY = 0.5  # seconds between looks at whether the job still stands
GRACE = 5.0  # beyond the server's own deadline, which gives the better reason


class Outcome:
    """Something that happens once, for one waiter: a future without a future's price."""

    __slots__ = ("_callbacks", "_lock", "_waiter", "error", "happened")

    def __init__(self) -> None:
        self.happened = False
        self.error: ParameterServerError | None = None
        self._lock = threading.Lock()
        self._waiter = threading.Lock()
        self._waiter.acquire()
        self._callbacks: list[Callable[[], None]] = []

    def happen(self, error: ParameterServerError | None = None) -> None:
        """It happened, or failed; later calls change nothing."""
        with self._lock:
            if self.happened:
                return
            self.happened, self.error = True, error
            callbacks, self._callbacks = self._callbacks, []  # they refer to what holds this
        for callback in callbacks:
            callback()
        self._waiter.release()

    def then(self, callback: Callable[[], None]) -> None:
        """Calls back when it happens, in whichever thread that is."""
        with self._lock:
            if not self.happened:
                self._callbacks.append(callback)
                return
        callback()

    def wait(self, timeout: float) -> bool:
        """Whether it happened within ``timeout`` seconds."""
        if not self.happened:
            self._waiter.acquire(timeout=timeout)
        return self.happened


class Operation:
    """Counts the answers of several servers.

    It may be begun again, with other servers: answers to what was asked before count no more.

    Attributes:
        accepted: every server has accepted the push.
        done: every server is done.
        accepts, dones: what the servers said, by server index.
        sent_bytes, received_bytes: payload.
        skipped: NaN or infinity was in the push, so it carries nothing.
        moved: hears that a server has no longer what was asked of it; None: the operation fails.
        map_version, lead: of the slice map by which it was sent.
    """

    def __init__(self, servers: int = -1) -> None:
        """``servers``: how many answer; -1: ``begin`` will tell."""
        self.accepted = Outcome()
        self.done = Outcome()
        self.accepts: dict[int, pb.Accepted] = {}
        self.dones: dict[int, pb.Done] = {}
        self.sent_bytes = self.received_bytes = 0
        self.skipped = False
        self.moved: Callable[[Operation, MovedError], None] | None = None
        self.map_version = self.lead = 0
        self._attempt = 0
        self.reason = ""
        self._servers = servers
        self._lock = threading.Lock()
        self._requests: list[tuple[Link, Request]] = []
        if servers >= 0:
            self.begin(servers)

    def begin(self, servers: int) -> None:
        """Requests to so many servers follow; earlier ones are given up."""
        with self._lock:
            self._attempt += 1
            self._servers = servers
            self.accepts.clear()
            self.dones.clear()
        self.give_up()
        if not servers:
            self.accepted.happen()
            self.done.happen()

    @property
    def attempt(self) -> int:
        """Grows with every ``begin``."""
        return self._attempt

    @property
    def dropped(self) -> bool:
        """Whether a server said that the push does not count."""
        return any(a.dropped for a in self.accepts.values()) or any(
            d.dropped for d in self.dones.values()
        )

    @property
    def next_clock(self) -> int:
        """The clock to go on with after a dropped push; 0 if it was not dropped."""
        if not self.dropped:
            return 0
        clocks = [a.clock for a in self.accepts.values() if a.dropped]
        return max([*clocks, *(d.clock for d in self.dones.values())])

    def result(self, clock: int, *, sync: bool, waited: float) -> StepResult:
        """What a push did, as far as the servers have said.

        Args:
            clock: that it carried.
            sync: its version is known only once its clock has closed.
            waited: seconds.
        """
        answers: dict[int, pb.Accepted | pb.Done] = {**self.accepts}
        answers.update(self.dones)
        told = answers.get(self.lead)
        staleness = [a.staleness for a in answers.values()]
        return StepResult(
            clock=clock,
            version=told.version if told is not None and (self.dones or not sync) else None,
            staleness=sum(staleness) / len(staleness) if staleness else 0.0,
            waited=waited,
            sent_bytes=self.sent_bytes,
            received_bytes=self.received_bytes,
            dropped=self.dropped,
            durability=_weakest(a.durability for a in answers.values()),
            skipped=self.skipped,
        )

    def submit(self, link: Link, answers: ServerAnswers, part: Part) -> Request:
        """Sends one server's share."""
        request = Request(answers)
        answers.attach(link, request)
        self._requests.append((link, request))
        link.submit(request, part)
        return request

    def accept(self, server: int, accepted: pb.Accepted, attempt: int) -> None:
        """A server has accepted; called again after a break."""
        with self._lock:
            if attempt != self._attempt:
                return
            self.accepts[server] = accepted
            complete = len(self.accepts) == self._servers
        if complete:
            self.accepted.happen()

    def finish(self, server: int, done: pb.Done, attempt: int) -> None:
        """A server is done."""
        with self._lock:
            if attempt != self._attempt:
                return
            self.dones[server] = done
            complete = len(self.dones) == self._servers
        if complete:
            self._requests = []  # gradients are freed now, not when cycles are collected
            self.accepted.happen()
            self.done.happen()

    def refused(self, error: ParameterServerError, attempt: int) -> None:
        """A server refused; where slices have moved, that is not the end."""
        if attempt != self._attempt or self.done.happened:
            return
        if isinstance(error, MovedError) and self.moved is not None:
            self.moved(self, error)
        else:
            self.fail(error)

    def fail(self, error: ParameterServerError) -> None:
        """The first failure is the operation's; the other requests are given up."""
        if self.done.happened:
            return
        self.accepted.happen(error)
        self.done.happen(error)
        self.give_up()

    def give_up(self) -> None:
        """Cancels what is still under way."""
        requests, self._requests = self._requests, []
        for link, request in requests:
            link.cancel(request)

    def wait(self, outcome: Outcome, timeout: float, check: Callable[[], None], what: str) -> None:
        """Returns when it happened.

        Raises:
            ParameterServerError: it failed.
            WaitTimeoutError: ``timeout`` seconds and a grace have passed; says whom it waited for.
        """
        deadline = time.monotonic() + timeout + GRACE
        while not outcome.wait(CHECK_EVERY):
            try:
                check()
                if time.monotonic() > deadline:
                    raise WaitTimeoutError(
                        f"{what}: no answer within {timeout:g} s (wait_timeout): "
                        f"{self.reason or 'the servers said nothing'}"
                    )
            except ParameterServerError as error:
                self.fail(error)
                raise
        if outcome.error is not None:
            raise outcome.error


def _weakest(said: Iterable[str]) -> Durability:
    """What a push survives on all servers."""
    known = set(said)
    for durability in DURABILITIES:
        if durability in known:
            return durability
    return "memory"


class ServerAnswers:
    """One server's answers to one operation.

    Args:
        index: of the server in the slice map.
        take: receives slices of values; returns nothing, raises ChecksumError.
        resend: produces the bytes of refused slices again.
    """

    def __init__(
        self,
        operation: Operation,
        index: int,
        take: Callable[[pb.Data, Sequence[Piece]], None] | None = None,
        resend: Callable[[Iterable[int]], Part] | None = None,
    ) -> None:
        self._operation, self._attempt = operation, operation.attempt
        self._index = index
        self._take = take
        self._resend = resend
        self._where: tuple[Link, Request] | None = None

    def attach(self, link: Link, request: Request) -> None:
        """The request that these are the answers to."""
        self._where = (link, request)

    def data(self, data: pb.Data, pieces: Sequence[Piece]) -> None:
        """Values arrived."""
        if self._attempt != self._operation.attempt:
            return
        self._operation.received_bytes += sum(len(p) for p in pieces)
        if self._take is not None:
            self._take(data, pieces)

    def accepted(self, accepted: pb.Accepted) -> None:
        """The push is staged or applied, or some of its bytes must be sent again."""
        if accepted.refused and self._resend is not None and self._where is not None:
            link, request = self._where
            link.again(request, self._resend(accepted.refused))
        else:
            self._operation.accept(self._index, accepted, self._attempt)

    def done(self, done: pb.Done) -> None:
        """Nothing more comes."""
        self._where = self._take = self._resend = None
        self._operation.finish(self._index, done, self._attempt)

    def waiting(self, reason: str) -> None:
        """The server told whom it waits for."""
        self._operation.reason = reason

    def failed(self, error: ParameterServerError) -> None:
        """The server refused."""
        self._operation.refused(error, self._attempt)
