"""Options that several commands share, and what an address may be."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, TypeVar

import click

from paramserver import config
from paramserver.errors import ConfigurationError
from paramserver.scheme_text import parse_scheme
from paramserver.trust import Trust
from paramserver.types import ASSIGNMENTS, DURABILITIES
from paramserver.wire import addresses

F = TypeVar("F", bound=Callable[..., Any])

# Options after the script are the script's own.
SCRIPT_SETTINGS = {"allow_interspersed_args": False}


def check_address(
    ctx: click.Context | None, param: click.Parameter | None, value: str | None
) -> str | None:
    """HOST:PORT, or [HOST]:PORT for IPv6, as given.

    Raises:
        click.BadParameter: it cannot be one.
    """
    if value is None:
        return None
    host, colon, port = value.rpartition(":")
    if not colon or not host or (":" in host and not host.startswith("[")):
        raise click.BadParameter(f"{value!r} is not HOST:PORT, such as 127.0.0.1:7070", ctx, param)
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise click.BadParameter(f"{value!r}: the port must be from 0 to 65535", ctx, param)
    return value


def split(address: str) -> tuple[str, int]:
    """Host without brackets, and port, of an address that was checked."""
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


@contextmanager
def usage_errors() -> Iterator[None]:
    """A value that cannot work is an error of usage."""
    try:
        yield
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from error


def check_bind(bind: str, trust: Trust) -> None:
    """Refuses an address that cannot be bound, or that lets in whom nobody knows.

    Raises:
        click.UsageError: says why, and the cure.
    """
    with usage_errors():
        addresses.check_bind(bind, trust)


def check_parties(workers: int, parties: int) -> None:
    """Refuses workers that do not make whole replicas.

    Raises:
        click.UsageError: with both numbers, and the cure.
    """
    with usage_errors():
        config.check_parties(workers, parties)


def check_durability(durability: str, servers: int) -> None:
    """Refuses too few servers for a durability.

    Raises:
        click.UsageError: with both, and the cure.
    """
    with usage_errors():
        config.check_durability(durability, servers)


def check_script(target: str, module: bool) -> None:
    """Refuses a script or module that is not there.

    Raises:
        click.UsageError: names it.
    """
    if not module and not Path(target).is_file():
        raise click.UsageError(f"script {target!r} not found; a module needs -m")
    if module:
        top = target.partition(".")[0]
        found = top in sys.builtin_module_names or PathFinder.find_spec(top, ["", *sys.path])
        if not found:
            raise click.UsageError(f"module {target!r} not found")


def check_scheme(
    ctx: click.Context | None, param: click.Parameter | None, value: str | None
) -> str | None:
    """The text of a scheme, as given; empty is none.

    Raises:
        click.BadParameter: it names no scheme.
    """
    try:
        return parse_scheme(value).text if value else None
    except ConfigurationError as error:
        raise click.BadParameter(str(error), ctx, param) from None


def worker_settings(scheme: str | None, run_dir: Path | None) -> dict[str, str]:
    """Environment variables that tell workers their scheme and where to write run files."""
    found = {} if scheme is None else {"PARAMSERVER_SCHEME": scheme}
    return found if run_dir is None else {**found, "PARAMSERVER_RUN_DIR": str(run_dir.resolve())}


scheduler_option: Callable[[F], F] = click.option(
    "--scheduler",
    envvar="PARAMSERVER_SCHEDULER",
    metavar="HOST:PORT",
    callback=check_address,
    required=True,
    show_envvar=True,
    help="Address of the scheduler.",
)
name_option: Callable[[F], F] = click.option(
    "--name",
    envvar="PARAMSERVER_NAME",
    show_envvar=True,
    help="Name in the cluster; the scheduler gives one otherwise.",
)
assign_option: Callable[[F], F] = click.option(
    "--assign",
    type=click.Choice(ASSIGNMENTS),
    default="dynamic",
    show_default=True,
    help="How data shards are dealt to workers.",
)
parties_option: Callable[[F], F] = click.option(
    "--parties",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="P",
    help="Parties, each with the features of its own: worker r is party r % P.",
)
durability_option: Callable[[F], F] = click.option(
    "--durability",
    type=click.Choice(DURABILITIES),
    default="memory",
    show_default=True,
    help="What an applied push survives: nothing; the end of a server's process (a journal on "
    "disk); or the loss of a server (a backup on another).",
)
lease_option: Callable[[F], F] = click.option(
    "--lease",
    type=click.FloatRange(min=0.1),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="Silence after which a member is lost.",
)
bind_option: Callable[[F], F] = click.option(
    "--bind",
    metavar="HOST:PORT",
    callback=check_address,
    default="127.0.0.1:0",
    show_default=True,
    help="Where to listen; port 0 lets the system choose.",
)
scheme_option: Callable[[F], F] = click.option(
    "--scheme",
    envvar="PARAMSERVER_SCHEME",
    show_envvar=True,
    metavar="TEXT",
    callback=check_scheme,
    help="Scheme instead of the script's own, such as stale:4 or sync/dynamic.",
)
run_dir_option: Callable[[F], F] = click.option(
    "--run-dir",
    envvar="PARAMSERVER_RUN_DIR",
    show_envvar=True,
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder where each worker writes its steps and scalars, as NAME.jsonl.",
)
once_option: Callable[[F], F] = click.option(
    "--once", is_flag=True, help="End when the job ends, with its exit code."
)
restarts_option: Callable[[F], F] = click.option(
    "--max-restarts",
    type=click.IntRange(min=0),
    metavar="N",
    default=3,
    show_default=True,
    help="How often a worker that was killed is started again.",
)
module_option: Callable[[F], F] = click.option(
    "-m", "--module", is_flag=True, help="SCRIPT is a module, as for python -m."
)
json_option: Callable[[F], F] = click.option("--json", "as_json", is_flag=True, help="As JSON.")
log_option: Callable[[F], F] = click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    help="What the log on standard error says.",
)


def snapshot_options(command: F) -> F:
    """Where snapshots go, when one is taken, and which one the job goes on from."""
    for option in reversed(
        (
            click.option(
                "--snapshot-dir",
                envvar="PARAMSERVER_SNAPSHOT_DIR",
                show_envvar=True,
                metavar="DIR",
                help="Folder or fsspec URL of snapshots, the same for the scheduler and servers.",
            ),
            click.option(
                "--snapshot-every",
                type=click.IntRange(min=1),
                metavar="N",
                help="Take one every N clocks.",
            ),
            click.option(
                "--snapshot-seconds",
                type=click.FloatRange(min=0, min_open=True),
                metavar="T",
                help=f"Take one every T seconds; {config.SNAPSHOT_S:g} where nothing else is said.",
            ),
            click.option(
                "--snapshot-keep",
                type=click.IntRange(min=1),
                default=3,
                show_default=True,
                metavar="K",
                help="Keep the newest K; those taken by name stay.",
            ),
            click.option(
                "--snapshot-delta",
                type=click.IntRange(0, config.MAX_DELTAS),
                default=0,
                show_default=True,
                metavar="N",
                help="After a whole one, take N that hold only the rows of tables that changed.",
            ),
            click.option(
                "--resume",
                metavar="NAME",
                help="Go on from this snapshot; `latest`: the newest that is whole.",
            ),
        )
    ):
        command = option(command)
    return command


def snapshot_config(**given: Any) -> config.SnapshotConfig:
    """The values of ``snapshot_options``.

    Raises:
        click.UsageError: snapshots without a place for them.
    """
    with usage_errors():
        return config.snapshot_config(**given)


def heartbeat(lease_s: float) -> float:
    """Seconds between heartbeats: 1, or a quarter of a short lease."""
    return min(1.0, lease_s / 4)
