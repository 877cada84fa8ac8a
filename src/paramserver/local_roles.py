"""The scheduler and the servers of a local cluster: started, started again, ended."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from paramserver.config import SnapshotConfig, check_durability, check_parties
from paramserver.launch import (
    Child,
    RestartRule,
    describe_exit,
    role_command,
    role_environment,
    stop,
)
from paramserver.types import Durability


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What the processes are told; attributes as the arguments of ``local_cluster``."""

    servers: int
    workers: int
    parties: int
    assign: str
    lease: float
    durability: Durability = "memory"
    snapshots: SnapshotConfig = field(default_factory=SnapshotConfig)
    state_dir: Path | None = None

    @property
    def lasts(self) -> bool:
        """Whether a job can outlast one of the processes: one that is killed starts again."""
        kept = self.durability != "memory" or self.snapshots.directory
        return bool(kept) or self.state_dir is not None


class LocalRoles:
    """The processes of one shape. All methods are for one thread.

    Raises:
        JobFailedError: a process did not come up; has what it said.
    """

    def __init__(self, shape: Shape) -> None:
        check_parties(shape.workers, shape.parties)
        check_durability(shape.durability, shape.servers)
        self._shape = shape
        self._children: dict[str, Child] = {}
        self._rule = RestartRule()
        self._lock = threading.RLock()  # processes end whenever they do
        self._over = False
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    @property
    def address(self) -> str:
        """HOST:PORT of the scheduler."""
        return self._children["scheduler"].wait_ready()

    @property
    def processes(self) -> dict[str, int]:
        """Process ids by name, of those that run."""
        with self._lock:
            return {name: c.pid for name, c in self._children.items() if c.code is None}

    def _start(self) -> None:
        self._start_role("scheduler")
        self._scheduler = self.address
        names = [f"ps-{i}" for i in range(self._shape.servers)]
        for name in names:
            self._start_role(name)
        for name in names:
            self._children[name].wait_ready()

    def _start_role(self, name: str) -> None:
        role = "scheduler" if name == "scheduler" else "ps"
        flags = self._scheduler_flags() if role == "scheduler" else self._server_flags(name)
        command = [*role_command(role, bind="127.0.0.1:0", **flags), "--log-level", "warning"]
        env = role_environment(os.environ)
        self._children[name] = Child(
            name, role, command, env=env, on_line=_show, on_exit=self._on_exit
        )

    def _scheduler_flags(self) -> Mapping[str, object]:
        shape = self._shape
        return {
            "workers": shape.workers,
            "servers": shape.servers,
            "parties": shape.parties,
            "assign": shape.assign,
            "lease": shape.lease,
            "durability": shape.durability,
            "state_dir": self._state_dir("scheduler") if shape.lasts else None,
            **shape.snapshots.flags(),
        }

    def _server_flags(self, name: str) -> Mapping[str, object]:
        state = self._state_dir(name) if self._shape.durability == "wal" else None
        return {"scheduler": self._scheduler, "name": name, "state_dir": state}

    def _state_dir(self, name: str) -> Path:
        if self._shape.state_dir is not None:
            return self._shape.state_dir / name
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="paramserver-")
        return Path(self._folder.name, name)

    def _on_exit(self, child: Child) -> None:
        with self._lock:
            if self._over or child.stopped or self._children.get(child.name) is not child:
                return
            code = child.code or 0
            if self._shape.lasts and self._rule.restarts(child.name, code):
                said = f"{child.name} was killed, {describe_exit(code)}; starting it again"
                print(said, file=sys.stderr)
                self._start_role(child.name)

    def stop(self) -> None:
        """Ends all of them; none is started again."""
        with self._lock:
            self._over = True
        stop(self._children.values())
        self._children.clear()
        if self._folder is not None:
            self._folder.cleanup()


def without_resume(shape: Shape) -> Shape:
    """For the next job, which begins empty."""
    return replace(shape, snapshots=replace(shape.snapshots, resume=""))


def _show(child: Child, stream: str, line: str) -> None:
    if stream == "stderr" and not child.stopped:
        print(f"{child.name}: {line}", file=sys.stderr)
