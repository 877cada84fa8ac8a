"""Virtual time, processes that crash and stand still, and a network that loses and repeats."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeAlias

Thunk: TypeAlias = Callable[[], None]
Reply: TypeAlias = Callable[[Any], None]  # a value, or an error to be raised at the caller
Script: TypeAlias = Generator["Call | float", Any, Any]  # yields calls, or seconds to sleep

RETRY_S = 1.0  # that a caller waits for a reply before it asks again


class Kernel:
    """Events in the order of their time; of two at once, the one planned first.

    Attributes:
        now: virtual seconds.
        random: of everything that happens in this world.
        steps: events so far.
    """

    def __init__(self, seed: int) -> None:
        self.now = 0.0
        self.random = random.Random(seed)
        self.steps = 0
        self._heap: list[tuple[float, int, Thunk]] = []
        self._order = itertools.count()

    def at(self, delay: float, thunk: Thunk) -> None:
        """Plans an event."""
        heapq.heappush(self._heap, (self.now + delay, next(self._order), thunk))

    def run(self, until: Callable[[], bool], deadline: float) -> bool:
        """Lets events happen until a condition holds; False: the deadline came first."""
        while not until():
            if not self._heap or self._heap[0][0] > deadline:
                return False
            self.now, _, thunk = heapq.heappop(self._heap)
            self.steps += 1
            thunk()
        return True


class Process:
    """Something that can crash, and stand still.

    Attributes:
        life: how often it was started; events of an earlier life never reach it.
        alive, stopped: what it is.
    """

    def __init__(self, kernel: Kernel, name: str) -> None:
        self.kernel = kernel
        self.name = name
        self.life = 0
        self.alive = True
        self.stopped = False
        self._held: list[tuple[int, Thunk]] = []

    def deliver(self, life: int, thunk: Thunk) -> None:
        """An event for one life of this process; one that stands still gets it later."""
        if not self.alive or life != self.life:
            return
        if self.stopped:
            self._held.append((life, thunk))
        else:
            thunk()

    def after(self, delay: float, thunk: Thunk) -> None:
        """A timer of its own."""
        life = self.life
        self.kernel.at(delay, lambda: self.deliver(life, thunk))

    def stop(self) -> None:
        """Stands still from now on."""
        self.stopped = True

    def resume(self) -> None:
        """Goes on with what came meanwhile."""
        self.stopped = False
        held, self._held = self._held, []
        for life, thunk in held:
            self.deliver(life, thunk)

    def crash(self) -> None:
        """Ends at once; what it held in memory is lost."""
        self.alive, self.stopped = False, False
        self._held.clear()

    def start(self) -> None:
        """A new life."""
        self.life += 1
        self.alive = True


@dataclass(frozen=True, slots=True)
class Weather:
    """What the network does to a message: lost, repeated, on its way for so many seconds."""

    loss: float
    repeat: float
    delay: tuple[float, float]


class Network:
    """Messages between processes.

    Attributes:
        cut: from name, to name: until when nothing passes.
    """

    def __init__(self, kernel: Kernel, weather: Weather) -> None:
        self._kernel = kernel
        self._weather = weather
        self.cut: dict[tuple[str, str], float] = {}
        self._last: dict[tuple[str, str, int], float] = {}

    def send(self, source: Process, target: Process, thunk: Thunk) -> None:
        """A message that may be lost, repeated, and overtaken by later ones."""
        draw, weather = self._kernel.random, self._weather
        if self._is_cut(source, target) or draw.random() < weather.loss:
            return
        for _ in range(2 if draw.random() < weather.repeat else 1):
            self._carry(target, draw.uniform(*weather.delay), thunk)

    def stream(
        self, source: Process, target: Process, number: int, thunk: Thunk, broken: Thunk
    ) -> None:
        """A message of a stream: in order with those before it, or ``broken`` at the target."""
        draw = self._kernel.random
        key = (source.name, target.name, number)
        arrives = max(
            self._kernel.now + draw.uniform(*self._weather.delay), self._last.get(key, 0.0)
        )
        self._last[key] = arrives
        lost = self._is_cut(source, target) or draw.random() < self._weather.loss
        self._carry(target, arrives - self._kernel.now, broken if lost else thunk)

    def _is_cut(self, source: Process, target: Process) -> bool:
        return self.cut.get((source.name, target.name), 0.0) > self._kernel.now

    def _carry(self, target: Process, delay: float, thunk: Thunk) -> None:
        life = target.life
        self._kernel.at(delay, lambda: target.deliver(life, thunk))


@dataclass(frozen=True, slots=True)
class Call:
    """A request, sent again until it is answered.

    Attributes:
        handler: of the target, given a reply function and ``arguments``; called as often as the
            request arrives.
    """

    target: Process
    handler: Callable[..., None]
    arguments: tuple[Any, ...] = ()


class Agent(Process):
    """A process that runs scripts: generators that yield calls and sleeps."""

    def __init__(self, kernel: Kernel, name: str, network: Network) -> None:
        super().__init__(kernel, name)
        self.network = network

    def spawn(self, script: Script) -> None:
        """Runs a script to its end, or to the end of this life."""
        self._step(script, None)

    def _step(self, script: Script, value: Any) -> None:
        try:
            wish = script.throw(value) if isinstance(value, Exception) else script.send(value)
        except StopIteration:
            return
        if isinstance(wish, Call):
            self.ask(wish, lambda answer: self._step(script, answer))
        else:
            self.after(wish, lambda: self._step(script, None))

    def ask(self, call: Call, answered: Reply) -> None:
        """Sends a request until it is answered; the first answer counts."""
        life, done = self.life, False

        def back(value: Any) -> None:
            def arrive() -> None:
                nonlocal done
                if not done:
                    done = True
                    answered(value)

            self.network.send(call.target, self, lambda: self.deliver(life, arrive))

        def attempt() -> None:
            if not done:
                self.network.send(
                    self, call.target, lambda: guarded(call.handler, back, *call.arguments)
                )
                self.after(RETRY_S, attempt)

        attempt()


def guarded(handler: Callable[..., None], reply: Reply, *arguments: Any) -> None:
    """Calls a handler; what it refuses goes back as the answer."""
    from paramserver.errors import ParameterServerError

    try:
        handler(reply, *arguments)
    except ParameterServerError as error:
        reply(error)
