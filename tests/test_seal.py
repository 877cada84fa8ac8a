"""Messages whose bits are damaged on the way are never taken for good."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError

from paramserver.errors import ConnectionLostError
from paramserver.v1 import common_pb2 as common
from paramserver.v1 import scheduler_pb2 as pb
from paramserver.wire.seal import sealed, unsealed

MESSAGE = pb.NextShardRequest(
    member=common.Identity(name="worker-1", incarnation=7, rank=1, view=3, job=1),
    dataset="d",
    epoch=1,
    sequence=2,
)


def test_what_was_sealed_is_the_message() -> None:
    assert pb.NextShardRequest.FromString(unsealed(sealed(MESSAGE))) == MESSAGE
    assert unsealed(sealed(pb.GetViewRequest())) == b""


def test_others_may_send_and_read_without() -> None:
    plain = MESSAGE.SerializeToString()
    assert unsealed(plain) == plain
    assert pb.NextShardRequest.FromString(sealed(MESSAGE)).member == MESSAGE.member


def test_no_damaged_bit_becomes_another_message() -> None:
    whole = sealed(MESSAGE)
    lost = 0
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            found = pb.NextShardRequest.FromString(unsealed(bytes(damaged)))
        except (ConnectionLostError, DecodeError):
            lost += 1
            continue
        found.DiscardUnknownFields()
        assert found == MESSAGE, "the damage was in the mark before the checksum"
    assert lost >= 8 * (len(whole) - 2)


def test_a_damaged_message_is_said_to_be_sent_again() -> None:
    with pytest.raises(ConnectionLostError, match="damaged on the way"):
        unsealed(bytes([1]) + sealed(MESSAGE))
