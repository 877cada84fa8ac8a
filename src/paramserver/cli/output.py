"""What `run` shows: lines of many processes, each with its name, above one live line."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, TextIO

from paramserver.launch import Child

if TYPE_CHECKING:
    from rich.live import Live

COLOURS = ("cyan", "green", "magenta", "blue", "yellow", "bright_cyan", "bright_green", "red")
CODES = dict(zip(COLOURS, (36, 32, 35, 34, 33, 96, 92, 31), strict=True))
ROLE_COLOURS = {"scheduler": "white", "ps": "yellow"}


def colour_of(name: str) -> str:
    """The colour of a process: by its number for workers, by role otherwise."""
    role, _, number = name.rpartition("-")
    if name in ROLE_COLOURS or role in ROLE_COLOURS:
        return ROLE_COLOURS.get(name) or ROLE_COLOURS[role]
    return COLOURS[int(number) % len(COLOURS)] if number.isdigit() else COLOURS[0]


def prefixed(name: str, line: str, width: int = 9) -> str:
    """The line behind the name of its process."""
    return f"{name:<{width}} │ {line}"


class Output:
    """Standard output and error of a whole cluster; thread-safe.

    A stream whose reader has left is dropped in silence, and the job goes on.
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        width: int = 9,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        """``quiet`` leaves out what schedulers and servers say, and the live line."""
        self.quiet = quiet
        self._width = width
        self._no_colour = bool(environment.get("NO_COLOR"))
        self._lock = threading.Lock()
        self._closed: set[str] = set()
        self._muted: set[tuple[str, str]] = set()
        self._live: Live | None = None
        self._ending = False
        self.live = not quiet and is_terminal(sys.stderr)

    def __enter__(self) -> Output:
        if self.live:
            from rich.console import Console
            from rich.live import Live

            console = Console(stderr=True)
            self._live = Live(
                console=console,
                refresh_per_second=4,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.end()

    def end(self) -> None:
        """The cluster is being stopped: no live line, no more word of schedulers and servers."""
        self._ending = True
        with self._lock:
            if self._live is not None:
                self._live.stop()
                self._live = None

    def status(self, line: str) -> None:
        """Replaces the live line; where there is no terminal, prints it."""
        if self.quiet:
            return
        if self._live is None:
            self.say(line)
            return
        from rich.text import Text

        self._live.update(Text(line, style="bold", overflow="ellipsis", no_wrap=True))

    def say(self, text: str) -> None:
        """Lines of the launcher itself, on standard error."""
        for line in text.splitlines():
            self._write("stderr", line, line)

    def line(self, child: Child, stream: str, line: str) -> None:
        """A line that a child wrote."""
        if (self.quiet or self._ending) and child.role != "worker":
            return
        if child.stopped and self._is_farewell(child, stream, line):
            return
        plain = prefixed(child.name, line, self._width)
        self._write(stream, plain, self._coloured(child.name, line))

    def _is_farewell(self, child: Child, stream: str, line: str) -> bool:
        # A script that we interrupt says so with a traceback, each of them the same.
        if line.startswith("Traceback (most recent call last)"):
            self._muted.add((child.name, stream))
        return (child.name, stream) in self._muted

    def _coloured(self, name: str, line: str) -> str:
        code = CODES.get(colour_of(name), 37)
        return f"\x1b[{code}m{name:<{self._width}} │\x1b[0m {line}"

    def _write(self, stream: str, plain: str, coloured: str) -> None:
        target = sys.stdout if stream == "stdout" else sys.stderr
        tty = is_terminal(target)
        text = coloured if tty and not self._no_colour else plain
        with self._lock:
            if stream in self._closed:
                return
            try:
                if self._live is not None and tty:
                    self._print_above(text)
                else:
                    put_line(target, text)
            except (OSError, ValueError):
                self._closed.add(stream)
                silence(target)

    def _print_above(self, text: str) -> None:
        from rich.text import Text

        assert self._live is not None
        self._live.console.print(Text.from_ansi(text), soft_wrap=True, highlight=False)


def is_terminal(stream: TextIO) -> bool:
    """Whether a stream is a terminal; a closed one is not."""
    try:
        return stream.isatty()
    except ValueError:
        return False


def put_line(stream: TextIO, line: str) -> None:
    """Writes a line whatever the encoding of the stream, and flushes."""
    encoding = stream.encoding or "utf-8"
    stream.write(line.encode(encoding, "replace").decode(encoding) + "\n")
    stream.flush()


def silence(stream: TextIO) -> None:
    """Sends what is still buffered for a stream whose reader has left to nowhere."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
    except (OSError, ValueError):
        pass
