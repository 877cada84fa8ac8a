"""Errors as gRPC statuses and back: one table, total in both directions."""

from __future__ import annotations

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from paramserver import errors
from paramserver.v1 import common_pb2

CODES: dict[type[errors.ParameterServerError], grpc.StatusCode] = {
    errors.ParameterServerError: grpc.StatusCode.UNKNOWN,
    errors.UsageError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.ConfigurationError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.UnsupportedError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.ForkedClientError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.RefusedError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.InvalidRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.ReusedClockError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NotFoundError: grpc.StatusCode.NOT_FOUND,
    errors.MismatchError: grpc.StatusCode.ALREADY_EXISTS,
    errors.NonFiniteError: grpc.StatusCode.INVALID_ARGUMENT,
    errors.ChecksumError: grpc.StatusCode.DATA_LOSS,
    errors.ClockError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.FencedError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.RolledBackError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.MovedError: grpc.StatusCode.ABORTED,
    errors.LeaseLostError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.PermissionDeniedError: grpc.StatusCode.PERMISSION_DENIED,
    errors.VersionError: grpc.StatusCode.FAILED_PRECONDITION,
    errors.AuthenticationError: grpc.StatusCode.UNAUTHENTICATED,
    errors.ConnectionLostError: grpc.StatusCode.UNAVAILABLE,
    errors.ResourceError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.WaitTimeoutError: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.SnapshotError: grpc.StatusCode.DATA_LOSS,
    errors.JobFailedError: grpc.StatusCode.ABORTED,
    errors.InternalError: grpc.StatusCode.INTERNAL,
}

# What gRPC itself says when a call could not be made or finished: the outcome is unknown.
# INTERNAL: HTTP/2 that cannot be parsed; our own peers say with it what went wrong.
_TRANSPORT = frozenset(
    {
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.UNKNOWN,
    }
)
_DOMAIN = "paramserver"
MESSAGE_BYTES = 2 << 10  # it travels twice, in metadata of at most 8 KiB


def to_status(error: errors.ParameterServerError) -> grpc.Status:
    """A rich status: code, message, and the reason as google.rpc.ErrorInfo."""
    info = error_details_pb2.ErrorInfo(
        reason=error.reason, domain=_DOMAIN, metadata=dict(error.details)
    )
    detail = any_pb2.Any()
    detail.Pack(info)
    code = CODES[type(error)]
    message = str(error).encode()[-MESSAGE_BYTES:].decode(errors="ignore")
    return rpc_status.to_status(
        status_pb2.Status(code=code.value[0], message=message, details=[detail])
    )


def from_rpc_error(error: grpc.RpcError, peer: str) -> errors.ParameterServerError:
    """The error that a peer raised, or what gRPC says of the connection."""
    try:
        status = rpc_status.from_call(error)
    except ValueError:  # the details were cut off on the way
        status = None
    for detail in status.details if status is not None else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info) and info.domain == _DOMAIN:
            return errors.from_wire(info.reason, status.message, info.metadata)
    if error.code() in _TRANSPORT:
        return errors.ConnectionLostError(
            f"{peer}: {error.code().name}: {error.details()}; is it running and reachable?"
        )
    if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return errors.ResourceError(f"{peer}: {error.details()}")
    return errors.InternalError(f"{peer}: {error.code().name}: {error.details()}")


def to_failure(error: errors.ParameterServerError) -> common_pb2.Failure:
    """The error as a record of a stream."""
    return common_pb2.Failure(reason=error.reason, message=str(error), details=dict(error.details))


def from_failure(failure: common_pb2.Failure) -> errors.ParameterServerError:
    """The error that a record of a stream tells of."""
    return errors.from_wire(failure.reason, failure.message, failure.details)
