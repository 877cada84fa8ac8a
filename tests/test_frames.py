"""Frames: valid protobuf for anybody, no copy of the payload for us, garbage is refused."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramserver.errors import ChecksumError, InvalidRequestError
from paramserver.v1 import server_pb2 as pb
from paramserver.wire.frames import ALIGNMENT, decode, encode

pieces_lists = st.lists(st.binary(max_size=300), max_size=5)


def records(pieces: list[bytes]) -> list[pb.Record]:
    return [
        pb.Record(request=i, data=pb.Data(slices=[i], sizes=[len(p)])) for i, p in enumerate(pieces)
    ]


@given(pieces_lists)
def test_stock_protobuf_reads_what_we_write(pieces: list[bytes]) -> None:
    frame = pb.Frame.FromString(encode(records(pieces), pieces))
    assert frame.payload == b"".join(pieces)
    assert list(frame.header.records) == records(pieces)


@given(pieces_lists)
def test_we_read_what_stock_protobuf_writes(pieces: list[bytes]) -> None:
    frame = pb.Frame(header=pb.Header(records=records(pieces)), payload=b"".join(pieces))
    decoded = decode(frame.SerializeToString())
    assert bytes(decoded.payload) == b"".join(pieces)
    assert list(decoded.records) == records(pieces)


@given(st.integers(0, 5000), st.integers(1, 200))
def test_payload_is_aligned_and_a_view(request_number: int, size: int) -> None:
    message = encode([pb.Record(request=request_number)], [bytes(size)])
    payload = decode(message).payload
    assert payload.obj is message
    assert (len(message) - size) % ALIGNMENT == 0


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_read_never_anything_else(message: bytes) -> None:
    with suppress(InvalidRequestError, ChecksumError):
        decode(message)


@given(pieces_lists, st.data())
def test_a_cut_frame_is_refused_or_shorter(pieces: list[bytes], data: st.DataObject) -> None:
    message = encode(records(pieces), pieces)
    cut = message[: data.draw(st.integers(0, max(0, len(message) - 1)))]
    try:
        decoded = decode(cut)
    except (InvalidRequestError, ChecksumError):
        return
    assert len(decoded.payload) < max(1, len(b"".join(pieces))) or not cut


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (b"\x7a\xff\xff\xff\xff\x0f", "claims 4294967295 bytes, 0 are there"),
        (b"\x7a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", "longer than 64 bits"),
        (b"\x0a\x80", "cut off in the middle of a number"),
        (b"\x08\x01", "wire type 0"),
        (b"\x0a\x02\xff\xff", "header cannot be parsed"),
    ],
)
def test_lies_about_lengths_are_named(message: bytes, words: str) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        decode(message)


def test_headers_merge_as_protobuf_says() -> None:
    parts = [pb.Header(records=[pb.Record(request=number)]) for number in (1, 2)]
    message = b"".join(pb.Frame(header=part).SerializeToString() for part in parts)
    assert [r.request for r in decode(message).records] == [1, 2]


@given(pieces_lists, st.data())
def test_a_header_with_a_flipped_bit_is_never_read(
    pieces: list[bytes], data: st.DataObject
) -> None:
    message = bytearray(encode(records(pieces), pieces))
    bit = data.draw(st.integers(0, 8 * len(message) - 1))
    message[bit // 8] ^= 1 << bit % 8
    with suppress(InvalidRequestError, ChecksumError):
        assert list(decode(bytes(message)).records) == records(pieces)
