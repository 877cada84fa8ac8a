"""How a worker leaves when its process ends: finished, or failed with the exception that ended it.

``atexit`` alone cannot tell the two apart, so an exception hook reports first. Under a launcher
that knows this worker's identity, leaving is left to it: only it sees the exit code.
"""

from __future__ import annotations

import atexit
import logging
import sys
import traceback
from types import TracebackType
from typing import Protocol

from paramserver.errors import RolledBackError

logger = logging.getLogger("paramserver")

INTERRUPTED = 130
SIGNALLED = (INTERRUPTED, 143)  # the script was asked to end: nothing is wrong with it


class Leaving(Protocol):
    """A client, as far as its end is concerned."""

    @property
    def forked(self) -> bool: ...

    @property
    def launched(self) -> bool: ...

    def fail(self, reason: str, *, fatal: bool = False, code: int = 1) -> None: ...

    def finish_at_exit(self) -> None: ...


_clients: list[Leaving] = []
_hooked = False


def watch(client: Leaving) -> None:
    """The client leaves when the process ends, unless it did before."""
    global _hooked
    _clients.append(client)
    if _hooked:
        return
    _hooked = True
    atexit.register(_finish_all)
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, RolledBackError) and any(client.launched for client in _clients):
            # The launcher starts the script again: where it stood says nothing.
            sys.stderr.write(f"{kind.__module__}.{kind.__qualname__}: {error}\n")
        else:
            previous(kind, error, trace)
        report_all(error)

    sys.excepthook = hook


def forget(client: Leaving) -> None:
    """The client has left."""
    if client in _clients:
        _clients.remove(client)


def is_clean(error: BaseException, *, launched: bool) -> bool:
    """Whether an exception that leaves a ``with`` block is no failure: an exit.

    Under a launcher, only an exit with code 0.
    """
    if isinstance(error, SystemExit):
        return error.code in (None, 0) or not launched
    return isinstance(error, GeneratorExit)


def report(client: Leaving, error: BaseException) -> None:
    """The client fails with this exception; raises nothing."""
    if client.forked:
        return
    text = "".join(traceback.format_exception(error))
    code = _code(error)
    try:
        client.fail(text, fatal=client.launched and code not in SIGNALLED, code=code)
    except Exception as failure:
        logger.warning("the failure could not be reported: %s", failure)


def report_all(error: BaseException) -> None:
    """Every client of this process fails with this exception."""
    for client in list(_clients):
        report(client, error)


def _code(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code
    return 1


def _finish_all() -> None:
    for client in list(_clients):
        if client.forked:
            continue
        try:
            client.finish_at_exit()
        except Exception as failure:
            logger.warning("leaving at exit: %s", failure)
