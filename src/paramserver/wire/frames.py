"""Frames: protobuf messages written and read without a copy of their payload.

``encode`` writes a valid ``paramserver.v1.Frame``: header, its checksum, padding, payload, in one
join. ``decode`` walks the fields by hand and takes the payload as a view of the message.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import xxhash
from google.protobuf.message import DecodeError

from paramserver.errors import ChecksumError, InvalidRequestError
from paramserver.v1 import server_pb2 as pb

Piece: TypeAlias = bytes | memoryview

ALIGNMENT = 64
# Tags of fields 1, 13, 14, 15, all length-delimited.
_HEADER, _CHECK, _PADDING, _PAYLOAD = 0x0A, 0x6A, 0x72, 0x7A
_CHECK_BYTES = 8


class Decoded(NamedTuple):
    """A frame as read: its records, and its payload as a view of the message."""

    records: Sequence[pb.Record]
    payload: memoryview


def encode(records: Sequence[pb.Record], pieces: Sequence[Piece] = ()) -> bytes:
    """One frame of ``records`` whose payload is ``pieces`` end to end, 64-byte aligned."""
    header = pb.Header(records=records).SerializeToString()
    check = xxhash.xxh3_64_digest(header)
    head = b"%c%b%b%c%c%b" % (_HEADER, _varint(len(header)), header, _CHECK, _CHECK_BYTES, check)
    if not pieces:
        return head
    tail = b"%c%b" % (_PAYLOAD, _varint(sum(len(p) for p in pieces)))
    # Padding costs two bytes at least (tag, length); it stays under 128, so its length is a byte.
    gap = -(len(head) + len(tail) + 2) % ALIGNMENT
    return b"".join((head, b"%c%c" % (_PADDING, gap), bytes(gap), tail, *pieces))


def decode(message: bytes) -> Decoded:
    """The records and the payload view of a frame.

    Raises:
        InvalidRequestError: the bytes are no frame.
        ChecksumError: its header changed on the way; one without a checksum is taken as it is.
    """
    view = memoryview(message)
    headers: list[memoryview] = []
    check: bytes | None = None
    payload = view[:0]
    at = 0
    while at < len(message):
        tag, at = _read_varint(message, at)
        if tag & 7 != 2:
            raise InvalidRequestError(f"frame: field {tag >> 3} has wire type {tag & 7}, not 2")
        size, at = _read_varint(message, at)
        if size > len(message) - at:
            raise InvalidRequestError(
                f"frame: field {tag >> 3} claims {size} bytes, {len(message) - at} are there"
            )
        if tag == _HEADER:
            headers.append(view[at : at + size])
        elif tag == _CHECK:
            check = bytes(view[at : at + size])
        elif tag == _PAYLOAD:
            payload = view[at : at + size]
        at += size
    joined = b"".join(headers)  # repeated headers merge, as in protobuf
    if check is not None and check != xxhash.xxh3_64_digest(joined):
        raise ChecksumError("frame: the header changed on the way; it has to be sent again")
    try:
        header = pb.Header.FromString(joined)
    except DecodeError as error:
        raise InvalidRequestError(f"frame: header cannot be parsed: {error}") from error
    return Decoded(header.records, payload)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        if at >= len(message):
            raise InvalidRequestError("frame: cut off in the middle of a number")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise InvalidRequestError("frame: a number longer than 64 bits")
