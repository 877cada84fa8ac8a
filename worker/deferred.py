"""A push that is sent while the backward pass still runs, and counts only when it is committed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from paramserver.core.slices import Slice
from paramserver.errors import RefusedError
from paramserver.types import StepResult
from paramserver.v1 import server_pb2 as pb
from paramserver.wire.convert import options_to_proto, spans_to_proto
from paramserver.worker.group import Group
from paramserver.worker.link import Link, Part, Request
from paramserver.worker.operation import Operation, ServerAnswers
from paramserver.worker.parts import Out, data_record
from paramserver.worker.plan import Flat, Shard, part_of, pieces_of


class DeferredPush:
    """Gradients staged on the servers until ``commit``; dropped there if it never comes."""

    def __init__(self, group: Group) -> None:
        group.session.check()
        self._group = group
        self._began = time.monotonic()
        self._flat: dict[int, Flat] = {}
        self._commit: pb.Commit | None = None
        self._kept: set[int] = set()
        self._operation = Operation()
        self._requests: list[tuple[Shard, Link, Request]] = []
        self._push = group.push_record(group.clock, 0.0, None, None)
        self._push.deferred = True
        group.moves.begin(self._operation, self._send)

    def _send(self) -> None:
        """All of it so far, by the slice map of the moment."""
        plan = self._group.plan
        self._push.map_version, self._operation.lead = plan.map.version, plan.map.lead
        self._requests.clear()
        self._operation.begin(len(plan.shards))
        for shard in plan.shards:
            self._open(shard)
        self._send_bytes(set(self._flat))
        if self._commit is not None:
            self._send_commit(self._commit)

    def _open(self, shard: Shard) -> None:
        group = self._group
        mine = pb.Push()
        mine.CopyFrom(self._push)
        tensors = group.spec.tensors
        pushable = [s for s in shard.slices if tensors[s.tensor].rule != "frozen"]
        mine.slices.extend(s.index for s in pushable)
        mine.bases.extend(group.held.base(s) for s in pushable)
        link = group.links.to(shard.address)
        answers = ServerAnswers(self._operation, shard.index, None, lambda _: self._bytes(pushable))
        request = self._operation.submit(link, answers, lambda: [(pb.Record(push=mine), ())])
        self._requests.append((shard, link, request))

    def send(self, name: str, gradient: Tensor) -> None:
        """Sends one tensor's gradient; sent again, it takes the place of the first.

        Raises:
            NonFiniteError: NaN or infinity; give the push up.
        """
        group = self._group
        # A copy: the caller may go on accumulating into the gradient while it is being sent.
        flat = group.uplink.leave({name: gradient.clone()}, group.clock).flat
        with group.moves.lock:
            self._flat.update(flat)
            self._send_bytes(set(flat))

    def _send_bytes(self, tensors: set[int]) -> None:
        flat = self._flat
        for shard, link, request in self._requests:
            mine = [s for s in shard.slices if s.tensor in tensors]
            if mine:
                self._operation.sent_bytes += sum(part_of(flat[s.tensor], s).nbytes for s in mine)
                link.submit(request, self._bytes(mine))

    def _bytes(self, slices: Sequence[Slice]) -> Part:
        def part() -> Iterator[Out]:
            for piece in slices:
                if piece.tensor in self._flat:
                    yield data_record(pieces_of([piece], self._flat))

        return part

    def give_up(self) -> None:
        """The push is not to count; the clock stays."""
        self._operation.moved = None
        self._operation.give_up()
        self._operation.done.happen(RefusedError("given up"))

    def commit(
        self,
        into: Mapping[str, Tensor],
        *,
        weight: float | None = None,
        options: Sequence[Mapping[str, Any]] | None = None,
        names: Sequence[str] | None = None,
    ) -> StepResult:
        """Makes the push count, and copies the next clock's values to ``into``, in place.

        Args:
            names: the tensors that the push has after all; default: all that were sent.
        """
        group = self._group
        clock = group.clock
        kept = set(self._flat)
        if names is not None:
            kept &= {group.plan.number[n] for n in names}
        settled_weight, ticket = group.begin(weight)
        commit = pb.Commit(
            weight=settled_weight,
            samples=spans_to_proto(ticket.spans),
            options=[options_to_proto(o) for o in options or ()],
        )
        group.window.track(self._operation, ticket)
        with group.moves.lock:
            self._commit, self._kept = commit, kept
            self._send_commit(commit)
        group.ticked()
        return group.finish_deferred(self._operation, clock, self._began, into)

    def _send_commit(self, commit: pb.Commit) -> None:
        for shard, link, request in self._requests:
            mine = pb.Commit()
            mine.CopyFrom(commit)
            mine.slices.extend(s.index for s in shard.slices if s.tensor in self._kept)
            link.submit(request, _record(mine))


def _record(commit: pb.Commit) -> Part:
    return lambda: [(pb.Record(commit=commit), ())]
