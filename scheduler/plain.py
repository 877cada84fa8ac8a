"""Values and whole object graphs as JSON, and back; nothing that is read is ever executed.

Objects are those of this package, by their attributes; one that is met twice stays one. What is
read may only name classes of ``core``, ``scheduler``, ``types`` and ``life_cycle`` of this
package, which are made without their constructors.
"""

from __future__ import annotations

import importlib
import json
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from enum import Enum
from types import MethodType
from typing import Any

from paramserver.config import Limits, SchedulerConfig
from paramserver.errors import InternalError

_HOMES = (
    "paramserver.core.",
    "paramserver.scheduler.",
    "paramserver.types",
    "paramserver.life_cycle",
)
_UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, ImportError, RecursionError)
_SIMPLE = (str, int, float, bool, type(None))


def to_text(value: Any) -> str:
    """A value, or an object with all that it refers to. Configuration is left out.

    Raises:
        InternalError: something that is neither plain data nor an object of this package.
    """
    return json.dumps(_Writer().write(value), separators=(",", ":"))


def from_text(text: str, config: SchedulerConfig) -> Any:
    """What ``to_text`` was given; where it had a configuration, ``config`` is now.

    Raises:
        InternalError: the text was not written by ``to_text`` of this version.
    """
    try:
        return _Reader(config).read(json.loads(text))
    except _UNREADABLE as error:
        raise InternalError(f"state of another version: {error!r}") from error


def attributes(value: object) -> dict[str, Any]:
    """All attributes of an object, of slots and dict alike; less those it calls ``unwritten``."""
    left_out = {"__weakref__", *getattr(type(value), "unwritten", ())}
    slots = [s for c in type(value).__mro__ for s in getattr(c, "__slots__", ())]
    found = {s: getattr(value, s) for s in slots if hasattr(value, s)}
    found.update(getattr(value, "__dict__", {}))
    return {name: found[name] for name in found if name not in left_out}


class _Writer:
    """Lists of a mark and what belongs to it; simple values as they are."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._kept: list[object] = []  # an id is good for as long as its object lives

    def write(self, value: Any) -> Any:
        if isinstance(value, _SIMPLE) and not isinstance(value, Enum):
            return value
        if isinstance(value, Enum):
            return ["enum", _home(type(value)), value.name]
        if isinstance(value, SchedulerConfig | Limits):
            return ["config" if isinstance(value, SchedulerConfig) else "limits"]
        if isinstance(value, range):
            return ["range", value.start, value.stop, value.step]
        if isinstance(value, frozenset):
            return ["frozen", sorted(map(self.write, value), key=json.dumps)]
        if isinstance(value, tuple):
            made = [self.write(v) for v in value]
            return ["tuple", made] if type(value) is tuple else ["named", _home(type(value)), made]
        return self._write_shared(value)

    def _write_shared(self, value: Any) -> Any:
        if id(value) in self._numbers:
            return ["again", self._numbers[id(value)]]
        number = self._numbers[id(value)] = len(self._numbers)
        self._kept.append(value)
        if isinstance(value, set):
            return ["set", number, sorted(map(self.write, value), key=json.dumps)]
        if isinstance(value, deque):
            return ["deque", number, value.maxlen, [self.write(v) for v in value]]
        if isinstance(value, Mapping):
            mark = "ordered" if isinstance(value, OrderedDict) else "dict"
            return [mark, number, [[self.write(k), self.write(v)] for k, v in value.items()]]
        if isinstance(value, MethodType):
            return ["method", number, self.write(value.__self__), value.__name__]
        if isinstance(value, Sequence):
            return ["list", number, [self.write(v) for v in value]]
        home = _home(type(value))
        inside = {name: self.write(v) for name, v in attributes(value).items()}
        return ["object", number, home, inside]


class _Reader:
    def __init__(self, config: SchedulerConfig) -> None:
        self._config = config
        self._known: dict[int, Any] = {}

    def read(self, text: Any) -> Any:
        if isinstance(text, _SIMPLE):
            return text
        mark, *rest = text
        return getattr(self, f"on_{mark}")(*rest)

    def _all(self, texts: Sequence[Any]) -> list[Any]:
        return [self.read(text) for text in texts]

    def on_enum(self, home: str, name: str) -> Any:
        return _find(home)[name]

    def on_config(self) -> Any:
        return self._config

    def on_limits(self) -> Any:
        return self._config.limits

    def on_range(self, start: int, stop: int, step: int) -> Any:
        return range(start, stop, step)

    def on_frozen(self, texts: Sequence[Any]) -> Any:
        return frozenset(self._all(texts))

    def on_tuple(self, texts: Sequence[Any]) -> Any:
        return tuple(self._all(texts))

    def on_named(self, home: str, texts: Sequence[Any]) -> Any:
        kind = _find(home)
        if not issubclass(kind, tuple):
            raise TypeError(f"{home} is no tuple")
        return kind(*self._all(texts))

    def on_again(self, number: int) -> Any:
        return self._known[number]

    def _keep(self, number: int, made: Any) -> Any:
        self._known[number] = made
        return made

    def on_set(self, number: int, texts: Sequence[Any]) -> Any:
        made = self._keep(number, set())
        made.update(self._all(texts))
        return made

    def on_deque(self, number: int, maxlen: int | None, texts: Sequence[Any]) -> Any:
        made = self._keep(number, deque(maxlen=maxlen))
        made.extend(self._all(texts))
        return made

    def on_dict(self, number: int, texts: Sequence[Any]) -> Any:
        return self._fill(self._keep(number, {}), texts)

    def on_ordered(self, number: int, texts: Sequence[Any]) -> Any:
        return self._fill(self._keep(number, OrderedDict()), texts)

    def _fill(self, made: Any, texts: Sequence[Any]) -> Any:
        for key, value in texts:
            made[self.read(key)] = self.read(value)
        return made

    def on_method(self, number: int, owner: Any, name: str) -> Any:
        made = getattr(self.read(owner), name)
        if not isinstance(made, MethodType):
            raise TypeError(f"{name} is no method")
        return self._keep(number, made)

    def on_list(self, number: int, texts: Sequence[Any]) -> Any:
        made = self._keep(number, [])
        made.extend(self._all(texts))
        return made

    def on_object(self, number: int, home: str, inside: Mapping[str, Any]) -> Any:
        made = self._keep(number, object.__new__(_find(home)))
        for name, text in inside.items():
            object.__setattr__(made, name, self.read(text))  # frozen ones too
        return made


def _home(kind: type) -> str:
    home = f"{kind.__module__}:{kind.__qualname__}"
    if not kind.__module__.startswith(_HOMES):
        raise InternalError(f"{home} is no part of the scheduler's state")
    return home


def _find(home: str) -> Any:
    module, _, name = home.partition(":")
    if not module.startswith(_HOMES):
        raise ValueError(f"{home!r} is no part of the scheduler's state")
    found = getattr(importlib.import_module(module), name)
    if not isinstance(found, type) or found.__module__ != module:
        raise ValueError(f"{home!r} is no class of its module")
    return found
