"""A server's life beyond its process: what it finds, what it keeps, when it begins empty."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress

from paramserver.config import ServerConfig
from paramserver.errors import ConfigurationError, ParameterServerError
from paramserver.ps import checkpoint, records, wal
from paramserver.ps.dump import dump
from paramserver.ps.journal import Journal
from paramserver.ps.replay import Replay
from paramserver.ps.service import ServerService
from paramserver.ps.state_dir import StateDir
from paramserver.v1 import scheduler_pb2
from paramserver.wire.addresses import split_address

log = logging.getLogger("paramserver")

LOOK_S = 1.0  # seconds between looks at how long the journal has become


class Lasting:
    """Keeps the journal of a server in its state directory, where the job wants that.

    Attributes:
        name: of the server whose state was found; "" for none.
        resumes: the incarnation whose state is here; 0: this server is empty.
    """

    def __init__(self, config: ServerConfig, service: ServerService) -> None:
        self.name = ""
        self.resumes = 0
        self._config = config
        self._service = service
        self._state: StateDir | None = None
        self._replay: Replay | None = None
        self._wal: wal.Wal | None = None
        self._dumped = 0  # bytes of the newest dump
        self._kept = asyncio.Event()

    async def recover(self) -> int:
        """As ``ServerRole.recover``."""
        if self._config.state_dir is None:
            return 0
        self._state = state = StateDir(self._config.state_dir)
        if self._config.name not in (None, state.name) and state.name:
            raise ConfigurationError(
                f"--state-dir {state.folder}: keeps the state of {state.name}, not of "
                f"{self._config.name}; every server needs a folder of its own"
            )
        began, replay = time.monotonic(), Replay(self._service)
        self._service.name = state.name
        dumped = checkpoint.newest(state.folder)
        first = 0
        if dumped is not None:
            first, path = dumped
            for data in checkpoint.read(path):
                await replay.apply(first, data)
        for position, data in wal.read_all(state.folder, first):
            await replay.apply(position, data)
        self.name = state.name
        if replay.begun is not None:
            self._replay, self.resumes = replay, state.incarnation
            seconds = time.monotonic() - began
            log.info("read %d entries of the journal in %.1f s", replay.position, seconds)
        return state.port

    async def begin(
        self, reply: scheduler_pb2.RegisterReply, view: scheduler_pb2.View, address: str
    ) -> None:
        """Registered: goes on with what was found, or begins empty.

        Raises:
            ConfigurationError: the job keeps journals, and this server has no place for one.
        """
        if reply.durability == "wal" and self._state is None:
            raise ConfigurationError(
                "the job runs with --durability wal: start this server with --state-dir DIR"
            )
        if self._state is None:
            return
        incarnation = reply.identity.incarnation
        if reply.durability != "wal":
            self._stop()
        elif self._service.journal is None:
            await self._open(reply, view)
        elif not reply.resumed:
            self._service.reset()
            records.begun(self._service.journal, self._service.name, view.job)
        self._state.note(reply.identity.name, incarnation, split_address(address)[1])
        self.name, self.resumes = reply.identity.name, incarnation
        if reply.durability != "wal":
            self.resumes = 0

    def _stop(self) -> None:
        """Keeps nothing any more."""
        if self._wal is not None:
            self._service.reset()
            self._service.use(None)
            self._wal.close()
            self._wal = None
        self._forget()

    def _forget(self) -> None:
        assert self._state is not None
        if self._replay is not None:
            self._service.reset()
            self._replay = None
        self._state.wipe()

    async def _open(self, reply: scheduler_pb2.RegisterReply, view: scheduler_pb2.View) -> None:
        assert self._state is not None
        replay, service = self._replay, self._service
        begun = replay.begun if replay is not None else None
        goes_on = reply.resumed and begun is not None and begun.job == view.job
        if not goes_on:
            self._forget()
        position = replay.position if replay is not None and goes_on else 0
        journal = Journal(position)
        service.use(journal)
        self._wal = wal.Wal(self._state.folder, journal)
        journal.attach(self._wal)
        if goes_on:
            await service.resume()
        else:
            records.begun(journal, reply.identity.name, view.job)
        self._kept.set()
        self._replay = None

    async def keep(self) -> ParameterServerError:
        """Keeps the journal short, until it cannot be kept any more; why."""
        while True:
            await self._kept.wait()
            journal, files = self._service.journal, self._wal
            with suppress(asyncio.TimeoutError):
                failed = journal.failed.wait() if journal is not None else asyncio.sleep(LOOK_S)
                await asyncio.wait_for(failed, LOOK_S)
            if journal is not None and journal.failure is not None:
                return journal.failure
            limit = max(self._config.journal_bytes, 2 * self._dumped)
            moving = self._service.reshape.busy  # a dump speaks of no slices on their way
            if files is not None and files.bytes > limit and not moving:
                await self._compact(files)

    async def _compact(self, files: wal.Wal) -> None:
        """A dump takes the place of what the journal holds so far."""
        await self._service.reshape.still()
        try:
            await self._dump(files)
        finally:
            self._service.reshape.dumped()

    async def _dump(self, files: wal.Wal) -> None:
        journal, state = self._service.journal, self._state
        assert journal is not None
        assert state is not None
        job, position = self._service.views.current.job, journal.position
        files.begin_segment()
        file = None
        try:
            file = checkpoint.DumpFile(state.folder, position)
            async for data in dump(self._service):
                await asyncio.to_thread(file.write, data)
            await journal.durable()
            if self._service.views.current.job != job:
                file.give_up()  # it speaks of a job that is over
                return
            path = await asyncio.to_thread(file.finish)
            checkpoint.clear(state.folder, but=path)
            files.drop_before(position)
        except BaseException as error:
            if file is not None:
                file.give_up()
            if not isinstance(error, (OSError, ParameterServerError)):
                raise
            log.warning("the journal stays long: no dump could be written: %s", error)
            self._dumped = files.bytes  # tried again once it has grown to twice of that
            return
        self._dumped = max(file.bytes, files.bytes)
        log.info("the journal begins anew with a dump of %d bytes", file.bytes)

    def close(self) -> None:
        """Writes what has come, and lets go of the folder."""
        if self._wal is not None:
            self._wal.close()
        if self._state is not None:
            self._state.close()
