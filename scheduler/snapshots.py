"""When snapshots are taken, how they come to be, and how a job goes on from one."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass

from paramserver.config import MAX_DELTAS
from paramserver.core.members import JobState, Role
from paramserver.errors import InvalidRequestError, ParameterServerError, SnapshotError
from paramserver.scheduler.cutting import Cutter, Taken
from paramserver.scheduler.facts import Kept
from paramserver.scheduler.image import Image
from paramserver.scheduler.recovery import AsyncServerChannel
from paramserver.scheduler.snapshot_choice import base_for, choose, kept_of, source_of
from paramserver.scheduler.snapshot_events import ASKED
from paramserver.scheduler.state import SchedulerState
from paramserver.scheduler.topics import SNAPSHOT
from paramserver.snapshot_files import (
    Manifest,
    Store,
    check_snapshot_name,
    complete,
    open_store,
    prune,
    write_manifest,
)

log = logging.getLogger(__name__)

SCHEDULE_S = 10.0  # for the chief to tell its schedule at the cut
AGAIN_S = 30.0  # after a snapshot that failed
_AUTOMATIC = re.compile(r"auto-(\d{1,12})")


@dataclass(slots=True)
class Taking:
    """A snapshot that was asked for: ``kept`` or ``error`` once it is over.

    Attributes:
        delta: snapshots that it may build on, to hold of tables only what changed; 0: none.
    """

    name: str
    delta: int = 0
    kept: Kept | None = None
    error: ParameterServerError | None = None

    @property
    def over(self) -> bool:
        return self.kept is not None or self.error is not None


class Snapshots:
    """Takes snapshots of the jobs of one scheduler, and restores them. For one event loop.

    Args:
        connect: a channel to the server at an address; kept open.
        wait: parks until a topic is woken, or so many seconds are over.
        after: called after each event.
    """

    def __init__(
        self,
        state: SchedulerState,
        now: Callable[[], float],
        connect: Callable[[str], AsyncServerChannel],
        wait: Callable[[str, float | None], Awaitable[None]],
        after: Callable[[], None],
    ) -> None:
        self._state, self._now, self._connect = state, now, connect
        self._wait, self._after = wait, after
        self._config = state.config.snapshots
        self._channels: dict[str, AsyncServerChannel] = {}
        self._asked: dict[str, Taking] = {}
        self._current: Taking | None = None
        self._cutting: tuple[int, asyncio.Task[None]] | None = None  # a job, and its snapshot
        self._restoring: asyncio.Task[None] | None = None
        self._number = 0
        self._last = (0, now())  # clock and time of the newest
        self._not_before = 0.0
        self._store: Store | None = None
        self._owned = ExitStack()

    @property
    def on(self) -> bool:
        """Whether there is a place for snapshots."""
        return bool(self._config.directory)

    async def begin(self) -> None:
        """Reads what is there, and has the first job go on from a snapshot if it is to.

        A job that the scheduler before this one began goes on as it is, unless it has failed.

        Raises:
            ConfigurationError: another scheduler has the place.
            ParameterServerError: no such snapshot, or none that is whole.
        """
        if not self.on:
            return
        self._store = await asyncio.to_thread(open_store, self._config.directory)
        with ExitStack() as owned:
            owned.enter_context(self._store.own())
            await self._look_back(self._store)
            self._owned = owned.pop_all()

    async def _look_back(self, store: Store) -> None:
        self._number = await asyncio.to_thread(_newest_number, store)
        state = self._state
        await self._take_stock()
        if not self._config.resume:
            return
        if state.members.state is JobState.FAILED and not state.members.live(Role.WORKER):
            found = await asyncio.to_thread(choose, store, self._config.resume, "")
            state.restore(False, self._now())
            self._take_up(*found)
        elif state.untouched:
            await self._resume(self._config.resume)

    async def _take_stock(self) -> None:
        """What the scheduler before this one was about is complete, or was never taken."""
        assert self._store is not None
        state, now = self._state, self._now()
        there = await asyncio.to_thread(_taken_of, self._store, state.lineage)
        asked = {state.asked[key].name for key in state.awaited()}
        known = [m for m in there if m.name in asked]
        if not state.members.can_roll_back:
            known = there
        for manifest in known:
            state.keep_snapshot(kept_of(manifest), state.members.job, "is whole", now)
        left = {state.asked[key].name for key in state.awaited()}
        if state.draft is not None:
            left.add(state.draft.name)
        for name in left:
            state.drop_snapshot(name, "the scheduler was started again", now)
            if name and name not in {m.name for m in there}:
                await self._discard(name)

    async def close(self) -> None:
        """Gives up what is under way, and lets go of the place."""
        cutting = None if self._cutting is None else self._cutting[1]
        tasks = [task for task in (cutting, self._restoring) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._owned.close()

    # -- taking

    def ask(self, name: str, key: str, delta: bool = False) -> Taking:
        """Begins a snapshot, or joins the one that was asked for under this key, even if that was
        of the scheduler before this one.

        Args:
            delta: of tables only what changed since the snapshot before, if there is one.

        Raises:
            InvalidRequestError: nothing to take one of, or no place for it.
        """
        if key in self._asked:
            return self._asked[key]
        before = self._state.asked.get(key)
        if before is not None and before.kept is not None:
            return Taking(before.name, kept=before.kept)
        if self._store is None:
            raise InvalidRequestError(
                "this scheduler keeps no snapshots; start it with --snapshot-dir DIR"
            )
        if name:
            check_snapshot_name(name)
            if _AUTOMATIC.fullmatch(name):
                raise InvalidRequestError(f"snapshot name {name!r}: auto-N are given by themselves")
        name = name or f"manual-{self._number + 1:06d}"
        taking = self._start(name, key, MAX_DELTAS if delta else 0)
        if key:
            self._asked[key] = taking
            while len(self._asked) > ASKED:
                del self._asked[next(iter(self._asked))]
        return taking

    def tick(self) -> None:
        """Takes a snapshot if one is due, and goes back to one if a server was lost."""
        state, now = self._state, self._now()
        if state.wants_snapshot and self._restoring is None:
            self._restoring = asyncio.create_task(self._go_back())
            self._restoring.add_done_callback(self._went_back)
        if self._cutting is not None and self._cutting[0] != state.members.job:
            self._cutting[1].cancel()  # its servers may never answer
        running = state.members.state is JobState.RUNNING and self._store is not None
        if not running or self._current is not None or now < self._not_before:
            return
        clock, then = self._last
        by_clock = self._config.every and self._clock() - clock >= self._config.every
        by_time = self._config.seconds and now - then >= self._config.seconds
        if by_clock or by_time:
            try:
                self._start(f"auto-{self._number + 1:06d}", "", self._config.delta)
            except ParameterServerError as error:  # no values yet
                self._not_before = now + self._state.config.heartbeat_s
                log.debug("no snapshot now: %s", error)

    def _clock(self) -> int:
        """The furthest clock that a worker has told of."""
        clocks = self._state.figures.clocks
        live = [m.name for m in self._state.members.live(Role.WORKER)]
        return max((c for name in live for c in clocks.get(name, {}).values()), default=0)

    def _start(self, name: str, key: str, delta: int) -> Taking:
        self._state.begin_snapshot(name, key)
        self._number += 1
        self._current = taking = Taking(name, delta)
        task = asyncio.create_task(self._take(taking))
        self._cutting = self._state.members.job, task
        return taking

    async def _take(self, taking: Taking) -> None:
        assert self._store is not None
        began, clock, name = self._now(), self._clock(), taking.name
        try:
            if await asyncio.to_thread(self._store.files, name):
                raise InvalidRequestError(f"snapshot {name!r} is there already; give another name")
            taken = await self._cut(name, taking.delta)
            await self._await_schedule(taken)
            kept = await self._write(name, taken, began)
        except BaseException as error:
            known = error if isinstance(error, ParameterServerError) else None
            taking.error = known or SnapshotError(f"{type(error).__name__}: {error}")
            self._not_before = self._now() + AGAIN_S
            self._state.drop_snapshot(name, str(taking.error), self._now())
            if not isinstance(error, Exception):
                raise
            if not isinstance(error, InvalidRequestError):
                log.warning("snapshot %s: %s", name, error)
                await self._discard(name)
        else:
            taking.kept = kept
            reached = max((c for c, _ in taken.clocks.values()), default=clock)
            self._last = (reached, self._now())
            await self._prune(name)
        finally:
            self._current = self._cutting = None
            self._state.wake(SNAPSHOT)
            self._after()

    async def _cut(self, name: str, delta: int) -> Taken:
        assert self._store is not None
        state, job = self._state, self._state.members.job
        groups = [group for group in state.groups if group.stored]
        base = None
        if delta and any(group.spec.table is not None for group in groups):
            resumed = state.resumed.source.name if state.resumed is not None else ""
            base = await asyncio.to_thread(
                base_for, self._store, state.lineage, job, resumed, delta
            )
        cutter = Cutter(job, groups, self._channel, state.next_hold(), state.chose_cut, base)
        return await cutter.take(self._config.directory, name)

    def _channel(self, address: str) -> AsyncServerChannel:
        return self._channels.setdefault(address, self._connect(address))

    async def _await_schedule(self, taken: Taken) -> None:
        """Until the chief has told how its schedule stood at the cut; not for ever."""
        draft, end = self._state.draft, self._now() + SCHEDULE_S
        while draft is not None and draft is self._state.draft and draft.wanted is not None:
            left = end - self._now()
            if draft.caught or not self._state.members.live(Role.WORKER):
                return
            if left <= 0:
                clock = draft.schedule.clock if draft.schedule else 0
                log.warning(
                    "the chief has not told its schedule at clock %d: the snapshot has that of "
                    "clock %d",
                    draft.wanted,
                    clock,
                )
                return
            await self._wait(SNAPSHOT, left)

    async def _write(self, name: str, taken: Taken, began: float) -> Kept:
        assert self._store is not None
        image = self._state.end_snapshot(taken.clocks, taken.applied, self._now())
        manifest = Manifest(
            name=name,
            id=self._number,
            job=image.job,
            created=time.time(),
            files=taken.files,
            state=image.to_json(),
        )
        await asyncio.to_thread(write_manifest, self._store, manifest)
        clocks = sorted({clock for clock, _ in taken.clocks.values()})
        held = f", pushes were held for {taken.held_s:.3f} s" if taken.held_s else ""
        since = f", changes since {manifest.base}" if manifest.base else ""
        text = f"{manifest.nbytes} bytes at clock {', '.join(map(str, clocks))}{since}{held}"
        kept = kept_of(manifest, taken.held_s, self._now() - began)
        self._state.keep_snapshot(kept, image.job, text, self._now())
        return kept

    async def _discard(self, name: str) -> None:
        """What never became a snapshot goes; if it cannot, a later one takes it along."""
        assert self._store is not None
        try:
            await asyncio.to_thread(self._store.delete, name)
        except (ParameterServerError, OSError) as error:
            log.warning("what is left of snapshot %s: %s", name, error)

    async def _prune(self, name: str) -> None:
        assert self._store is not None
        lineage = self._state.lineage
        try:
            gone = await asyncio.to_thread(_prune, self._store, self._config.keep, lineage)
        except (ParameterServerError, OSError) as error:
            log.warning("old snapshots stay: %s", error)
        else:
            if gone:
                log.info("snapshots %s are gone: %d are kept", ", ".join(gone), self._config.keep)

    # -- going on from one

    async def restore(self, name: str, force: bool) -> tuple[Manifest, list[str]]:
        """Begins a job that goes on from a snapshot; what is wrong with newer ones.

        Raises:
            InvalidRequestError: workers are there, without ``force``; no place for snapshots.
            SnapshotError: no such snapshot, or a damaged one.
        """
        self._state.check_restore(force)
        if self._store is None:
            raise InvalidRequestError(
                "this scheduler keeps no snapshots; start it with --snapshot-dir DIR"
            )
        found = await asyncio.to_thread(choose, self._store, name, "")
        self._state.restore(force, self._now())
        self._take_up(*found)
        self._after()
        return found

    async def _resume(self, name: str) -> None:
        assert self._store is not None
        self._take_up(*await asyncio.to_thread(choose, self._store, name, ""))

    async def _go_back(self) -> None:
        """A server was lost: the job goes on from its newest snapshot that is whole."""
        try:
            if self._store is None:
                raise SnapshotError(
                    "this scheduler was started again without --snapshot-dir; start it as before"
                )
            found = await asyncio.to_thread(choose, self._store, "latest", self._state.lineage)
            self._take_up(*found)
        except (ParameterServerError, OSError) as error:
            self._state.give_up_restore(str(error), self._now())

    def _went_back(self, task: asyncio.Task[None]) -> None:
        self._restoring = None
        if not task.cancelled():
            self._after()

    def _take_up(self, manifest: Manifest, problems: list[str]) -> None:
        assert self._store is not None
        for problem in problems:
            log.warning("passed over: %s", problem)
        image = Image.from_json(manifest.state)
        source = source_of(self._store, manifest, self._config.directory)
        self._state.resume(image, source, problems, self._now())
        self._last = (max((g.clock for g in image.groups), default=0), self._now())


def _newest_number(store: Store) -> int:
    """The largest number of a snapshot, or of what was begun as one."""
    begun = [int(m[1]) for name in store.folders() if (m := _AUTOMATIC.fullmatch(name))]
    return max([0, *begun, *(manifest.id for manifest in complete(store))])


def _taken_of(store: Store, lineage: str) -> list[Manifest]:
    """Complete snapshots of this training, the oldest first."""
    return [m for m in complete(store) if m.state.get("lineage") == lineage]


def _prune(store: Store, keep: int, lineage: str) -> list[str]:
    """Deletes old snapshots of this training that nobody named."""
    others = {
        m.name
        for m in complete(store)
        if m.state.get("lineage") != lineage or not _AUTOMATIC.fullmatch(m.name)
    }
    return prune(store, keep, others)
