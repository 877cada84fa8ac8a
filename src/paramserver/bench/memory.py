"""Memory: a server's peak for a large model with Adam, and growth over many steps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

import paramserver as ps
from paramserver.bench.processes import Agent, Fleet, peak_rss, rss
from paramserver.bench.product import start_workers
from paramserver.bench.results import Check, Row, Section
from paramserver.bench.settings import MIB, Settings
from paramserver.bench.stats import Stat, slope

WORKERS = 2
TENSOR_BYTES = 4 * MIB
LARGE_STEPS = 4
WARM_STEPS = 500
POINTS = 20
ALLOWED_GROWTH = 1024.0  # bytes per step: a leaked object per step is more
ALLOWED_FACTOR = 1.3
ALLOWED_REST = 300 * MIB


class Stepper:
    """A worker that steps Adam with constant gradients on ``tensors`` tensors of equal size."""

    def __init__(self, address: str, tensors: int, elements: int) -> None:
        torch.set_num_threads(1)
        self._parameters = nn.ParameterList(
            nn.Parameter(torch.zeros(elements)) for _ in range(tensors)
        )
        for parameter in self._parameters:
            parameter.grad = torch.full_like(parameter, 1e-3)
        self._client = ps.connect(address)
        self._optimizer = self._client.optimizer(
            self._parameters, torch.optim.Adam, lr=1e-3, consistency=ps.Sync()
        )

    def step(self, steps: int) -> None:
        """Take this many synchronous steps."""
        for _ in range(steps):
            self._optimizer.step()

    def close(self) -> None:
        """Leave the job."""
        self._client.finish()
        self._client.close()


@dataclass(frozen=True, slots=True)
class Cluster:
    """A running job: its workers, and the process ids of each role."""

    fleet: Fleet
    roles: dict[str, int]

    def step(self, steps: int) -> None:
        """All workers step together."""
        self.fleet.ask_each(range(len(self.fleet)), "step", steps, timeout=300.0)


def allowed_peak(model: int, workers: int) -> float:
    """Bytes a server may reach: 1.3 x (parameters + two moments + staged pushes) + 300 MiB."""
    return ALLOWED_FACTOR * (model + 2 * model + workers * model) + ALLOWED_REST


def run(settings: Settings) -> Section:
    """Measure the peak of a large model and the growth over many steps of a small one."""
    section = Section("memory")
    if not settings.ours:
        section.notes.append("memory is measured of ourselves only")
        return section
    settings.say(f"memory: {settings.memory_mib} MiB model with Adam")
    _peak(section, settings.memory_mib * MIB)
    settings.say(f"memory: {settings.growth_steps} steps of a small model")
    _growth(section, settings.growth_steps)
    return section


def _peak(section: Section, model: int) -> None:
    with _cluster(model // TENSOR_BYTES, TENSOR_BYTES // 4) as cluster:
        idle = rss(cluster.roles["server"])
        cluster.step(LARGE_STEPS)
        peak = peak_rss(cluster.roles["server"])
    allowed = allowed_peak(model, WORKERS)
    labels = {"when": f"peak, {model // MIB} MiB with Adam, {WORKERS} workers"}
    metrics = {
        "MiB": Stat((peak / MIB,)),
        "allowed MiB": Stat((allowed / MIB,)),
        "before MiB": Stat((idle / MIB,)),
    }
    section.rows.append(Row("server", labels, metrics))
    name = f"server's peak, {model // MIB} MiB model with Adam, MiB"
    section.checks.append(Check(name, peak / MIB, "<=", allowed / MIB))


def _growth(section: Section, steps: int) -> None:
    every = max(1, steps // POINTS)
    with _cluster(20, 1000) as cluster:
        cluster.step(min(WARM_STEPS, steps))
        seen: dict[str, list[float]] = {role: [] for role in cluster.roles}
        for _ in range(POINTS):
            cluster.step(every)
            for role, pid in cluster.roles.items():
                seen[role].append(float(rss(pid)))
    at = [float(every * number) for number in range(POINTS)]
    for role, sizes in seen.items():
        growth = slope(at, sizes)
        metrics = {"MiB": Stat((sizes[-1] / MIB,)), "bytes/step": Stat((growth,))}
        section.rows.append(Row(role, {"when": f"after {steps} steps"}, metrics))
        name = f"growth of the {role} over {steps} steps, bytes per step"
        section.checks.append(Check(name, growth, "<=", ALLOWED_GROWTH))


@contextlib.contextmanager
def _cluster(tensors: int, elements: int) -> Iterator[Cluster]:
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(ps.local_cluster(servers=1, workers=WORKERS))
        agents = [Agent(Stepper, (cluster.address, tensors, elements))] * WORKERS
        fleet = stack.enter_context(start_workers(agents))
        found = cluster.processes
        roles = {"server": found["ps-0"], "scheduler": found["scheduler"]}
        yield Cluster(fleet, {**roles, "worker": fleet.pids[0]})
