"""``python -m tests.simulation --schedules 10000``; ``--seed N`` replays one, with its story.

Seven schedules of ten are of a job, three of a cluster: ``--play job`` or ``--play cluster``.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time

from tests.simulation.cluster import ClusterWorld
from tests.simulation.run import failures
from tests.simulation.world import World

SHARE = {"job": 0.7, "cluster": 0.3}


def main() -> int:
    """The exit code: 1 when a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--schedules", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seed", type=int, help="replay this one")
    parser.add_argument("--play", choices=list(SHARE), help="default: both; of --seed: job")
    options = parser.parse_args()
    if options.seed is not None:
        return replay(options.seed, options.play or "job")
    plays = [options.play] if options.play else list(SHARE)
    counts = {
        play: round(options.schedules * (SHARE[play] if len(plays) > 1 else 1)) for play in plays
    }
    began = time.monotonic()
    found = failures(
        (play, seed)
        for play in plays
        for seed in range(options.first, options.first + counts[play])
    )
    for play, seed, said in sorted(found):
        print(f"--play {play} --seed {seed}: {said}")
    used = sum(os.times()[2:4])
    of = ", ".join(f"{count} of a {play}" for play, count in counts.items())
    print(
        f"{sum(counts.values())} schedules ({of}) from seed {options.first} on, in "
        f"{time.monotonic() - began:.0f} s, {used:.0f} s of CPU: {len(found)} broke a promise"
    )
    return int(bool(found))


def replay(seed: int, play: str) -> int:
    """Plays one, and tells its story."""
    logging.disable()
    world = World(seed) if play == "job" else ClusterWorld(seed)
    try:
        world.run()
        said = "every promise held"
    except AssertionError as promise:
        said = f"BROKEN: {promise}"
    state = world.scheduler.state if isinstance(world, World) else world.scheduler.service.state
    print(f"seed {seed}: {world}")
    print("\n".join([*world.story, *state.journal.events(), said]))
    return int(said.startswith("BROKEN"))


if __name__ == "__main__":
    sys.exit(main())
