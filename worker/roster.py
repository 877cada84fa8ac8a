"""Who of a view counts."""

from __future__ import annotations

from paramserver.v1 import scheduler_pb2

_GONE = (scheduler_pb2.MEMBER_FINISHED, scheduler_pb2.MEMBER_LOST)


def workers(view: scheduler_pb2.View) -> list[scheduler_pb2.Member]:
    """All workers of the job, lost and finished ones too."""
    return [m for m in view.members if m.role == scheduler_pb2.ROLE_WORKER]


def is_live(member: scheduler_pb2.Member) -> bool:
    """Whether it has neither finished nor been lost."""
    return member.state not in _GONE


def live(view: scheduler_pb2.View) -> int:
    """How many workers are neither finished nor lost."""
    return sum(is_live(m) for m in workers(view))


def chief(view: scheduler_pb2.View, default: int) -> int:
    """The lowest rank that was not lost; a finished chief stays chief."""
    ranks = (m.rank for m in workers(view) if m.state != scheduler_pb2.MEMBER_LOST)
    return min(ranks, default=default)
