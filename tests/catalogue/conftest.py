"""One desk for a file of rows: what they send changes nothing, or is counted by the desk."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.catalogue.desk import Desk, desk


@pytest.fixture(scope="module")
def at() -> Iterator[Desk]:
    with desk() as made:
        yield made
