"""Tables: rows per second beside torch.rpc, an embedding model, memory per row."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import paramserver as ps
from paramserver.bench.processes import Agent, Fleet, cpu_seconds, peak_rss, rss
from paramserver.bench.product import start_workers
from paramserver.bench.results import Check, Row, Section
from paramserver.bench.row_agents import (
    PIECE,
    AloneTrainer,
    Filler,
    RpcShelf,
    RpcTrainer,
    TableTrainer,
)
from paramserver.bench.settings import MIB, Settings
from paramserver.bench.stats import Stat

OURS, RPC, ALONE = "paramserver", "torch.rpc", "one process"
CALLS = 4  # of a sample
MEMORY_DIM = 16
FACTOR = 1.35
KEY_BYTES = 16
NARROW = 1.5  # what half the bytes should gain


@dataclass(frozen=True, slots=True)
class Contender:
    """Workers of one contender, and its server."""

    fleet: Fleet
    workers: range
    server: int


def run(settings: Settings) -> Section:
    """Measure pulls, pushes, training and memory."""
    section = Section("rows")
    with contextlib.ExitStack() as stack:
        found: dict[str, Contender] = {}
        if settings.ours:
            found[OURS] = stack.enter_context(_ours(settings.table_rows))
        if settings.peers:
            found[RPC] = stack.enter_context(_rpc(settings.table_rows))
            found[ALONE] = stack.enter_context(_alone(settings.table_rows))
        for name, contender in found.items():
            settings.say(f"rows: {name}: {settings.table_rows} rows")
            contender.fleet.ask(contender.workers[0], "fill", timeout=600.0)
        _throughput(section, settings, found)
        _training(section, settings, found)
        if settings.ours:
            _prefetch(section, settings, found[OURS])
            _narrow(section, settings, found[OURS])
    _wanted(section)
    if settings.ours:
        settings.say(f"rows: memory of {settings.memory_rows} rows")
        _memory(section, settings.memory_rows)
    return section


def _rounds(
    settings: Settings, found: dict[str, Contender], sample: Callable[[Contender], float]
) -> dict[str, list[float]]:
    """Samples of every contender in turn, the warm-up left out."""
    seen: dict[str, list[float]] = {name: [] for name in found}
    for number in range(settings.samples + 1):
        for name, contender in found.items():
            value = sample(contender)
            if number:
                seen[name].append(value)
    return seen


def _throughput(
    section: Section, settings: Settings, found: dict[str, Contender], wire: str = "float32"
) -> None:
    for operation in ("pulls", "pushes"):
        cost: dict[int, list[float]] = {contender.server: [] for contender in found.values()}

        def sample(
            contender: Contender,
            operation: str = operation,
            cost: dict[int, list[float]] = cost,
        ) -> float:
            worker = contender.workers[0]
            pids = {contender.server, contender.fleet.pids[worker]}
            before, began = cpu_seconds(pids), time.perf_counter()
            contender.fleet.ask(worker, operation, CALLS)
            took = time.perf_counter() - began
            rows = CALLS * PIECE / 1e6
            cost[contender.server].append((cpu_seconds(pids) - before) / rows)
            return rows / took

        seen = _rounds(settings, found, sample)
        for name, speeds in seen.items():
            metrics = {
                "M rows/s": Stat(tuple(speeds)),
                "CPU-s/M rows": Stat(tuple(cost[found[name].server][1:])),
            }
            section.rows.append(Row(name, {"what": operation, "wire": wire}, metrics))


def _narrow(section: Section, settings: Settings, ours: Contender) -> None:
    ours.fleet.ask(ours.workers[0], "use", "bf16")
    ours.fleet.ask(ours.workers[0], "fill", timeout=600.0)
    _throughput(section, settings, {OURS: ours}, "bfloat16")


def _training(section: Section, settings: Settings, found: dict[str, Contender]) -> None:
    def sample(contender: Contender) -> float:
        began = time.perf_counter()
        contender.fleet.ask_each(contender.workers, "batches", CALLS)
        return CALLS * len(contender.workers) / (time.perf_counter() - began)

    for name, speeds in _rounds(settings, found, sample).items():
        what = f"batches of 4096 x 26, {len(found[name].workers)} workers"
        metrics = {"batches/s": Stat(tuple(speeds))}
        section.rows.append(Row(name, {"what": what, "wire": "float32"}, metrics))


def _prefetch(section: Section, settings: Settings, ours: Contender) -> None:
    """How much of the wait for rows disappears behind the computing of the batch before."""
    waits: dict[bool, list[float]] = {False: [], True: []}
    for number in range(settings.samples + 1):
        for ahead, seen in waits.items():
            found = ours.fleet.ask_each(ours.workers, "batches", CALLS, ahead)
            if number:
                seen.append(1e3 * max(found))
    for ahead, seen in waits.items():
        labels = {"what": f"ps.Embedding, prefetch={ahead}, 2 workers", "wire": "float32"}
        metrics = {"ms waited per batch": Stat(tuple(seen))}
        section.rows.append(Row(OURS, labels, metrics))
    hidden = 1 - Stat(tuple(waits[True])).median / Stat(tuple(waits[False])).median
    section.checks.append(
        Check("share of the wait for rows that prefetch hides", hidden, ">=", 0.5)
    )


def _wanted(section: Section) -> None:
    for what, wanted in (("pulls", 2.2), ("pushes", 1.8)):
        ours = section.stat("M rows/s", OURS, what=what, wire="float32")
        if ours is None:
            continue
        section.checks.append(Check(f"{what}, M rows/s", ours.median, ">=", wanted))
        base = section.stat("M rows/s", RPC, what=what, wire="float32")
        section.check_ratio(f"{what} over torch.rpc", ours, base, 1.3)
        narrow = section.stat("M rows/s", OURS, what=what, wire="bfloat16")
        if narrow is not None:
            name = f"{what} in bfloat16, M rows/s"
            section.checks.append(Check(name, narrow.median, ">=", NARROW * wanted))
        section.check_ratio(f"{what} in bfloat16 over float32", narrow, ours, NARROW)
    what = "batches of 4096 x 26, 2 workers"
    ours, base = (section.stat("batches/s", name, what=what) for name in (OURS, RPC))
    section.check_ratio("embedding model over torch.rpc", ours, base, 1.1)


def allowed_bytes(rows: int, dim: int, state: int) -> float:
    """What a server may take for a table: 1.35 x (values and state + 16 bytes a row)."""
    return FACTOR * (rows * (dim + state) * 4 + KEY_BYTES * rows)


def _memory(section: Section, rows: int) -> None:
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(ps.local_cluster(1, workers=1))
        agent = Agent(Filler, (cluster.address, MEMORY_DIM, "memory"))
        fleet = stack.enter_context(start_workers([agent]))
        server = cluster.processes["ps-0"]
        before = rss(server)
        fleet.ask(0, "fill", 0, rows, timeout=900.0)
        after, peak = rss(server), peak_rss(server)
    allowed = allowed_bytes(rows, MEMORY_DIM, MEMORY_DIM)
    metrics = {
        "MiB": Stat(((after - before) / MIB,)),
        "peak MiB": Stat(((peak - before) / MIB,)),
        "bytes/row": Stat(((after - before) / rows,)),
    }
    labels = {"what": f"memory of {rows} rows of {MEMORY_DIM} floats", "wire": "float32"}
    section.rows.append(Row(OURS, labels, metrics))
    name = f"{rows} rows of {MEMORY_DIM} floats with Adagrad, peak MiB"
    section.checks.append(Check(name, (peak - before) / MIB, "<=", allowed / MIB))


@contextlib.contextmanager
def _ours(rows: int) -> Iterator[Contender]:
    with ps.local_cluster(1, workers=2) as cluster:
        agents = [Agent(TableTrainer, (cluster.address, rows, seed)) for seed in range(2)]
        with start_workers(agents) as fleet:
            yield Contender(fleet, range(2), cluster.processes["ps-0"])


@contextlib.contextmanager
def _rpc(rows: int) -> Iterator[Contender]:
    with tempfile.TemporaryDirectory() as folder:
        meeting = os.path.join(folder, "meeting")
        agents = [Agent(RpcShelf, (rows, 3, meeting))]
        agents += [Agent(RpcTrainer, (rank, 3, meeting, rows)) for rank in (1, 2)]
        with start_workers(agents) as fleet:
            yield Contender(fleet, range(1, 3), fleet.pids[0])


@contextlib.contextmanager
def _alone(rows: int) -> Iterator[Contender]:
    with start_workers([Agent(AloneTrainer, (rows,))]) as fleet:
        yield Contender(fleet, range(1), fleet.pids[0])
