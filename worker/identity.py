"""The identity file: how a launcher learns who its child became."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Protocol


class Identified(Protocol):
    """Whoever has an identity in a job."""

    name: str
    incarnation: int
    rank: int
    job: int


def write_identity(path: Path | None, who: Identified) -> None:
    """Writes name, incarnation, rank and job as JSON; a reader sees all of it or none.

    Without a path, nobody asked for it.
    """
    if path is None:
        return
    content = {
        "name": who.name,
        "incarnation": who.incarnation,
        "rank": who.rank,
        "job": who.job,
    }
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    fresh.write_text(json.dumps(content))
    fresh.replace(path)
