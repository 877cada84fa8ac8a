"""Schedules by their seeds, one or many."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable

from tests.simulation.world import NO_BUGS, Broken, Bugs, World


def broken(seed: int, bugs: Bugs = NO_BUGS) -> str:
    """What one schedule breaks, in words; empty: nothing."""
    world = World(seed, bugs)
    try:
        world.run()
    except Broken as promise:
        return str(promise)
    except Exception as wrong:
        return f"{type(wrong).__name__}: {wrong}"
    return ""


def _one(seed: int) -> tuple[int, str]:
    return seed, broken(seed)


def failures(seeds: Iterable[int]) -> list[tuple[int, str]]:
    """Seeds that break something, and what; on all cores."""
    with multiprocessing.get_context("spawn").Pool() as pool:
        return [found for found in pool.imap_unordered(_one, seeds, chunksize=25) if found[1]]
