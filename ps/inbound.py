"""First values and collectives on their way in."""

from __future__ import annotations

from collections.abc import Sequence

from paramserver.ps.group import GroupState
from paramserver.v1 import server_pb2 as pb
from paramserver.wire.frames import Piece


class Storing:
    """First values of which ``waiting`` have not come."""

    def __init__(self, request: int, group: GroupState, slices: Sequence[int]) -> None:
        self.request = request
        self.group = group
        self.waiting = set(slices)


class Contributing:
    """The pieces of one worker's tensor that have come."""

    def __init__(self, request: int, record: pb.Contribute) -> None:
        self.request = request
        self.record = record
        self.pieces: dict[int, Piece] = {}
