"""``compare``: schemes one after the other on one script, with equal budgets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from paramserver.cli import options
from paramserver.cli.comparison import Comparison, make_folder, report
from paramserver.errors import ConfigurationError
from paramserver.launch import script_command
from paramserver.scheme_text import parse_scheme, split_schemes

if TYPE_CHECKING:
    from paramserver.compare.summary import Summary, Target

JITTER = re.compile(r"^\s*([0-9.]+):([0-9.]+)\s*$")


def check_schemes(
    ctx: click.Context | None, param: click.Parameter | None, value: str
) -> tuple[str, ...]:
    """The texts of a list of schemes, each of which names one.

    Raises:
        click.BadParameter: one of them does not.
    """
    try:
        return tuple(parse_scheme(text).text for text in split_schemes(value))
    except ConfigurationError as error:
        raise click.BadParameter(str(error), ctx, param) from None


def check_target(
    ctx: click.Context | None, param: click.Parameter | None, value: str | None
) -> Target | None:
    """The target that ``NAME=VALUE`` is.

    Raises:
        click.BadParameter: it is none.
    """
    from paramserver.compare.summary import parse_target

    try:
        return parse_target(value) if value is not None else None
    except ConfigurationError as error:
        raise click.BadParameter(str(error), ctx, param) from None


def check_jitter(
    ctx: click.Context | None, param: click.Parameter | None, value: str | None
) -> str | None:
    """SHARE:FACTOR, as given.

    Raises:
        click.BadParameter: it is not, or the share is not one.
    """
    if value is not None and (not (found := JITTER.match(value)) or float(found[1]) > 1):
        raise click.BadParameter(
            f"{value!r}: write SHARE:FACTOR with a share of steps up to 1, such as 0.1:5",
            ctx,
            param,
        )
    return value


@click.command(context_settings=options.SCRIPT_SETTINGS)
@click.option(
    "--schemes",
    default="sync,stale:4,async",
    show_default=True,
    metavar="LIST",
    callback=check_schemes,
    help="Schemes with commas between, each as for run --scheme.",
)
@click.option(
    "-s",
    "--servers",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    metavar="N",
    help="Servers.",
)
@click.option(
    "-w",
    "--workers",
    envvar="PARAMSERVER_WORKERS",
    show_envvar=True,
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    metavar="N",
    help="Workers.",
)
@click.option(
    "--budget-samples",
    type=click.IntRange(min=1),
    metavar="N",
    help="Samples of all workers that each scheme may learn from; default: the script's own end.",
)
@click.option(
    "--budget-seconds",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Time that each scheme may take from its first batch on.",
)
@click.option(
    "--target",
    metavar="NAME=VALUE",
    callback=check_target,
    help="When did this scalar reach that value? Such as accuracy=0.95, or loss=0.2.",
)
@click.option("--curve", metavar="NAME", help="Scalar to draw; default: a loss, held-out first.")
@click.option(
    "--sample-time",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Emulated machine: computing time of one sample.",
)
@click.option(
    "--straggler",
    type=click.FloatRange(min=1),
    metavar="FACTOR",
    help="Emulated machine: the last worker is that many times slower.",
)
@click.option(
    "--jitter",
    metavar="SHARE:FACTOR",
    callback=check_jitter,
    help="Emulated machine: that share of all steps takes that many times as long.",
)
@click.option(
    "--seed", type=int, metavar="N", help="PARAMSERVER_SEED of the script, for its own use."
)
@click.option(
    "--limit",
    type=click.FloatRange(min=0, min_open=True),
    default=900.0,
    show_default=True,
    metavar="SECONDS",
    help="A scheme that is not done by then has failed.",
)
@options.assign_option
@options.lease_option
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write figures and curves to FILE as JSON.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("build/compare"),
    show_default=True,
    metavar="DIR",
    help="Folder for the picture, and for run files and output of each scheme.",
)
@options.module_option
@click.argument("script")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def compare(
    ctx: click.Context,
    schemes: tuple[str, ...],
    servers: int,
    workers: int,
    budget_samples: int | None,
    budget_seconds: float | None,
    target: Target | None,
    curve: str | None,
    sample_time: float | None,
    straggler: float | None,
    jitter: str | None,
    seed: int | None,
    limit: float,
    assign: str,
    lease: float,
    json_file: Path | None,
    out: Path,
    module: bool,
    script: str,
    args: tuple[str, ...],
) -> None:
    """Schemes side by side: SCRIPT under each of them, one after the other.

    Each scheme has a fresh cluster on this machine and the same budget. Prints a table, and writes
    one picture as DIR/compare.svg and DIR/compare.png.

    Exit codes: 0 done, 1 a scheme failed, 2 usage, 130 or 143 ended by a signal.
    """
    options.check_script(script, module)
    from paramserver.compare.runs import Budget

    environment = emulation(workers, sample_time, straggler, jitter)
    if seed is not None:
        environment["PARAMSERVER_SEED"] = str(seed)
    comparison = Comparison(
        servers=servers,
        workers=workers,
        assign=assign,
        lease_s=lease,
        command=script_command(script, args, module=module),
        environment=environment,
        budget=Budget(samples=budget_samples, seconds=budget_seconds),
        target=target,
        limit_s=limit,
        out=out,
    )
    for folder in [out] if json_file is None else [out, json_file.parent]:
        make_folder(folder)  # now, and not after an hour
    _announce_picture()
    summaries: list[Summary] = []
    for number, scheme in enumerate(schemes, 1):
        summary, code = comparison.run(scheme, f"{scheme} ({number}/{len(schemes)})")
        if code > 128:  # what was done is not thrown away
            break
        summaries.append(summary)
    if summaries:
        report(comparison, summaries, curve, json_file)
    failed = 1 if any(summary.error for summary in summaries) else 0
    ctx.exit(code if code > 128 else failed)


def emulation(
    workers: int, sample_time: float | None, straggler: float | None, jitter: str | None
) -> dict[str, str]:
    """The environment of workers that play another machine; empty if they play none.

    Raises:
        click.UsageError: nothing to be slower with.
    """
    if sample_time is None:
        for name, value in (("--straggler", straggler), ("--jitter", jitter)):
            if value is not None:
                raise click.UsageError(f"{name} needs --sample-time, such as 0.001 seconds")
        return {}
    parts = [f"sample={sample_time:g}"]
    parts += [f"slow={workers - 1}:{straggler:g}"] if straggler is not None else []
    parts += [f"jitter={jitter.strip()}"] if jitter is not None else []
    return {"PARAMSERVER_EMULATE": ",".join(parts)}


def _announce_picture() -> None:
    from paramserver.compare.picture import can_draw

    if not can_draw():
        click.echo(
            "no picture without matplotlib: pip install 'paramserver[compare]' for one", err=True
        )
