"""The rpcs of the scheduler that have to do with snapshots and schedules."""

from __future__ import annotations

from paramserver.scheduler.facts import Schedule
from paramserver.scheduler.shell import Shell
from paramserver.scheduler.snapshots import Snapshots, Taking
from paramserver.scheduler.topics import SNAPSHOT
from paramserver.v1 import common_pb2
from paramserver.v1 import scheduler_pb2 as pb
from paramserver.wire.convert import group_to_proto, map_to_proto


class SnapshotMethods(Shell):
    """Methods of ``SchedulerService``."""

    snapshots: Snapshots

    async def GetGroup(self, request: pb.GetGroupRequest) -> pb.GetGroupReply:
        if request.job:  # else who belongs to an undone job hears that its group is unknown
            self.state.members.check_job(request.job, "the caller")
        group = self.state.groups.get(request.group)
        return pb.GetGroupReply(
            spec=group_to_proto(group.spec),
            map=map_to_proto(group.map),
            stored=group.stored,
            restore=None if group.reshaped else self._restore(request.group),
            moving=group.moving,
            reshaped=group.reshaped,
        )

    def _restore(self, name: str) -> common_pb2.Restore | None:
        found = self.state.restored(name)
        if found is None:
            return None
        source, group = found
        return common_pb2.Restore(
            directory=source.directory,
            clock=group.clock,
            version=group.version,
            files=[
                common_pb2.RestoreFile(file=file, slices=slices)
                for file, slices in source.files.get(name, ())
            ],
        )

    async def TakeSnapshot(self, request: pb.TakeSnapshotRequest) -> pb.TakeSnapshotReply:
        taking = self.snapshots.ask(request.name, request.key, request.delta)

        def attempt() -> Taking:
            if taking.error is not None:
                raise taking.error
            return taking

        found = await self._poll(SNAPSHOT, request.wait_s, attempt, lambda t: not t.over)
        if found.kept is None:
            return pb.TakeSnapshotReply(
                name=found.name, pending=f"snapshot {found.name!r} is being taken"
            )
        return pb.TakeSnapshotReply(
            name=found.name,
            bytes=found.kept.bytes,
            held_s=found.kept.held_s,
            took_s=found.kept.took_s,
            base=found.kept.base,
        )

    async def RestoreSnapshot(self, request: pb.RestoreSnapshotRequest) -> pb.RestoreSnapshotReply:
        manifest, problems = await self.snapshots.restore(request.name, request.force)
        return pb.RestoreSnapshotReply(
            name=manifest.name, job=self.state.members.job, problems=problems
        )

    async def SaveSchedule(self, request: pb.SaveScheduleRequest) -> pb.SaveScheduleReply:
        schedule = Schedule(request.epoch, request.clock, request.state)
        wanted = request.wanted_clock if request.wanted else None
        caller = self._enter(request.member)
        self.state.save_schedule(caller, schedule, wanted, self._now())
        self._after()
        return pb.SaveScheduleReply()

    async def LoadSchedule(self, request: pb.LoadScheduleRequest) -> pb.LoadScheduleReply:
        self._enter(request.member)
        kept = self.state.schedule
        epoch = self.state.job_epoch()
        if kept is None:
            return pb.LoadScheduleReply(job_epoch=epoch)
        return pb.LoadScheduleReply(
            found=True, epoch=kept.epoch, clock=kept.clock, state=kept.state, job_epoch=epoch
        )
