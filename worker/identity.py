"""Who a member was: the file that tells its launcher, and its last words to the scheduler."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Protocol

from google.protobuf.message import Message

from paramserver.v1 import common_pb2, scheduler_pb2

REASON_BYTES = 8 << 10


class Identified(Protocol):
    """Whoever has an identity in a job."""

    name: str
    incarnation: int
    rank: int
    job: int


def write_identity(path: Path, who: Identified) -> None:
    """Writes name, incarnation, rank and job as JSON; a reader sees all of it or none."""
    content = {
        "name": who.name,
        "incarnation": who.incarnation,
        "rank": who.rank,
        "job": who.job,
    }
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    fresh.write_text(json.dumps(content))
    fresh.replace(path)


def farewell(
    member: common_pb2.Identity, failure: str | None, *, fatal: bool, code: int
) -> tuple[str, Message]:
    """The rpc by which a member leaves, and its request; arguments as for ``Session.leave``."""
    if failure is None:
        return "Finish", scheduler_pb2.FinishRequest(member=member)
    reason = failure.encode()[-REASON_BYTES:].decode(errors="ignore")
    return "Fail", scheduler_pb2.FailRequest(
        member=member, reason=reason, fatal=fatal, exit_code=code
    )
