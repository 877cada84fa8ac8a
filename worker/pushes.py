"""Pushes: what they carry, and what the servers' answers say of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from paramserver.v1 import server_pb2 as pb
from paramserver.worker.link import Part
from paramserver.worker.operation import Operation
from paramserver.worker.parts import Out, PushParts
from paramserver.worker.plan import Shard

if TYPE_CHECKING:
    from paramserver.worker.group import Group


class Share(Protocol):
    """One server's share of a push."""

    size: int

    def all(self) -> Iterable[Out]: ...

    def some(self, slices: Iterable[int]) -> Part: ...


class Payload(Protocol):
    """What a push carries; making one checks it."""

    def share(self, shard: Shard, push: pb.Push) -> Share: ...

    def end(self, counted: bool) -> None:
        """The push is over; whether it changed values, as far as this worker knows."""


class Dense:
    """Gradients of dense tensors.

    Args:
        pulls: the push asks for the values of the next clock.
    """

    def __init__(self, group: Group, tensors: Mapping[str, Tensor], pulls: bool) -> None:
        self._group, self._pulls = group, pulls
        self._leaving = group.uplink.leave(tensors, group.clock)

    def share(self, shard: Shard, push: pb.Push) -> PushParts:
        """One server's part."""
        return PushParts(self._group, shard, push, self._leaving.flat, pulls=self._pulls)

    def end(self, counted: bool) -> None:
        """What rounding kept back stays, or comes back."""
        self._leaving.end(counted)


def next_clock(operation: Operation) -> int:
    """The clock to go on with after a dropped push; 0 if it was not dropped."""
    if not was_dropped(operation):
        return 0
    clocks = [a.clock for a in operation.accepts.values() if a.dropped]
    return max([*clocks, *(d.clock for d in operation.dones.values())])


def was_dropped(operation: Operation) -> bool:
    """Whether the clock closed without this push."""
    return any(a.dropped for a in operation.accepts.values()) or any(
        d.dropped for d in operation.dones.values()
    )


def answers_of(operation: Operation) -> dict[int, pb.Accepted | pb.Done]:
    """The newest word of each server."""
    found: dict[int, pb.Accepted | pb.Done] = {**operation.accepts}
    found.update(operation.dones)
    return found
