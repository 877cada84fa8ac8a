"""``python -m tests.simulation --schedules 10000``; ``--seed N`` replays one, with its story."""

from __future__ import annotations

import argparse
import sys
import time

from tests.simulation.run import failures
from tests.simulation.world import World


def main() -> int:
    """The exit code: 1 when a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schedules", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="replay this one")
    options = parser.parse_args()
    if options.seed is not None:
        world = World(options.seed)
        try:
            world.run()
            said = "every promise held"
        except AssertionError as promise:
            said = f"BROKEN: {promise}"
        print(f"seed {options.seed}: {world.consistency}, {len(world.servers)} servers,")
        print(f"{len(world.workers)} workers, {world.data.assign}, {world.weather}")
        print("\n".join([*world.story, *world.scheduler.state.journal.events(), said]))
        return int(said.startswith("BROKEN"))
    began = time.monotonic()
    last = options.first + options.schedules
    found = failures(range(options.first, last))
    for seed, said in sorted(found):
        print(f"seed {seed}: {said}")
    seconds = time.monotonic() - began
    print(
        f"{options.schedules} schedules, seeds {options.first} to {last - 1}, in {seconds:.0f} s: "
        f"{len(found)} broke a promise"
    )
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
