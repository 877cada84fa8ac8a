"""The adaptive groups of a job: what is measured of them, and their bounds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from paramserver.core.adaptive import Change, Controller, Window
from paramserver.scheduler.journal import Journal

WINDOW_HEARTBEATS = 5
KEPT = 4096  # losses and stalenesses of one window


@dataclass(slots=True)
class _Measured:
    """Sums over the workers since the window began."""

    waited: float = 0.0
    worked: float = 0.0
    losses: list[float] = field(default_factory=list)
    staleness: list[float] = field(default_factory=list)
    workers: set[str] = field(default_factory=set)


class Adaptation:
    """Controllers of the groups under ``Adaptive``, fed by heartbeats and logged losses.

    Args:
        journal: told every change.
        heartbeat_s: a window has five of them.

    Attributes:
        bounds: by group; servers learn of them with the view.
    """

    def __init__(self, journal: Journal, heartbeat_s: float) -> None:
        self._journal = journal
        self._window_s = WINDOW_HEARTBEATS * heartbeat_s
        self._controllers: dict[str, Controller] = {}
        self._heard: dict[str, tuple[float, float, float]] = {}  # time, steps, seconds waited
        self._measured = _Measured()
        self._ends = 0.0
        self.bounds: dict[str, int] = {}

    def open(self, group: str, max_bound: int, now: float, bound: int | None = None) -> None:
        """A group was registered, or goes on from a snapshot with the bound that it had."""
        self._controllers[group] = made = Controller(max_bound)
        made.bound = made.bound if bound is None else min(bound, max_bound)
        self.bounds[group] = made.bound
        self._ends = self._ends or now + self._window_s

    def heartbeat(self, name: str, stats: Mapping[str, float], now: float) -> None:
        """What a worker has done so far."""
        if not self._controllers:
            return
        steps, waited = stats.get("steps", 0.0), stats.get("waited_s", 0.0)
        then, steps_then, waited_then = self._heard.get(name, (now, steps, waited))
        if steps > steps_then or name not in self._heard:
            self._heard[name] = (now, steps, waited)
        if steps > steps_then:  # a wait counts once it is over
            measured = self._measured
            measured.worked += now - then
            measured.waited += min(waited - waited_then, now - then)
            measured.workers.add(name)
            if len(measured.staleness) < KEPT:
                measured.staleness.append(stats.get("staleness", 0.0))

    def log(self, scalars: Mapping[str, float]) -> None:
        """A worker logged scalars: ``loss`` is the one that matters here."""
        if self._controllers and "loss" in scalars and len(self._measured.losses) < KEPT:
            self._measured.losses.append(scalars["loss"])

    def tick(self, now: float) -> dict[str, Change]:
        """At the end of a window: the bounds that are to change, by group; for ``adopt``."""
        measured = self._measured
        if now < self._ends or not measured.worked > 0:
            return {}
        self._measured = _Measured()
        self._ends = now + self._window_s
        waited = measured.waited / measured.worked
        window = Window(waited, measured.losses, measured.staleness)
        workers = len(measured.workers)
        found = {g: c.observe(window, workers) for g, c in self._controllers.items()}
        return {group: change for group, change in found.items() if change is not None}

    def adopt(self, group: str, change: Change, now: float) -> None:
        """A bound changes."""
        before, self.bounds[group] = self.bounds[group], change.bound
        self._controllers[group].bound = change.bound
        self._journal.say(
            f"staleness bound of group {group}: {before} -> {change.bound}: {change.reason}", now
        )
