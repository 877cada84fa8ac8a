"""How operations of a dense group are sent: every server its share, by the slice map of the moment.

Each function may be called again for the same operation, after slices have moved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from paramserver.v1 import server_pb2 as pb
from paramserver.wire.frames import Piece
from paramserver.worker.operation import Operation, ServerAnswers
from paramserver.worker.parts import StoreParts, pull_record
from paramserver.worker.pushes import Payload
from paramserver.worker.values import Held, Landing

if TYPE_CHECKING:
    from paramserver.worker.group import Group

Take = Callable[[pb.Data, Sequence[Piece]], None]


def send_push(
    group: Group, operation: Operation, payload: Payload, push: pb.Push, take: Take | None
) -> None:
    """A push; ``take`` receives values, where it pulls as well."""
    plan = group.plan
    push.map_version, operation.lead = plan.map.version, plan.map.lead
    operation.begin(len(plan.shards))
    for shard in plan.shards:
        parts = payload.share(shard, push)
        answers = ServerAnswers(operation, shard.index, take, parts.some)
        operation.submit(group.links.to(shard.address), answers, parts.all)
        operation.sent_bytes += parts.size


def send_pull(
    group: Group, operation: Operation, landing: Landing, held: Held, *, latest: bool
) -> None:
    """A pull of what there is a tensor for."""
    shards = group.plan.shards
    asked = [(shard, s) for shard in shards if (s := landing.wants(shard.slices))]
    operation.begin(len(asked))
    for shard, slices in asked:
        answers = ServerAnswers(operation, shard.index, landing.take)
        record = pull_record(group, slices, held, latest=latest)
        operation.submit(group.links.to(shard.address), answers, record.part)


def send_store(group: Group, operation: Operation, values: Mapping[str, Tensor]) -> None:
    """First values."""
    shards = group.plan.shards
    operation.begin(len(shards))
    for shard in shards:
        parts = StoreParts(group, shard, values)
        answers = ServerAnswers(operation, shard.index, None, parts.some)
        operation.submit(group.links.to(shard.address), answers, parts.all)
