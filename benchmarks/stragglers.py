"""Slow machines and slow steps: time to accuracy and throughput of each scheme, real processes.

    python benchmarks/stragglers.py                     # a table; about four minutes
    python benchmarks/stragglers.py --json FILE --only machine

Computing is emulated (PARAMSERVER_EMULATE): a worker waits for what is left of a batch's time, so
that four workers fit on two cores. Ratios are against Sync with round-robin in the same run.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import paramserver as ps

WORKERS, SERVERS, BATCH = 4, 2, 16
SAMPLE_S = 0.006
SLOW_MACHINE = f"sample={SAMPLE_S},slow=3:5"
SLOW_STEPS = f"sample={SAMPLE_S},jitter=0.1:5"
TARGET, LIMIT_S = 0.95, 120.0
SMOOTHED = 5  # evaluations, one a step: a single one is noise
DYNAMIC: Mapping[str, Any] = {"assign": "dynamic"}


@dataclass(frozen=True)
class Scheme:
    """What is compared."""

    name: str
    consistency: Any
    loader: Mapping[str, Any] = field(default_factory=dict)


PLAIN = Scheme("Sync, round-robin", ps.Sync(), {"assign": "round-robin"})
MACHINE = [
    PLAIN,
    Scheme("Sync(backup=1), dynamic", ps.Sync(backup=1), DYNAMIC),
    Scheme('Sync, balance="speed"', ps.Sync(), {"balance": "speed"}),
    Scheme("Async, dynamic", ps.Async(), DYNAMIC),
    Scheme("Async, a shard per worker, stealing", ps.Async(), {**DYNAMIC, "shard_size": 352}),
]
STEPS = [
    PLAIN,
    Scheme("Stale(3), round-robin", ps.Stale(3), {"assign": "round-robin"}),
    Scheme("Stale(10), round-robin", ps.Stale(10), {"assign": "round-robin"}),
    Scheme("Adaptive(10), round-robin", ps.Adaptive(10), {"assign": "round-robin"}),
    Scheme("Async, dynamic", ps.Async(), DYNAMIC),
]


@dataclass
class Result:
    """One run of one scheme; ``target_s`` None: not reached."""

    scheme: str
    target_s: float | None
    samples_per_s: float
    accuracy: float
    waited: float
    ratio: float = 1.0


@dataclass(frozen=True)
class Options:
    """How: learning rate, runs of each, seconds of each at most, accuracy that ends it."""

    lr: float
    repeat: int
    seconds: float
    target: float


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test images (float32, n x 64, in [0, 1]) and their digits."""
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
    train, test = train_test_split(range(len(y)), test_size=0.25, random_state=0, stratify=labels)
    return x[train], y[train], x[test], y[test]


@dataclass(frozen=True)
class Run:
    """What a worker is told."""

    scheme: Scheme
    seed: int
    lr: float
    seconds: float
    target: float
    flag: str


def train(run: Run) -> dict[str, float]:
    """One worker, until the first reached the target on average, or the time is over."""
    torch.manual_seed(run.seed)
    scheme, lr, target = run.scheme, run.lr, run.target
    x, y, x_test, y_test = digits()
    with ps.connect() as client:
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        optimizer = client.optimizer(model, torch.optim.SGD, lr=lr, consistency=scheme.consistency)
        loader = client.loader(TensorDataset(x, y), BATCH, seed=run.seed, **scheme.loader)
        client.barrier("ready")
        began, samples, waited, reached = time.monotonic(), 0, 0.0, 0.0
        newest: deque[float] = deque([0.0] * SMOOTHED, maxlen=SMOOTHED)
        for _ in client.epochs(1_000_000):
            for batch, labels in loader:
                optimizer.zero_grad()
                F.cross_entropy(model(batch), labels).backward()
                optimizer.step()
                assert optimizer.last is not None
                waited += optimizer.last.waited
                samples += 0 if optimizer.last.dropped else len(batch)
                if client.is_chief:
                    with torch.no_grad():
                        hits = (model(x_test).argmax(1) == y_test).float().mean().item()
                    newest.append(hits)
                    if statistics.mean(newest) >= target:
                        reached = time.monotonic() - began
                spent = time.monotonic() - began
                if reached or spent > run.seconds or os.path.exists(run.flag):
                    break
            else:
                continue
            break
        Path(run.flag).touch()
        spent = time.monotonic() - began
    return {
        "reached": reached,
        "samples": samples,
        "seconds": spent,
        "accuracy": statistics.mean(newest),
        "waited": waited / spent,
    }


def measure(scheme: Scheme, machine: str, seed: int, options: Options) -> Result:
    """A scheme on a cluster of its own."""
    before = os.environ.get("PARAMSERVER_EMULATE")
    os.environ["PARAMSERVER_EMULATE"] = machine
    try:
        with tempfile.TemporaryDirectory() as folder, ps.local_cluster(SERVERS) as cluster:
            flag = str(Path(folder, "stop"))
            run = Run(scheme, seed, options.lr, options.seconds, options.target, flag)
            told = cluster.run(train, WORKERS, (run,))
    finally:
        os.environ.pop("PARAMSERVER_EMULATE")
        if before is not None:
            os.environ["PARAMSERVER_EMULATE"] = before
    return Result(
        scheme.name,
        told[0]["reached"] or None,
        sum(t["samples"] / t["seconds"] for t in told),
        told[0]["accuracy"],
        statistics.mean(t["waited"] for t in told),
    )


def compare(schemes: Sequence[Scheme], machine: str, options: Options) -> list[Result]:
    """All schemes in turn, once for each seed: means over the seeds, ratios against the first."""
    runs: dict[str, list[Result]] = {}
    for seed in range(options.repeat):
        for scheme in schemes:
            made = measure(scheme, machine, seed, options)
            runs.setdefault(scheme.name, []).append(made)
            print(f"  {made}", flush=True)
    means = [_mean(found) for found in runs.values()]
    for result in means:
        result.ratio = _cost(means[0]) / _cost(result)
    return means


def _mean(results: Sequence[Result]) -> Result:
    times = [r.target_s for r in results if r.target_s is not None]
    return Result(
        results[0].scheme,
        statistics.mean(times) if len(times) == len(results) else None,
        statistics.mean(r.samples_per_s for r in results),
        statistics.mean(r.accuracy for r in results),
        statistics.mean(r.waited for r in results),
    )


def _cost(result: Result) -> float:
    """Seconds to the target; without a target, seconds for a sample."""
    return result.target_s or 1.0 / result.samples_per_s


def table(title: str, results: Sequence[Result], timed: bool) -> str:
    """Markdown."""
    lines = [f"{title}\n", "| scheme | to 95 % | samples/s | waiting | against the first |"]
    lines.append("|-|-:|-:|-:|-:|")
    for r in results:
        reached = f"{r.target_s:.1f} s" if r.target_s else ("not reached" if timed else "-")
        lines.append(
            f"| {r.scheme} | {reached} | {r.samples_per_s:.0f} | {r.waited:.0%} | {r.ratio:.2f}x |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Runs what was asked for and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", choices=["machine", "steps"])
    parser.add_argument("--schemes", help="numbers in the list, such as 0,1,2; the first is 0")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each, with other seeds")
    parser.add_argument("--lr", type=float, default=0.5)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each throughput run")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    def chosen(schemes: list[Scheme]) -> list[Scheme]:
        if options.schemes is None:
            return schemes
        return [schemes[int(number)] for number in options.schemes.split(",")]

    found: dict[str, list[Result]] = {}
    if options.only != "steps":
        how = Options(options.lr, options.repeat, LIMIT_S, TARGET)
        found["machine"] = compare(chosen(MACHINE), SLOW_MACHINE, how)
        print(table("One of four workers 5x slower, digits:", found["machine"], True))
    if options.only != "machine":
        how = Options(options.lr, options.repeat, options.seconds, math.inf)
        found["steps"] = compare(chosen(STEPS), SLOW_STEPS, how)
        print(table("One step in ten 5x slower:", found["steps"], False))
    if options.json is not None:
        content = {name: [vars(r) for r in results] for name, results in found.items()}
        options.json.write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
