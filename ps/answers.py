"""What a server says of a push: that it is taken, and what came of it."""

from __future__ import annotations

from paramserver.core.ledger import Receipt
from paramserver.ps.push import Incoming
from paramserver.types import Durability
from paramserver.v1 import server_pb2 as pb


def accepted(push: Incoming, receipt: Receipt, durability: Durability) -> pb.Record:
    """The push is here whole."""
    told = pb.Accepted(
        clock=push.group.frontier.value if receipt.dropped else receipt.clock,
        version=receipt.version,
        staleness=receipt.staleness,
        applied=receipt.applied,
        dropped=receipt.dropped,
        durability=durability,
    )
    return pb.Record(request=push.request, accepted=told)


def settled(push: Incoming, receipt: Receipt, durability: Durability) -> pb.Record:
    """Nothing about the push can change any more, and nothing more of its request comes."""
    told = pb.Done(
        clock=receipt.clock,
        version=receipt.version,
        dropped=receipt.dropped,
        staleness=receipt.staleness,
        durability=durability,
    )
    return pb.Record(request=push.request, done=told)
