"""SIGTERM ends a worker between two steps: what it has done counts, what it has not goes back."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

TERMINATED = 143


class Terminated(SystemExit):
    """The process was asked to end, and its worker has left the job."""

    def __init__(self) -> None:
        super().__init__(TERMINATED)


class Drain:
    """Whether one client is to leave, and when it may: for the main thread, which hears signals.

    Attributes:
        leave: tells the scheduler that this worker goes.
    """

    def __init__(self) -> None:
        self.leave: Callable[[], None] = lambda: None
        self._asked = self._waiting = self._going = False
        self._pushed = False  # since it was asked to leave

    @property
    def asked(self) -> bool:
        return self._asked

    def ask(self) -> bool:
        """Asks this client to leave; whether it can at once, as it only waits for others."""
        self._asked = True
        return self._waiting

    def step_over(self) -> None:
        """A step has ended: now is the time.

        Raises:
            Terminated: this worker has left.
        """
        if self._asked and not self._going and _in_main_thread():
            self._go()

    def push_begins(self) -> None:
        """As ``step_over``, for loops without a loader: the push under way was the last."""
        if self._pushed:
            self.step_over()
        self._pushed = self._asked

    def _go(self) -> None:
        self._going = True
        self.leave()
        raise Terminated

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """While inside, this worker waits for others and may leave at any moment."""
        if not _in_main_thread() or self._waiting:
            yield
            return
        self.step_over()
        self._waiting = True
        try:
            yield
        except Terminated:
            self._waiting = False
            self.step_over()
            raise
        finally:
            self._waiting = False


_drains: list[Drain] = []


def install(drain: Drain) -> None:
    """From now on SIGTERM asks this client to leave; a second one ends the process at once.

    Nothing happens where the script handles the signal itself, and outside the main thread.
    """
    if not _in_main_thread():
        return
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _on_signal)
    if signal.getsignal(signal.SIGTERM) is _on_signal:
        _drains.append(drain)


def forget(drain: Drain) -> None:
    """The client has left; without any, SIGTERM ends the process as it always does."""
    if drain in _drains:
        _drains.remove(drain)
    if not _drains and _in_main_thread() and signal.getsignal(signal.SIGTERM) is _on_signal:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _on_signal(number: int, frame: object) -> None:
    if any(drain.asked for drain in _drains) or not _drains:
        os._exit(TERMINATED)
    waiting = [drain.ask() for drain in _drains]  # all of them are asked
    if any(waiting):
        raise Terminated


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
