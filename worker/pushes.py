"""Pushes: what they carry."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Protocol, TypeAlias

from torch import Tensor

from paramserver.core.placement import GroupSpec
from paramserver.errors import NonFiniteError
from paramserver.v1 import server_pb2 as pb
from paramserver.worker.link import Part
from paramserver.worker.operation import Operation
from paramserver.worker.parts import Out, PushParts
from paramserver.worker.plan import Shard
from paramserver.worker.values import Landing

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


def checked(make: Callable[[bool], Payload], spec: GroupSpec) -> tuple[Payload, bool]:
    """What is to be pushed, and whether that is nothing because of NaN or infinity.

    Args:
        make: of what there is; False: of nothing.

    Raises:
        NonFiniteError: where the group is not to skip it.
    """
    try:
        return make(True), False
    except NonFiniteError:
        if spec.on_nonfinite != "skip":
            raise
        return make(False), True


Started: TypeAlias = tuple[Operation, int, float]  # its clock, and when it began


class Dense:
    """Gradients of dense tensors.

    Args:
        landing: for the values of the next clock, if the push asks for them.
    """

    def __init__(
        self, group: Group, tensors: Mapping[str, Tensor], landing: Landing | None
    ) -> None:
        self._group, self._landing = group, landing
        self._leaving = group.uplink.leave(tensors, group.clock)

    def share(self, shard: Shard, push: pb.Push) -> PushParts:
        """One server's part."""
        wanted = self._landing.wants(shard.slices) if self._landing else ()
        return PushParts(self._group, shard, push, self._leaving.flat, pulls=wanted)

    def end(self, counted: bool) -> None:
        """What rounding kept back stays, or comes back."""
        self._leaving.end(counted)
