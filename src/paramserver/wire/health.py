"""``python -m paramserver.wire.health HOST:PORT``: exit 0 if the role there is serving."""

from __future__ import annotations

import os
import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from paramserver.trust import Trust, from_environment
from paramserver.wire.credentials import channel_credentials, read_pems


def is_serving(address: str, timeout: float = 3.0, trust: Trust | None = None) -> bool:
    """Whether the role at HOST:PORT answers that it serves, within ``timeout`` seconds.

    Without ``trust`` the certificates are those of the environment.
    """
    tls = (from_environment(os.environ) if trust is None else trust).tls
    if tls is None:
        opened = grpc.insecure_channel(address)
    else:
        opened = grpc.secure_channel(address, channel_credentials(read_pems(tls)))
    with opened as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=timeout
            )
        except grpc.RpcError:
            return False
    return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


if __name__ == "__main__":
    sys.exit(0 if is_serving(sys.argv[1]) else 1)
