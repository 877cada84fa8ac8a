"""A step of AllReduce() beside DistributedDataParallel, in the same processes and the same run.

python benchmarks/allreduce_step.py [--workers 2] [--mib 4 64]

Steps of both take turns, so that both meet the same machine. Reported are medians.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn

import paramserver as ps

WIDTH = 512  # a layer of 512 x 512 float32 is 1 MiB


def model_of(mib: int) -> nn.Sequential:
    """Square layers of 1 MiB each, the same on every worker."""
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(mib)))


def measure(store: str, workers: int, mib: int, steps: int) -> tuple[float, float, float]:
    """Median seconds of a step: ours, DistributedDataParallel's; and the largest difference."""
    torch.set_num_threads(1)
    with ps.connect() as client:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{store}", rank=client.rank, world_size=workers
        )
        ours, plain = model_of(mib), model_of(mib)
        theirs = nn.parallel.DistributedDataParallel(plain)
        optimizer = client.optimizer(ours, torch.optim.SGD, lr=1e-3, consistency=ps.AllReduce())
        rule = torch.optim.SGD(theirs.parameters(), lr=1e-3)
        x = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(client.rank))
        seconds: tuple[list[float], list[float]] = ([], [])
        for _ in range(steps):
            pairs: list[tuple[nn.Module, torch.optim.Optimizer]]
            pairs = [(ours, optimizer), (theirs, rule)]
            for times, (model, stepper) in zip(seconds, pairs, strict=True):
                torch.distributed.barrier()
                times.append(_step(model, stepper, x))
        torch.distributed.destroy_process_group()
    both = zip(ours.parameters(), plain.parameters(), strict=True)
    apart = max(float((a - b).detach().abs().max()) for a, b in both)
    return statistics.median(seconds[0][2:]), statistics.median(seconds[1][2:]), apart


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> float:
    began = time.perf_counter()
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--mib", type=int, nargs="+", default=[4, 64])
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    print(f"{'MiB':>5} {'AllReduce ms':>13} {'DDP ms':>8} {'ratio':>6} {'differ by':>10}")
    for mib in options.mib:
        with tempfile.TemporaryDirectory() as folder, ps.local_cluster() as cluster:
            arguments = (str(Path(folder, "store")), options.workers, mib, options.steps)
            found = cluster.run(measure, workers=options.workers, args=arguments)
        mine, theirs, apart = found[0]
        times = f"{1e3 * mine:>13.1f} {1e3 * theirs:>8.1f} {mine / theirs:>6.2f}"
        print(f"{mib:>5} {times} {apart:>10.1e}", flush=True)


if __name__ == "__main__":
    main()
