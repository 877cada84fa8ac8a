"""L-BFGS without vectors: all that its coordinator decides, from scalars alone.

Vectors have names and lie on the servers; here there are only their dot products (Chen, Wang, Zhou:
Large-scale L-BFGS using MapReduce, NIPS 2014) and the losses of trial points. Everything that a
coordinator must remember is in ``Progress``, which another one can go on from.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from paramserver.errors import ConfigurationError, InvalidRequestError, MismatchError

DECREASE, CURVATURE = 1e-4, 0.9  # weak Wolfe conditions
PAIR = 1e-10  # a pair (s, y) is kept if <s, y> > PAIR <y, y>
MAX_TRIALS = 40  # of one line search

VALUES = "values"  # the group's own


def x(evaluation: int) -> str:
    """The point of an evaluation."""
    return f"x/{evaluation}"


def total(evaluation: int) -> str:
    """The sum of the gradients of its samples."""
    return f"sum/{evaluation}"


def g(evaluation: int) -> str:
    """The gradient of the objective there."""
    return f"g/{evaluation}"


def d(evaluation: int) -> str:
    """The direction that was made after it."""
    return f"d/{evaluation}"


def s(evaluation: int) -> str:
    """The step that led there."""
    return f"s/{evaluation}"


def y(evaluation: int) -> str:
    """The change of the gradient along it."""
    return f"y/{evaluation}"


@dataclass(frozen=True, slots=True)
class Settings:
    """What the workers of one minimization agree on.

    Attributes:
        size: samples.
        l2: weight of half the squared norm in the objective.
        history: pairs kept.
        max_iter: iterations at most.
        gtol: converged when the norm of the gradient is at most this.
        ftol: converged when an iteration lowers the loss by at most this, relative to it or to 1.
    """

    size: int
    l2: float = 0.0
    history: int = 10
    max_iter: int = 100
    gtol: float = 1e-6
    ftol: float = 1e-12

    def __post_init__(self) -> None:
        for name, low in (("size", 1), ("history", 1), ("max_iter", 1)):
            value = getattr(self, name)
            if value < low:
                raise ConfigurationError(f"{name}={value}: must be >= {low}")
        for name in ("l2", "gtol", "ftol"):
            number = getattr(self, name)
            if not 0 <= number < math.inf:
                raise ConfigurationError(f"{name}={number}: must be finite and >= 0")

    def difference(self, other: Settings) -> str:
        """The first thing in which two workers differ, in words; empty: none."""
        for name in self.__slots__:
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                return f"{name} is {theirs}, not {mine}"
        return ""


@dataclass(frozen=True, slots=True)
class Progress:
    """A minimization between two evaluations.

    Attributes:
        evaluation: number of the one that workers are to make, of the point ``x(evaluation)``.
        at: the evaluation whose point was accepted last; -1: none yet.
        losses: of the accepted points; the first is that of the start.
        norm: of the gradient at the accepted point.
        direction: the evaluation that the direction ``d(direction)`` was made after.
        slope: of the loss along it, at the accepted point.
        pairs: evaluations whose ``s`` and ``y`` are kept, the oldest first.
        step: along the direction, of the point under evaluation.
        low, high: the line search's bracket; high 0: none yet.
        trials: points of this line search.
        message: why it ended; empty: it goes on.
        failure: a worker could not go on.
        first: the evaluation that is epoch 0 of the data set: this job's first.
    """

    settings: Settings
    evaluation: int = 0
    at: int = -1
    losses: tuple[float, ...] = ()
    norm: float = 0.0
    direction: int = -1
    slope: float = 0.0
    pairs: tuple[int, ...] = ()
    step: float = 0.0
    low: float = 0.0
    high: float = 0.0
    trials: int = 0
    converged: bool = False
    message: str = ""
    failure: str = ""
    first: int = 0

    @property
    def epoch(self) -> int:
        """Of the data set, for the evaluation."""
        return self.evaluation - self.first

    @property
    def iterations(self) -> int:
        """Points accepted after the start."""
        return len(self.losses) - 1

    @property
    def ended(self) -> bool:
        return bool(self.message or self.failure)

    def text(self) -> str:
        """As JSON; floats keep every bit."""
        return json.dumps(asdict(self))

    @staticmethod
    def parse(text: str) -> Progress:
        """The inverse of ``text``.

        Raises:
            InvalidRequestError: it is none.
        """
        try:
            fields: dict[str, Any] = json.loads(text)
            fields["settings"] = Settings(**fields["settings"])
            fields["losses"], fields["pairs"] = tuple(fields["losses"]), tuple(fields["pairs"])
            return Progress(**fields)
        except (ValueError, TypeError, KeyError) as error:
            raise InvalidRequestError(f"not the state of a minimization: {error}") from error

    def kept(self) -> set[str]:
        """Vectors that are still of use."""
        if self.ended:
            return set()
        names = {x(self.evaluation), total(self.evaluation)}
        if self.at >= 0:
            names |= {x(self.at), g(self.at), d(self.direction)}
        return names | {name for k in self.pairs for name in (s(k), y(k))}


def resumed(saved: Progress, settings: Settings) -> Progress | None:
    """A minimization of a snapshot, as it goes on: its last evaluation is made anew.

    Args:
        saved: the newest that was announced before the cut.
        settings: what the workers say now; the objective must be the same.

    Returns:
        None: it is to begin anew, from the group's values: it failed, or has ended and is asked
        for more.

    Raises:
        MismatchError: another objective.
    """
    for name in ("size", "l2"):
        then, now = getattr(saved.settings, name), getattr(settings, name)
        if then != now:
            raise MismatchError(
                f"{name} is {now}, and was {then} in the snapshot: its history is of another "
                "objective; minimize as before, or under another name"
            )
    if saved.failure or (saved.ended and saved.settings != settings):
        return None
    return replace(saved, settings=settings, first=saved.evaluation)


class Products:
    """Dot products by the names of their vectors; each is asked of the servers once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], float] = {}

    def __getitem__(self, pair: tuple[str, str]) -> float:
        return self._known[_key(*pair)]

    def missing(self, names: Sequence[str]) -> list[tuple[str, str]]:
        """Pairs of these vectors whose products are not known."""
        return [
            (a, b) for i, a in enumerate(names) for b in names[i:] if _key(a, b) not in self._known
        ]

    def put(self, pairs: Iterable[tuple[str, str]], values: Iterable[float]) -> None:
        """What the servers said."""
        for (a, b), value in zip(pairs, values, strict=True):
            self._known[_key(a, b)] = value

    def keep(self, names: Iterable[str]) -> None:
        """Forgets all products of other vectors."""
        kept = set(names)
        self._known = {k: v for k, v in self._known.items() if kept.issuperset(k)}


def _key(a: str, b: str) -> tuple[str, str]:
    return (a, b) if a <= b else (b, a)


def basis(pairs: Sequence[int], at: int) -> list[str]:
    """The vectors that a direction is made of."""
    return [*map(s, pairs), *map(y, pairs), g(at)]


def two_loop(products: Products, pairs: Sequence[int], at: int) -> dict[str, float]:
    """The direction -H g as coefficients of the basis (the two-loop recursion on scalars)."""
    delta = dict.fromkeys(basis(pairs, at), 0.0)
    delta[g(at)] = -1.0

    def against(name: str) -> float:
        return sum(c * products[name, other] for other, c in delta.items() if c)

    alpha: dict[int, float] = {}
    for k in reversed(pairs):
        alpha[k] = against(s(k)) / products[s(k), y(k)]
        delta[y(k)] -= alpha[k]
    if pairs:
        newest = pairs[-1]
        scale = products[s(newest), y(newest)] / products[y(newest), y(newest)]
        delta = {name: scale * c for name, c in delta.items()}
    for k in pairs:
        beta = against(y(k)) / products[s(k), y(k)]
        delta[s(k)] += alpha[k] - beta
    return delta


def slope_of(products: Products, direction: Mapping[str, float], at: int) -> float:
    """<gradient, direction> from the coefficients of the direction."""
    return sum(c * products[g(at), name] for name, c in direction.items() if c)


def good_pair(products: Products, evaluation: int) -> bool:
    """Whether a pair keeps the inverse Hessian positive definite."""
    return products[s(evaluation), y(evaluation)] > PAIR * products[y(evaluation), y(evaluation)]


def first_step(progress: Progress) -> float:
    """Where a line search begins: at 1, but at a distance of at most 1 without a history."""
    return 1.0 if progress.pairs else min(1.0, 1.0 / progress.norm)


def judge(progress: Progress, loss: float, slope: float) -> Progress | None:
    """The weak Wolfe conditions at a trial point, by bisection (Lewis, Overton 2013).

    Args:
        loss: there; may be infinite.
        slope: of the loss there, along the direction.

    Returns:
        The next trial, or None: this point is accepted.
    """
    step = progress.step
    limit = progress.losses[-1] + DECREASE * step * progress.slope
    if not loss <= limit:
        progress = replace(progress, high=step)
    elif slope < CURVATURE * progress.slope:
        progress = replace(progress, low=step)
    else:
        return None
    low, high = progress.low, progress.high
    return replace(progress, step=(low + high) / 2 if high else 2 * low, trials=progress.trials + 1)


def exhausted(progress: Progress) -> bool:
    """Whether a line search cannot go on: too many trials, or no number left between two."""
    bracketed = progress.high and not progress.low < progress.step < progress.high
    return progress.trials >= MAX_TRIALS or bool(bracketed) or not math.isfinite(progress.step)


def reached(progress: Progress) -> Progress:
    """Ends a minimization that is at its goal, or at its last iteration."""
    settings, losses = progress.settings, progress.losses
    if progress.norm <= settings.gtol:
        return replace(
            progress, converged=True, message=f"the norm of the gradient is <= gtol={settings.gtol}"
        )
    if len(losses) > 1:
        scale = max(abs(losses[-1]), abs(losses[-2]), 1.0)
        if losses[-2] - losses[-1] <= settings.ftol * scale:
            message = f"an iteration lowers the loss by <= ftol={settings.ftol}"
            return replace(progress, converged=True, message=message)
    if progress.iterations >= settings.max_iter:
        message = f"max_iter={settings.max_iter} iterations; the gradient's norm is {progress.norm}"
        return replace(progress, message=message)
    return progress
