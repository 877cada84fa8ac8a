"""What the replicas of one formation tell one another, beside what they reduce."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any, NamedTuple

from torch._C._distributed_c10d import TCPStore

from paramserver.wire.addresses import split_address

FOREVER = timedelta(days=30)
ANSWER_S = 1.0  # for words that an error message would be better with
UNSAID = 64  # words that may wait for the store
LEAVE_S = 1.0  # for the word that one leaves


class BrokenRingError(Exception):
    """Replicas must form anew; never leaves this package."""


class _Word(NamedTuple):
    """What an idle replica hears: "step" N, "look" around, the formation is "over" or "broken"."""

    kind: str
    clock: int = 0


class Signals:
    """Words through the store of a formation.

    The store is on the machine of one replica. If that machine goes silent, calls to the store do
    not return; therefore nobody who has a heartbeat or a step to attend to makes one.

    Args:
        endpoint: HOST:PORT of the store.
        number: of the formation.
        size, index: how many replicas, and which one this is.
        timeout: seconds to connect.

    Attributes:
        store: to find the other replicas with.

    Raises:
        RuntimeError: no connection.
    """

    def __init__(self, endpoint: str, number: int, size: int, index: int, timeout: float) -> None:
        self.store = _connect(endpoint, timeout)
        self._writing = _connect(endpoint, timeout)  # while the other one waits
        self._number, self._size, self._index = number, size, index
        self._left_key = f"left-{number}"
        self._calls: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._words: queue.SimpleQueue[_Word] = queue.SimpleQueue()
        self._listening = self._looking = False
        self._trouble = ""  # why this formation is over
        self._thread = threading.Thread(target=self._write, name="paramserver words", daemon=True)
        self._thread.start()

    def check_left(self) -> None:
        """Looks whether a replica has left; what is seen is raised by this call or the next.

        Raises:
            BrokenRingError: one has.
        """
        if self._trouble:
            raise BrokenRingError(self._trouble)
        if not self._looking:
            self._looking = True
            self._say(self._look)

    def _look(self) -> None:
        if self._writing.check([self._left_key]):
            self._trouble = "a replica left the formation"
        self._looking = False

    # Idle replicas wait for a word instead of joining a step that nobody has begun.

    def await_word(self, clock: int) -> bool:
        """Returns when another replica has begun this clock, or ``interrupt`` was called (False).

        A word that is lost is said again by those who wait.
        """
        while True:
            if not self._listening:
                self._listening = True
                name = "paramserver listener"
                threading.Thread(target=self._listen, name=name, daemon=True).start()
            word = self._words.get()
            if word.kind == "broken":
                raise BrokenRingError(self._trouble)
            if word.kind == "look":
                return False
            if word.clock >= clock:
                return True

    def _listen(self) -> None:
        """One word for this replica; the formation may end without one."""
        key = self._key(self._index)
        word = _Word("broken")
        try:
            self.store.wait([key], FOREVER)
            kind, said = self.store.get(key).decode().split()
            self.store.delete_key(key)
            word = _Word(kind, int(said))
        except RuntimeError as error:
            self._trouble = self._trouble or str(error)
        self._listening = False
        self._words.put(word)

    def wake(self, indices: Iterable[int], clock: int) -> None:
        """Tells idle replicas that this clock has begun; silent where nobody listens."""
        keys = [self._key(i) for i in indices if i != self._index]
        if keys:
            self._say(lambda: self._writing.multi_set(keys, [f"step {clock}"] * len(keys)))

    def interrupt(self) -> None:
        """Ends ``await_word`` of this replica, now or when it begins."""
        self._words.put(_Word("look"))

    def mark(self, clock: int) -> None:
        """Says that this replica has come to a clock; for ``absent``."""
        self._say(lambda: self._writing.set(self._at(self._index), str(clock)))

    def absent(self, clock: int) -> list[int]:
        """Replicas that have not said so: others wait for them. Empty if the store is silent."""
        found: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
        self._say(lambda: found.put([i for i in range(self._size) if self._came(i) < clock]))
        try:
            return found.get(timeout=ANSWER_S)
        except queue.Empty:
            return []

    def _came(self, index: int) -> int:
        key = self._at(index)
        return int(self._writing.get(key)) if self._writing.check([key]) else -1

    def leave(self) -> None:
        """Tells the others that this replica leaves, and is deaf and mute afterwards."""
        own = self._key(self._index)
        self._say(lambda: self._writing.set(self._left_key, ""))
        self._say(lambda: self._writing.set(own, "over 0"))
        self._calls.put(None)
        self._thread.join(LEAVE_S)  # the process may end after this

    def _say(self, call: Callable[[], object]) -> None:
        if self._calls.qsize() < UNSAID:  # a silent store; who waits says it again
            self._calls.put(call)

    def _write(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call()
            except RuntimeError as error:  # the store went with its process
                self._trouble = self._trouble or str(error)
                return

    def _key(self, index: int) -> str:
        return f"wake-{self._number}-{index}"

    def _at(self, index: int) -> str:
        return f"at-{self._number}-{index}"


def _connect(endpoint: str, timeout: float) -> Any:
    host, port = split_address(endpoint)
    return TCPStore(
        host.strip("[]"),
        port,
        is_master=False,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout),
    )
