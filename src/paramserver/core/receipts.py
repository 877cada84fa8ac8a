"""What one worker pushed to one group of one server, as its ledger keeps it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from typing import Any

from paramserver.core.spans import merge
from paramserver.types import Span

KEPT_LEASES = 1024


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a completed push did on this server.

    Attributes:
        clock: that the push carried.
        version: of the group here after it; meaningless until applied.
        staleness: in versions, mean over its slices.
        applied: False while it is staged under Sync.
        dropped: its clock closed without it.
    """

    clock: int
    version: int
    staleness: float
    applied: bool
    dropped: bool = False

    @property
    def settled(self) -> bool:
        """Nothing more will happen to the push."""
        return self.applied or self.dropped


@dataclass(slots=True)
class OpenPush:
    """A push under way: the slices it declared, and checksums of those taken."""

    slices: frozenset[int]
    taken: dict[int, int] = field(default_factory=dict)


@dataclass(slots=True)
class Pushed:
    """What one worker has pushed; ``next`` is the clock the next new push must carry, None: any."""

    next: int | None = None
    holes: set[int] = field(default_factory=set)
    open: dict[int, OpenPush] = field(default_factory=dict)
    receipts: dict[int, Receipt] = field(default_factory=dict)
    digests: dict[int, int] = field(default_factory=dict)  # of bytes, beside receipts; not dumped
    pending: dict[int, tuple[Span, ...]] = field(default_factory=dict)
    staged: int = 0
    leases: dict[int, list[tuple[int, int]]] = field(default_factory=dict)

    def dump(self) -> dict[str, Any]:
        """JSON-able; the order of receipts and leases is that of the lists."""
        return {
            "next": self.next,
            "holes": sorted(self.holes),
            "open": [
                [clock, sorted(push.slices), sorted(push.taken.items())]
                for clock, push in self.open.items()
            ],
            "receipts": [list(astuple(receipt)) for receipt in self.receipts.values()],
            "pending": [
                [clock, [[s.lease, s.start, s.stop] for s in spans]]
                for clock, spans in self.pending.items()
            ],
            "leases": [[lease, [list(s) for s in spans]] for lease, spans in self.leases.items()],
        }

    @classmethod
    def load(cls, state: Mapping[str, Any]) -> Pushed:
        """What another has dumped."""
        return cls(
            next=state["next"],
            holes=set(state["holes"]),
            open={c: OpenPush(frozenset(s), dict(map(tuple, t))) for c, s, t in state["open"]},
            receipts={fields[0]: Receipt(*fields) for fields in state["receipts"]},
            pending={c: tuple(Span(*s) for s in spans) for c, spans in state["pending"]},
            staged=len(state["pending"]),
            leases={lease: [(a, b) for a, b in spans] for lease, spans in state["leases"]},
        )

    def settled(self) -> Pushed:
        """A copy as if what is under way or staged had never come."""
        copy = replace(self, open={}, pending={}, staged=0, holes=set(self.holes))
        copy.receipts = {clock: r for clock, r in self.receipts.items() if r.settled}
        copy.digests = {}
        copy.holes.update(self.open, self.pending)
        while copy.next is not None and copy.next - 1 in copy.holes:
            copy.next -= 1
            copy.holes.remove(copy.next)
        return copy

    def count(self, spans: Sequence[Span]) -> None:
        """These samples were applied."""
        for span in spans:
            merged = merge(self.leases.pop(span.lease, []), span.start, span.stop)
            self.leases[span.lease] = merged  # the lease touched last is the newest
        while len(self.leases) > KEPT_LEASES:
            del self.leases[next(iter(self.leases))]
