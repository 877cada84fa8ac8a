"""A TCP proxy that does to connections what networks do: cuts, delays, holes, damaged bits."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import sys
import threading
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, Literal

Direction = Literal["up", "down"]  # to the server, from it
MANGLES = ("flip", "drop", "duplicate", "truncate", "swap")


class Proxy:
    """Listens on a port of its own and forwards to ``target``; on one event loop.

    What is set counts for connections that are open, too.

    Attributes:
        cut_after: bytes from client to server after which a connection is cut, drawn anew for each
            from this range; None: never.
        holes: directions in which nothing passes, while connections stay open: a partition, or
            with one of them a one-way one.
        delay: seconds that each chunk takes longer, drawn from this range.
        rate: bytes a second in each direction of each connection; 0: no limit.
        mangle: what happens to a share of chunks: a bit is flipped ("flip"), the chunk is left out
            ("drop"), comes twice ("duplicate"), loses its tail ("truncate"), or changes places with
            the next one ("swap"). HTTP/2 has no checksum: whoever reads must not take it for good.
        mangle_at_most: so many chunks; those behind them pass whole.
        refuse: new connections are reset at once.
        cuts, mangled: connections cut, and chunks damaged, so far.
    """

    def __init__(self, seed: int = 0) -> None:
        self.cut_after: tuple[int, int] | None = None
        self.holes: frozenset[Direction] = frozenset()
        self.delay = (0.0, 0.0)
        self.rate = 0.0
        self.mangle: tuple[str, float] = ("flip", 0.0)
        self.mangle_at_most = sys.maxsize
        self.refuse = False
        self.cuts = self.mangled = 0
        self.address = ""
        self._target = ("", 0)
        self._random = random.Random(seed)
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    @property
    def black_hole(self) -> bool:
        """Whether nothing passes in either direction; may be set."""
        return self.holes == {"up", "down"}

    @black_hole.setter
    def black_hole(self, closed: bool) -> None:
        self.holes = frozenset({"up", "down"}) if closed else frozenset()

    def calm(self) -> None:
        """From now on it forwards as it should."""
        self.cut_after, self.holes, self.delay = None, frozenset(), (0.0, 0.0)
        self.rate, self.mangle, self.refuse = 0.0, ("flip", 0.0), False

    async def start(self) -> str:
        """The address to connect to."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self.address

    def forward_to(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._target = (host, int(port))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refuse:
            _reset(writer)
            return
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
        except OSError:
            _reset(writer)
            return
        both = {writer, far_writer}
        self._writers |= both
        budget = self._random.randint(*self.cut_after) if self.cut_after else None
        try:
            await asyncio.gather(
                self._pipe("up", reader, far_writer, both, budget),
                self._pipe("down", far_reader, writer, both, None),
            )
        finally:
            self._writers -= both
            for end in both:
                end.close()

    async def _pipe(
        self,
        direction: Direction,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        both: set[asyncio.StreamWriter],
        budget: int | None,
    ) -> None:
        kept = b""
        with suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                if direction in self.holes:
                    continue
                if budget is not None:
                    budget -= len(data)
                    if budget < 0:
                        self.cuts += 1
                        break
                await self._wait(len(data))
                data, kept = self._mangled(data, kept)
                writer.write(data)
                await writer.drain()
        for end in both:
            end.transport.abort()

    async def _wait(self, size: int) -> None:
        seconds = self._random.uniform(*self.delay) + (size / self.rate if self.rate else 0.0)
        if seconds:
            await asyncio.sleep(seconds)

    def _mangled(self, data: bytes, kept: bytes) -> tuple[bytes, bytes]:
        """What passes of a chunk, and what passes only behind the next one."""
        how, share = self.mangle
        spared = self.mangled >= self.mangle_at_most
        if spared or not share or self._random.random() >= share:
            return data + kept, b""
        self.mangled += 1
        if how == "flip":
            at = self._random.randrange(len(data))
            data = data[:at] + bytes([data[at] ^ 1 << self._random.randrange(8)]) + data[at + 1 :]
        elif how == "duplicate":
            data = data + data
        elif how == "truncate":
            data = data[: self._random.randrange(len(data))]
        elif how == "swap":
            return kept, data
        else:
            data = b""
        return data + kept, b""

    def cut_all(self, *, reset: bool = False) -> None:
        """Breaks every connection now; with ``reset`` by a TCP reset."""
        for writer in set(self._writers):
            self.cuts += 1
            if reset:
                _reset(writer)
            else:
                writer.transport.abort()

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        self.cut_all()


def _reset(writer: asyncio.StreamWriter) -> None:
    with suppress(OSError, AttributeError):
        there = writer.get_extra_info("socket")
        there.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class ProxyThread:
    """Proxies on an event loop of their own, for tests whose processes are real."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self._proxies: list[Proxy] = []

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """The result of a coroutine there."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def proxy(self, seed: int) -> Proxy:
        """A new one, that listens."""
        made = Proxy(seed)
        self._proxies.append(made)
        self.run(made.start())
        return made

    def do(self, proxy: Proxy, action: str, **options: Any) -> None:
        """Calls a method of a proxy on its loop."""

        async def call() -> None:
            getattr(proxy, action)(**options)

        self.run(call())

    def close(self) -> None:
        """Ends all of them."""
        for proxy in self._proxies:
            self.run(proxy.stop())
        self.run(_settled())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()


async def _settled() -> None:
    tasks = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
