"""The all-reduce group of one worker: steps with the other replicas, and forming anew.

A replica is waited for from the moment its group is made, except while its loop waits for others in
a call of ours. Then a thread answers in its place, with weight 0, and takes the steps that others
begin. When a replica joins, leaves or is lost, all form anew: the one with the highest clock copies
values, optimizer state and clock to those that lack them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from paramserver.core.placement import GroupSpec
from paramserver.errors import WaitTimeoutError
from paramserver.types import StepResult, WorkerId
from paramserver.v1 import scheduler_pb2
from paramserver.wire.convert import spans_to_proto
from paramserver.wire.tensors import is_finite
from paramserver.worker import headers, roster
from paramserver.worker.batches import Ticket
from paramserver.worker.headers import Contributed, Header
from paramserver.worker.replica import Replica
from paramserver.worker.ring import Meeting, Ring
from paramserver.worker.session import Session
from paramserver.worker.signals import BrokenRingError
from paramserver.worker.waiting import Waiting

logger = logging.getLogger("paramserver")

HURRY_S = 1.0  # for a step under way when the process is interrupted


@dataclass(frozen=True, slots=True)
class Push:
    """What this worker's loop brings to a step.

    Attributes:
        gradients: by name.
        weight: samples that they are a mean over.
        options: hyper-parameters, as JSON.
        ticket: of the samples; None: there are none.
    """

    gradients: Mapping[str, Tensor]
    weight: float
    options: str
    ticket: Ticket | None = None


class Replicas:
    """One worker's part in an all-reduce group.

    Returns when all have formed, with the values of the chief, or of those who were there before.

    Attributes:
        name, spec: of the group.
        clock: the 0-based index of the step this worker is on.
        fresh: nothing was pushed since this worker became active.
    """

    def __init__(self, session: Session, spec: GroupSpec, replica: Replica) -> None:
        self.name, self.spec = spec.name, spec
        self.clock = 0
        self.fresh = True
        self._session = session
        self._replica = replica
        self._meeting = Meeting(session.config.scheduler, session.config.timeout)
        self._ring: Ring | None = None
        self._members: tuple[WorkerId, ...] = ()
        self._idle: list[int] = []  # who did not contribute to the last step
        self._whole = False
        self._sequence = 0
        self._begun = -1  # the newest clock that this worker took part in
        self._contributed = Contributed()
        self._unconfirmed: list[tuple[Any, Ticket | None]] = []
        self._back = threading.Event()
        session.add_group(self.name, lambda: self.clock, self.settle)
        self._form()
        session.add_chore(self._look)
        session.substitutes.add(self._standing_in)

    # What the registry and the optimizer call

    def refresh(self) -> None:
        """This worker became active; its values are those of its clock already."""
        self.fresh = True

    def activate(self, *, skip: bool = False) -> None:
        """With ``skip``: leaves the open step to the others, and starts with the next."""
        if skip:
            self._take_part(Push({}, 0.0, self._replica.agreed))
        self.fresh = True

    def step(
        self, gradients: Mapping[str, Tensor], weight: float | None, options: str
    ) -> StepResult:
        """One step of all replicas; this one's parameters have the new values then.

        Args:
            gradients: of this replica, by name.
            weight: samples; default: those handed out by a loader since the last step, else 1.
            options: hyper-parameters, as JSON; those of the lowest rank that takes part hold.

        Raises:
            NonFiniteError: NaN or infinity in a gradient; nothing was sent, the clock stays.
            WaitTimeoutError: names whom it waited for.
        """
        session = self._session
        session.check()
        session.refuse_reader("step")
        began, clock = time.monotonic(), self.clock
        samples = session.samples_since(self.name) or 1
        weight = float(samples if weight is None else weight)
        skipped = self.spec.on_nonfinite == "skip" and not all(map(is_finite, gradients.values()))
        gradients, weight = ({}, 0.0) if skipped else (gradients, weight)
        ticket = session.begin_push(self.name)
        try:
            with session.speed.waiting():
                self._take_part(Push(gradients, weight, options, ticket))
        except BaseException:
            if self.clock == clock:
                session.abort_push(ticket)
            raise
        self.fresh = False
        size = len(self._members)
        travelled = 2 * (size - 1) * self._replica.nbytes // size  # a ring: there and back
        waited = time.monotonic() - began
        result = StepResult(clock, self.clock, 0.0, waited, travelled, travelled, skipped=skipped)
        session.count(result)
        return result

    def settle(self) -> None:
        """Returns when every replica has completed the steps that this one has."""
        while self._unconfirmed:
            if not self._unbroken(self._confirm):
                self._form()

    def close(self) -> None:
        """Leaves the others; to be called when this worker has left the job."""
        self._leave()

    # One step

    def _take_part(self, push: Push) -> None:
        clock = self.clock
        while self.clock == clock:
            if not self._unbroken(partial(self._attempt, push)):
                self._form()
                if self.clock > clock and push.ticket is not None:
                    # Somebody completed the step, with this replica's part in it.
                    self._session.settle_push(push.ticket)

    def _unbroken(self, call: Callable[[], None]) -> bool:
        """Whether it went well. Form only after this: an exception keeps reductions alive, and
        those their connections."""
        try:
            call()
        except BrokenRingError as error:
            logger.debug("group %s, clock %d: %s", self.name, self.clock, error)
            return False
        return True

    def _attempt(self, push: Push | None) -> None:
        """One step; without ``push``, as one that only answers."""
        ring, replica = self._ring, self._replica
        if ring is None:
            raise BrokenRingError("this formation was left")
        self._begun = self.clock
        weight = push.weight if push else 0.0
        replica.pack(push.gradients if push else {}, weight, self.spec.on_nonfinite != "apply")
        wait = partial(self._wait, ring, False)
        given = self._exchange(ring, self._header(push))
        self._confirm()
        if any(h.forming for h in given):
            raise BrokenRingError("somebody joined or left")
        active = [i for i, h in enumerate(given) if h.active]
        if not active:
            return
        if any(given[i].changed for i in active):
            replica.agree(ring, active[0], push.options if push else "", wait)
        if any(h.contributes for h in given):
            replica.step(replica.reduce(ring, given, push.gradients if push else None, wait))
        self._completed(ring, given, push)

    def _header(self, push: Push | None) -> Header:
        header = Header(forming=self._moved())
        if push is None:
            return header
        return replace(
            header,
            weight=push.weight,
            active=True,
            changed=push.options != self._replica.agreed,
            partial=push.weight > 0 and len(push.gradients) < len(self._replica.trained),
            spans=push.ticket.spans if push.ticket else (),
        )

    def _exchange(self, ring: Ring, header: Header) -> list[Header]:
        if header.active:
            ring.signals.wake(self._idle, self.clock)
        rows = headers.table(ring.size, ring.index, header)
        self._wait(ring, header.active, ring.sum(rows))
        rest = headers.more(ring.size, ring.index, header, rows)
        if rest is not None:
            self._wait(ring, False, ring.sum(rest))
        return headers.headers(rows, rest)

    def _completed(self, ring: Ring, given: list[Header], push: Push | None) -> None:
        self._contributed.add(self._members, given)
        self.clock += 1
        self._idle = [i for i, h in enumerate(given) if not h.active]
        # Done is what every replica has completed: what one alone has may be lost with it.
        mark = ring.sum(torch.zeros(1))
        self._unconfirmed.append((mark, push.ticket if push else None))

    def _confirm(self) -> None:
        while self._unconfirmed:
            work, ticket = self._unconfirmed[0]
            if self._ring is None:
                raise BrokenRingError("this formation was left")
            self._wait(self._ring, False, work)
            self._settle_first(ticket)

    def _settle_first(self, ticket: Ticket | None) -> None:
        del self._unconfirmed[0]
        if ticket is not None:
            self._session.settle_push(ticket)

    # Waiting for others

    def _wait(self, ring: Ring, waking: bool, work: Any) -> None:
        """Until ``work`` is done; ``waking``: others may not know that this clock has begun."""
        deadline = time.monotonic() + self._session.config.wait_timeout
        what = f"step {self.clock} of group {self.name!r}"
        waiting = Waiting(what)

        def look() -> None:
            self._session.check()
            if self._lost():
                raise BrokenRingError("a replica was lost")
            if waking:
                ring.signals.wake(range(ring.size), self.clock)
            if self._begun == self.clock:  # not while forming, or for a step that is over
                ring.signals.mark(self.clock)
            late = time.monotonic() >= deadline
            if late or waiting.due():
                whom = self._words(ring.signals.absent(self.clock))
                waiting.say(whom)
                if late:
                    seconds = self._session.config.wait_timeout
                    raise WaitTimeoutError(
                        f"{what}: waited {seconds:g} s (wait_timeout) for {whom}"
                    )

        ring.wait(work, look)

    def _words(self, indices: list[int]) -> str:
        names = {(m.rank, m.incarnation): m.name for m in roster.workers(self._session.view())}
        whom = [names.get(self._members[i], f"rank {self._members[i].rank}") for i in indices]
        return ", ".join(whom) or "a reduction under way"

    def _here(self) -> set[WorkerId]:
        """Workers that are live and have registered the group, as far as is known."""
        return {
            WorkerId(m.rank, m.incarnation)
            for m in roster.workers(self._session.view())
            if self.name in m.groups and roster.is_live(m)
        }

    def _lost(self) -> bool:
        return not self._here() >= set(self._members)

    def _moved(self) -> bool:
        """Whether somebody joined or left since this formation."""
        return self._here() != set(self._members)

    def _look(self) -> None:
        """With each heartbeat: a replica that waits for a word finds out who joined or left."""
        ring = self._ring
        if ring is not None and self._moved():
            ring.signals.interrupt()

    # Answering while the loop waits

    @contextmanager
    def _standing_in(self) -> Iterator[None]:
        if self._ring is None:
            yield
            return
        self._back.clear()
        thread = threading.Thread(target=self._answer, name="paramserver replica", daemon=True)
        thread.start()
        try:
            yield
        except BaseException as error:
            self._dismiss(thread, None if isinstance(error, Exception) else HURRY_S)
            raise
        self._dismiss(thread, None)

    def _dismiss(self, thread: threading.Thread, seconds: float | None) -> None:
        self._back.set()
        ring = self._ring
        if ring is not None:
            ring.signals.interrupt()
        # A step that was begun is completed first: it changes the parameters.
        thread.join(seconds)

    def _answer(self) -> None:
        try:
            with torch.no_grad():
                while not self._back.is_set():
                    if not self._unbroken(self._answer_once):
                        self._form(substitute=False)
        except BaseException as error:
            self._session.substitutes.failure = error

    def _answer_once(self) -> None:
        ring = self._ring
        if ring is None:
            raise BrokenRingError("this formation was left")
        begun = ring.signals.await_word(self.clock)
        if self._back.is_set():
            return
        if self._moved():
            raise BrokenRingError("somebody joined or left")
        if begun:
            self._attempt(None)

    # Forming

    def _form(self, *, substitute: bool = True) -> None:
        """Leaves the formation, if any, and joins the next one."""
        self._leave()
        while True:
            self._sequence += 1
            what = f"replicas of group {self.name!r}"
            reply = self._session.poll(
                "FormReplicas", self._offer, lambda r: r.formed, what, substitute=substitute
            )
            if self._unbroken(partial(self._join, reply)):
                break
            self._leave()
        # The highest clock has all that anybody completed.
        while self._unconfirmed:
            self._settle_first(self._unconfirmed[0][1])

    def _offer(self, wait_s: float) -> scheduler_pb2.FormReplicasRequest:
        request = scheduler_pb2.FormReplicasRequest(
            member=self._session.identity(),
            group=self.name,
            sequence=self._sequence,
            clock=self.clock,
            endpoint=self._meeting.endpoint,
            whole=self._whole,
            wait_s=wait_s,
        )
        for who, spans in self._contributed.items():
            replica = scheduler_pb2.Replica(rank=who.rank, incarnation=who.incarnation)
            request.contributed.add(replica=replica, samples=spans_to_proto(spans))
        return request

    def _join(self, reply: scheduler_pb2.FormReplicasReply) -> None:
        config = self._session.config
        self._session.saw_view(reply.view)
        members = tuple(WorkerId(r.rank, r.incarnation) for r in reply.replicas)
        ranks = [who.rank for who in members]
        ring = Ring(
            reply.endpoint,
            reply.number,
            len(ranks),
            ranks.index(self._session.rank),
            host=self._meeting.host,
            timeout=config.timeout,
            wait_timeout=config.wait_timeout,
        )
        self._ring, self._members, self._idle = ring, members, []
        if reply.spread:
            wait = partial(self._wait, ring, False)
            self.clock = self._replica.spread(ring, ranks.index(reply.root), self.clock, wait)
        self._whole = True
        self._contributed.keep(members)

    def _leave(self) -> None:
        ring, self._ring = self._ring, None
        if ring is None:
            return
        self._unconfirmed = [(None, ticket) for _, ticket in self._unconfirmed]
        ring.signals.wake(range(ring.size), self.clock)  # who waits for a word finds a broken ring
        ring.close()
        self._replica.renew()
