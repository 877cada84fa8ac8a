"""RPC chaos: which calls go wrong, and how; for tests, in every process that has it in its
environment.

    PARAMSERVER_RPC_CHAOS="rate=0.02,seed=7"                     or
    PARAMSERVER_RPC_CHAOS="rate=0.5,seed=7,methods=Register|NextShard"

A call meets one of three fates, equally likely: its request is lost; its reply is lost after the
peer has done what was asked; or it fails here while the peer is still at it, so that a retry meets
it under way. All three look the same to the caller: UNAVAILABLE. On a stream every message draws,
at a tenth of the rate, and a fault breaks the stream.

The draws of a method depend on the seed and on how many of its calls came before, nothing else.
Off, which is the rule, this costs one test of a variable for each call.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from paramserver.errors import ConfigurationError

VARIABLE = "PARAMSERVER_RPC_CHAOS"
_FORM = "rate=SHARE[,seed=NUMBER][,methods=NAME|NAME...]"


class Fate(Enum):
    """What becomes of a call."""

    WELL = "well"
    REQUEST_LOST = "request lost"
    REPLY_LOST = "reply lost"
    STILL_RUNNING = "error while the request runs"


MESSAGES_PER_CALL = 10  # a stream has many messages, and must get somewhere
_FAULTS = (Fate.REQUEST_LOST, Fate.REPLY_LOST, Fate.STILL_RUNNING)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChaosPlan:
    """What goes wrong.

    Attributes:
        rate: share of calls that meet a fault; of messages of streams a tenth of it.
        seed: of all draws.
        methods: rpcs that may meet one; empty: all.
    """

    rate: float
    seed: int = 0
    methods: frozenset[str] = frozenset()


class Chaos:
    """Draws the fates of one process; thread-safe.

    Attributes:
        faults: how many calls of a method met a fault.
    """

    def __init__(self, plan: ChaosPlan) -> None:
        self.plan = plan
        self.faults: dict[str, int] = {}
        self._drawn: dict[str, int] = {}
        self._lock = threading.Lock()

    def fate(self, method: str, *, message: bool = False) -> Fate:
        """Of the next call of a method, or of the next message on its streams."""
        if self.plan.methods and method not in self.plan.methods:
            return Fate.WELL
        with self._lock:
            number = self._drawn[method] = self._drawn.get(method, 0) + 1
            draw = random.Random(f"{self.plan.seed}/{method}/{number}")
            if draw.random() >= self.plan.rate / (MESSAGES_PER_CALL if message else 1):
                return Fate.WELL
            self.faults[method] = self.faults.get(method, 0) + 1
            return draw.choice(_FAULTS)


armed: Chaos | None = None


def arm(plan: ChaosPlan | None) -> Chaos | None:
    """Arms this process; None disarms it."""
    global armed
    armed = Chaos(plan) if plan is not None else None
    return armed


def arm_from(environment: Mapping[str, str]) -> None:
    """Arms this process as its environment says, if it says anything and has not done so before."""
    if armed is None and (text := environment.get(VARIABLE)):
        arm(parse_chaos(text))


def parse_chaos(text: str) -> ChaosPlan:
    """The plan that a text of the form above tells.

    Raises:
        ConfigurationError: anything else.
    """
    given = dict(part.strip().partition("=")[::2] for part in text.split(","))
    try:
        rate, seed = float(given.pop("rate")), int(given.pop("seed", "0"))
    except (KeyError, ValueError):
        raise ConfigurationError(f"rpc chaos {text!r}: must be {_FORM}") from None
    methods = frozenset(name for name in given.pop("methods", "").split("|") if name)
    if given or not 0 <= rate <= 1:
        raise ConfigurationError(f"rpc chaos {text!r}: must be {_FORM}, the share in [0, 1]")
    return ChaosPlan(rate=rate, seed=seed, methods=methods)
