"""How thorough a run is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

KIB = 1 << 10
MIB = 1 << 20


def _quiet(_: str) -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How thorough a run is, and where it says what it is doing.

    Attributes:
        samples: timed rounds after the warm-up.
        target: seconds that one sample should about take.
        sizes: payload bytes.
        topologies: (servers, workers).
        train_batches: batches of one worker in one sample of the training benchmark.
        growth_steps: steps over which memory must not grow.
        memory_mib: size of the model whose server memory is measured.
        table_rows: rows of the table of the throughput benchmark.
        memory_rows: rows of the table whose server memory is measured.
        peers: measure the peers beside us.
        ours: measure ourselves.
        say: called with a line of progress.
    """

    samples: int = 5
    target: float = 0.4
    sizes: tuple[int, ...] = (4 * KIB, 256 * KIB, 4 * MIB, 64 * MIB, 256 * MIB)
    topologies: tuple[tuple[int, int], ...] = ((1, 1), (1, 2), (2, 1), (2, 2))
    train_batches: int = 4
    growth_steps: int = 2000
    memory_mib: int = 256
    table_rows: int = 1_000_000
    memory_rows: int = 10_000_000
    peers: bool = True
    ours: bool = True
    say: Callable[[str], None] = _quiet


def quick(settings: Settings) -> Settings:
    """A try-out in about a minute: figures to look at, not to quote."""
    return Settings(
        samples=2,
        target=0.1,
        sizes=(4 * KIB, 4 * MIB, 64 * MIB),
        topologies=((1, 1),),
        train_batches=1,
        growth_steps=200,
        memory_mib=32,
        table_rows=200_000,
        memory_rows=500_000,
        peers=settings.peers,
        ours=settings.ours,
        say=settings.say,
    )
