"""A scheduler's state as plain values that compare: all but what is only measured or said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from enum import Enum
from types import MethodType
from typing import Any

from paramserver.config import SchedulerConfig
from paramserver.errors import ParameterServerError
from paramserver.scheduler.plain import attributes, from_text, to_text
from paramserver.scheduler.state import SchedulerState

MEASURED = {
    "Membership": {"_heard", "_view"},
    "Adaptation": {"_heard", "_measured", "_ends"},
    "Controller": {"_before"},
    "SchedulerState": {"figures", "_taken", "_wakes", "journal"},
}


def canonical(value: Any) -> Any:
    """The value, objects as lists of their class and attributes, sets sorted."""
    if isinstance(value, MethodType):
        return value.__name__
    if isinstance(value, SchedulerConfig):
        return None
    if isinstance(value, Enum) or value is None or isinstance(value, str | int | float | range):
        return value
    if isinstance(value, Mapping):
        return [[canonical(k), canonical(v)] for k, v in value.items()]
    if isinstance(value, set | frozenset):
        return sorted((canonical(v) for v in value), key=repr)
    if isinstance(value, Sequence):
        return [canonical(v) for v in value]
    kind = type(value).__name__
    inside = attributes(value)
    left_out = MEASURED.get(kind, set()) | {"_journal"}
    return [kind, *([n, canonical(v)] for n, v in sorted(inside.items()) if n not in left_out)]


def same(one: SchedulerState, other: SchedulerState) -> None:
    """Raises AssertionError, naming the part, when two states differ."""
    left, right = attributes(one), attributes(other)
    assert left.keys() == right.keys()
    for name in left.keys() - MEASURED["SchedulerState"]:
        assert canonical(left[name]) == canonical(right[name]), name


class Witness:
    """Notes the events of a state; told again, they must lead to the same state."""

    def __init__(self, state: SchedulerState) -> None:
        self._state = state
        self._begun = to_text(state)
        self._told: list[tuple[str, str]] = []
        state.recorder = self._record

    def _record(self, name: str, arguments: Sequence[Any], named: Mapping[str, Any]) -> None:
        self._told.append((name, to_text([arguments, dict(named)])))

    def check(self) -> None:
        """Raises AssertionError, naming the part, where something changed the state unnoticed."""
        config = self._state.config
        again: SchedulerState = from_text(self._begun, config)
        for name, text in self._told:
            arguments, named = from_text(text, config)
            with suppress(ParameterServerError):
                getattr(again, name)(*arguments, **named)
        same(again, self._state)
