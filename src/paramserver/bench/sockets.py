"""The floor: plain Python TCP sockets that copy a payload both ways.

Plain code receives into a fresh buffer each time, and so pays for new pages at every message; a
variant keeps its buffers, and another one adds on the server.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from paramserver.bench.exchange import Exchanger, Rig
from paramserver.bench.processes import Agent, Fleet, new_children

Array = npt.NDArray[np.float32]
HEADER = struct.Struct("!BIQ")  # operation, copy, bytes
SETUP, PUSH, PULL, PUSH_PULL = range(4)
DONE = b"\x01"


class SocketServer:
    """Keeps one array per copy. A push is read (and added); a pull sends the array."""

    def __init__(self, add: bool, reuse: bool) -> None:
        self._add = add
        self._reuse = reuse
        self._values: dict[int, Array] = {}
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    def port(self) -> int:
        """The port the system picked."""
        return int(self._listener.getsockname()[1])

    def close(self) -> None:
        """Stop listening."""
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        received: dict[int, Array] = {}
        with contextlib.suppress(EOFError, ConnectionError), connection:
            while True:
                operation, copy, size = HEADER.unpack(_read(connection, HEADER.size))
                if operation == SETUP:
                    received[copy] = np.zeros(size // 4, np.float32)
                    with self._lock:
                        self._values[copy] = np.zeros(size // 4, np.float32)
                    connection.sendall(DONE)
                    continue
                self._answer(connection, operation, copy, received[copy])

    def _answer(self, connection: socket.socket, operation: int, copy: int, got: Array) -> None:
        value = self._values[copy]
        if operation != PULL:
            got = got if self._reuse else np.empty_like(got)
            _read_into(connection, got)
            if self._add:
                with self._lock:
                    np.add(value, got, out=value)
            else:
                value = got
        connection.sendall(DONE if operation == PUSH else value.data.cast("B"))


class SocketExchanger(Exchanger):
    """A connection and an equal part of the payload to every server."""

    def __init__(self, ports: list[int], reuse: bool) -> None:
        super().__init__()
        self._reuse = reuse
        self._peers = [_connect(port) for port in ports]
        self._sent: Array = np.zeros(0, np.float32)
        self._got: list[Array] = []

    def setup(self, size: int, copies: int) -> None:
        self.copies = copies
        part = size // 4 // len(self._peers)
        self._sent = np.full(part, 0.5, np.float32)
        self._got = [np.zeros(part, np.float32) for _ in self._peers]
        for copy in range(copies):
            for peer in self._peers:
                peer.sendall(HEADER.pack(SETUP, copy, part * 4))
                _read(peer, 1)

    def push(self, copy: int) -> None:
        self._everywhere(PUSH, copy)

    def pull(self, copy: int) -> None:
        self._everywhere(PULL, copy)

    def push_pull(self, copy: int) -> None:
        self._everywhere(PUSH_PULL, copy)

    def close(self) -> None:
        for peer in self._peers:
            peer.close()

    def _everywhere(self, operation: int, copy: int) -> None:
        threads = [
            threading.Thread(target=self._one, args=(number, operation, copy))
            for number in range(1, len(self._peers))
        ]
        for thread in threads:
            thread.start()
        self._one(0, operation, copy)
        for thread in threads:
            thread.join()

    def _one(self, number: int, operation: int, copy: int) -> None:
        peer = self._peers[number]
        peer.sendall(HEADER.pack(operation, copy, self._sent.nbytes))
        if operation != PULL:
            peer.sendall(self._sent.data.cast("B"))
        if operation == PUSH:
            _read(peer, 1)
        else:
            if not self._reuse:
                self._got[number] = np.empty_like(self._sent)
            _read_into(peer, self._got[number])


def _connect(port: int) -> socket.socket:
    peer = socket.create_connection(("127.0.0.1", port), timeout=60)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return peer


def _read(connection: socket.socket, size: int) -> bytes:
    data = bytearray(size)
    _fill(connection, memoryview(data))
    return bytes(data)


def _read_into(connection: socket.socket, array: Array) -> None:
    _fill(connection, array.data.cast("B"))


def _fill(connection: socket.socket, view: memoryview) -> None:
    while len(view):
        count = connection.recv_into(view)
        if not count:
            raise EOFError
        view = view[count:]


@contextlib.contextmanager
def open_sockets(name: str, add: bool, reuse: bool, servers: int, workers: int) -> Iterator[Rig]:
    """Start socket servers and workers."""
    with contextlib.ExitStack() as stack:
        with new_children() as pids:
            hosts = stack.enter_context(Fleet([Agent(SocketServer, (add, reuse))] * servers))
            ports = hosts.ask_each(range(servers), "port")
            agents = [Agent(SocketExchanger, (ports, reuse))] * workers
            clients = stack.enter_context(Fleet(agents))
        yield Rig(name, clients, range(workers), pids)
