"""How the schedules stood at the last clocks: a snapshot wants them as they were at its cut."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

KEPT = 4096


class Moment(NamedTuple):
    """State as it was when the loop was about to take step ``clock``."""

    epoch: int
    clock: int
    state: Mapping[str, Any]


class History:
    """The state at each of the last clocks. Not thread-safe."""

    def __init__(self) -> None:
        self._moments: deque[Moment] = deque(maxlen=KEPT)
        self._reached = -1

    def note(self, epoch: int, clock: int, state: Mapping[str, Any]) -> None:
        """The loop is about to take step ``clock``.

        Of one clock, the first word of its last epoch counts: whoever takes local steps asks for
        many batches at one clock, and what those change is no part of the cut.
        """
        last = self._moments[-1] if self._moments else None
        if clock < self._reached or (clock == self._reached and last and epoch <= last.epoch):
            return
        self._reached = clock
        state = _copied(state)
        if last is None or last.epoch != epoch or not _same(last.state, state):
            self._moments.append(Moment(epoch, clock, state))

    def at(self, clock: int) -> Moment | None:
        """The state at a clock; None: the loop has not come there, or it is long ago."""
        if clock > self._reached:
            return None
        return next((m for m in reversed(self._moments) if m.clock <= clock), None)

    def newest(self) -> Moment | None:
        """The state at the furthest clock that the loop has come to."""
        return self._moments[-1] if self._moments else None


def _copied(value: Any) -> Any:
    """A copy whose containers and tensors nobody else changes."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if type(value) is dict:
        return {key: _copied(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_copied, value))
    if isinstance(value, Mapping):  # a Counter, say: its class says how it travels
        return value.copy() if hasattr(value, "copy") else value
    return value


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor) or isinstance(right, Tensor):
        both = isinstance(left, Tensor) and isinstance(right, Tensor)
        return both and left.shape == right.shape and bool((left == right).all())
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_same(left[k], right[k]) for k in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(_same, left, right))
    return bool(left == right)
