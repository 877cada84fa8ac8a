"""Captures of a server's groups at a cut, while training goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paramserver.errors import UnsupportedError
from paramserver.v1 import server_pb2 as pb

if TYPE_CHECKING:
    from paramserver.ps.service import ServerService


class Captures:
    """Holds, cuts and snapshots of one server."""

    def __init__(self, service: ServerService) -> None:
        self._service = service

    async def hold(self, request: pb.HoldRequest) -> pb.HoldReply:
        raise UnsupportedError("hold")

    async def drain(self, request: pb.DrainRequest) -> pb.DrainReply:
        raise UnsupportedError("drain")

    async def release(self, request: pb.ReleaseRequest) -> pb.ReleaseReply:
        raise UnsupportedError("release")

    async def snapshot(self, request: pb.SnapshotRequest) -> pb.SnapshotReply:
        raise UnsupportedError("snapshot")
