"""Every error that a user can meet, in one tree.

    ParameterServerError
    ├── UsageError                 the caller's mistake; nothing was sent or changed
    │   ├── ConfigurationError     a value that cannot work
    │   ├── UnsupportedError       a rule, type or option that this product refuses
    │   └── ForkedClientError      a client used in a forked child
    ├── RefusedError               a peer refused the request; nothing changed there
    │   ├── InvalidRequestError    malformed, or against the specification
    │   │   └── ReusedClockError   a push that came before with other bytes
    │   ├── NotFoundError          an unknown group, data set, member
    │   ├── MismatchError          registered before with another specification
    │   ├── NonFiniteError         NaN or infinity in a gradient
    │   ├── ChecksumError          bytes changed on the way
    │   ├── ClockError             a clock that has passed, or skips one
    │   ├── FencedError            a newer incarnation has this name, or the lease was lost
    │   │   └── RolledBackError    the job went back to a snapshot; start again to go on from it
    │   ├── MovedError             an old slice map, or the wrong server
    │   ├── LeaseLostError         a data shard that belongs to another worker
    │   ├── PermissionDeniedError  the role that a credential stands for may not do this
    │   └── VersionError           peers speak different protocol versions
    ├── AuthenticationError        a peer did not prove who it is: certificate or token
    ├── ConnectionLostError        a peer cannot be reached
    ├── ResourceError              a limit of the server: too many parked calls, too large
    ├── WaitTimeoutError           a wait passed its deadline; says whom it waited for
    ├── SnapshotError              a snapshot that is not there, damaged, or cannot be written
    ├── JobFailedError             the job failed elsewhere; says where
    └── InternalError              a bug of ours

An error crosses the wire as its reason and message; ``from_wire`` makes the same class again.
"""

from __future__ import annotations

from collections.abc import Mapping


class ParameterServerError(Exception):
    """The root of the tree.

    Attributes:
        reason: the stable name of the error on the wire.
        retryable: whether sending the same request again may succeed.
        details: machine-readable facts, strings only.
    """

    reason = "ERROR"
    retryable = False

    def __init__(self, message: str, **details: str) -> None:
        super().__init__(message)
        self.details: Mapping[str, str] = details


class UsageError(ParameterServerError):
    """The caller's mistake; nothing was sent or changed."""

    reason = "USAGE"


class ConfigurationError(UsageError, ValueError):
    """A value that cannot work."""

    reason = "CONFIGURATION"


class UnsupportedError(UsageError):
    """A rule, type or option that this product refuses."""

    reason = "UNSUPPORTED"


class ForkedClientError(UsageError):
    """A client used in a forked child; connections do not survive a fork."""

    reason = "FORKED"


class RefusedError(ParameterServerError):
    """A peer refused the request; nothing changed there."""

    reason = "REFUSED"


class InvalidRequestError(RefusedError):
    """Malformed, or against the specification of the group."""

    reason = "INVALID_REQUEST"


class ReusedClockError(InvalidRequestError):
    """A push that came before, with other bytes; the first one stands."""

    reason = "SEQ_REUSED"


class NotFoundError(RefusedError):
    """An unknown group, data set or member."""

    reason = "NOT_FOUND"


class MismatchError(RefusedError):
    """Registered before with another specification; the message names the difference."""

    reason = "MISMATCH"


class NonFiniteError(RefusedError):
    """NaN or infinity in a gradient."""

    reason = "NON_FINITE"


class ChecksumError(RefusedError):
    """Bytes changed on the way; the same key may be sent again."""

    reason = "CHECKSUM"
    retryable = True


class ClockError(RefusedError):
    """A clock that has passed, or that skips one."""

    reason = "CLOCK"


class FencedError(RefusedError):
    """A newer incarnation has this name, or the lease was lost."""

    reason = "FENCED"


class RolledBackError(FencedError):
    """The job went back to a snapshot, this process did not; started again, it goes on there."""

    reason = "ROLLED_BACK"


class MovedError(RefusedError):
    """An old slice map, or a server that does not hold the slice."""

    reason = "MOVED"
    retryable = True


class LeaseLostError(RefusedError):
    """A data shard that belongs to another worker by now."""

    reason = "LEASE_LOST"


class PermissionDeniedError(RefusedError):
    """The role that a certificate or token stands for may not do this."""

    reason = "PERMISSION_DENIED"


class VersionError(RefusedError):
    """The peers speak different protocol versions."""

    reason = "VERSION"


class AuthenticationError(ParameterServerError):
    """One side did not prove to the other who it is; the message says what was wrong.

    Not a RefusedError: nothing was refused to a known member, so nobody gives up its place for it.
    """

    reason = "UNAUTHENTICATED"


class ConnectionLostError(ParameterServerError):
    """A peer cannot be reached."""

    reason = "CONNECTION_LOST"
    retryable = True


class ResourceError(ParameterServerError):
    """A limit of the server was reached."""

    reason = "RESOURCE"
    retryable = True


class WaitTimeoutError(ParameterServerError, TimeoutError):
    """A wait passed its deadline; the message names whom it waited for."""

    reason = "WAIT_TIMEOUT"


class SnapshotError(ParameterServerError):
    """A snapshot that is not there, that is damaged, or that could not be made."""

    reason = "SNAPSHOT"


class JobFailedError(ParameterServerError):
    """The job failed elsewhere; the message says where and why."""

    reason = "JOB_FAILED"


class InternalError(ParameterServerError):
    """A bug of ours; the message carries an id to look for in the peer's log."""

    reason = "INTERNAL"


def all_errors() -> dict[str, type[ParameterServerError]]:
    """Every class of the tree above by its reason; subclasses made elsewhere do not travel."""
    found: dict[str, type[ParameterServerError]] = {}
    todo: list[type[ParameterServerError]] = [ParameterServerError]
    while todo:
        error = todo.pop()
        found[error.reason] = error
        todo.extend(e for e in error.__subclasses__() if e.__module__ == __name__)
    return found


def from_wire(reason: str, message: str, details: Mapping[str, str]) -> ParameterServerError:
    """The error that a peer raised; an unknown reason becomes the root class, reason kept."""
    error = all_errors().get(reason, ParameterServerError)(message)
    error.reason = reason
    error.details = dict(details)
    return error
