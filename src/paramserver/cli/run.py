"""``run``: a whole cluster on this machine, from its start to its last process."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click

from paramserver.cli import options
from paramserver.cli.output import Output
from paramserver.cli.plan import Plan
from paramserver.cli.supervisor import Supervisor
from paramserver.cli.trust import trust_options
from paramserver.launch import (
    script_command,
)
from paramserver.trust import Trust
from paramserver.types import Durability


@click.command(context_settings=options.SCRIPT_SETTINGS)
@click.option(
    "-s",
    "--servers",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="N",
    help="Servers.",
)
@click.option(
    "-w",
    "--workers",
    envvar="PARAMSERVER_WORKERS",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    show_envvar=True,
    metavar="N",
    help="Workers.",
)
@options.parties_option
@options.assign_option
@options.restarts_option
@options.lease_option
@options.durability_option
@options.scheme_option
@options.run_dir_option
@options.snapshot_options
@click.option("-q", "--quiet", is_flag=True, help="Only what the workers say, and failures.")
@trust_options
@options.module_option
@click.argument("script")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def run(
    ctx: click.Context,
    /,
    servers: int,
    workers: int,
    parties: int,
    assign: str,
    max_restarts: int,
    lease: float,
    durability: Durability,
    scheme: str | None,
    run_dir: Path | None,
    quiet: bool,
    trust: Trust,
    module: bool,
    script: str,
    args: tuple[str, ...],
    **snapshots: Any,
) -> None:
    """A whole cluster on this machine, and SCRIPT on each of its workers.

    Exit codes: 0 done, 1 the job failed, 2 usage, 130 or 143 ended by a signal.
    """
    options.check_script(script, module)
    options.check_parties(workers, parties)
    options.check_durability(durability, servers)
    plan = Plan(
        servers=servers,
        workers=workers,
        parties=parties,
        assign=assign,
        lease_s=lease,
        durability=durability,
        max_restarts=max_restarts,
        command=script_command(script, args, module=module),
        environment=options.worker_settings(scheme, run_dir),
        trust=trust,
        snapshots=options.snapshot_config(**snapshots),
    )
    with tempfile.TemporaryDirectory(prefix="paramserver-") as folder, Output(quiet=quiet) as out:
        ctx.exit(Supervisor(plan, out, Path(folder)).run())
