"""A few seconds of garbage for every reader; ``make fuzz`` takes minutes each."""

from __future__ import annotations

import pytest

from tests.fuzz.__main__ import Found, fuzz
from tests.fuzz.targets import Target, targets

ALL = targets()


@pytest.mark.parametrize("target", ALL, ids=[t.name for t in ALL])
def test_garbage_is_refused_or_read_never_anything_else(target: Target) -> None:
    assert fuzz(target, 0.5, seed=1) > 5


def test_a_reader_that_breaks_is_found() -> None:
    def read(data: bytes) -> int:
        return data[3]

    with pytest.raises(Found, match="IndexError"):
        fuzz(Target("short", (b"abcdef",), read), 5.0, seed=1)
