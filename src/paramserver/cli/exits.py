"""How commands end: exit codes, which failure came first, and what the scheduler is told."""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass

from paramserver.errors import ParameterServerError
from paramserver.launch import RESTARTABLE, Child, describe_exit, is_consequence
from paramserver.trust import Trust

DONE = 0
FAILED = 1
USAGE = 2
KILLED = 137
RULE = 78
_FENCED = r"^(?:[\w.]+\.)?FencedError: .*"
_REPLICA_LOST = re.compile(_FENCED + r"\bparty \d+\b.* was lost\b", re.MULTILINE)
_ROLLED_BACK = re.compile(r"^(?:[\w.]+\.)?RolledBackError: ", re.MULTILINE)
_UNHEARD = re.compile(_FENCED + r"\bnot heard\b", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One process of the cluster that ended when it should not have.

    Attributes:
        name: "worker-1"; "job" where no process of ours ended first.
        code: exit code; None where no process ended.
        pid, host: which process, where.
        after_s: seconds it ran.
        restarts: how often it had been started again.
        text: its traceback, or the last it said.
    """

    name: str
    code: int | None
    pid: int = 0
    host: str = ""
    after_s: float = 0.0
    restarts: int = 0
    text: str = ""

    @property
    def consequence(self) -> bool:
        """Whether it ended because another one had failed."""
        return is_consequence(self.text)


def failure_of(child: Child, restarts: int = 0) -> Failure:
    """The failure of a child that has ended."""
    return Failure(
        name=child.name,
        code=child.code,
        pid=child.pid,
        host=socket.gethostname(),
        after_s=child.ended - child.started,
        restarts=restarts,
        text=last_words(list(child.tail)),
    )


def restart_reason(child: Child) -> str:
    """Why a worker that ended is to start again; empty: it is not.

    A script that ended because its replica lost another party counts as killed: it could not go on
    alone, and is needed as soon as that party is back. So does one that stood still for longer than
    its lease: others have its work, and nothing is wrong with the script.
    """
    assert child.code is not None
    if child.code in RESTARTABLE:
        return "was killed"
    words = last_words(list(child.tail)) if child.code == FAILED else ""
    if _REPLICA_LOST.search(words):
        return "lost a party of its replica"
    return "was not heard for its lease" if _UNHEARD.search(words) else ""


def was_rolled_back(child: Child) -> bool:
    """Whether a script ended because the job went back to a snapshot: no failure of its own."""
    said = last_words(list(child.tail)) if child.code == FAILED else ""
    return _ROLLED_BACK.search(said) is not None


def report_loss(scheduler: str, name: str, code: int, trust: Trust) -> None:
    """Tells the scheduler that a server's process has ended, before its lease would."""
    from paramserver.v1 import common_pb2, scheduler_pb2  # gRPC only where it is needed
    from paramserver.wire.client import scheduler_channel

    request = scheduler_pb2.FailRequest(
        member=common_pb2.Identity(name=name), reason=f"its process ended, {describe_exit(code)}"
    )
    channel = scheduler_channel(scheduler, trust)
    try:
        channel.call("Fail", request, timeout=2.0)
    except ParameterServerError:
        pass  # its lease tells the same, later
    finally:
        channel.close()


def last_words(tail: Sequence[str], limit: int = 20) -> str:
    """The last traceback of a standard error, its causes included, else its last lines."""
    starts = [i for i, line in enumerate(tail) if line.startswith("Traceback (most recent call")]
    if not starts:
        return "\n".join(tail[-limit:])
    first = starts[-1]
    for start in reversed(starts[:-1]):
        between = "\n".join(tail[start:first])
        chained = "direct cause of" in between or "another exception occurred" in between
        if not chained and not is_consequence(between):  # the latter quotes another's traceback
            break
        first = start
    return "\n".join(tail[first:])


def root_cause(failures: Sequence[Failure], message: str = "") -> Failure:
    """The failure to show: the first that is no consequence of another.

    Args:
        failures: in the order in which they happened.
        message: why the scheduler says that the job failed; empty: it does not.
    """
    for failure in failures:
        if not failure.consequence:
            return failure
    if message or not failures:
        return Failure(name="job", code=None, host=socket.gethostname(), text=message)
    return failures[0]


def block(cause: Failure, others: Sequence[Failure] = (), message: str = "") -> str:
    """The root-cause block: which process failed first, where, how, and what it said.

    Args:
        cause: from ``root_cause``.
        others: failures that followed; the cause among them is left out.
        message: why the scheduler says that the job failed; shown unless the cause says it.
    """
    lines = [" root cause ".center(RULE, "─")]
    if cause.name == "cluster":
        lines.append("a process of this cluster did not start")
    elif cause.code is None:
        lines.append("the job failed; no process of this cluster ended before that")
    else:
        lines.append(f"{cause.name} failed first: {describe_exit(cause.code)}")
        facts = f"host {cause.host}, pid {cause.pid}, after {cause.after_s:.1f} s"
        lines.append(facts + (f", restarts {cause.restarts}" if cause.restarts else ""))
    said = cause.text or "nothing on standard error"
    lines += [f"  {line}" for line in said.splitlines()]
    first_line = message.partition("\n")[0]
    if first_line and first_line not in cause.text and not first_line.startswith(cause.name):
        lines.append(f"the scheduler says: {first_line}")
    also = [
        f"{f.name} ({describe_exit(f.code)})" for f in others if f != cause and f.code is not None
    ]
    if also:
        lines.append(f"then: {', '.join(also)}")
    lines.append("─" * RULE)
    return "\n".join(lines)
