"""The command ``paramserver``; each of its commands is imported when it is called."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

import click

from paramserver import failpoints, rpc_chaos
from paramserver.errors import ParameterServerError, UsageError

# Name: module, and the line that `paramserver --help` shows without importing it.
COMMANDS = {
    "run": ("paramserver.cli.run", "A whole cluster on this machine, and a script on it."),
    "scheduler": ("paramserver.cli.roles", "The scheduler: who is there, and who does what."),
    "ps": ("paramserver.cli.roles", "A server: holds parameters and steps them."),
    "worker": ("paramserver.cli.roles", "A script as a worker of a running cluster."),
    "status": ("paramserver.cli.status", "What a cluster does, and who waits for whom."),
    "top": ("paramserver.cli.status", "The same, live."),
    "snapshot": ("paramserver.cli.snapshots", "Saves a consistent snapshot of a running job."),
    "snapshots": ("paramserver.cli.snapshots", "The snapshots in a folder."),
    "restore": ("paramserver.cli.snapshots", "Has the next job go on from a snapshot."),
    "export": ("paramserver.cli.snapshots", "A snapshot as a plain PyTorch state_dict."),
    "scale": ("paramserver.cli.scale", "More servers, or fewer, while a job trains."),
    "compare": ("paramserver.cli.compare", "Schemes side by side, on one script."),
    "certs": ("paramserver.cli.certs", "Certificates for a cluster, with a CA of their own."),
    "bench": ("paramserver.cli.bench", "Measures this machine and this product on it."),
}


class Commands(click.Group):
    """A group whose commands are imported on demand and whose errors take one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of the help."""
        return [name for name, (module, _) in COMMANDS.items() if find_spec(module) is not None]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, imported now."""
        if cmd_name not in self.list_commands(ctx):
            return None
        command = getattr(importlib.import_module(COMMANDS[cmd_name][0]), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table of commands, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name][1]) for name in self.list_commands(ctx)])

    def main(  # type: ignore[override]
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Runs a command and ends the process with its exit code."""
        # Its complaints are ours to make, in one line; unless one asks for them.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        if not standalone_mode:
            return super().main(args, prog_name, standalone_mode=False, **extra)
        try:
            failpoints.arm_from(os.environ)
            rpc_chaos.arm_from(os.environ)
            code = super().main(args, prog_name, standalone_mode=False, **extra)
            sys.stdout.flush()
        except click.ClickException as error:
            code = _complain(error.format_message(), error.exit_code, getattr(error, "ctx", None))
        except (click.Abort, KeyboardInterrupt):
            code = 130
        except UsageError as error:
            code = _complain(str(error), 2)
        except ParameterServerError as error:
            code = _complain(str(error), 1)
        except BrokenPipeError:
            _forget_stdout()
            code = 1
        sys.exit(code if isinstance(code, int) else 0)


def _complain(message: str, code: int, ctx: click.Context | None = None) -> int:
    hint = f" (see {ctx.command_path} --help)" if ctx is not None else ""
    with suppress(OSError):
        click.echo(f"paramserver: {' '.join(message.split()).rstrip('.')}{hint}", err=True)
    return code


def _forget_stdout() -> None:
    # Whoever read it has left; flushing at exit must not complain.
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _show_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"paramserver {version('paramserver')}")
        ctx.exit()


@click.command(
    cls=Commands,
    context_settings={
        "auto_envvar_prefix": "PARAMSERVER",
        "help_option_names": ["-h", "--help"],
    },
    invoke_without_command=True,
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version.",
)
@click.pass_context
def main(ctx: click.Context) -> None:
    """A parameter server for PyTorch.

    Every option is also an environment variable: PARAMSERVER_RUN_LEASE is --lease of run.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
