"""Every row of the catalogue has a test."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
TESTS = HERE.parent

# Rows whose tests stand beside others of their kind.
ELSEWHERE = {
    16: "test_poison.py::test_what_the_optimizer_would_overflow_on_is_left_out",
    43: "test_trust.py::test_a_certificate_with_a_name_is_for_that_member",
    60: "test_inflow.py::test_a_reader_that_never_reads_is_dropped",
    66: "test_trust.py::test_no_certificate",
    67: "test_trust.py::test_a_server_of_another_ca",
    68: "test_trust.py::test_tls_to_a_port_in_clear",
    69: "test_trust.py::test_a_role_calls_its_rpcs_and_no_others",
    70: "test_trust.py::test_a_token_does_not_travel_in_clear",
    71: "test_trust.py::test_a_wrong_token_is_refused",
    72: "test_trust.py::test_a_token_does_not_travel_in_clear",
    73: "test_trust.py::test_old_connections_end",
    74: "test_trust.py::test_certificates_are_read_again",
}


def test_every_row_has_a_test() -> None:
    found = set(ELSEWHERE)
    for path in HERE.glob("test_*.py"):
        for name in re.findall(r"def test_rows?_(\w+)\(", path.read_text()):
            span = re.match(r"(\d+)_to_(\d+)", name)
            if span:
                found |= set(range(int(span[1]), int(span[2]) + 1))
            found |= {int(n) for n in re.findall(r"(?:^|_)(\d\d)(?=_|$)", name)}
    assert sorted(set(range(1, 85)) - found) == []


def test_what_stands_elsewhere_is_there() -> None:
    for place in ELSEWHERE.values():
        file, _, name = place.partition("::")
        assert f"def {name}(" in (TESTS / file).read_text(), place
