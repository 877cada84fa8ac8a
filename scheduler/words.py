"""Members in words, for reasons and events."""

from __future__ import annotations

from collections.abc import Sequence

from paramserver.core.members import Member
from paramserver.core.membership import Membership

NAMED = 4  # how many members a reason names


def words(all_: Membership, members: Sequence[Member], now: float, count: int = 0) -> str:
    """Whom something waits for, and when they were last heard; ``count``: how many in all."""
    if not members:
        return "nobody that is here"
    more = max(count, len(members)) - min(NAMED, len(members))
    named = [
        f"{m.name} (rank {m.rank}, last heard {now - all_.heard(m.name):.1f} s ago)"
        for m in members[:NAMED]
    ]
    return ", ".join(named) + (f" and {more} more" if more else "")


def where(member: Member) -> str:
    """A member and the process it is."""
    host = f", host {member.host}, pid {member.pid}" if member.host else ""
    return f"{member.name} (rank {member.rank}{host})"


def failed(who: str, exit_code: int, reason: str) -> str:
    """What became of a worker; of a traceback, only what was raised."""
    text = f"{who} failed" + (f" with exit code {exit_code}" if exit_code else "")
    lines = [line.strip() for line in reason.splitlines() if line.strip()]
    return f"{text}: {lines[-1]}" if lines else text
