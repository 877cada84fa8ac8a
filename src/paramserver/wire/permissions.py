"""Which role may call which rpc. An rpc that stands nowhere here is for administrators alone.

Roles are those of certificates, and "member": whoever has the cluster's token, where administrators
have another one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paramserver.errors import PermissionDeniedError
from paramserver.v1 import common_pb2, scheduler_pb2

_ALL = frozenset({"scheduler", "server", "worker"})
_MEMBERS = frozenset({"server", "worker"})
_WORKER = frozenset({"worker"})
_SERVER = frozenset({"server"})
_SCHEDULER = frozenset({"scheduler"})
_ADMIN = frozenset({"admin"})

# By path, without the package. Administrators may call all of them, and everything else.
PERMISSIONS: Mapping[str, frozenset[str]] = {
    "Scheduler/Register": _MEMBERS,
    "Scheduler/AwaitStart": _WORKER,
    "Scheduler/Heartbeat": _MEMBERS,
    "Scheduler/Watch": _MEMBERS,
    "Scheduler/GetView": _MEMBERS,
    "Scheduler/RegisterGroup": _WORKER,
    "Scheduler/GetGroup": _MEMBERS,
    "Scheduler/AwaitGroup": _WORKER,
    "Scheduler/GroupStored": _WORKER,
    "Scheduler/WarmStart": _WORKER,
    "Scheduler/SetActive": _WORKER,
    "Scheduler/OpenDataset": _WORKER,
    "Scheduler/NextShard": _WORKER,
    "Scheduler/ReportSamples": _WORKER,
    "Scheduler/AwaitEpoch": _WORKER,
    "Scheduler/Coordinate": _WORKER,
    "Scheduler/Announce": _WORKER,
    "Scheduler/Announced": _WORKER,
    "Scheduler/Join": _WORKER,
    "Scheduler/FormReplicas": _WORKER,
    "Scheduler/Finish": _MEMBERS,
    "Scheduler/Fail": _MEMBERS,
    "Scheduler/Log": _WORKER,
    "Scheduler/SaveSchedule": _WORKER,
    "Scheduler/LoadSchedule": _WORKER,
    "Scheduler/Status": _ALL,
    "Scheduler/BackupReady": _SERVER,
    "Scheduler/TakeSnapshot": _WORKER,
    "Scheduler/RestoreSnapshot": _ADMIN,
    "Scheduler/Scale": _ADMIN,
    "Server/Exchange": _WORKER,
    "Server/Activate": _WORKER,
    "Server/Follow": _SERVER,
    "Server/Explain": _SERVER,
    "Server/Vectors": _WORKER,
    "Server/AppliedSpans": _SCHEDULER,
    "Server/Shrink": _WORKER,
    "Server/Hold": _SCHEDULER,
    "Server/Drain": _SCHEDULER,
    "Server/Release": _SCHEDULER,
    "Server/Snapshot": _SCHEDULER,
    "Server/Move": _SCHEDULER,
    "Server/FetchSlices": _SERVER,
    "Server/Replicate": _SERVER,
    "Server/Describe": _ALL,
}
_KINDS = {
    "server": {scheduler_pb2.ROLE_SERVER},
    "worker": {scheduler_pb2.ROLE_WORKER, scheduler_pb2.ROLE_READER},
}


def check_method(role: str, path: str) -> None:
    """Raises PermissionDeniedError unless the role may call the rpc at this path of HTTP/2."""
    if role == "admin":
        return
    method = path.rpartition(".")[2]
    allowed = PERMISSIONS.get(method, frozenset())
    if role not in allowed and not (role == "member" and allowed - _ADMIN):
        raise PermissionDeniedError(
            f"a {role} may not call {method}: it is for {', '.join(sorted({*allowed, 'admin'}))}; "
            "use a certificate or token of that role"
        )


def check_request(role: str, name: str, request: Any) -> None:
    """Refuses a request in which somebody says to be what its credential is not.

    Args:
        role: of the credential.
        name: the member that the credential is for; empty: any of its role.

    Raises:
        PermissionDeniedError: another role, or another member.
    """
    if role in ("admin", "member"):
        return
    if isinstance(request, scheduler_pb2.RegisterRequest):
        check_kind(role, request.role, "register")
        check_name(name, request.name)
    elif name:
        for field in request.DESCRIPTOR.fields:
            if field.message_type is common_pb2.Identity.DESCRIPTOR:
                check_name(name, getattr(request, field.name).name)


def check_kind(role: str, kind: scheduler_pb2.Role, what: str) -> None:
    """Raises PermissionDeniedError unless a credential of this role is for such members."""
    if role not in ("admin", "member") and kind not in _KINDS.get(role, ()):
        raise PermissionDeniedError(
            f"a {role} may not {what} as {scheduler_pb2.Role.Name(kind)}; "
            "use a certificate or token of that role"
        )


def check_name(name: str, claimed: str) -> None:
    """Raises PermissionDeniedError for another member than the certificate's; empty: for any."""
    if name and claimed != name:
        raise PermissionDeniedError(
            f"the certificate is for {name!r}, the request says {claimed!r}; "
            f"connect with name={name!r}, or use a certificate without a name"
        )
