"""``snapshot``, ``snapshots``, ``restore`` and ``export``."""

from __future__ import annotations

import json
import time
import uuid
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from paramserver.cli import options
from paramserver.cli.status import check_reachable, duration, size
from paramserver.cli.trust import trust_options
from paramserver.errors import ParameterServerError, SnapshotError
from paramserver.snapshot_files import Manifest, chain, complete, open_store, verify
from paramserver.trust import Trust
from paramserver.v1 import scheduler_pb2
from paramserver.wire.client import scheduler_channel

POLL_S = 5.0
FOLDER = "DIR"


@click.command()
@options.scheduler_option
@trust_options
@options.json_option
@click.option(
    "--delta",
    is_flag=True,
    help="Of tables only the rows that changed since the snapshot before.",
)
@click.argument("name", default="")
def snapshot(scheduler: str, trust: Trust, as_json: bool, delta: bool, name: str) -> None:
    """Saves a consistent snapshot of the running job under NAME; training goes on.

    Returns when all of it is safe on the disk.
    """
    check_reachable(scheduler, trust)
    channel = scheduler_channel(scheduler, trust)
    try:
        key = uuid.uuid4().hex
        while True:
            request = scheduler_pb2.TakeSnapshotRequest(
                name=name, key=key, wait_s=POLL_S, delta=delta
            )
            reply = channel.call("TakeSnapshot", request)
            if not reply.pending:
                break
    finally:
        channel.close()
    found = {
        "name": reply.name,
        "bytes": reply.bytes,
        "seconds": round(reply.took_s, 3),
        "held_s": round(reply.held_s, 3),
        "base": reply.base,
    }
    if as_json:
        click.echo(json.dumps(found))
        return
    held = f"; pushes were held for {reply.held_s:.3f} s" if reply.held_s else ""
    since = f", changes since {reply.base}" if reply.base else ""
    click.echo(f"{reply.name}: {size(reply.bytes)}{since} in {reply.took_s:.2f} s{held}")


@click.command()
@options.scheduler_option
@click.option(
    "--force", is_flag=True, help="Also while workers are there: what they did since is undone."
)
@trust_options
@click.argument("name", default="latest")
def restore(scheduler: str, force: bool, trust: Trust, name: str) -> None:
    """Has the next job go on from snapshot NAME, or from the newest one that is whole.

    The scheduler checks all files first. Then start the workers as for a new job.
    """
    check_reachable(scheduler, trust)
    channel = scheduler_channel(scheduler, trust)
    try:
        request = scheduler_pb2.RestoreSnapshotRequest(name=name, force=force)
        reply = channel.call("RestoreSnapshot", request, timeout=3600.0)
    finally:
        channel.close()
    for problem in reply.problems:
        click.echo(f"passed over: {problem}", err=True)
    click.echo(f"job {reply.job} goes on from snapshot {reply.name}")


@click.command()
@options.json_option
@click.option("--check", is_flag=True, help="Read all files and compare their checksums.")
@click.argument("folder", metavar=FOLDER)
@click.pass_context
def snapshots(ctx: click.Context, as_json: bool, check: bool, folder: str) -> None:
    """The snapshots in DIR, the oldest first: clock, age, size, and whether they are whole.

    With --check, exits with 1 if one is damaged.
    """
    if "://" not in folder and not Path(folder).is_dir():
        raise click.UsageError(f"there is no folder {folder}")
    store = open_store(folder)
    found = [_described(manifest) for manifest in complete(store)]
    for manifest, entry in zip(complete(store), found, strict=True) if check else ():
        try:
            for each in chain(store, manifest):
                verify(store, each)
        except SnapshotError as error:
            entry["damage"] = str(error)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        _draw(found, check, folder)
    ctx.exit(int(any(entry.get("damage") for entry in found)))


def _described(manifest: Manifest) -> dict[str, Any]:
    state = manifest.state
    return {
        "name": manifest.name,
        "job": manifest.job,
        "created": manifest.created,
        "bytes": manifest.nbytes,
        "base": manifest.base,
        "servers": len(manifest.files),
        "groups": {group["spec"]["name"]: group["clock"] for group in state.get("groups", ())},
        "epochs": {data["spec"]["name"]: data["epoch"] for data in state.get("datasets", ())},
    }


def _draw(found: list[dict[str, Any]], check: bool, folder: str) -> None:
    table = Table(box=None, pad_edge=False)
    for name in ("snapshot", "age", "size", "servers", "clocks", "epochs", "builds on"):
        table.add_column(name, overflow="fold")
    if check:
        table.add_column("files", overflow="fold")
    for entry in found:
        cells = [
            entry["name"],
            duration(time.time() - entry["created"]),
            size(entry["bytes"]),
            str(entry["servers"]),
            ", ".join(f"{name} {clock}" for name, clock in entry["groups"].items()),
            ", ".join(f"{name} {max(epoch, 0)}" for name, epoch in entry["epochs"].items()),
            entry["base"],
        ]
        table.add_row(*cells, *([entry.get("damage", "whole")] if check else []))
    Console(highlight=False).print(table if found else f"no snapshots in {folder}")


@click.command()
@click.option("--group", metavar="NAME", help="Of which group; needed where there are several.")
@click.option(
    "--optimizer",
    is_flag=True,
    help="Also the optimizer's state: {'model': ..., 'optimizer': ...}, for .pt only.",
)
@click.argument("source", metavar="SNAPSHOT")
@click.argument("target", metavar="OUT", type=click.Path(dir_okay=False, path_type=Path))
def export(source: str, target: Path, group: str | None, optimizer: bool) -> None:
    """SNAPSHOT as one plain PyTorch file: OUT.safetensors or OUT.pt.

    SNAPSHOT is DIR/NAME, or DIR for its newest snapshot. The file loads without this product.
    """
    from paramserver.export import export_snapshot

    try:
        text = export_snapshot(source, target, group, optimizer=optimizer)
    except OSError as error:
        raise ParameterServerError(f"{target}: {error.strerror or error}") from error
    click.echo(text)
