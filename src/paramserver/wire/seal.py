"""Messages with a checksum: neither HTTP/2 nor TCP notices every bit that is damaged.

The checksum is a last field that the protocol does not name, so whoever does not know it passes it
over; messages without one, of other clients, are taken as they are. Frames have their own.
"""

from __future__ import annotations

import xxhash
from google.protobuf.message import Message

from paramserver.errors import ConnectionLostError

_TAG = b"\xf9\x7f"  # field 2047, eight bytes
_SIZE = len(_TAG) + 8


def sealed(message: Message) -> bytes:
    """The message as bytes, with its checksum."""
    data: bytes = message.SerializeToString()
    checksum: bytes = xxhash.xxh3_64_digest(data)
    return data + _TAG + checksum


def unsealed(data: bytes) -> bytes:
    """The bytes without their checksum.

    Raises:
        ConnectionLostError: they were damaged on the way, and are to be sent again.
    """
    body, seal = data[:-_SIZE], data[-_SIZE:]
    if not seal.startswith(_TAG):
        return data
    if xxhash.xxh3_64_digest(body) != seal[len(_TAG) :]:
        raise ConnectionLostError("a message was damaged on the way; it has to be sent again")
    return body
