"""The events of the scheduler's state that have to do with the number of servers."""

from __future__ import annotations

from paramserver.scheduler.events import event, event_unless
from paramserver.scheduler.parts import Parts
from paramserver.scheduler.shape import Moving


class ShapeEvents(Parts):
    """Methods of ``SchedulerState``."""

    @event
    def scale(self, servers: int, now: float) -> None:
        """As ``Shape.scale``."""
        self.shape.scale(servers, now)

    @event_unless(lambda moving: moving is None)
    def begin_move(self) -> Moving | None:
        """As ``Shape.begin``."""
        return self.shape.begin()

    @event
    def commit_move(self, moving: Moving, now: float) -> None:
        """As ``Shape.commit``."""
        self.shape.commit(moving, now)

    @event
    def abort_move(self, moving: Moving, reason: str, now: float) -> None:
        """As ``Shape.abort``."""
        self.shape.abort(moving, reason, now)

    @event
    def dismiss(self, name: str) -> None:
        """A server that is not needed any more goes."""
        self.shape.left(name)
        self.members.finish(name)
