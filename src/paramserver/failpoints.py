"""Failpoints: named places before and after every durable step, where a test can make it go wrong.

    PARAMSERVER_FAILPOINTS="ps.after_wal:crash@3,ps.before_fsync:error=ENOSPC@2+,ps.apply:delay=0.5"

Each rule is NAME:ACTION[@WHEN]. Actions: ``crash`` (SIGKILL to this process), ``stop`` (SIGSTOP),
``delay=SECONDS`` (blocks the caller, as a slow disk would), ``error=ERRNO`` (raises ``OSError``;
``EIO`` when none is named). ``@3``: the third time only; ``@3+``: from the third on; ``@full``,
or any other name: while a file of this name is in the folder; without: always. The folder is that
of ``PARAMSERVER_FAILPOINTS_DIR``; if there is one, each ``crash`` and ``stop`` strikes once in all
processes that share it, so that what is started again is not struck again.

Code that does a durable step calls ``failpoint("ROLE.STEP")``; off, which is the rule, that is one
test of a variable.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from paramserver.errors import ConfigurationError

VARIABLE = "PARAMSERVER_FAILPOINTS"
FOLDER = "PARAMSERVER_FAILPOINTS_DIR"
_RULE = re.compile(
    r"(?P<name>[\w.-]+):(?P<action>crash|stop|delay|error)(?:=(?P<value>[\w.]+))?"
    r"(?:@(?:(?P<at>[1-9]\d*)(?P<on>\+)?|(?P<file>[a-z][\w-]*)))?"
)
_FORM = "NAME:crash|stop|delay=SECONDS|error[=ERRNO], then @N or @N+ or @FILE or nothing"


@dataclass(slots=True)
class _Rule:
    """``at``: the first time that it strikes; ``last``: the last one, 0: for ever; ``file``: only
    while it is there."""

    text: str
    name: str
    action: str
    value: str
    at: int
    last: int
    file: Path | None
    seen: int = 0


class _Armed:
    """The rules of this process; thread-safe."""

    def __init__(self, rules: list[_Rule], folder: Path | None) -> None:
        self._rules = rules
        self._folder = folder
        self._lock = threading.Lock()
        self.hits: dict[str, int] = {}

    def strike(self, name: str) -> None:
        """Counts the rules of a name, and does what is due."""
        with self._lock:
            self.hits[name] = self.hits.get(name, 0) + 1
            due = [rule for rule in self._rules if rule.name == name and self._is_due(rule)]
        for rule in due:
            _act(rule)

    def _is_due(self, rule: _Rule) -> bool:
        rule.seen += 1
        if rule.seen < rule.at or (rule.last and rule.seen > rule.last):
            return False
        if rule.file is not None and not rule.file.exists():
            return False
        if self._folder is None or rule.action not in ("crash", "stop"):
            return True
        try:
            (self._folder / re.sub(r"[^\w.@+-]", "_", rule.text)).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


_armed: _Armed | None = None


def failpoint(name: str) -> None:
    """Does what the failpoint ``name`` is armed for; nothing, which is the rule.

    Raises:
        OSError: it is armed with ``error``.
    """
    if _armed is not None:
        _armed.strike(name)


def _act(rule: _Rule) -> None:
    if rule.action == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    elif rule.action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif rule.action == "delay":
        threading.Event().wait(float(rule.value))
    else:
        number = getattr(errno, rule.value)
        raise OSError(number, f"{os.strerror(number)} (failpoint {rule.name})")


def arm(text: str, folder: str | Path | None = None) -> None:
    """Arms this process with the rules of ``text``; an empty text disarms it.

    Args:
        folder: where strikes of ``crash`` and ``stop`` are remembered, and files looked for; made
            if need be.

    Raises:
        ConfigurationError: not of the form above, or a file is named and no folder.
    """
    global _armed
    place = Path(folder) if folder is not None else None
    rules = [_parsed(part.strip(), place) for part in text.split(",") if part.strip()]
    if rules and place is not None:
        place.mkdir(parents=True, exist_ok=True)
    _armed = _Armed(rules, place) if rules else None


def arm_from(environment: Mapping[str, str]) -> None:
    """Arms this process as its environment says, if it says anything and has not done so before."""
    if _armed is None and (text := environment.get(VARIABLE)):
        arm(text, environment.get(FOLDER) or None)


def hits() -> dict[str, int]:
    """How often each failpoint was passed since this process was armed."""
    return dict(_armed.hits) if _armed is not None else {}


def _parsed(text: str, folder: Path | None) -> _Rule:
    found = _RULE.fullmatch(text)
    if found is None:
        raise ConfigurationError(f"failpoint {text!r}: must be {_FORM}")
    action, value = found["action"], found["value"] or ""
    if action == "error":
        value = value or "EIO"
        if not (value.startswith("E") and isinstance(getattr(errno, value, None), int)):
            raise ConfigurationError(f"failpoint {text!r}: {value!r} is no name of an errno")
    elif action == "delay":
        if not re.fullmatch(r"\d+(\.\d+)?", value):
            raise ConfigurationError(f"failpoint {text!r}: delay needs seconds, as in delay=0.5")
    elif value:
        raise ConfigurationError(f"failpoint {text!r}: {action} takes no value")
    if found["file"] and folder is None:
        raise ConfigurationError(f"failpoint {text!r}: a file is looked for in {FOLDER}, name one")
    file = folder / found["file"] if folder is not None and found["file"] else None
    at = int(found["at"] or 1)
    last = at if found["at"] and not found["on"] else 0
    return _Rule(text, found["name"], action, value, at, last, file)
