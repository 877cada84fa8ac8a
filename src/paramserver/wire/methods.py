"""The rpcs of both services by name, read from the protocol itself."""

from __future__ import annotations

from typing import Any, NamedTuple

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass

from paramserver.v1 import scheduler_pb2, server_pb2

SCHEDULER: ServiceDescriptor = scheduler_pb2.DESCRIPTOR.services_by_name["Scheduler"]
SERVER: ServiceDescriptor = server_pb2.DESCRIPTOR.services_by_name["Server"]


class Method(NamedTuple):
    """One rpc: its path in HTTP/2 and its message classes."""

    path: str
    request: Any
    reply: Any
    client_streams: bool
    server_streams: bool


def _methods(service: ServiceDescriptor) -> dict[str, Method]:
    return {
        m.name: Method(
            f"/{service.full_name}/{m.name}",
            GetMessageClass(m.input_type),
            GetMessageClass(m.output_type),
            m.client_streaming,
            m.server_streaming,
        )
        for m in service.methods
    }


SCHEDULER_METHODS = _methods(SCHEDULER)
SERVER_METHODS = _methods(SERVER)
METHODS = {**SCHEDULER_METHODS, **SERVER_METHODS}
