"""What one seed stands for: a job, and the faults that befall it."""

from __future__ import annotations

import random
from dataclasses import dataclass

LEASE_S = 6.0
DISK, CLOCK = ("full", "read-only"), ("ahead", "behind")
STEPS = 24  # batches of the whole job; faults come when so many are counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What the product under test survives.

    Attributes:
        scheduler: a killed scheduler that is started again with its state.
        durabilities: of servers; "memory" does not survive a killed one.
    """

    scheduler: bool
    durabilities: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something that goes wrong.

    Attributes:
        after: batches counted before it comes.
        kind: "kill", "freeze", "cut", "reset", "hole", "one-way", "slow" or "damage"; of a disk
            "full" or "read-only"; of a wall clock "ahead" or "behind", by an hour.
        target: "worker-1", "ps-0", "scheduler"; for a disk also "snapshots".
        seconds: until it is over, or the killed process comes back.
    """

    after: int
    kind: str
    target: str
    seconds: float

    def __str__(self) -> str:
        return f"after {self.after} batches: {self.kind} {self.target}, {self.seconds:.1f} s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A job and its faults; ``rpc``: share of calls that are lost besides."""

    seed: int
    servers: int
    workers: int
    consistency: str
    assign: str
    durability: str
    rpc: float
    faults: tuple[Fault, ...]

    @property
    def snapshots(self) -> bool:
        """Whether the job takes some: where their disk is to be struck."""
        return any(fault.target == "snapshots" for fault in self.faults)

    def __str__(self) -> str:
        job = (
            f"seed {self.seed}: {self.servers} servers ({self.durability}), {self.workers} "
            f"workers, {self.consistency}, {self.assign}, {self.rpc:.0%} of calls lost"
        )
        return "\n  ".join([job, *map(str, self.faults)])


def draw(seed: int, means: Means) -> Plan:
    """The plan of a seed; the same for the same means."""
    chance = random.Random(f"chaos/{seed}")
    servers, workers = chance.choice((1, 2, 2)), chance.choice((2, 2, 3))
    durability = chance.choice(means.durabilities)
    if durability == "replica":
        servers = max(servers, 2)
    faults = [
        _fault(chance, servers, workers, durability, means)
        for _ in range(chance.choice((1, 2, 2, 3)))
    ]
    more = random.Random(f"chaos/machine/{seed}")  # of its own: the rest stays as it was
    faults += [
        _machine_fault(more, servers, workers, durability, means)
        for _ in range(more.choice((0, 1, 1, 2)))
    ]
    return Plan(
        seed=seed,
        servers=servers,
        workers=workers,
        consistency=chance.choice(("sync", "sync", "stale", "async")),
        assign=chance.choice(("round-robin", "random", "dynamic")),
        durability=durability,
        rpc=chance.choice((0.0, 0.02, 0.05)),
        faults=tuple(sorted(faults, key=lambda fault: fault.after)),
    )


def _fault(
    chance: random.Random, servers: int, workers: int, durability: str, means: Means
) -> Fault:
    after = chance.randrange(0, STEPS - 4)
    role = chance.choice(("worker", "worker", "ps", "scheduler", "network", "network"))
    short = chance.uniform(0.2, LEASE_S / 3)
    long = LEASE_S + chance.uniform(2.0, 4.0)
    if role == "worker":
        target = f"worker-{chance.randrange(workers)}"
        kind = chance.choice(("kill", "freeze"))
        seconds = chance.choice((short, long)) if kind == "freeze" else 0.0
        return Fault(after=after, kind=kind, target=target, seconds=seconds)
    target = "scheduler" if role == "scheduler" else f"ps-{chance.randrange(servers)}"
    if role == "network":
        target = chance.choice((target, "scheduler"))
        kind = chance.choice(("cut", "reset", "hole", "one-way", "slow", "damage"))
        return Fault(after=after, kind=kind, target=target, seconds=short)
    killable = means.scheduler if role == "scheduler" else durability != "memory"
    kind = "kill" if killable and chance.random() < 0.7 else "freeze"
    return Fault(after=after, kind=kind, target=target, seconds=short)


def _machine_fault(
    chance: random.Random, servers: int, workers: int, durability: str, means: Means
) -> Fault:
    """Something with a disk or a clock."""
    after, seconds = chance.randrange(0, STEPS - 4), chance.uniform(0.2, LEASE_S / 3)
    names = [f"ps-{i}" for i in range(servers)]
    if chance.random() < 0.4:
        target = chance.choice(["scheduler", *names, *(f"worker-{i}" for i in range(workers))])
        return Fault(after=after, kind=chance.choice(CLOCK), target=target, seconds=seconds)
    written = ["snapshots", *(["scheduler"] if means.scheduler else [])]
    target = chance.choice([*written, *(names if durability == "wal" else [])])
    return Fault(after=after, kind=chance.choice(DISK), target=target, seconds=seconds)
