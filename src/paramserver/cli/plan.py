"""What ``run`` was asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from paramserver.config import SnapshotConfig
from paramserver.trust import OPEN, Trust
from paramserver.types import Durability


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What ``run`` was asked for.

    Attributes:
        command: the script's.
        environment: of the workers, besides what they inherit.
        trust: of every process.
        enough: looked at again and again; once true, the run ends well whatever the script does.
    """

    servers: int
    workers: int
    parties: int = 1
    assign: str
    lease_s: float
    durability: Durability = "memory"
    max_restarts: int
    command: list[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    trust: Trust = OPEN
    snapshots: SnapshotConfig = field(default_factory=SnapshotConfig)
    enough: Callable[[], bool] | None = None

    def scheduler_flags(self) -> dict[str, object]:
        """Options of the scheduler's command."""
        return {
            "workers": self.workers,
            "servers": self.servers,
            "parties": self.parties,
            "assign": self.assign,
            "lease": self.lease_s,
            "durability": self.durability,
            **self.snapshots.flags(),
        }
