"""Which samples were handed out, which push carried them, and what became of them.

A batch is *drawn* by a sampler, *handed out* to the user's loop, *carried* by the first push after
that, and *left* when the loop asks for the next one. It is done once it is left and every push
begun meanwhile is applied. A batch that no push carried stays pending for the next push; the end of
the pass marks it done and counts it as unpushed. Samples of a dropped push go back.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from paramserver.types import Span


@dataclass(slots=True, eq=False)
class Batch:
    """Samples of one data set that are handed out together.

    Attributes:
        worked: a local step was taken on it; a later push carries it.
        whole: a data shard worked on as a whole: done on leaving it, no push carries it.
        number: counts hand-outs; 0 until handed out.
        pushed: pushes begun while it was current, or that carried it.
        open: of those, pushes neither applied nor dropped yet.
    """

    dataset: str
    span: Span
    whole: bool = False
    number: int = 0
    pushed: int = 0
    open: int = 0
    worked: bool = False
    carried: bool = False
    left: bool = False
    over: bool = False

    @property
    def samples(self) -> int:
        return self.span.stop - self.span.start


@dataclass(slots=True, eq=False)
class Ticket:
    """A push under way.

    Attributes:
        group: its group.
        spans: samples that it carries, to be declared to the servers.
        touched: batches that are done no sooner than this push is applied.
        carried: those of them whose samples go back if it is dropped.
        since, marks: the group's account before it; what to go back to if it is aborted.
    """

    group: str
    spans: tuple[Span, ...]
    touched: tuple[Batch, ...]
    carried: tuple[Batch, ...]
    since: int
    marks: tuple[int, int]
    over: bool = False


@dataclass(slots=True)
class Report:
    """News for the scheduler about one data set."""

    done: list[Span] = field(default_factory=list)
    returned: list[Span] = field(default_factory=list)
    unpushed: int = 0

    def __bool__(self) -> bool:
        return bool(self.done or self.returned or self.unpushed)


@dataclass(slots=True)
class _Group:
    """``since``: samples handed out after hand-out ``mark``; ``last``: those of its last push, or
    local step; ``used``: how many of ``since`` went into steps that have not pushed yet;
    ``returned``: batches that went back before a push of the group carried them; ``local``: batches
    of steps wait for their push, the newest being number ``reached``."""

    mark: int
    since: int = 0
    last: int | None = None
    used: int = 0
    returned: int = 0
    local: bool = False
    reached: int = 0


class Batches:
    """The account of one client over all its data sets and groups. Thread-safe, no I/O."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._handed = 0
        self._groups: dict[str, _Group] = {}
        self._drawn: dict[str, deque[Batch]] = {}
        self._live: list[Batch] = []
        self._automatic: set[str] = set()
        self._reports: dict[str, Report] = {}

    def add_group(self, name: str) -> None:
        """A group whose pushes weigh the samples handed out from now on."""
        with self._lock:
            self._groups.setdefault(name, _Group(self._handed))

    def draw(self, batch: Batch) -> None:
        """A sampler drew a batch; nobody works on it yet."""
        with self._lock:
            self._drawn.setdefault(batch.dataset, deque()).append(batch)

    def ahead(self, dataset: str) -> int:
        """Batches drawn that nobody works on yet."""
        with self._lock:
            return len(self._drawn.get(dataset, ()))

    def automatic(self, dataset: str, on: bool) -> None:
        """Whether pushes themselves hand out the drawn batches of a data set, one each."""
        with self._lock:
            (self._automatic.add if on else self._automatic.discard)(dataset)

    def is_automatic(self, dataset: str) -> bool:
        """Whether pushes hand out its batches."""
        return dataset in self._automatic

    def hand_out(self, dataset: str) -> Batch:
        """The oldest drawn batch is given to the user's loop."""
        with self._lock:
            batch = self._drawn[dataset].popleft()
            self._hand_out(batch)
            return batch

    def _hand_out(self, batch: Batch) -> None:
        self._handed += 1
        batch.number = self._handed
        self._live.append(batch)
        if not batch.whole:
            for group in self._groups.values():
                group.since += batch.samples

    def leave(self, batch: Batch) -> None:
        """The loop asked for the next batch, or left the pass."""
        with self._lock:
            batch.left = True
            self._conclude(batch)

    def samples_since(self, group: str) -> int | None:
        """Samples for the group's next push to weigh; None if none were ever handed out.

        A second push on the same samples weighs as much as the first.
        """
        with self._lock:
            account = self._account(group)
            if not account.since and not account.local:
                self._advance()
            return account.since or account.last

    def use(self, group: str) -> None:
        """A step that may push later: without a loop of ours, it works on the next drawn batch."""
        with self._lock:
            account = self._account(group)
            if account.since == account.used:
                self._advance()
            account.used = account.since

    def returned(self, group: str) -> int:
        """Batches that went back to the queue before a push of the group carried them."""
        with self._lock:
            return self._account(group).returned

    def _account(self, group: str) -> _Group:
        return self._groups.setdefault(group, _Group(self._handed))

    def _advance(self) -> None:
        """Without a loop of ours, a group that has stepped on all batches goes on to the next."""
        for dataset in self._automatic:
            if drawn := self._drawn.get(dataset):
                batch = drawn.popleft()
                batch.left = True
                self._hand_out(batch)
                return

    def work(self, group: str) -> int | None:
        """A step that pushes nothing: the samples handed out for it; None if none ever were.

        Its batches wait for a later push, even if the loop is left. A second step on the same
        samples counts as many as the first.
        """
        with self._lock:
            account = self._account(group)
            account.local = True
            if account.since <= account.used:
                self._advance()
            fresh = max(0, account.since - account.used)
            account.used, account.reached = account.since, self._handed
            account.last = fresh or account.last
            for batch in self._live:
                batch.worked = not batch.whole
            return account.last

    def begin(self, group: str) -> Ticket:
        """A push of the group starts."""
        with self._lock:
            account = self._account(group)
            if account.local:
                since, reached = account.used, account.reached
            else:
                if not account.since:
                    self._advance()
                since, reached = account.since, self._handed
                account.last = since or account.last
            marks = (account.mark, reached)
            account.mark, account.since, account.used = reached, account.since - since, 0
            touched = tuple(b for b in self._live if not (b.left and (b.carried or b.whole)))
            ready = (b for b in touched if b.worked or not account.local)
            carried = tuple(b for b in ready if not (b.carried or b.whole))
            for batch in touched:
                batch.open += 1
                batch.pushed += 1
            for batch in carried:
                batch.carried = True
            spans = tuple(b.span for b in carried)
            return Ticket(group, spans, touched, carried, since, marks)

    def settle(self, ticket: Ticket, *, dropped: bool = False) -> None:
        """The push was applied, or dropped."""
        with self._lock:
            if ticket.over:
                return
            ticket.over = True
            for batch in ticket.touched:
                batch.open -= 1
                if dropped and batch in ticket.carried:
                    self._return(batch)
                else:
                    self._conclude(batch)

    def abort(self, ticket: Ticket) -> None:
        """The push was refused or failed; its batches wait for the next push."""
        with self._lock:
            if ticket.over:
                return
            ticket.over = True
            for batch in ticket.touched:
                batch.open -= 1
                batch.pushed -= 1
            for batch in ticket.carried:
                batch.carried = False
            account = self._groups[ticket.group]
            account.since += ticket.since
            account.used += ticket.since
            if account.mark == ticket.marks[1]:
                account.mark = ticket.marks[0]

    def _conclude(self, batch: Batch) -> None:
        if batch.left and not batch.open and (batch.carried or batch.whole) and not batch.over:
            self._done(batch)

    def _done(self, batch: Batch) -> None:
        self._close(batch)
        report = self._report(batch.dataset)
        report.done.append(batch.span)
        if not batch.pushed:
            report.unpushed += batch.samples
            self._discount(batch)

    def _return(self, batch: Batch) -> None:
        if batch.over:
            return
        self._close(batch)
        self._report(batch.dataset).returned.append(batch.span)
        for group in self._groups.values():
            group.returned += group.mark < batch.number
        self._discount(batch)

    def _close(self, batch: Batch) -> None:
        batch.over = True
        if batch in self._live:
            self._live.remove(batch)

    def _discount(self, batch: Batch) -> None:
        """Samples that no push will carry weigh nothing in the next one."""
        if batch.number and not batch.whole:
            for group in self._groups.values():
                if group.mark < batch.number:
                    group.since -= batch.samples
                    group.used -= batch.samples if batch.number <= group.reached else 0
                    group.used = min(group.used, group.since)

    def skip(self, dataset: str, span: Span) -> None:
        """Samples that are not worked on at all (``drop_last``)."""
        with self._lock:
            report = self._report(dataset)
            report.done.append(span)
            report.unpushed += span.stop - span.start

    def give_back(self, dataset: str, spans: Iterable[Span]) -> None:
        """Samples that were leased but never drawn return to the queue."""
        with self._lock:
            self._report(dataset).returned.extend(s for s in spans if s.start < s.stop)

    def end(self, dataset: str) -> None:
        """The pass is over: batches handed out that no push will carry are done, unpushed."""
        with self._lock:
            for batch in [b for b in self._live if b.dataset == dataset]:
                batch.left = True
                if not batch.open and (batch.carried or not batch.worked):
                    self._done(batch)

    def settle_rest(self, dataset: str) -> None:
        """Batches that were drawn count as handed out and the pass as over (``client.sampler``)."""
        with self._lock:
            for batch in self._drawn.pop(dataset, ()):
                self._hand_out(batch)
            self.end(dataset)

    def break_off(self, dataset: str) -> None:
        """The loop was left early: what no push carried goes back, the rest is done if applied.

        Samples of local steps wait for their push.
        """
        with self._lock:
            for batch in [b for b in self._live if b.dataset == dataset]:
                done = batch.carried or batch.worked or (batch.whole and batch.left)
                if done:
                    self.leave(batch)
                else:
                    self._return(batch)
            for batch in self._drawn.pop(dataset, ()):
                self._return(batch)

    def undone(self, dataset: str) -> bool:
        """Whether batches of the data set are drawn or handed out and not done."""
        with self._lock:
            return bool(self._drawn.get(dataset)) or any(b.dataset == dataset for b in self._live)

    def _report(self, dataset: str) -> Report:
        return self._reports.setdefault(dataset, Report())

    def take_report(self, dataset: str) -> Report:
        """What the scheduler was not told yet; it counts as told unless put back."""
        with self._lock:
            report = self._reports.pop(dataset, Report())
        report.done = merged(report.done)
        report.returned = merged(report.returned)
        return report

    def put_back(self, dataset: str, report: Report) -> None:
        """The report did not arrive."""
        with self._lock:
            kept = self._report(dataset)
            kept.done[:0] = report.done
            kept.returned[:0] = report.returned
            kept.unpushed += report.unpushed


def merged(spans: Iterable[Span]) -> list[Span]:
    """The spans, neighbours of one lease joined."""
    result: list[Span] = []
    for span in sorted(spans, key=lambda s: (s.lease, s.start)):
        last = result[-1] if result else None
        if last is not None and last.lease == span.lease and last.stop == span.start:
            result[-1] = Span(span.lease, last.start, span.stop)
        else:
            result.append(span)
    return result
