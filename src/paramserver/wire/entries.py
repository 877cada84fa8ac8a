"""Journal entries as bytes: the message, then the bytes of its parts."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from google.protobuf.message import DecodeError

from paramserver.errors import InvalidRequestError
from paramserver.v1 import journal_pb2 as pb
from paramserver.wire.frames import Piece

_LENGTH = struct.Struct("<I")


class DecodedEntry(NamedTuple):
    """An entry as read: the message, and the bytes of each of its parts, as views."""

    entry: pb.Entry
    pieces: Sequence[memoryview]


def encode_entry(entry: pb.Entry, pieces: Sequence[Piece] = ()) -> bytes:
    """One entry; a copy of the pieces, which belong to ``entry.parts`` in this order."""
    head = entry.SerializeToString()
    return b"".join((_LENGTH.pack(len(head)), head, *pieces))


def decode_entry(data: bytes | memoryview) -> DecodedEntry:
    """The entry that these bytes are.

    Raises:
        InvalidRequestError: they are none.
    """
    view = memoryview(data)
    if len(view) < _LENGTH.size:
        raise InvalidRequestError(f"entry of {len(view)} bytes: too short for its length")
    (size,) = _LENGTH.unpack(view[: _LENGTH.size])
    at = _LENGTH.size + size
    if at > len(view):
        raise InvalidRequestError(f"entry: claims a head of {size} bytes, {len(view)} are there")
    try:
        entry = pb.Entry.FromString(bytes(view[_LENGTH.size : at]))
    except DecodeError as error:
        raise InvalidRequestError(f"entry: its head cannot be parsed: {error}") from error
    pieces = []
    for part in entry.parts:
        if at + part.bytes > len(view):
            raise InvalidRequestError(
                f"entry: its parts claim {at + part.bytes} bytes, {len(view)} are there"
            )
        pieces.append(view[at : at + part.bytes])
        at += part.bytes
    if at != len(view):
        raise InvalidRequestError(f"entry: {len(view) - at} bytes belong to none of its parts")
    return DecodedEntry(entry, pieces)
