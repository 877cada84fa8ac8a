"""A group by a new slice map: slices that left are forgotten, those that came are there; at once.

Called when slices move, and in the same way when a journal tells of it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from paramserver.core.ledger import Ledger
from paramserver.core.placement import SliceMap, slices_of
from paramserver.core.reshape import holders
from paramserver.core.slices import pack
from paramserver.ps import records
from paramserver.ps.group import Cell, GroupState
from paramserver.ps.slice_parts import Fetched
from paramserver.ps.state import SliceStates
from paramserver.v1 import server_pb2 as pb

if TYPE_CHECKING:
    from paramserver.ps.restorable import Restorable


def slices_at(new: SliceMap, server: str) -> set[int]:
    """The slices of a server."""
    return {i for i, owner in enumerate(new.owners) if new.servers[owner] == server}


def way(had: set[int], mine: set[int]) -> str:
    """What a map is to a server: slices arrive, or leave, or it is only told."""
    return "arrives" if mine - had else "leaves" if had - mine else "is_told"


def blank_map(new: SliceMap) -> SliceMap:
    """A map of the same slices by which no server has any."""
    owners = (0,) * len(new.owners)
    return SliceMap(0, ("",), ("",), new.slice_elements, owners, 0)


def regroup(group: GroupState, new: SliceMap, fetched: Fetched | None, now: float) -> None:
    """The map holds from now on.

    Args:
        fetched: what came; None: nothing did.
        now: seconds, for rows that are forgotten by time.
    """
    mine = slices_at(new, group.server)
    every = slices_of(group.spec, new)
    gone = set(group.slices) - mine
    cells = _kept(group, mine, now)
    if fetched is not None:
        if not group.slices:
            _begin(group, fetched)
        came = [every[i] for i in fetched.states]
        packed = pack(came) if group.spec.table is None else [[s] for s in came]
        for pieces in packed:
            states = {s.index: fetched.states[s.index] for s in pieces}
            cells.append(_cell(group, states, group.frontier.value, now))
        for push in fetched.pushes():
            if (push.worker, push.clock) in group.staged:
                group.staged[push.worker, push.clock].gradients.update(push.gradients)
    for staged in group.staged.values():
        for index in gone & staged.gradients.keys():
            del staged.gradients[index]
        staged.nbytes = sum(gradient.nbytes for gradient in staged.gradients.values())
    if group.journal is not None:
        records.followed(group.journal, group.spec.name, new, now)
    group.reshape(new, {i: every[i] for i in sorted(mine)}, cells)


def _kept(group: GroupState, mine: set[int], now: float) -> list[Cell]:
    """What stays here; buckets of which something leaves are made anew."""
    cells = []
    for cell in group.cells:
        kept = [i for i in cell.slices if i in mine]
        if len(kept) == len(cell.slices):
            cells.append(cell)
            continue
        with cell.lock:
            states = cell.bucket.dump(kept) if kept else {}
            cell.journal = None  # whoever is late changes nothing that is here
        if kept:
            cells.append(_cell(group, states, cell.closed.value, now))
    return cells


def _cell(group: GroupState, states: SliceStates, closed: int, now: float) -> Cell:
    every = slices_of(group.spec, group.map)
    cell = Cell([every[i] for i in states], group.spec, group.journal)
    if cell.rows is not None:
        cell.rows.moment.replay(now)
    cell.bucket.load(states)
    cell.stepped = closed
    cell.closed.advance(closed)
    return cell


def _begin(group: GroupState, fetched: Fetched) -> None:
    """A server that had nothing of the group goes on as the source does."""
    group.ledger.load(json.loads(fetched.group.ledger))
    group.version = fetched.group.version
    group.frontier.advance(fetched.group.frontier)
    group.settled.advance(fetched.group.frontier if group.sync else 0)
    group.staged = {(p.worker, p.clock): p for p in fetched.pushes()}
    for push in group.staged.values():
        push.gradients = {}


def without_pushes(group: GroupState, told: pb.MovedGroup) -> pb.MovedGroup:
    """For the journal: pushes whose clock has not closed are sent again to who begins from it."""
    ledger = Ledger()
    ledger.load(json.loads(told.ledger))
    return pb.MovedGroup(
        version=told.version,
        frontier=told.frontier,
        ledger=json.dumps(ledger.dump(settled=group.sync)),
        clock=told.clock,
    )


def lead_on(service: Restorable, group: GroupState, fetched: Fetched | None) -> bool:
    """This server leads the group by its new map; whether it did not before.

    A lead that comes goes on as the one before, and closes nothing until it is told to go on.
    """
    lead = service.lead_of(group.spec.name)
    came = lead is None
    if lead is None:
        lead = service.leads.take(group)
        if fetched is not None and fetched.group.clock:
            lead.clock.load(json.loads(fetched.group.clock))
        lead.hold()
    lead.reshape(holders(group.map))
    return came
