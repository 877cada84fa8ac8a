"""``python -m tests.chaos --seeds 200``; ``--seed N`` replays one and tells its story."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

from tests.chaos.arena import Arena, Broken
from tests.chaos.plan import Means, draw

SHOWN = 15  # lines of each process


@cache
def means() -> Means:
    """What this version survives, by the options of its commands."""

    def options(command: str) -> str:
        line = [sys.executable, "-m", "paramserver", command, "--help"]
        return subprocess.run(line, capture_output=True, text=True, check=True).stdout

    scheduler = options("scheduler")
    durabilities = ["memory"]
    if "--durability" in scheduler:
        durabilities += [name for name in ("wal", "replica") if name in scheduler]
    return Means(scheduler="--state-dir" in scheduler, durabilities=tuple(durabilities))


def broken(seed: int, *, verbose: bool = False) -> str:
    """What a seed breaks, with its story; empty: nothing."""
    plan = draw(seed, means())
    with tempfile.TemporaryDirectory(prefix="paramserver-chaos-") as folder:
        arena = Arena(plan, Path(folder), means())
        promise = ""
        try:
            arena.start()
            arena.run()
            arena.check()
        except (Broken, Exception) as error:
            promise = f"{type(error).__name__}: {error}"
        try:
            arena.close()
        except Broken as error:
            promise = promise or str(error)
        if promise or verbose:
            tails = [f"-- {name}\n" + "\n".join(said[-SHOWN:]) for name, said in arena.said.items()]
            logs = [f"-- {name}.log\n" + "\n".join(log[-3:]) for name, log in arena.logs().items()]
            print("\n".join([str(plan), *arena.story, *tails, *logs]))
        return promise


def main() -> int:
    """The exit code: 1 when a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="replay this one, with its story")
    options = parser.parse_args()
    print(f"survives: {means()}")
    if options.seed is not None:
        promise = broken(options.seed, verbose=True)
        print(f"BROKEN: {promise}" if promise else "every promise held")
        return int(bool(promise))
    failed = []
    for seed in range(options.first, options.first + options.seeds):
        began = time.monotonic()
        promise = broken(seed)
        verdict = f"BROKEN: {promise}" if promise else "ok"
        print(f"seed {seed}: {verdict} ({time.monotonic() - began:.0f} s)", flush=True)
        if promise:
            failed.append(seed)
    print(f"{options.seeds} schedules, {len(failed)} broke a promise: {failed}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
