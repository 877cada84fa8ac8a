"""All that ``status`` and ``top`` show, as one message."""

from __future__ import annotations

import time

from paramserver.core.members import Role
from paramserver.scheduler.convert import dataset_status, group_placement, view_to_proto
from paramserver.scheduler.state import SchedulerState
from paramserver.v1 import scheduler_pb2 as pb


def status(state: SchedulerState, now: float) -> pb.StatusReply:
    """What the scheduler knows at this moment. Reads only."""
    view = view_to_proto(state.members.view(), state.adaptation.bounds, places=state.places.all)
    for member in view.members:
        member.heard_s = now - state.members.heard(member.name)
    return pb.StatusReply(
        view=view,
        workers=_workers(state, now),
        datasets=[dataset_status(queue) for queue in state.data],
        groups=[group_placement(group) for group in state.groups],
        scalars=state.figures.scalars,
        uptime_s=state.journal.seconds(now),
        expected_workers=state.config.workers,
        expected_servers=state.members.servers,
        events=state.journal.events(),
        durability=state.config.durability,
        keeps_snapshots=bool(state.config.snapshots.directory),
        snapshot=_snapshot(state),
    )


def _snapshot(state: SchedulerState) -> pb.SnapshotStatus | None:
    newest = state.newest
    if newest is None:
        return None
    age = max(0.0, time.time() - newest.created)
    return pb.SnapshotStatus(name=newest.name, clock=newest.clock, age_s=age, base=newest.base)


def _workers(state: SchedulerState, now: float) -> list[pb.WorkerStatus]:
    return [
        pb.WorkerStatus(
            name=member.name,
            clocks=[
                pb.GroupClock(group=group, clock=clock)
                for group, clock in sorted(state.figures.clocks.get(member.name, {}).items())
            ],
            stats=state.figures.stats.get(member.name, {}),
            heard_s=now - state.members.heard(member.name),
        )
        for member in state.members.view().members
        if member.role is Role.WORKER
    ]
