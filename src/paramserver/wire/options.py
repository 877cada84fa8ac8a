"""Channel and server arguments of gRPC, and why; settings of the C allocator."""

from __future__ import annotations

import ctypes
import os
import resource

MESSAGE_BYTES = 16 << 20

_COMMON: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    ("grpc.max_metadata_size", 8 << 10),
    # A frozen peer is noticed only with ping_timeout_ms; keepalive_timeout_ms alone takes a minute.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
]

CLIENT_OPTIONS: list[tuple[str, int]] = [
    *_COMMON,
    # Retries are ours, keyed by (worker, incarnation, clock, slice): gRPC's push twice.
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]

SERVER_OPTIONS: list[tuple[str, int]] = [
    *_COMMON,
    ("grpc.so_reuseport", 0),  # two servers on one port would share its calls in silence
    ("grpc.max_concurrent_streams", 100),  # per connection: blunts HTTP/2 rapid reset
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.server_handshake_timeout_ms", 5_000),
]

# Who has an open connection was let in once: a revoked certificate counts from the next one on.
CONNECTION_AGE_S, LAST_CALLS_S = 3600, 30
SPARE_FILES = 128  # besides connections


def server_options(*, encrypted: bool) -> list[tuple[str, int]]:
    """Arguments of a server: those above, and how many connections it can hold at all."""
    options = list(SERVER_OPTIONS)
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY:
        options.append(("grpc.max_allowed_incoming_connections", max(64, files - SPARE_FILES)))
    if encrypted:
        options.append(("grpc.max_connection_age_ms", CONNECTION_AGE_S * 1000))
        options.append(("grpc.max_connection_age_grace_ms", LAST_CALLS_S * 1000))
    return options


MALLOC_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_TOP_PAD_": str(64 << 20),
}
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def tune_allocator() -> None:
    """Let glibc keep the megabyte buffers of frames instead of returning each to the kernel.

    Page faults were a third of the cost of a transfer. Without effect on other C libraries, and
    where the environment has set these already.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    for name, option in (
        ("MALLOC_MMAP_THRESHOLD_", _M_MMAP_THRESHOLD),
        ("MALLOC_TRIM_THRESHOLD_", _M_TRIM_THRESHOLD),
        ("MALLOC_TOP_PAD_", _M_TOP_PAD),
    ):
        if name not in os.environ:
            mallopt(option, int(MALLOC_ENVIRONMENT[name]))
