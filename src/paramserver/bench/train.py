"""Training: an MLP of 25.1 M parameters, two workers and one server, beside DDP and torch.rpc."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from functools import partial

from paramserver.bench.exchange import Opener, Rig, Sample, opened
from paramserver.bench.goodput import in_turn
from paramserver.bench.processes import Agent, Fleet, new_children
from paramserver.bench.results import Row, Section
from paramserver.bench.settings import Settings
from paramserver.bench.stats import Stat
from paramserver.bench.trainers import (
    BATCH,
    DdpTrainer,
    ProductTrainer,
    RpcTrainer,
    RpcTrainServer,
    Trainer,
)

SYNC = "paramserver Sync"
ASYNC = "paramserver Async"
BF16 = "paramserver Sync bf16"
LOCAL = "local, 1 process"
DDP = "DDP gloo"
RPC_SYNC = "torch.rpc PS sync"
RPC_ASYNC = "torch.rpc PS async"
WORKERS = 2


def openers(settings: Settings) -> dict[str, Opener]:
    """How to start each contender."""
    found: dict[str, Opener] = {}
    if settings.ours:
        found[SYNC] = partial(_open_product, SYNC, "sync", None)
        found[ASYNC] = partial(_open_product, ASYNC, "async", None)
        found[BF16] = partial(_open_product, BF16, "sync", "bf16")
    if settings.peers:
        found[LOCAL] = _open_local
        found[DDP] = _open_ddp
        found[RPC_SYNC] = partial(_open_rpc, RPC_SYNC, True)
        found[RPC_ASYNC] = partial(_open_rpc, RPC_ASYNC, False)
    return found


def run(settings: Settings) -> Section:
    """Measure batches per second over all workers, and CPU-seconds per batch."""
    section = Section("train")
    settings.say("train: starting the contenders")
    must = SYNC if settings.ours else ""
    with opened(openers(settings), 1, WORKERS, section.notes, must) as rigs:
        settings.say("train: measuring")
        repeats = dict.fromkeys((rig.name for rig in rigs), settings.train_batches)
        for name, samples in in_turn(rigs, "train", settings.samples, repeats).items():
            section.rows.append(_row(name, samples))
    _check(section)
    return section


def _row(contender: str, samples: list[Sample]) -> Row:
    rates = tuple(sample.calls / sample.seconds for sample in samples)
    costs = tuple(sample.cpu / sample.calls for sample in samples)
    metrics = {"batches/s": Stat(rates), "CPU-s/batch": Stat(costs)}
    return Row(contender, {"batch": BATCH}, metrics)


def _check(section: Section) -> None:
    def rate(contender: str) -> Stat | None:
        return section.stat("batches/s", contender)

    section.check_ratio(f"{SYNC} over {RPC_SYNC}", rate(SYNC), rate(RPC_SYNC), 1.0)
    section.check_ratio(f"{ASYNC} over {RPC_ASYNC}", rate(ASYNC), rate(RPC_ASYNC), 1.0)
    section.check_ratio(f"{BF16} over {DDP}", rate(BF16), rate(DDP), 0.75)


@contextlib.contextmanager
def _open_product(
    name: str, consistency: str, wire_dtype: str | None, servers: int, workers: int
) -> Iterator[Rig]:
    import paramserver as ps
    from paramserver.bench.product import start_workers

    with contextlib.ExitStack() as stack:
        with new_children() as pids:
            cluster = stack.enter_context(ps.local_cluster(servers, workers=workers))
            agents = [
                Agent(ProductTrainer, (rank, cluster.address, consistency, wire_dtype))
                for rank in range(workers)
            ]
            fleet = stack.enter_context(start_workers(agents))
        yield Rig(name, fleet, range(workers), pids)


@contextlib.contextmanager
def _open_local(_servers: int, _workers: int) -> Iterator[Rig]:
    with contextlib.ExitStack() as stack:
        with new_children() as pids:
            fleet = stack.enter_context(Fleet([Agent(Trainer)]))
        yield Rig(LOCAL, fleet, range(1), pids)


@contextlib.contextmanager
def _open_ddp(_servers: int, workers: int) -> Iterator[Rig]:
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        meeting = os.path.join(folder, "meeting")
        agents = [Agent(DdpTrainer, (rank, workers, meeting)) for rank in range(workers)]
        with new_children() as pids:
            fleet = stack.enter_context(Fleet(agents))
        yield Rig(DDP, fleet, range(workers), pids)


@contextlib.contextmanager
def _open_rpc(name: str, synchronous: bool, _servers: int, workers: int) -> Iterator[Rig]:
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        meeting = os.path.join(folder, "meeting")
        agents = [Agent(RpcTrainServer, (workers, synchronous, meeting))]
        agents += [Agent(RpcTrainer, (rank, workers, meeting)) for rank in range(workers)]
        with new_children() as pids:
            fleet = stack.enter_context(Fleet(agents))
        yield Rig(name, fleet, range(1, workers + 1), pids)
