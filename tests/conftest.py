"""For all tests."""

import paramserver.wire  # noqa: F401 - before any test imports gRPC, which then forks safely
