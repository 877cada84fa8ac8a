"""The rpcs of the Scheduler service by which workers coordinate."""

from __future__ import annotations

from paramserver.scheduler.offices import Office, Offices
from paramserver.scheduler.shell import Shell
from paramserver.scheduler.topics import announcement_topic, data_topic
from paramserver.v1 import scheduler_pb2 as pb


class CoordinationMethods(Shell):
    """Methods of ``SchedulerService``."""

    @property
    def offices(self) -> Offices:
        """What is coordinated."""
        return self.state.offices

    async def AwaitEpoch(self, request: pb.AwaitEpochRequest) -> pb.AwaitEpochReply:
        self._enter(request.member)

        def attempt() -> str:
            return self.state.data.unfinished(request.dataset, request.epoch, self._now())

        topic = data_topic(request.dataset)
        pending = await self._poll(topic, request.wait_s, attempt, bool)
        done = self.state.data.get(request.dataset).counts().samples_done
        return pb.AwaitEpochReply(drained=not pending, pending=pending, samples_done=done)

    async def Coordinate(self, request: pb.CoordinateRequest) -> pb.CoordinateReply:
        caller, name = self._enter(request.member), request.name

        def attempt() -> bool:
            return self.state.coordinate(caller, name, self._now())

        topic = announcement_topic(name)
        mine = await self._poll(topic, request.wait_s, attempt, lambda taken: not taken)
        office = self.offices.get(name)
        return pb.CoordinateReply(
            coordinates=mine,
            number=office.number,
            text=office.text if mine else "",
            pending="" if mine else self.offices.reason(name, "coordination of", self._now()),
            view=self.state.members.number,
        )

    async def Announce(self, request: pb.AnnounceRequest) -> pb.AnnounceReply:
        caller = self._enter(request.member)
        number = self.state.announce(
            caller, request.name, request.number, request.text, self._now()
        )
        self._after()
        return pb.AnnounceReply(number=number)

    async def Announced(self, request: pb.AnnouncedRequest) -> pb.AnnouncedReply:
        self._enter(request.member)
        name = request.name

        def attempt() -> Office:
            return self.offices.get(name)

        topic = announcement_topic(name)
        found = await self._poll(
            topic, request.wait_s, attempt, lambda office: office.number <= request.after
        )
        if found.number <= request.after:
            reason = self.offices.reason(name, f"announcement {request.after + 1} of", self._now())
            return pb.AnnouncedReply(number=found.number, pending=reason)
        return pb.AnnouncedReply(number=found.number, text=found.text)
