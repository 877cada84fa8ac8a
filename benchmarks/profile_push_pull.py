"""One server and one worker in a loop, for tuning: GB/s and CPU-s/GB, split by process.

    python benchmarks/profile_push_pull.py                          # 64 MiB push_pull, 10 s
    python benchmarks/profile_push_pull.py --beside                 # socket, torch.rpc in turn
    python benchmarks/profile_push_pull.py --profiler py-spy --output /tmp/profile
    python benchmarks/profile_push_pull.py --profiler perf --size-kib 4

py-spy writes worker.svg and server.svg and slows everything down several times; perf writes
worker.perf and server.perf and disturbs least.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from paramserver.bench.exchange import DIRECTIONS, Rig, Sample
from paramserver.bench.goodput import MOST_REPEATS, OURS, copies_of, openers
from paramserver.bench.processes import command_line, cpu_seconds, environment
from paramserver.bench.settings import KIB, Settings
from paramserver.bench.stats import repetitions
from paramserver.bench.suite import ENVIRONMENT


def main() -> None:
    """Read the arguments, start everything, loop, print."""
    arguments = _arguments()
    if arguments.profiler != "none" and _tool(arguments.profiler) is None:
        raise SystemExit(f"{arguments.profiler} is not installed")
    settings = Settings(peers=arguments.beside)
    with environment(ENVIRONMENT), contextlib.ExitStack() as stack:
        rigs = [
            stack.enter_context(opener(arguments.servers, arguments.workers))
            for opener in openers(settings).values()
        ]
        size = arguments.size_kib * KIB
        for rig in rigs:
            rig.setup(size, 1 if arguments.operation != "pull" else copies_of(size))
        pids = _split(rigs[0])
        with _profiled(arguments, {"worker": pids["worker"], "server": pids["server"]}):
            _loop(rigs, pids, arguments)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size-kib", type=int, default=64 * 1024)
    parser.add_argument(
        "--operation", choices=["push", "pull", "push_pull", "pipelined"], default="push_pull"
    )
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--servers", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--beside", action="store_true", help="the peers in turn with us")
    parser.add_argument("--profiler", choices=["none", "py-spy", "perf"], default="none")
    parser.add_argument("--output", type=Path, default=Path("."), help="folder of the profiles")
    return parser.parse_args()


def _split(rig: Rig) -> dict[str, int]:
    """The first worker, a server and the scheduler of our rig, by their command lines."""
    found = {"worker": rig.fleet.pids[0]}
    for pid in rig.pids:
        words = command_line(pid)
        for word, role in (("ps", "server"), ("scheduler", "scheduler")):
            if word in words:
                found[role] = pid
    return found


def _loop(rigs: list[Rig], pids: dict[str, int], arguments: argparse.Namespace) -> None:
    """Sample in turn until the time is over; print our samples and all medians."""
    operation, size = arguments.operation, arguments.size_kib * KIB
    if arguments.beside and operation == "pipelined":
        rigs = [rig for rig in rigs if not rig.name.startswith("socket")]
    payload = size * DIRECTIONS[operation] / 1e9
    repeats = {}
    for rig in rigs:
        rig.sample(operation, 1)
        once = rig.sample(operation, 1).seconds
        repeats[rig.name] = repetitions(once, 0.5, 10 * MOST_REPEATS)
    seen: dict[str, list[Sample]] = {rig.name: [] for rig in rigs}
    split: dict[str, list[float]] = {role: [] for role in pids}
    stop = time.monotonic() + arguments.seconds
    while time.monotonic() < stop or not seen[OURS]:
        for rig in rigs:
            before = {role: cpu_seconds([pid]) for role, pid in pids.items()}
            sample = rig.sample(operation, repeats[rig.name])
            seen[rig.name].append(sample)
            if rig.name == OURS:
                for role, pid in pids.items():
                    used = cpu_seconds([pid]) - before[role]
                    split[role].append(used / (payload * sample.calls))
    _print(seen, split, payload)


def _print(seen: dict[str, list[Sample]], split: dict[str, list[float]], payload: float) -> None:
    print(f"{'':16} {'GB/s':>8} {'calls/s':>9} {'CPU-s/GB':>9} {'us/call':>9}  samples")
    for name, samples in seen.items():
        rate = statistics.median(s.calls / s.seconds for s in samples)
        cost = statistics.median(s.cpu / s.calls for s in samples)
        figures = f"{rate * payload:8.3f} {rate:9.1f} {cost / payload:9.3f} {cost * 1e6:9.1f}"
        print(f"{name:16} {figures}  {len(samples)}")
    for role, costs in split.items():
        print(f"  {role:14} {'':8} {'':9} {statistics.median(costs):9.3f}")


@contextlib.contextmanager
def _profiled(arguments: argparse.Namespace, pids: dict[str, int]) -> Iterator[None]:
    """Profile these processes during the block."""
    if arguments.profiler == "none":
        yield
        return
    arguments.output.mkdir(parents=True, exist_ok=True)
    tools = [subprocess.Popen(_command(arguments, role, pid)) for role, pid in pids.items()]
    try:
        yield
    finally:
        for tool in tools:
            tool.send_signal(signal.SIGINT)
        for tool in tools:
            tool.wait(timeout=60)


def _tool(name: str) -> str | None:
    """A program of this environment, or of the system."""
    return shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)


def _command(arguments: argparse.Namespace, role: str, pid: int) -> list[str]:
    out, tool = arguments.output / role, str(_tool(arguments.profiler))
    if arguments.profiler == "perf":
        return [tool, "record", "-q", "-g", "-p", str(pid), "-o", f"{out}.perf"]
    options = ["--native", "--threads", "--rate", "100", "-d", "unlimited"]
    return [tool, "record", "-p", str(pid), *options, "-o", f"{out}.svg"]


if __name__ == "__main__":
    main()
