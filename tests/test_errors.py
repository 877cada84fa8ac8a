"""The tree of errors, its way over the wire, and the table of statuses."""

from __future__ import annotations

import grpc
import pytest

from paramserver import errors
from paramserver.wire.status import CODES, from_failure, to_failure, to_status

ALL = sorted(errors.all_errors().values(), key=lambda e: e.__name__)


def test_every_error_has_a_reason_of_its_own() -> None:
    drawn = [e for e in vars(errors).values() if isinstance(e, type)]
    assert len([e for e in drawn if issubclass(e, errors.ParameterServerError)]) == len(ALL)


def test_the_table_of_statuses_is_total() -> None:
    assert set(CODES) == set(ALL)


@pytest.mark.parametrize("error", ALL)
def test_an_error_crosses_the_wire(error: type[errors.ParameterServerError]) -> None:
    again = from_failure(to_failure(error("x=1: must be 2; set it", tensor="w")))
    assert type(again) is error
    assert str(again) == "x=1: must be 2; set it"
    assert again.details == {"tensor": "w"}


@pytest.mark.parametrize("error", ALL)
def test_an_error_has_a_status(error: type[errors.ParameterServerError]) -> None:
    status = to_status(error("why"))
    assert status.code is CODES[error]
    assert status.code is not grpc.StatusCode.OK
    assert status.details == "why"


def test_every_error_is_drawn_in_the_tree() -> None:
    assert errors.__doc__ is not None
    for error in ALL:
        assert error.__name__ in errors.__doc__


def test_an_unknown_reason_keeps_its_name() -> None:
    error = errors.from_wire("FROM_THE_FUTURE", "why", {})
    assert type(error) is errors.ParameterServerError
    assert error.reason == "FROM_THE_FUTURE"


def test_a_long_message_fits_into_metadata() -> None:
    """A traceback of a thousand lines travels as its end."""
    status = to_status(errors.JobFailedError("line of a traceback\n" * 2000 + "ValueError: why"))
    assert status.details.endswith("ValueError: why")
    assert sum(len(key) + len(value) for key, value in status.trailing_metadata) < 8 << 10
