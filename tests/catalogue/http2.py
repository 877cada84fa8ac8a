"""Raw HTTP/2, as no client of ours would speak it."""

from __future__ import annotations

import socket
from contextlib import suppress

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
END_HEADERS = 4


def frame(kind: int, flags: int, stream: int, body: bytes = b"") -> bytes:
    """One frame."""
    size = len(body).to_bytes(3, "big")
    return size + bytes([kind, flags]) + stream.to_bytes(4, "big") + body


def headers(path: str, authority: str) -> bytes:
    """The block of headers that opens a call of gRPC, nothing compressed."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": authority,
        "content-type": "application/grpc",
        "te": "trailers",
    }
    return b"".join(b"\x00" + _text(name) + _text(value) for name, value in fields.items())


def _text(value: str) -> bytes:
    raw = value.encode()
    assert len(raw) < 127
    return bytes([len(raw)]) + raw


def connect(address: str, *, preface: bool = True) -> socket.socket:
    """A connection; with the preface and empty settings sent."""
    host, _, port = address.rpartition(":")
    made = socket.create_connection((host, int(port)), timeout=10)
    if preface:
        made.sendall(PREFACE + frame(SETTINGS, 0, 0))
    return made


def frames_until_closed(connection: socket.socket, seconds: float = 10) -> list[tuple[int, bytes]]:
    """Kinds and bodies of the frames that come until the peer closes, or says nothing more."""
    connection.settimeout(seconds)
    data = b""
    with suppress(OSError):
        while chunk := connection.recv(1 << 16):
            data += chunk
    found = []
    while len(data) >= 9:
        size = int.from_bytes(data[:3], "big")
        found.append((data[3], data[9 : 9 + size]))
        data = data[9 + size :]
    return found
