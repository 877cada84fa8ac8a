"""``paramserver bench``: measure this installation beside its peers."""

from __future__ import annotations

import sys
from pathlib import Path

import click

SECTIONS = ("goodput", "calls", "train", "memory", "imports", "rows")


@click.command("bench")
@click.argument("what", type=click.Choice(["all", *SECTIONS]), default="all")
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the results to FILE as JSON.",
    metavar="FILE",
)
@click.option("--quick", is_flag=True, help="A try-out with few samples: not figures to quote.")
@click.option("--samples", type=click.IntRange(1), help="Timed rounds; 5, with --quick 2.")
@click.option(
    "--sizes", metavar="KIB,...", help="Payload sizes of goodput, in KiB, instead of all five."
)
@click.option(
    "--topologies", metavar="SxW,...", help="Servers x workers of goodput, instead of all four."
)
@click.option("--strict", is_flag=True, help="Exit with 1 when a wanted figure is not met.")
@click.option("--peers-only", is_flag=True, help="Measure only the peers.")
@click.option("--ours-only", is_flag=True, help="Measure only paramserver, without ratios.")
def bench(
    what: str,
    json_file: Path | None,
    quick: bool,
    samples: int | None,
    sizes: str | None,
    topologies: str | None,
    strict: bool,
    peers_only: bool,
    ours_only: bool,
) -> None:
    """Measure goodput, small calls, training, memory, start-up and tables on this machine.

    Everything runs on loopback in processes of its own; the peers (a plain socket copy,
    torch.distributed.rpc, DDP over gloo) are measured in the same run, in turn with paramserver.
    All of it takes about half an hour, --quick a few minutes.
    """
    if peers_only and ours_only:
        raise click.UsageError("--peers-only and --ours-only exclude one another")
    from dataclasses import replace

    from rich.console import Console

    from paramserver.bench import results, settings, suite, tables

    chosen = settings.Settings(peers=not ours_only, ours=not peers_only, say=_say)
    chosen = settings.quick(chosen) if quick else chosen
    chosen = replace(chosen, samples=samples) if samples else chosen
    if sizes:
        chosen = replace(chosen, sizes=tuple(1024 * n for n in _numbers(sizes, ",")))
    if topologies:
        pairs = tuple(_numbers(pair, "x") for pair in topologies.split(","))
        chosen = replace(chosen, topologies=tuple((pair[0], pair[-1]) for pair in pairs))
    names = SECTIONS if what == "all" else (what,)
    command = " ".join(["paramserver", *sys.argv[1:]])
    found = suite.measure(names, chosen, command, quick)
    tables.show(found, Console())
    if json_file:
        results.save(found, json_file)
    if strict and results.unmet(found.sections):
        raise SystemExit(1)


def _numbers(text: str, separator: str) -> tuple[int, ...]:
    found = tuple(int(part) for part in text.split(separator) if part.isdecimal())
    if len(found) != text.count(separator) + 1 or 0 in found:
        raise click.UsageError(
            f"{text!r}: must be positive whole numbers with {separator!r} between"
        )
    return found


def _say(line: str) -> None:
    click.echo(line, err=True)
