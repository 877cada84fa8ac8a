"""Schedules by their seeds, one or many."""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Iterable

from tests.quiet import quiet
from tests.simulation.cluster import ClusterWorld
from tests.simulation.planted import planted
from tests.simulation.world import NO_BUGS, Broken, Bugs, World


def broken(seed: int, bugs: Bugs = NO_BUGS) -> str:
    """What one schedule of a job breaks, in words; empty: nothing."""
    return _broken(World(seed, bugs))


def cluster_broken(seed: int, mistake: str = "") -> str:
    """As ``broken``, of a cluster. ``mistake``: of ``planted.PLANTED``."""
    with planted(mistake), quiet():
        return _broken(ClusterWorld(seed))


def _broken(world: World | ClusterWorld) -> str:
    try:
        world.run()
    except Broken as promise:
        return str(promise)
    except Exception as wrong:
        return f"{type(wrong).__name__}: {wrong}"
    return ""


def _one(which: tuple[str, int]) -> tuple[str, int, str]:
    play, seed = which
    return play, seed, (cluster_broken if play == "cluster" else broken)(seed)


def failures(plays: Iterable[tuple[str, int]]) -> list[tuple[str, int, str]]:
    """Plays ("job" or "cluster") and seeds that break something, and what; on all cores."""
    gc.freeze()
    with multiprocessing.get_context("spawn").Pool() as pool:
        found = [each for each in pool.imap_unordered(_one, plays, chunksize=25) if each[2]]
        pool.close()
        pool.join()  # then their CPU time is counted
    return found
