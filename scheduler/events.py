"""Events of the scheduler's state: what changes it, recorded so that it can be told again.

State after the same events is the same state. So an event depends on nothing but the state and its
arguments: what is only measured (when members were heard, how fast they are) comes as an argument.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

from paramserver.errors import FencedError, JobFailedError

Recorder = Callable[[str, Sequence[Any], Mapping[str, Any]], None]
P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound="Recorded")

_EVENTS = "_paramserver_event"


class Recorded:
    """A state whose events are told to ``recorder``, once each, after they happened.

    Attributes:
        recorder: name and arguments of an event; None: nobody wants to know.
    """

    unwritten = frozenset({"recorder", "_inside"})  # attributes that are no part of the state
    recorder: Recorder | None = None
    _inside = False


def event(
    method: Callable[Concatenate[S, P], R],
) -> Callable[Concatenate[S, P], R]:
    """A method that changes the state; arguments are values that ``plain`` can write down.

    Refused calls are recorded too: a refusal may end a wait. Those that speak for nobody, or in a
    job that has failed, change nothing.
    """
    return _recorded(method, lambda result: False)


def event_unless(
    unchanged: Callable[[Any], bool],
) -> Callable[[Callable[Concatenate[S, P], R]], Callable[Concatenate[S, P], R]]:
    """As ``event``; not recorded where the result says that nothing was changed."""
    return lambda method: _recorded(method, unchanged)


def _recorded(
    method: Callable[Concatenate[S, P], R], unchanged: Callable[[R], bool]
) -> Callable[Concatenate[S, P], R]:
    @functools.wraps(method)
    def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        if self._inside or self.recorder is None:  # a part of another event tells of itself
            return method(self, *args, **kwargs)
        self._inside = True
        record = True
        try:
            result = method(self, *args, **kwargs)
            record = not unchanged(result)
            return result
        except (FencedError, JobFailedError):
            record = False
            raise
        finally:
            self._inside = False
            if record:
                self.recorder(method.__name__, args, kwargs)

    setattr(call, _EVENTS, True)
    return call


def is_event(state: Recorded, name: str) -> bool:
    """Whether the state has an event of that name."""
    return hasattr(getattr(type(state), name, None), _EVENTS)
