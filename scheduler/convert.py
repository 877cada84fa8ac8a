"""Protobuf messages <-> what the scheduler decides on; what all roles share is in wire.convert."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

from paramserver.core.dataset import DatasetSpec, Leased
from paramserver.core.members import Caller, JobState, Member, Role, State, View
from paramserver.core.parties import ReplicaQueue
from paramserver.core.placement import Group
from paramserver.core.replicas import Formed, Offer
from paramserver.core.replication import Place
from paramserver.core.rounds import Arrival
from paramserver.core.shards import ShardQueue
from paramserver.errors import InvalidRequestError
from paramserver.types import AllReduce, Span, WorkerId
from paramserver.v1 import common_pb2, scheduler_pb2
from paramserver.wire.convert import consistency_to_proto, spans_from_proto, spans_to_proto

_ROLES = {role: scheduler_pb2.Role.Value(f"ROLE_{role.name}") for role in Role}
_ROLE_NAMES = {number: role for role, number in _ROLES.items()}
_STATES = {state: scheduler_pb2.MemberState.Value(f"MEMBER_{state.name}") for state in State}
_JOB_STATES = {state: scheduler_pb2.JobState.Value(f"JOB_{state.name}") for state in JobState}


def role_from_proto(value: int) -> Role:
    """Raises InvalidRequestError for an unknown or unset number."""
    if value not in _ROLE_NAMES:
        raise InvalidRequestError(f"role number {value}: must be server, worker or reader")
    return _ROLE_NAMES[value]


def job_state_to_proto(state: JobState) -> scheduler_pb2.JobState:
    return cast(scheduler_pb2.JobState, _JOB_STATES[state])


def role_to_proto(role: Role) -> scheduler_pb2.Role:
    return cast(scheduler_pb2.Role, _ROLES[role])


def caller_from_proto(identity: common_pb2.Identity) -> Caller:
    return Caller(identity.name, identity.incarnation, identity.job)


def identity_to_proto(member: Member, view: int, job: int) -> common_pb2.Identity:
    return common_pb2.Identity(
        name=member.name, incarnation=member.incarnation, rank=member.rank, view=view, job=job
    )


def member_to_proto(member: Member) -> scheduler_pb2.Member:
    return scheduler_pb2.Member(
        name=member.name,
        role=role_to_proto(member.role),
        rank=member.rank,
        incarnation=member.incarnation,
        state=cast(scheduler_pb2.MemberState, _STATES[member.state]),
        address=member.address,
        groups=member.groups,
        host=member.host,
        pid=member.pid,
        reason=member.reason,
        preparing=member.preparing,
    )


def place_to_proto(place: Place) -> scheduler_pb2.Place:
    made = scheduler_pb2.Place(
        server=place.server,
        epoch=place.epoch,
        address=place.address,
        primary=place.primary.name,
        primary_incarnation=place.primary.incarnation,
        ready=place.ready,
    )
    if place.backup is not None:
        made.backup = place.backup.name
        made.backup_incarnation = place.backup.incarnation
        made.backup_address = place.backup.address
    return made


def view_to_proto(
    view: View,
    bounds: Mapping[str, int],
    reducers: Iterable[str] = (),
    places: Iterable[Place] = (),
) -> scheduler_pb2.View:
    """``bounds``: of the adaptive groups; ``reducers``: see ``Shape.reducers``."""
    return scheduler_pb2.View(
        number=view.number,
        job=view.job,
        state=job_state_to_proto(view.state),
        message=view.message,
        members=[member_to_proto(m) for m in view.members],
        started=view.started,
        bounds=bounds,
        origin=view.origin,
        reducers=reducers,
        places=map(place_to_proto, places),
    )


def dataset_from_proto(message: scheduler_pb2.DatasetSpec, assign: str) -> DatasetSpec:
    """``assign``: the job's, for a loader that names none."""
    return DatasetSpec(
        message.name,
        message.size,
        message.batch_size,
        message.shard_size,
        message.seed,
        message.shuffle,
        message.assign or assign,
        message.backups,
        message.balance,
    )


def dataset_to_proto(spec: DatasetSpec, batch_size: int = 0) -> scheduler_pb2.DatasetSpec:
    """``batch_size``: the caller's own, where it differs."""
    return scheduler_pb2.DatasetSpec(
        name=spec.name,
        size=spec.size,
        batch_size=batch_size or spec.batch_size,
        shard_size=spec.shard_size,
        seed=spec.seed,
        shuffle=spec.shuffle,
        assign=spec.assign,
        backups=spec.backups,
        balance=spec.balance,
    )


def shard_to_proto(leased: Leased, joins: bool = False) -> scheduler_pb2.Shard:
    """``joins``: its parties agree on a clock before they begin it."""
    return scheduler_pb2.Shard(
        lease=leased.lease,
        id=leased.shard,
        epoch=leased.epoch,
        start=leased.start,
        stop=leased.stop,
        joins=joins,
    )


def recall_to_proto(dataset: str, span: Span) -> scheduler_pb2.Recall:
    return scheduler_pb2.Recall(dataset=dataset, span=spans_to_proto([span])[0])


def arrival_to_proto(arrival: Arrival) -> scheduler_pb2.Arrival:
    return scheduler_pb2.Arrival(
        rank=arrival.rank, incarnation=arrival.incarnation, sequence=arrival.sequence
    )


def dataset_status(queue: ShardQueue | ReplicaQueue) -> scheduler_pb2.DatasetStatus:
    counts = queue.counts()
    return scheduler_pb2.DatasetStatus(
        spec=dataset_to_proto(queue.spec),
        epoch=counts.epoch,
        shards=counts.shards,
        free=counts.free,
        leased=counts.leased,
        done=counts.done,
        requeued=counts.requeued,
        samples_done=counts.samples_done,
        unpushed=counts.unpushed,
        quarantined=counts.quarantined,
    )


def group_placement(group: Group) -> scheduler_pb2.GroupPlacement:
    placed = scheduler_pb2.GroupPlacement(
        group=group.spec.name,
        optimizer=group.spec.optimizer,
        consistency=consistency_to_proto(group.spec.consistency),
        parameters=group.spec.elements,
        bytes=group.spec.bytes,
        stored=group.stored,
        scheme=group.spec.scheme,
    )
    if isinstance(group.spec.consistency, AllReduce):  # on the workers: nothing is placed
        return placed
    where = scheduler_pb2.GroupPlacement(
        slices=len(group.map.owners),
        server_bytes=group.server_bytes,
        servers=group.map.servers,
        lead=group.map.servers[group.map.lead],
    )
    placed.MergeFrom(where)
    return placed


def offer_from_proto(request: scheduler_pb2.FormReplicasRequest) -> Offer:
    contributed = {
        WorkerId(c.replica.rank, c.replica.incarnation): spans_from_proto(c.samples)
        for c in request.contributed
    }
    return Offer(request.sequence, request.clock, request.endpoint, request.whole, contributed)


def formed_to_proto(found: Formed | str, view: int) -> scheduler_pb2.FormReplicasReply:
    """A formation, or whom it waits for."""
    if isinstance(found, str):
        return scheduler_pb2.FormReplicasReply(pending=found, view=view)
    replicas = [scheduler_pb2.Replica(rank=r, incarnation=i) for r, i in found.replicas]
    return scheduler_pb2.FormReplicasReply(
        formed=True,
        number=found.number,
        replicas=replicas,
        endpoint=found.endpoint,
        root=found.root.rank,
        spread=found.spread,
        view=view,
    )
