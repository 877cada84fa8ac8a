"""What a cluster does, as one plain dictionary: the JSON of ``status``; all else is drawn from it.

The keys are listed in ``gather``.
"""

from __future__ import annotations

from typing import Any

from paramserver.errors import ParameterServerError
from paramserver.trust import OPEN, Trust
from paramserver.v1 import common_pb2, scheduler_pb2, server_pb2
from paramserver.wire.client import GrpcChannel, scheduler_channel
from paramserver.wire.transport import Channel

State = dict[str, Any]

JOB_STATES = {
    scheduler_pb2.JOB_STATE_UNSPECIFIED: "none",
    scheduler_pb2.JOB_WAITING: "waiting",
    scheduler_pb2.JOB_RUNNING: "running",
    scheduler_pb2.JOB_DONE: "done",
    scheduler_pb2.JOB_FAILED: "failed",
}
MEMBER_STATES = {
    scheduler_pb2.MEMBER_STATE_UNSPECIFIED: "unknown",
    scheduler_pb2.MEMBER_JOINED: "joined",
    scheduler_pb2.MEMBER_ACTIVE: "active",
    scheduler_pb2.MEMBER_IDLE: "idle",
    scheduler_pb2.MEMBER_FINISHED: "finished",
    scheduler_pb2.MEMBER_LOST: "lost",
}
ROLES = {
    scheduler_pb2.ROLE_UNSPECIFIED: "unknown",
    scheduler_pb2.ROLE_SERVER: "ps",
    scheduler_pb2.ROLE_WORKER: "worker",
    scheduler_pb2.ROLE_READER: "reader",
}
GONE = ("finished", "lost")


class Source:
    """Where the state comes from: the scheduler and its servers, connections kept open."""

    def __init__(self, address: str, trust: Trust = OPEN) -> None:
        """``address``: HOST:PORT of the scheduler; nothing is sent yet."""
        self.address = address
        self._trust = trust
        self._scheduler = scheduler_channel(address, trust)
        self._servers: dict[str, Channel] = {}

    def gather(self, *, servers: bool = True, timeout: float = 3.0) -> State:
        """The state now.

        Keys: ``scheduler``, ``job`` (number, state, message, view, started, uptime_s,
        expected_workers, expected_servers), ``members`` (name, role, rank, incarnation, state,
        reason, host, pid, address, heard_s, groups, clocks, lag, stats), ``groups`` (name,
        optimizer, consistency, parameters, bytes, slices, server_bytes, balance, lead, stored,
        version, min_clock, waiting, table: None or rows, bytes, bytes_per_row, evicted,
        not_admitted), ``servers`` (name, address, bytes, slices and counters, or
        ``error``), ``datasets``, ``waits`` (who, why), ``scalars``, ``events``, ``durability``,
        ``snapshots`` (kept: whether there is a place for them; newest: None or name, clock, age_s,
        base, of the one that the job goes back to).

        Args:
            servers: whether to ask the servers too.
            timeout: seconds for the scheduler, and for each server.

        Raises:
            ConnectionLostError: the scheduler does not answer.
        """
        reply = self._scheduler.call("Status", scheduler_pb2.StatusRequest(), timeout=timeout)
        state = from_status(self.address, reply)
        if servers:
            for server in placed(reply.view):
                add_server(state, server, self._describe(server["address"], timeout))
        add_lags(state)
        state["waits"] = waits(state)
        return state

    def _describe(self, address: str, timeout: float) -> Any:
        if address not in self._servers:
            self._servers[address] = GrpcChannel(address, "server", self._trust)
        try:
            return self._servers[address].call(
                "Describe", server_pb2.DescribeRequest(), timeout=timeout
            )
        except ParameterServerError as error:
            return error

    def close(self) -> None:
        """Closes the connections."""
        for channel in (self._scheduler, *self._servers.values()):
            channel.close()


def from_status(address: str, reply: scheduler_pb2.StatusReply) -> State:
    """The state as the scheduler alone knows it; keys as in ``Source.gather``."""
    workers = {worker.name: worker for worker in reply.workers}
    members = [_member(member, workers.get(member.name)) for member in reply.view.members]
    state = {
        "scheduler": address,
        "job": {
            "number": reply.view.job,
            "state": JOB_STATES[reply.view.state],
            "message": reply.view.message,
            "view": reply.view.number,
            "started": reply.view.started,
            "uptime_s": round(reply.uptime_s, 3),
            "expected_workers": reply.expected_workers,
            "expected_servers": reply.expected_servers,
        },
        "members": members,
        "groups": [_group(group, reply.view.bounds.get(group.group)) for group in reply.groups],
        "servers": [],
        "datasets": [_dataset(dataset) for dataset in reply.datasets],
        "waits": [],
        "scalars": dict(sorted(reply.scalars.items())),
        "events": list(reply.events),
        "durability": reply.durability,
        "snapshots": {"kept": reply.keeps_snapshots, "newest": _newest(reply)},
    }
    add_lags(state)
    return state


def _newest(reply: scheduler_pb2.StatusReply) -> State | None:
    newest = reply.snapshot
    if not newest.name:
        return None
    age = round(newest.age_s, 3)
    return {"name": newest.name, "clock": newest.clock, "age_s": age, "base": newest.base}


def _member(member: scheduler_pb2.Member, worker: scheduler_pb2.WorkerStatus | None) -> State:
    return {
        "name": member.name,
        "role": ROLES[member.role],
        "rank": member.rank,
        "incarnation": member.incarnation,
        "state": MEMBER_STATES[member.state],
        "reason": member.reason,
        "host": member.host,
        "pid": member.pid,
        "address": member.address,
        "heard_s": round(worker.heard_s if worker is not None else member.heard_s, 3),
        "groups": list(member.groups),
        "clocks": {c.group: c.clock for c in worker.clocks} if worker is not None else {},
        "lag": {},
        "stats": dict(sorted(worker.stats.items())) if worker is not None else {},
    }


def add_lags(state: State) -> None:
    """Sets how many clocks each live worker is behind the fastest of each group.

    Replicas are at the same step: their clocks differ by when they were heard alone.
    """
    live = [member for member in state["members"] if member["state"] not in GONE]
    replicated = {g["name"] for g in state["groups"] if g["consistency"].startswith("Allreduce")}
    fastest: dict[str, int] = {}
    for member in live:
        for group, clock in member["clocks"].items():
            fastest[group] = max(clock, fastest.get(group, 0))
    for member in live:
        member["lag"] = {
            g: fastest[g] - clock for g, clock in member["clocks"].items() if g not in replicated
        }


def consistency_text(consistency: common_pb2.Consistency, bound: int | None = None) -> str:
    """``Sync()``, ``Stale(2)``, as one writes it; ``bound``: of an adaptive group, now."""
    if consistency.kind == "sync":
        return f"Sync(backup={consistency.backup})" if consistency.backup else "Sync()"
    if consistency.kind == "stale":
        return f"Stale({consistency.bound})"
    if consistency.kind == "adaptive":
        now = "" if bound is None else f", bound {bound} now"
        return f"Adaptive({consistency.bound}){now}"
    return f"{consistency.kind.capitalize()}()"


def _group(group: scheduler_pb2.GroupPlacement, bound: int | None) -> State:
    sizes = dict(zip(group.servers, group.server_bytes, strict=False))
    scheme = f"{group.scheme} over " if group.scheme else ""
    return {
        "name": group.group,
        "optimizer": group.optimizer,
        "consistency": scheme + consistency_text(group.consistency, bound),
        "parameters": group.parameters,
        "bytes": group.bytes,
        "slices": group.slices,
        "server_bytes": sizes,
        "balance": balance(list(sizes.values())),
        "lead": group.lead,
        "stored": group.stored,
        "version": None,
        "min_clock": None,
        "waiting": "",
        "table": None,
    }


def balance(sizes: list[int]) -> float | None:
    """Largest over smallest; None for one server, or one that holds nothing."""
    if len(sizes) < 2 or min(sizes) == 0:
        return None
    return round(max(sizes) / min(sizes), 4)


def _dataset(dataset: scheduler_pb2.DatasetStatus) -> State:
    spec = dataset.spec
    return {
        "name": spec.name,
        "size": spec.size,
        "batch_size": spec.batch_size,
        "shard_size": spec.shard_size,
        "assign": spec.assign,
        "epoch": dataset.epoch,
        "shards": dataset.shards,
        "free": dataset.free,
        "leased": dataset.leased,
        "done": dataset.done,
        "requeued": dataset.requeued,
        "samples_done": dataset.samples_done,
        "unpushed": dataset.unpushed,
        "quarantined": dataset.quarantined,
    }


def placed(view: scheduler_pb2.View) -> list[State]:
    """Names and addresses of the servers; with backups, wherever each is served now."""
    if view.places:
        return [{"name": place.server, "address": place.address} for place in view.places]
    gone = (scheduler_pb2.MEMBER_LOST, scheduler_pb2.MEMBER_FINISHED)
    servers = [m for m in view.members if m.role == scheduler_pb2.ROLE_SERVER]
    return [{"name": m.name, "address": m.address} for m in servers if m.state not in gone]


def add_server(state: State, server: State, reply: Any) -> None:
    """Adds what one server says of itself, or the error met instead, to the state."""
    entry: State = {"name": server["name"], "address": server["address"]}
    state["servers"].append(entry)
    if isinstance(reply, Exception):
        entry["error"] = str(reply)
        return
    entry["slices"] = sum(group.slices for group in reply.groups)
    entry["bytes"] = sum(group.bytes for group in reply.groups)
    for key in ("resident", "staged", "received", "sent"):
        entry[f"{key}_bytes"] = getattr(reply, f"{key}_bytes")
    entry["duplicates"] = reply.duplicates
    entry["refusals"] = reply.refusals
    entry["non_finite"] = reply.non_finite
    entry["overflows"] = sum(group.overflows for group in reply.groups)
    groups = {group["name"]: group for group in state["groups"]}
    for status in reply.groups:
        if status.group in groups and status.HasField("table"):
            _add_table(groups[status.group], status)
        if status.lead and status.group in groups:
            groups[status.group]["version"] = status.version
            groups[status.group]["min_clock"] = status.min_clock
            groups[status.group]["waiting"] = status.waiting
            _set_clocks(state, status)


def _add_table(group: State, status: server_pb2.GroupStatus) -> None:
    """Adds a server's part of a table: rows, bytes, what became of rows."""
    counts = ("rows", "evicted", "not_admitted")
    table = group["table"] or dict.fromkeys(("bytes", *counts), 0)
    table["bytes"] += status.bytes
    for name in counts:
        table[name] += getattr(status.table, name)
    table["bytes_per_row"] = round(table["bytes"] / table["rows"], 1) if table["rows"] else None
    group["table"] = table


def _set_clocks(state: State, status: server_pb2.GroupStatus) -> None:
    # Heartbeats tell each worker's clock at another moment; the lead knows all of them at one.
    known = {(clock.rank, clock.incarnation): clock.clock for clock in status.workers}
    for member in state["members"]:
        clock = known.get((member["rank"], member["incarnation"]))
        if clock is not None and member["role"] == "worker":
            member["clocks"][status.group] = clock


def waits(state: State) -> list[dict[str, str]]:
    """Who waits, and for whom and why, in words."""
    found = []
    job = state["job"]
    for role, key in (("ps", "servers"), ("worker", "workers")):
        here = sum(m["role"] == role and m["state"] != "lost" for m in state["members"])
        missing = job[f"expected_{key}"] - here
        if missing > 0 and job["state"] in ("none", "waiting"):
            why = f"waiting for {missing} of {job[f'expected_{key}']} {key}"
            found.append({"who": "job", "why": why})
    for group in state["groups"]:
        if not group["stored"]:
            found.append({"who": f"group {group['name']}", "why": "waiting for first values"})
        elif group["waiting"]:
            found.append({"who": f"group {group['name']}", "why": group["waiting"]})
    for member in state["members"]:
        if member["state"] == "idle" and member["reason"]:
            found.append({"who": member["name"], "why": member["reason"]})
    return found
