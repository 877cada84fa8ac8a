"""The events of the scheduler's state that have to do with snapshots: taken, and gone on from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from paramserver.core.leases import Numbers
from paramserver.core.members import Caller, JobState, Role
from paramserver.core.progress import Progress
from paramserver.core.rounds import Rounds
from paramserver.errors import InvalidRequestError, ResourceError, UnsupportedError
from paramserver.scheduler.events import event
from paramserver.scheduler.facts import Asked, Kept, Schedule, Source
from paramserver.scheduler.image import GroupImage, Image
from paramserver.scheduler.offices import Offices
from paramserver.scheduler.parts import Parts
from paramserver.scheduler.replicas import replicated
from paramserver.scheduler.topics import EVERYTHING, SNAPSHOT
from paramserver.types import Adaptive, Span


@dataclass(slots=True)
class Draft:
    """A snapshot that is being taken.

    Attributes:
        job: that is cut.
        progress: of its data sets just before the cut, by name.
        wanted: the clock of which the chief is asked for its schedule; None: it is not.
        schedule: the newest at the beginning, then that of ``wanted``.
        caught: whether the latter has come.
        offices: what was announced last, once all servers stand still.
        name: of the snapshot.
    """

    job: int
    progress: Mapping[str, Progress]
    schedule: Schedule | None
    wanted: int | None = None
    caught: bool = False
    offices: Mapping[str, str] | None = None
    name: str = ""


@dataclass(slots=True)
class Resumed:
    """A snapshot that this job goes on from; its groups are placed once all servers are there."""

    image: Image
    source: Source
    placed: bool = False


ASKED = 64  # snapshots asked for whose end can be asked for again


class SnapshotEvents(Parts):
    """Methods of ``SchedulerState``.

    Attributes:
        newest: the snapshot that this job goes back to, if that is whole.
        asked: by key, for whoever asks again as the answer was lost.
    """

    newest: Kept | None
    asked: dict[str, Asked]
    schedule: Schedule | None
    draft: Draft | None
    resumed: Resumed | None
    numbers: Numbers
    holds: Numbers
    offices: Offices
    lineage: str
    _job: int

    # -- taking one

    @event
    def next_hold(self) -> int:
        """The number of a cut, or of another time when pushes wait."""
        return next(self.holds)

    @event
    def begin_snapshot(self, name: str = "", key: str = "") -> Draft:
        """What is known just before a cut.

        Args:
            key: of whoever asked for it; empty: it was due.

        Raises:
            InvalidRequestError: no job has values now, or another snapshot is being taken.
            UnsupportedError: a group has its values on the workers.
        """
        if self.members.state not in (JobState.RUNNING, JobState.DONE):
            raise InvalidRequestError(
                f"job {self.members.job} is {self.members.state.value}: a snapshot is taken of a "
                "job that runs or is done"
            )
        if self.draft is not None:
            raise InvalidRequestError("another snapshot is being taken; try again when it is done")
        if self.shape.moving:
            raise InvalidRequestError("slices are on the move; try again when they have arrived")
        for group in self.groups:
            if replicated(group.spec):
                raise UnsupportedError(
                    f"group {group.spec.name!r} is {group.spec.consistency}: servers hold nothing "
                    "of it, so a snapshot would lack it; save client.state_dict() on the chief"
                )
        if not any(group.stored for group in self.groups):
            raise InvalidRequestError("no group has values yet: there is nothing to save")
        self.draft = Draft(self.members.job, self.data.begin_snapshot(), self.schedule, name=name)
        if key:
            self.asked[key] = Asked(name)
            while len(self.asked) > ASKED:
                del self.asked[next(iter(self.asked))]
        return self.draft

    @event
    def chose_cut(self, clock: int) -> None:
        """All servers stand still: what was announced speaks of vectors that they all have. The
        chief is asked for its schedule at the clock of the cut, if it has ever told one."""
        draft = self.draft
        if draft is not None and draft.offices is None:
            draft.offices = self.offices.texts()
        if draft is not None and draft.schedule is not None and self.members.live(Role.WORKER):
            draft.wanted, draft.caught = clock, False

    @property
    def wanted_schedule(self) -> int | None:
        """The clock of which the chief is to tell its schedule; None: of none."""
        return self.draft.wanted if self.draft is not None and not self.draft.caught else None

    @event
    def save_schedule(
        self, caller: Caller, schedule: Schedule, wanted: int | None, now: float
    ) -> None:
        """Keeps the newest by (epoch, clock).

        Args:
            wanted: the clock of a cut, of which this is the schedule; None: it is the newest.
        """
        self.worker(caller)
        limit = self.config.limits.outbox_bytes
        if len(schedule.state) > limit:
            raise ResourceError(
                f"schedule state of {len(schedule.state)} characters: at most {limit}"
            )
        draft = self.draft
        if wanted is not None:
            if draft is not None and draft.wanted == wanted and not draft.caught:
                draft.schedule, draft.caught = schedule, True
                self._after(now, SNAPSHOT)
            return
        old = self.schedule or schedule
        if (old.epoch, old.clock) <= (schedule.epoch, schedule.clock):
            self.schedule = schedule

    def job_epoch(self) -> int:
        """The epoch a joiner starts in: that of the first data set, or of the newest schedule.

        An epoch with samples left is the one. Where clocks do not close, the chief may tell the
        schedule of a cut when its loop is an epoch past it.
        """
        return self.data.epoch(self.schedule.epoch if self.schedule else 0)

    @event
    def end_snapshot(
        self, clocks: Mapping[str, tuple[int, int]], applied: Iterable[Span], now: float
    ) -> Image:
        """The job as it was at the cut.

        Args:
            clocks: clock and version at which each group goes on.
            applied: samples that servers had applied.

        Raises:
            InvalidRequestError: the job has ended meanwhile.
        """
        draft, self.draft = self.draft, None
        if draft is None or draft.job != self.members.job:
            raise InvalidRequestError("the job that the snapshot was taken of is over")
        datasets = self.data.end_snapshot(draft.progress, applied)
        offices = draft.offices or {}  # what is coordinated has an account of its own
        self._after(now)
        return Image(
            job=self.members.job,
            incarnation=self.members.incarnation,
            lease=self.numbers.newest,
            map_version=self.map_version,
            round=self.rounds.next_number,
            lineage=self.lineage,
            schedule=draft.schedule,
            warm=self.warm.over(),
            groups=tuple(
                GroupImage(group.spec, group.map.slice_elements, *clocks[group.spec.name])
                for group in self.groups
                if group.spec.name in clocks
            ),
            datasets=tuple(p for p in datasets if p.spec.name not in offices),
            offices=offices,
            bounds=dict(self.adaptation.bounds),
        )

    @event
    def drop_snapshot(self, name: str, why: str, now: float) -> None:
        """A snapshot could not be taken; the job goes on."""
        if self.draft is not None and self.draft.job == self.members.job:
            self.data.end_snapshot(self.draft.progress, ())
        self.draft = None
        for key in self.awaited(name):
            del self.asked[key]  # nothing was taken: whoever asks again may have it
        self.journal.say(f"snapshot {name} failed: {why}", now)
        self._after(now)

    def awaited(self, name: str = "") -> list[str]:
        """Keys of snapshots that are not complete yet: of this name, or of any."""
        asked = self.asked.items()
        return [key for key, a in asked if a.kept is None and name in ("", a.name)]

    @event
    def keep_snapshot(self, kept: Kept, job: int, text: str, now: float) -> None:
        """A snapshot is complete: from now on the job can go back to it."""
        self.journal.say(f"snapshot {kept.name}: {text}", now)
        for key in self.awaited(kept.name):
            self.asked[key].kept = kept
        if job == self.members.job:
            self.members.can_roll_back = True
            self.newest = kept
        self._after(now)

    # -- going on from one

    @property
    def untouched(self) -> bool:
        """Whether nobody has come yet, and nothing goes on from a snapshot."""
        return not self.members.arrivals and self.resumed is None

    @property
    def wants_snapshot(self) -> bool:
        """Whether the job was rolled back and waits to be told from which snapshot it goes on."""
        return bool(self.members.waits)

    def check_restore(self, force: bool) -> None:
        """Raises InvalidRequestError while workers are there, unless ``force`` sends them back."""
        live = self.members.live(Role.WORKER)
        if live and not force:
            raise InvalidRequestError(
                f"job {self.members.job} has {len(live)} workers, {live[0].name} among them: end "
                "it first, or add --force, which undoes what it did and starts its scripts again"
            )

    @event
    def restore(self, force: bool, now: float) -> None:
        """The job begins anew and waits for ``resume``; raises as ``check_restore``."""
        self.check_restore(force)
        if self.members.live(Role.WORKER):
            self.members.roll_back("asked for")
        else:
            self.members.begin_job()
        self._begin_anew()
        self._after(now, EVERYTHING)

    @event
    def resume(self, image: Image, source: Source, problems: Iterable[str], now: float) -> None:
        """The job that is about to begin goes on from a snapshot.

        Args:
            problems: what was wrong with newer snapshots, in words.
        """
        for problem in problems:
            self.journal.say(f"passed over: {problem}", now)
        self.members.resume(image.job, image.incarnation)
        if self.members.job != self._job:  # else workers may be there already
            self._begin_anew()
        self.numbers.skip_to(image.lease)
        self.map_version = max(self.map_version, image.map_version)
        self.rounds = Rounds(max(self.rounds.next_number, image.round))
        self.lineage = image.lineage
        self.schedule = image.schedule
        self.warm.resume(image.warm)
        self.data.resume(image.datasets)
        self.offices.resume(image.offices)
        self.resumed = Resumed(image, source)
        self.members.can_roll_back = True
        self.newest = source.kept
        self.journal.say(f"job {self.members.job} goes on from snapshot {source.name}", now)
        self._after(now, EVERYTHING)

    @event
    def give_up_restore(self, why: str, now: float) -> None:
        """There is nothing to go back to: the job fails."""
        self.members.fail(f"{self.members.waits}: {why}")
        self.members.waits = ""
        self.journal.say(why, now)
        self._after(now, EVERYTHING)

    def _place(self, now: float) -> None:
        """Deals the groups of the snapshot over the servers that are there."""
        resumed = self.resumed
        if resumed is None or resumed.placed or self.members.state is not JobState.RUNNING:
            return
        resumed.placed = True
        servers = self._servers()
        for group in resumed.image.groups:
            version = self._next_map_version()
            self.groups.restore(group.spec, servers, version, group.slice_elements)
            self.hold([name for name, _ in servers])
            if isinstance(group.spec.consistency, Adaptive):
                bound = resumed.image.bounds.get(group.spec.name)
                self.adaptation.open(group.spec.name, group.spec.consistency.max_bound, now, bound)
                self.members.changed()  # servers hear of bounds with the view
            self.journal.say(
                f"group {group.spec.name} goes on at clock {group.clock}, on {len(servers)} "
                f"servers, from snapshot {resumed.source.name}",
                now,
            )

    def restored(self, name: str) -> tuple[Source, GroupImage] | None:
        """Where a group's values come from; None: from its workers."""
        if self.resumed is None:
            return None
        for group in self.resumed.image.groups:
            if group.spec.name == name:
                return self.resumed.source, group
        return None
