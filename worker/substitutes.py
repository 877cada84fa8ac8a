"""What acts for a worker while its loop waits for others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

from paramserver.errors import ParameterServerError


class Substitutes:
    """Context managers that are entered for the time of a wait: replicas that answer others.

    Attributes:
        failure: what ended one of them while it stood in; raised by the wait, once.
    """

    def __init__(self) -> None:
        self.failure: BaseException | None = None
        self._enters: list[Callable[[], AbstractContextManager[None]]] = []

    def add(self, enter: Callable[[], AbstractContextManager[None]]) -> None:
        """One more; ``enter`` makes its context manager."""
        self._enters.append(enter)

    @contextmanager
    def standing_in(self, on: bool = True) -> Iterator[None]:
        """All of them stand in while the body runs; without ``on``, none."""
        with ExitStack() as stack:
            for enter in self._enters if on else ():
                stack.enter_context(enter())
            yield
        self.check()

    def check(self) -> None:
        """Raises what ended a substitute."""
        error, self.failure = self.failure, None
        if isinstance(error, ParameterServerError):
            raise type(error)(str(error)) from error
        if error is not None:
            raise error
