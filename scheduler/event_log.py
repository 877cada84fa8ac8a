"""The scheduler's memory on disk: the events of its state in SQLite, told again after a restart.

An event is written and synced before anybody hears of it. All that waits is written in one
transaction. From time to time the whole state is written instead, and the events before it go.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import socket
import sqlite3
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from paramserver.config import SchedulerConfig
from paramserver.errors import ConfigurationError, ConnectionLostError, InternalError
from paramserver.failpoints import failpoint
from paramserver.scheduler.events import is_event
from paramserver.scheduler.plain import from_text, to_text
from paramserver.scheduler.state import SchedulerState

FORMAT = "1"
EVENTS_PER_STATE = 20_000  # at least; a large state is written less often
SAME = ("workers", "servers", "parties", "assign", "durability")  # a running job rests on these
_FILE = "scheduler.sqlite"
_log = logging.getLogger("paramserver")

_TABLES = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS states (number INTEGER PRIMARY KEY, state TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS events (
    number INTEGER PRIMARY KEY, at REAL NOT NULL, method TEXT NOT NULL,
    arguments TEXT NOT NULL, stamp TEXT NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class Told:
    """A state told from the log, and the time of its newest event."""

    state: SchedulerState
    at: float
    events: int


class EventLog:
    """One state directory, locked for as long as this is open.

    Args:
        folder: made if it is not there.

    Raises:
        ConfigurationError: another scheduler uses it, or it cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = _lock(folder)
        try:
            self._database = _open(folder / _FILE)
        except (sqlite3.Error, UnicodeDecodeError) as error:
            self._lock.close()
            raise ConfigurationError(
                f"--state-dir {folder}: {error}; use a folder on a local disk with room"
            ) from error
        self._thread = ThreadPoolExecutor(1, "paramserver log")
        self._rows: list[tuple[str, tuple[Any, ...]]] = []  # statements to be written, in order
        self._number = self._appended = self._written = 0
        self._since = 0  # events since a whole state
        self._pause = EVENTS_PER_STATE
        self._job = 0
        self._flushing: asyncio.Task[None] | None = None
        self._failed = False  # at the last attempt to write

    # -- at start

    def tell(self, config: SchedulerConfig) -> Told | None:
        """The state that the log leads to; None for a new folder, or where all has ended.

        Raises:
            ConfigurationError: a job is under way that began with other options.
            InternalError: the log does not lead to the state in which it was written.
        """
        try:
            return self._tell(config)
        except ConfigurationError:
            raise
        except (sqlite3.Error, ValueError, LookupError, TypeError, AttributeError) as error:
            raise ConfigurationError(
                f"--state-dir {self._folder}: damaged: {error}; use another folder, and restore "
                "the newest snapshot"
            ) from error

    def _tell(self, config: SchedulerConfig) -> Told | None:
        if self.fact("format", FORMAT) != FORMAT:
            raise ConfigurationError(
                f"--state-dir {self._folder} was written by another version of paramserver; "
                "use that version until its job has ended, or another folder"
            )
        told = self._replay(replace(config, **self._options_before(config)))
        return None if told is None else self._unless_over(told, config)

    def _replay(self, config: SchedulerConfig) -> Told | None:
        """The state, under the options of then."""
        found = self._database.execute(
            "SELECT number, state FROM states ORDER BY number DESC LIMIT 1"
        ).fetchone()
        if found is None:
            return None
        number, text = found
        state: SchedulerState = from_text(text, config)
        at = float(self.fact("at", "0"))
        rows = self._database.execute(
            "SELECT number, at, method, arguments, stamp FROM events WHERE number > ? "
            "ORDER BY number",
            (number,),
        )
        for number, then, method, arguments, stamp in rows:
            at = then
            _again(state, method, *from_text(arguments, config))
            if state.stamp() != stamp:
                raise InternalError(
                    f"--state-dir {self._folder}: event {number}, {method}, leads to "
                    f"{state.stamp()} instead of {stamp}: written by another version, or "
                    "changed since; use another folder, and please report it"
                )
            self._since += 1
        self._number = number
        return Told(state, at, self._since)

    def _unless_over(self, told: Told, config: SchedulerConfig) -> Told | None:
        options = {name: getattr(config, name) for name in SAME}
        before = options | self._options_before(config)
        differ = [name for name in SAME if options[name] != before[name]]
        if not differ:
            return told
        if told.state.members.ended():
            return None  # the next job may have other options
        name = differ[0]
        raise ConfigurationError(
            f"--state-dir {self._folder}: its job began with {name}={before[name]}, now "
            f"{name}={options[name]}; start the scheduler as before, or with another folder"
        )

    def _options_before(self, config: SchedulerConfig) -> dict[str, Any]:
        found: dict[str, Any] = from_text(self.fact("options", to_text({})), config)
        return found

    def fact(self, name: str, default: str) -> str:
        """A fact as ``note`` left it."""
        found = self._database.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return str(found[0]) if found else default

    # -- while it runs

    def begin(self, state: SchedulerState, config: SchedulerConfig, now: float) -> None:
        """From now on the events of this state are written; before them, the state."""
        self.note("format", FORMAT)
        self.note("options", to_text({name: getattr(config, name) for name in SAME}))
        self._keep(state, now)

    def note(self, name: str, value: str) -> None:
        """A fact beside the events, such as the port."""
        self._append("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    def record(
        self,
        state: SchedulerState,
        now: float,
        method: str,
        arguments: Sequence[Any],
        named: Mapping[str, Any],
    ) -> None:
        """An event has happened; it is durable once ``durable`` returns."""
        self._number += 1
        self._since += 1
        row = (self._number, now, method, to_text([arguments, dict(named)]), state.stamp())
        self._append("INSERT INTO events VALUES (?, ?, ?, ?, ?)", row)
        if self._since >= self._pause or state.members.job != self._job:
            self._keep(state, now)

    def _keep(self, state: SchedulerState, now: float) -> None:
        """Writes the whole state; the events that led to it go."""
        text = to_text(state)
        self._since, self._pause = 0, max(EVENTS_PER_STATE, len(text) // 64)
        self._job = state.members.job
        self.note("at", str(now))
        self._append("INSERT OR REPLACE INTO states VALUES (?, ?)", (self._number, text))
        self._append("DELETE FROM states WHERE number < ?", (self._number,))
        self._append("DELETE FROM events WHERE number <= ?", (self._number,))

    def _append(self, statement: str, row: tuple[Any, ...]) -> None:
        self._rows.append((statement, row))
        self._appended += 1

    async def durable(self) -> None:
        """Returns when all that has happened so far is on disk.

        Raises:
            ConnectionLostError: it cannot be written now. For whoever called that is a scheduler
                which is away: the call is made again, and this tries again. Nothing is lost.
        """
        wanted = self._appended
        while self._written < wanted:
            if self._flushing is None or self._flushing.done():
                self._flushing = asyncio.get_running_loop().create_task(self._flush())
            await asyncio.shield(self._flushing)

    async def _flush(self) -> None:
        rows = list(self._rows)
        loop = asyncio.get_running_loop()
        try:
            await loop.run_in_executor(self._thread, self._write, rows)
        except (sqlite3.Error, OSError) as error:
            text = f"the scheduler cannot write {self._folder}: {error}"
            if not self._failed:
                _log.error("%s; make room there, it goes on by itself", text)
            self._failed = True
            raise ConnectionLostError(f"{text}; make room there, it goes on by itself") from error
        if self._failed:
            _log.warning("the scheduler can write %s again", self._folder)
        self._failed = False
        del self._rows[: len(rows)]
        self._written += len(rows)

    def _write(self, rows: Sequence[tuple[str, tuple[Any, ...]]]) -> None:
        failpoint("scheduler.before_write")
        with self._database:
            for statement, row in rows:
                self._database.execute(statement, row)

    def close(self) -> None:
        """Writes what is left, and lets go of the folder."""
        self._thread.shutdown()
        try:
            self._write(self._rows)
        except (sqlite3.Error, OSError) as error:
            _log.error("the state of the scheduler was not written to its end: %s", error)
        self._rows.clear()
        self._database.close()
        self._lock.close()


def _again(
    state: SchedulerState, method: str, arguments: Sequence[Any], named: Mapping[str, Any]
) -> None:
    """An event happens again; one that was refused is refused again."""
    if not is_event(state, method):
        raise InternalError(f"the log has an event {method!r}, which this version does not know")
    try:
        getattr(state, method)(*arguments, **named)
    except Exception as error:
        _log.debug("%s was refused then and now: %s", method, error)


def _lock(folder: Path) -> IO[str]:
    """The open lock file of a folder; the kernel lets go of it with the process."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("a+")
    except OSError as error:
        raise ConfigurationError(f"--state-dir {folder}: {error}; use another folder") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise ConfigurationError(
            f"--state-dir {folder}: in use by {holder}; stop that scheduler, or use another folder"
        ) from None
    file.truncate(0)
    file.write(f"pid {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file


def _open(path: Path) -> sqlite3.Connection:
    database = sqlite3.connect(path, check_same_thread=False)
    try:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=FULL")  # an answer outlives the machine
        database.executescript(_TABLES)
    except BaseException:
        database.close()
        raise
    return database
