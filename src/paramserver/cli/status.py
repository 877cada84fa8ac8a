"""``status`` and ``top``: what a cluster does, drawn from one dictionary."""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from paramserver.cli import options
from paramserver.cli.progress import Progress
from paramserver.cli.state import Source, State
from paramserver.cli.trust import trust_options
from paramserver.errors import ConnectionLostError, ParameterServerError
from paramserver.trust import OPEN, Trust
from paramserver.wire import diagnose

REFRESH_S = 1.0
PIPE_WIDTH = 160
STYLES = {
    "running": "bold green",
    "active": "green",
    "failed": "bold red",
    "lost": "bold red",
    "idle": "yellow",
    "waiting": "yellow",
    "finished": "dim",
    "done": "bold",
}


@click.command()
@options.scheduler_option
@trust_options
@options.json_option
def status(scheduler: str, trust: Trust, as_json: bool) -> None:
    """Members with clocks and lag, groups, servers, data; who waits for whom, and why."""
    check_reachable(scheduler, trust)
    source = Source(scheduler, trust)
    try:
        state = source.gather()
    finally:
        source.close()
    if as_json:
        finite = json.loads(json.dumps(state), parse_constant=lambda _: None)  # JSON has no NaN
        click.echo(json.dumps(finite, indent=2, allow_nan=False))
        return
    console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)
    with console.capture() as drawn:
        console.print(render(state))
    click.echo(drawn.get(), nl=False)


@click.command()
@options.scheduler_option
@trust_options
def top(scheduler: str, trust: Trust) -> None:
    """The state of the cluster, live; q or Ctrl-C ends."""
    if not sys.stdout.isatty():
        raise click.UsageError("top needs a terminal; use `paramserver status`, or its --json")
    check_reachable(scheduler, trust)
    source = Source(scheduler, trust)
    progress = Progress()
    with Live(console=Console(), screen=True, auto_refresh=False) as live, keys():
        try:
            live.update(_frame(source, progress), refresh=True)
            while not quit_pressed(REFRESH_S):
                live.update(_frame(source, progress), refresh=True)
        except KeyboardInterrupt:
            pass
        finally:
            source.close()


def _frame(source: Source, progress: Progress) -> RenderableType:
    try:
        state = source.gather(timeout=2.0)
    except ParameterServerError as error:
        return Text(f"{error}\n\ntrying again; q ends", style="red")
    progress.update(state, time.monotonic())
    return Group(Text(progress.line(), style="bold"), Text(), render(state))


def check_reachable(address: str, trust: Trust = OPEN, timeout: float = 3.0) -> None:
    """Fails at once, with the reason, when nobody can be spoken to at HOST:PORT.

    Raises:
        AuthenticationError: somebody listens, but TLS with them cannot work.
        ConnectionLostError: nobody listens.
    """
    host, port = options.split(address)
    try:
        socket.create_connection((host, port), timeout).close()
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", "") or "no host of this name"
        raise ConnectionLostError(f"no scheduler at {address}: {why}") from error
    diagnose.check_reachable(address, trust, "scheduler")


@contextmanager
def keys() -> Iterator[None]:
    """Single keys from the terminal while inside; nothing where there is none."""
    if not sys.stdin.isatty():
        yield
        return
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def quit_pressed(seconds: float) -> bool:
    """Waits, and says whether q was pressed meanwhile."""
    if not sys.stdin.isatty():
        time.sleep(seconds)
        return False
    there, _, _ = select.select([sys.stdin], [], [], seconds)
    return bool(there) and sys.stdin.read(1) in ("q", "Q", "")


def render(state: State) -> RenderableType:
    """All of a state, as tables."""
    parts: list[RenderableType] = [_headline(state)]
    for draw in (_members, _groups, _tables, _servers, _datasets):
        table = draw(state)
        if table.row_count:
            parts += [Text(), table]
    parts += [Text(), _waits(state)]
    if state["scalars"]:
        shown = ", ".join(f"{name} {value:.6g}" for name, value in state["scalars"].items())
        parts += [Text(), Text(f"logged: {shown}")]
    if state["events"]:
        parts += [Text(), Text("events", style="bold"), *map(Text, state["events"][-8:])]
    return Group(*parts)


def _headline(state: State) -> Text:
    job = state["job"]
    text = Text(f"job {job['number']} ")
    text.append(job["state"], style=STYLES.get(job["state"], ""))
    text.append(f" · view {job['view']} · up {duration(job['uptime_s'])} · {state['scheduler']}")
    text.append(f"\n{_safety(state)}", style="dim")
    if job["message"]:
        text.append(f"\n{job['message']}", style="red")
    return text


def _safety(state: State) -> str:
    """What the job would lose: its durability, and its newest snapshot."""
    newest = state["snapshots"]["newest"]
    if newest is not None:
        base = f", changes since {newest['base']}" if newest["base"] else ""
        age = duration(newest["age_s"])
        said = f"newest {newest['name']} at clock {newest['clock']}, {age} ago{base}"
    else:
        said = "none yet" if state["snapshots"]["kept"] else "none are kept"
    return f"durability {state['durability']} · snapshots: {said}"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in columns:
        left = column[0].isupper()
        table.add_column(column.lower(), justify="left" if left else "right", header_style="dim")
    return table


def _members(state: State) -> Table:
    table = _table("members", "Name", "rank", "State", "clock", "lag", "heard", "Where", "Why")
    for m in state["members"]:
        table.add_row(
            m["name"],
            str(m["rank"]) if m["rank"] >= 0 else "",
            Text(m["state"], style=STYLES.get(m["state"], "")),
            per_group(m["clocks"]),
            per_group(m["lag"]),
            f"{m['heard_s']:.1f} s ago",
            f"{m['address'] or m['host']} pid {m['pid']}",
            Text(m["reason"].partition("\n")[0]),
        )
    return table


def _groups(state: State) -> Table:
    table = _table(
        "groups",
        *("Group", "Optimizer", "Consistency", "parameters", "size", "slices", "balance"),
        *("Lead", "min clock", "version"),
    )
    for g in state["groups"]:
        table.add_row(
            g["name"],
            g["optimizer"] or "add",
            g["consistency"],
            f"{g['parameters']:,}",
            size(g["bytes"]),
            str(g["slices"]),
            "" if g["balance"] is None else f"{g['balance']:.3f}",
            g["lead"],
            "" if g["min_clock"] is None else str(g["min_clock"]),
            "" if g["version"] is None else str(g["version"]),
        )
    return table


def _tables(state: State) -> Table:
    table = _table("tables", "Table", "rows", "memory", "bytes/row", "evicted", "not admitted")
    for name, t in [(g["name"], g["table"]) for g in state["groups"] if g["table"]]:
        each = "" if t["bytes_per_row"] is None else f"{t['bytes_per_row']:.0f}"
        counts = [f"{t[key]:,}" for key in ("evicted", "not_admitted")]
        table.add_row(name, f"{t['rows']:,}", size(t["bytes"]), each, *counts)
    return table


def _servers(state: State) -> Table:
    table = _table(
        "servers",
        *("Name", "Address", "slices", "values", "resident", "staged", "received", "sent"),
        *("duplicates", "refusals", "non-finite", "overflows"),
    )
    for s in state["servers"]:
        if "error" in s:
            table.add_row(s["name"], s["address"], Text(s["error"], style="red"))
            continue
        sizes = [size(s[key]) for key in ("bytes", "resident_bytes", "staged_bytes")]
        traffic = [size(s[key]) for key in ("received_bytes", "sent_bytes")]
        counts = [str(s[key]) for key in ("duplicates", "refusals", "non_finite", "overflows")]
        table.add_row(s["name"], s["address"], str(s["slices"]), *sizes, *traffic, *counts)
    return table


def _datasets(state: State) -> Table:
    table = _table(
        "data",
        *("Name", "epoch", "shards", "free", "leased", "done", "requeued", "samples", "unpushed"),
        "Assign",
    )
    for d in state["datasets"]:
        counts = [str(d[key]) for key in ("shards", "free", "leased", "done", "requeued")]
        samples = f"{d['samples_done']:,}/{d['size']:,}"
        if d["quarantined"]:
            samples += f", {d['quarantined']:,} set aside"
        epoch = str(d["epoch"] + 1)
        table.add_row(d["name"], epoch, *counts, samples, str(d["unpushed"]), d["assign"])
    return table


def _waits(state: State) -> Text:
    if not state["waits"]:
        return Text("nobody waits")
    text = Text("waits", style="bold")
    for wait in state["waits"]:
        text.append(f"\n{wait['who']}: {wait['why']}", style="not bold")
    return text


def per_group(values: dict[str, int]) -> str:
    """``12``, or ``model 12, table 3`` where a worker has several groups."""
    if len(values) == 1:
        return str(next(iter(values.values())))
    return ", ".join(f"{group} {value}" for group, value in values.items())


def size(count: float) -> str:
    """Bytes in words: ``1.5 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def duration(seconds: float) -> str:
    """``1:02:03``."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
