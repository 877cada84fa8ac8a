"""What status shows of a server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import psutil

from paramserver.ps.group import GroupState
from paramserver.v1 import server_pb2 as pb

if TYPE_CHECKING:
    from paramserver.ps.service import ServerService


def describe(service: ServerService, groups: Sequence[GroupState]) -> pb.DescribeReply:
    """Memory, bytes and groups of a server."""
    return pb.DescribeReply(
        groups=[_describe(service, group) for group in groups],
        resident_bytes=psutil.Process().memory_info().rss,
        staged_bytes=sum(s.nbytes for g in groups for s in g.staged.values()),
        received_bytes=service.received_bytes,
        sent_bytes=service.sent_bytes,
        duplicates=sum(g.ledger.duplicates for g in groups),
        refusals=service.refusals,
        non_finite=service.non_finite,
    )


def _describe(service: ServerService, group: GroupState) -> pb.GroupStatus:
    status = pb.GroupStatus(
        group=group.spec.name,
        slices=len(group.slices),
        bytes=group.nbytes,
        table=_table(group),
        version=group.version,
        min_clock=group.frontier.value,
        overflows=sum(cell.bucket.overflows for cell in group.cells),
    )
    lead = service.lead_of(group.spec.name)
    if lead is not None:
        active = service.views.active(group.spec.name)
        status.lead = True
        status.min_clock = lead.clock.min_clock
        status.waiting = lead.clock.waiting_for(service.views.names)
        status.workers.extend(
            pb.WorkerClock(rank=w.rank, incarnation=w.incarnation, clock=clock, active=w in active)
            for w, clock in sorted(lead.clock.workers.items())
        )
    return status


def _table(group: GroupState) -> pb.TableStatus | None:
    """Rows of a table and what became of them; None for another group."""
    if group.spec.table is None:
        return None
    tables = [cell.rows.table for cell in group.cells if cell.rows]
    return pb.TableStatus(
        rows=sum(map(len, tables)),
        evicted=sum(t.evicted for t in tables),
        not_admitted=sum(t.not_admitted for t in tables),
    )
