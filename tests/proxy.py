"""A TCP proxy that breaks connections: after a number of bytes, at random, or for ever."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress


class Proxy:
    """Listens on a port of its own and forwards to ``target``; on one event loop.

    Attributes:
        cut_after: bytes from client to server after which a connection is cut, drawn anew for each
            from this range; None: never.
        black_hole: forward nothing, but keep connections open.
        cuts: connections cut so far.
    """

    def __init__(self, seed: int = 0) -> None:
        self.cut_after: tuple[int, int] | None = None
        self.black_hole = False
        self.cuts = 0
        self.address = ""
        self._target = ("", 0)
        self._random = random.Random(seed)
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> str:
        """The address to connect to."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self.address

    def forward_to(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._target = (host, int(port))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(*self._target)
        both = {writer, far_writer}
        self._writers |= both
        budget = self._random.randint(*self.cut_after) if self.cut_after else None
        try:
            await asyncio.gather(
                self._pipe(reader, far_writer, both, budget),
                self._pipe(far_reader, writer, both, None),
            )
        finally:
            self._writers -= both
            for end in both:
                end.close()

    async def _pipe(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        both: set[asyncio.StreamWriter],
        budget: int | None,
    ) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                if self.black_hole:
                    continue
                if budget is not None:
                    budget -= len(data)
                    if budget < 0:
                        self.cuts += 1
                        break
                writer.write(data)
                await writer.drain()
        for end in both:
            end.transport.abort()

    def cut_all(self) -> None:
        """Breaks every connection now."""
        for writer in self._writers:
            self.cuts += 1
            writer.transport.abort()

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        self.cut_all()
