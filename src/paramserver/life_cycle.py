"""Which rows of a table are born, and which are forgotten."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass

from paramserver.errors import ConfigurationError

MAX_COUNT = (1 << 31) - 1
LEAST_ROWS = 64  # one per sub-table


@dataclass(frozen=True, slots=True)
class CountFilter:
    """A row is born by the n-th applied push that touches it.

    Every id that is not born yet costs some tens of bytes. ``TTL`` and ``Decay`` forget such
    counts in time, ``LRU`` only while there are rows beyond its bound: for a stream of ids that
    never come again, take one of the other two.

    Args:
        n: pushes, 1 to 2^31 - 1; gradients of the earlier ones are dropped.
    """

    n: int

    def __post_init__(self) -> None:
        if not (1 <= self.n <= MAX_COUNT and self.n == int(self.n)):
            raise ConfigurationError(f"CountFilter(n={self.n}): must be 1 to {MAX_COUNT} pushes")


@dataclass(frozen=True, slots=True)
class Probability:
    """Every applied push that touches an unseen row gives birth to it with this probability.

    Drawn from a hash of seed, key and clock: a job that runs again draws the same.

    Args:
        p: above 0, at most 1.
    """

    p: float

    def __post_init__(self) -> None:
        if not 0 < self.p <= 1:
            raise ConfigurationError(f"Probability(p={self.p}): must be above 0 and at most 1")


@dataclass(frozen=True, slots=True)
class TTL:
    """Rows that no push has touched for so long are forgotten; give one of the two.

    Args:
        clocks: of the table; under Stale and Async each applied push counts as one.
        seconds: on the server's clock.
    """

    clocks: int = 0
    seconds: float = 0.0

    def __post_init__(self) -> None:
        given = [v for v in (self.clocks, self.seconds) if v]
        if len(given) != 1 or not (0 < given[0] < math.inf) or self.clocks != int(self.clocks):
            raise ConfigurationError(
                f"TTL(clocks={self.clocks}, seconds={self.seconds}): give one of them, above 0"
            )


@dataclass(frozen=True, slots=True)
class LRU:
    """At most so many rows: those go that have not been pushed for longest.

    Args:
        max_rows: of the whole table, at least 64; each of its 64 sub-tables holds an equal share.
    """

    max_rows: int

    def __post_init__(self) -> None:
        if not (LEAST_ROWS <= self.max_rows < math.inf and self.max_rows == int(self.max_rows)):
            raise ConfigurationError(
                f"LRU(max_rows={self.max_rows}): must be a whole number >= {LEAST_ROWS}"
            )


@dataclass(frozen=True, slots=True)
class Decay:
    """A row's score grows by 1 with every push that touches it and falls with every clock.

    Args:
        rate: the score is multiplied by it at each clock, as ``TTL`` counts them; in (0, 1).
        threshold: rows with a lower score are forgotten; in (0, 1).
    """

    rate: float
    threshold: float

    def __post_init__(self) -> None:
        if not (0 < self.rate < 1 and 0 < self.threshold < 1):
            raise ConfigurationError(
                f"Decay(rate={self.rate}, threshold={self.threshold}): both must be in (0, 1)"
            )

    @property
    def horizon(self) -> float:
        """Clocks after which a row that was pushed once is forgotten."""
        return math.log(self.threshold) / math.log(self.rate)


Admission = CountFilter | Probability
Eviction = TTL | LRU | Decay
KINDS: dict[str, type[Admission] | type[Eviction]] = {
    c.__name__: c for c in (CountFilter, Probability, TTL, LRU, Decay)
}


def to_numbers(rule: Admission | Eviction | None) -> tuple[str, tuple[float, ...]]:
    """A rule's name and numbers; ("", ()) for none."""
    return ("", ()) if rule is None else (type(rule).__name__, astuple(rule))


def from_numbers(kind: str, numbers: Sequence[float]) -> Admission | Eviction | None:
    """The rule again.

    Raises:
        ConfigurationError: there is no such rule, or it cannot have these numbers.
    """
    if not kind:
        return None
    if kind not in KINDS or len(numbers) != len(KINDS[kind].__dataclass_fields__):
        raise ConfigurationError(f"{kind}{tuple(numbers)}: must be one of {', '.join(KINDS)}")
    return KINDS[kind](*(int(n) if n == int(n) else n for n in numbers))  # type: ignore[arg-type]


def checked(admit: object, evict: object) -> tuple[Admission | None, Eviction | None]:
    """Both rules; raises ConfigurationError where one is none, or stands in the other's place."""
    if not (admit is None or isinstance(admit, Admission)):
        raise ConfigurationError(f"admit={admit!r}: must be CountFilter(n) or Probability(p)")
    if not (evict is None or isinstance(evict, Eviction)):
        raise ConfigurationError(
            f"evict={evict!r}: must be TTL(clocks=...), TTL(seconds=...), LRU(max_rows) or "
            "Decay(rate, threshold)"
        )
    return admit, evict
