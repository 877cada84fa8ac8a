"""``scheduler``, ``ps`` and ``worker``: one role in one process."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import click

from paramserver.cli import options
from paramserver.cli.exits import KILLED, restart_reason, was_rolled_back
from paramserver.cli.limits import limit_option
from paramserver.cli.signals import ending
from paramserver.cli.trust import role_trust_options, trust_options
from paramserver.config import Limits, SchedulerConfig, ServerConfig
from paramserver.launch import (
    GRACE_S,
    Child,
    RestartRule,
    describe_exit,
    read_identity,
    report_exit,
    script_command,
    worker_environment,
)
from paramserver.trust import OPEN, Trust
from paramserver.types import Durability

PARENT = "PARAMSERVER_PARENT"


@click.command()
@options.bind_option
@click.option(
    "--workers",
    envvar="PARAMSERVER_WORKERS",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    show_envvar=True,
    metavar="N",
    help="Workers that a job starts with.",
)
@click.option(
    "--servers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Servers that a job starts with.",
)
@options.parties_option
@options.assign_option
@options.lease_option
@options.durability_option
@click.option(
    "--server-timeout",
    type=click.FloatRange(min=1.0),
    default=300.0,
    show_default=True,
    metavar="SECONDS",
    help="How long a lost server is waited for, with --durability wal.",
)
@click.option(
    "--state-dir",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Folder for its state: a scheduler that is started on it again, at the same address, "
    "takes the job up where it was.",
)
@options.once_option
@limit_option
@options.snapshot_options
@role_trust_options
@options.log_option
def scheduler(
    bind: str,
    workers: int,
    servers: int,
    parties: int,
    assign: str,
    lease: float,
    durability: Durability,
    server_timeout: float,
    state_dir: Path | None,
    once: bool,
    limits: Limits,
    trust: Trust,
    log_level: str,
    **snapshots: Any,
) -> None:
    """The scheduler of a cluster: membership, slice map, data shards, job state.

    Start it first; prints its address when it is ready.
    """
    options.check_bind(bind, trust)
    options.check_parties(workers, parties)
    config = SchedulerConfig(
        bind=bind,
        workers=workers,
        servers=servers,
        parties=parties,
        assign=assign,
        lease_s=lease,
        heartbeat_s=options.heartbeat(lease),
        durability=durability,
        server_timeout_s=server_timeout,
        once=once,
        limits=limits,
        trust=trust,
        state_dir=str(state_dir) if state_dir is not None else None,
        snapshots=options.snapshot_config(**snapshots),
    )
    from paramserver.scheduler.main import serve

    run_role(log_level, serve(config, print_ready))


@click.command()
@options.scheduler_option
@options.bind_option
@click.option(
    "--advertise", metavar="HOST[:PORT]", help="Where others reach this server, if not at --bind."
)
@options.name_option
@click.option(
    "--threads",
    type=click.IntRange(min=0),
    default=0,
    metavar="N",
    help="Tensor operations at a time; 0: one per core, at most 4.",
)
@click.option(
    "--state-dir",
    type=click.Path(file_okay=False),
    metavar="DIR",
    help="Folder of this server alone for its journal (--durability wal): a server started on it "
    "again goes on where it was.",
)
@options.once_option
@limit_option
@role_trust_options
@options.log_option
def ps(
    scheduler: str,
    bind: str,
    advertise: str | None,
    name: str | None,
    threads: int,
    state_dir: str | None,
    once: bool,
    limits: Limits,
    trust: Trust,
    log_level: str,
) -> None:
    """A server: holds slices of the parameters and steps them.

    Waits for the scheduler; prints its address when it is ready.
    """
    options.check_bind(bind, trust)
    config = ServerConfig(
        scheduler=scheduler,
        bind=bind,
        advertise=advertise,
        name=name,
        threads=threads,
        state_dir=state_dir,
        once=once,
        limits=limits,
        trust=trust,
    )
    from paramserver.ps.main import serve

    run_role(log_level, serve(config, print_ready))


@click.command(context_settings=options.SCRIPT_SETTINGS)
@options.scheduler_option
@options.name_option
@options.restarts_option
@trust_options
@options.module_option
@click.argument("script")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def worker(
    ctx: click.Context,
    scheduler: str,
    name: str | None,
    max_restarts: int,
    trust: Trust,
    module: bool,
    script: str,
    args: tuple[str, ...],
) -> None:
    """A script as a worker: SCRIPT finds the cluster through its environment.

    Ends with the exit code of the script, and tells the cluster how the script ended.
    """
    options.check_script(script, module)
    with tempfile.TemporaryDirectory(prefix="paramserver-") as folder:
        identity = Path(folder, "identity.json")
        launcher = WorkerLauncher(
            scheduler=scheduler,
            name=name,
            command=script_command(script, args, module=module),
            identity=identity,
            rule=RestartRule(max_restarts),
            trust=trust,
        )
        ctx.exit(launcher.run())


class WorkerLauncher:
    """Runs one script to its end, again if it was killed, and forwards signals to it."""

    def __init__(
        self,
        *,
        scheduler: str,
        name: str | None,
        command: list[str],
        identity: Path,
        rule: RestartRule,
        trust: Trust = OPEN,
    ) -> None:
        """Nothing is started yet."""
        self._scheduler = scheduler
        self._name = name
        self._command = command
        self._identity = identity
        self._rule = rule
        self._trust = trust
        self._asked = 0
        self._events: SimpleQueue[int] = SimpleQueue()

    def run(self) -> int:
        """The exit code of the script, or of the signal that ended it."""
        for number in ending():
            signal.signal(number, self._on_signal)
        while True:
            child = self._once()
            name, code = self._name or "worker", child.code or 0
            why = restart_reason(child)
            if self._asked or not (why and self._rule.restarts(name, KILLED)):
                again = report_exit(self._scheduler, self._identity, name, code, self._trust)
                if self._asked or not (again or was_rolled_back(child)):
                    return code
                why = "was sent back to a snapshot"
            click.echo(f"{name} {why}, {describe_exit(code)}; starting it again", err=True)

    def _once(self) -> Child:
        who = read_identity(self._identity)
        if who is not None:
            self._name = who.name  # the name that the scheduler gave before
        self._identity.unlink(missing_ok=True)
        env = worker_environment(
            {**os.environ, **self._trust.environment()},
            scheduler=self._scheduler,
            name=self._name,
            identity=self._identity,
        )
        name = self._name or "worker"
        child = Child(name, "worker", self._command, env=env, on_exit=self._on_exit)
        while number := self._events.get():
            child.send(signal.SIGKILL if self._asked > 1 else number)
        assert child.code is not None
        return child

    def _on_signal(self, number: int, frame: object) -> None:
        self._asked += 1
        self._events.put(number)

    def _on_exit(self, child: Child) -> None:
        self._events.put(0)


def print_ready(name: str, address: str) -> None:
    """Prints the line that says where a role listens; others wait for it."""
    with suppress(OSError):
        print(f"paramserver {name} ready at {address}", flush=True)


def run_role(log_level: str, work: Coroutine[Any, Any, int]) -> None:
    """Runs a role to its end and ends the process with its exit code."""
    logging.basicConfig(
        level=log_level.upper(),
        format="%(asctime)s %(levelname)s %(message)s",
        datefmt="%Y-%m-%d %H:%M:%S",
        stream=sys.stderr,
    )
    watch_parent()
    sys.exit(asyncio.run(work))


def watch_parent() -> None:
    """Ends this process soon after the launcher that started it, where the kernel does not."""
    parent = os.environ.get(PARENT, "")
    if not parent.isdigit():
        return

    def watch() -> None:
        while os.getppid() == int(parent):
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_S)
        os._exit(143)

    threading.Thread(target=watch, name="watch parent", daemon=True).start()
