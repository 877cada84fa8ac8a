"""Snapshots of a cluster by hand, as the scheduler makes them, and groups that begin with one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paramserver.snapshot_files import (
    Manifest,
    ServerFile,
    chain,
    open_store,
    read_manifest,
    write_manifest,
)
from paramserver.snapshot_groups import groups_in
from paramserver.snapshot_tensors import TensorReader
from paramserver.v1 import common_pb2
from paramserver.v1 import server_pb2 as pb
from tests.cluster import Cluster


class Snapshooter:
    """Takes snapshots of all groups of a cluster into one directory."""

    def __init__(self, cluster: Cluster, directory: str) -> None:
        self.cluster = cluster
        self.directory = directory
        self.number = 0
        self.agreed: list[pb.GroupClocks] = []

    def take(self, name: str, **options: Any) -> list[pb.SnapshotReply]:
        """One snapshot; the answers of the servers that hold something."""
        replies: list[pb.SnapshotReply] = self.cluster.run(self._take(name, **options))
        return replies

    async def groups(self) -> list[Any]:
        return [self.cluster.scheduler.state.groups.get(n) for n in await self.names()]

    async def names(self) -> list[str]:
        return [group.spec.name for group in self.cluster.scheduler.state.groups]

    async def clocks(self) -> list[pb.GroupClocks]:
        return [
            pb.GroupClocks(group=g.spec.name, map_version=g.map.version)
            for g in await self.groups()
        ]

    async def hold(self, **options: Any) -> list[pb.GroupClocks]:
        """Holds and drains on all servers: what all agree on, and the largest next clock."""
        self.number += 1
        servers, job = self.cluster.servers, self.cluster.servers[0].views.current.job
        groups = await self.clocks()
        asked = pb.HoldRequest(job=job, hold=self.number, groups=groups, **options)
        held = await asyncio.gather(*(s.Hold(asked) for s in servers))
        merged = _merge([g for reply in held for g in reply.groups])
        asked_drain = pb.DrainRequest(job=job, hold=self.number, groups=merged)
        drained = await asyncio.gather(*(s.Drain(asked_drain) for s in servers))
        for reply in drained:
            for group in reply.groups:
                same = next(g for g in merged if g.group == group.group)
                assert list(group.workers) == list(same.workers), "servers do not agree"
        return merged

    async def request(self, name: str, base: str = "", **options: Any) -> pb.SnapshotRequest:
        """All groups, held and drained.

        Args:
            base: the snapshot whose tables this one is to hold the changes of.
        """
        self.agreed = await self.hold()
        clock = max((g.next_clock for g in self.agreed), default=0)
        cuts = [
            pb.GroupCut(group=g.group, map_version=g.map_version, clock=clock) for g in self.agreed
        ]
        if base:
            for file in read_manifest(open_store(self.directory), base).files:
                for cut in cuts:
                    if self.cluster.scheduler.state.groups.get(cut.group).spec.table is not None:
                        slices = file.slices.get(cut.group, [])
                        versions = file.versions.get(cut.group, [])
                        cut.since.update(zip(slices, versions, strict=True))
        job = self.cluster.servers[0].views.current.job
        return pb.SnapshotRequest(
            job=job,
            id=self.number,
            directory=self.directory,
            name=name,
            cuts=cuts,
            hold=self.number,
            **options,
        )

    async def _take(self, name: str, base: str = "", **options: Any) -> list[pb.SnapshotReply]:
        servers = self.cluster.servers
        request = await self.request(name, base, **options)
        replies = await asyncio.gather(*(s.Snapshot(request) for s in servers))
        made = tuple(
            ServerFile(
                reply.file,
                server.name,
                reply.bytes,
                reply.sha256,
                {g.group: list(g.slices) for g in reply.groups},
                {g.group: list(g.versions) for g in reply.groups},
                base,
            )
            for server, reply in zip(servers, replies, strict=True)
            if reply.file
        )
        write_manifest(
            open_store(self.directory), Manifest(name, self.number, 1, self.number, made)
        )
        return [reply for reply in replies if reply.file]


def _merge(groups: Sequence[pb.GroupClocks]) -> list[pb.GroupClocks]:
    merged: dict[str, pb.GroupClocks] = {}
    for group in groups:
        into = merged.setdefault(
            group.group, pb.GroupClocks(group=group.group, map_version=group.map_version)
        )
        into.next_clock = max(into.next_clock, group.next_clock)
        clocks = {(w.rank, w.incarnation): w.clock for w in into.workers}
        for w in group.workers:
            clocks[w.rank, w.incarnation] = max(w.clock, clocks.get((w.rank, w.incarnation), 0))
        del into.workers[:]
        into.workers.extend(
            pb.WorkerClock(rank=r, incarnation=i, clock=c) for (r, i), c in sorted(clocks.items())
        )
    return list(merged.values())


class Restoring:
    """A server's channel to the scheduler, where groups begin with a snapshot."""

    def __init__(self, inner: Any, directory: str, manifests: Sequence[Manifest]) -> None:
        self._inner = inner
        self._directory = directory
        self._manifests = manifests
        self._ends: dict[str, tuple[int, int]] = {}
        for manifest in manifests:
            for file in manifest.files:
                with TensorReader(Path(directory, manifest.name, file.file)) as reader:
                    for name, group in groups_in(reader).items():
                        self._ends[name] = (group.clock, group.version)

    async def call(self, method: str, request: Any, **options: Any) -> Any:
        reply = await self._inner.call(method, request, **options)
        if method == "GetGroup" and request.group in self._ends:
            reply.restore.directory = self._directory
            reply.restore.clock, reply.restore.version = self._ends[request.group]
            for manifest in self._manifests:
                for file in manifest.files:
                    slices = file.slices.get(request.group, [])
                    path = f"{manifest.name}/{file.file}"
                    reply.restore.files.append(common_pb2.RestoreFile(file=path, slices=slices))
        return reply


def begin_with(cluster: Cluster, directory: str, name: str) -> None:
    """Groups that are registered in the cluster from now on begin with a snapshot."""
    store = open_store(directory)
    manifests = chain(store, read_manifest(store, name))
    for server in cluster.servers:
        server._scheduler = Restoring(server._scheduler, directory, manifests)
