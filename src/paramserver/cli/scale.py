"""``scale``: more servers, or fewer, while a job trains."""

from __future__ import annotations

import json
import time

import click

from paramserver.cli import options
from paramserver.cli.status import check_reachable
from paramserver.cli.trust import trust_options
from paramserver.errors import ConnectionLostError
from paramserver.trust import Trust
from paramserver.v1 import scheduler_pb2
from paramserver.wire.client import scheduler_channel
from paramserver.wire.transport import Channel

LOOK_S = 0.2


@click.command()
@options.scheduler_option
@click.option(
    "-s",
    "--servers",
    type=click.IntRange(1, 1024),
    required=True,
    metavar="N",
    help="Servers that are to hold the parameters.",
)
@click.option("--no-wait", is_flag=True, help="Only ask for it; it goes on by itself.")
@trust_options
@options.json_option
def scale(scheduler: str, servers: int, no_wait: bool, trust: Trust, as_json: bool) -> None:
    """Changes the number of servers of a running job; slices move one by one.

    Under `run`, missing servers are started and those that are left over end by themselves. Else
    start them yourself, by `paramserver ps`; a server that has nothing left ends.
    """
    check_reachable(scheduler, trust)
    channel = scheduler_channel(scheduler, trust)
    try:
        reply = _ask(channel, servers)
        shown = ""
        while reply.pending and not no_wait:
            if reply.pending != shown and not as_json:
                click.echo(_words(reply, scheduler))
                shown = reply.pending
            time.sleep(LOOK_S)
            reply = _ask(channel, 0)
        _show(reply, as_json)
    finally:
        channel.close()


def _ask(channel: Channel, servers: int) -> scheduler_pb2.ScaleReply:
    request = scheduler_pb2.ScaleRequest(servers=servers)
    try:
        reply: scheduler_pb2.ScaleReply = channel.call("Scale", request, timeout=10.0)
    except ConnectionLostError as error:
        why = f"{error}; what is under way goes on without this command"
        raise ConnectionLostError(why) from None
    return reply


def _words(reply: scheduler_pb2.ScaleReply, scheduler: str) -> str:
    if reply.pending.startswith("waiting for"):
        return f"{reply.pending}: paramserver ps --scheduler {scheduler}"
    moving = reply.total and reply.moved < reply.total
    return f"{reply.pending} (of {reply.total})" if moving else reply.pending


def _show(reply: scheduler_pb2.ScaleReply, as_json: bool) -> None:
    if as_json:
        state = {"servers": reply.servers, "moved": reply.moved, "pending": reply.pending}
        click.echo(json.dumps(state))
    elif not reply.pending:
        click.echo(f"{reply.servers} servers; {reply.moved} slices moved")
    else:
        click.echo(f"asked for; {reply.pending}")
