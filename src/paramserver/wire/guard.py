"""The door of a role: who a caller is, by certificate or token, and what it may call."""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NamedTuple

import grpc

from paramserver.errors import (
    AuthenticationError,
    ParameterServerError,
    PermissionDeniedError,
)
from paramserver.trust import ROLES, Trust
from paramserver.wire.permissions import check_method
from paramserver.wire.status import to_status

log = logging.getLogger("paramserver")

URN = "urn:paramserver:"
HEALTH = "/grpc.health.v1.Health/"
TELL_S = 1.0  # between two refusals that the log tells of


class Caller(NamedTuple):
    """Who calls: a role, and the member's name if its certificate has one; empty: any."""

    role: str
    name: str = ""


ANYBODY = Caller("admin")

# Of the call that is being answered.
SPEAKER: ContextVar[Caller] = ContextVar("paramserver_speaker", default=ANYBODY)


class Guard:
    """Says who a caller is; one for a server."""

    def __init__(self, trust: Trust, now: Callable[[], float] = time.monotonic) -> None:
        self._mutual = trust.tls is not None and trust.tls.mutual
        self._token = trust.token.encode()
        self._admin = trust.admin_token.encode()
        self._now = now
        self._told = -TELL_S
        self._untold = 0

    @property
    def is_open(self) -> bool:
        """Whether everybody is let in, as an administrator."""
        return not self._mutual and not self._token

    def check_token(self, sent: str | bytes | None) -> None:
        """Raises AuthenticationError unless the metadata ``authorization`` has the token."""
        if self._token and not self._tokens(sent):
            why = "has no token" if sent is None else "has another token"
            raise AuthenticationError(
                f"this cluster asks for a token, and the call {why}; set PARAMSERVER_TOKEN or "
                "PARAMSERVER_TOKEN_FILE to that of the cluster"
            )

    def _tokens(self, sent: str | bytes | None) -> str:
        """The role that a token stands for; empty for none. Takes as long for every wrong one."""
        raw = sent.encode() if isinstance(sent, str) else (sent or b"")
        found = ""
        if hmac.compare_digest(raw, b"Bearer " + self._token):
            found = "member" if self._admin else "admin"
        if self._admin and hmac.compare_digest(raw, b"Bearer " + self._admin):
            found = "admin"
        return found

    def caller(self, context: Any) -> Caller:
        """Who calls, whose token has been seen to be right.

        Raises:
            PermissionDeniedError: its certificate stands for no role.
        """
        if self._mutual:
            return _by_certificate(context.auth_context())
        if not self._admin:
            return Caller("admin")
        return Caller(self._tokens(dict(context.invocation_metadata()).get("authorization")))

    def admit(self, path: str, context: Any) -> Caller:
        """The caller, who may call the rpc at this path.

        Raises:
            PermissionDeniedError: it may not.
        """
        try:
            caller = self.caller(context)
            check_method(caller.role, path)
        except ParameterServerError as error:
            self.tell(context.peer(), path, error)
            raise
        return caller

    def tell(self, peer: str, path: str, error: ParameterServerError) -> None:
        """Logs a refusal; a flood of them is counted rather than logged."""
        now = self._now()
        if now - self._told < TELL_S:
            self._untold += 1
            return
        more = f" ({self._untold} more before)" if self._untold else ""
        log.warning("refused %r for %r: %s%s", path, peer, error, more)
        self._told, self._untold = now, 0


def _by_certificate(found: dict[str, list[bytes]]) -> Caller:
    names = [
        value.decode(errors="replace") for value in found.get("x509_subject_alternative_name", ())
    ]
    for name in names:
        if name.startswith(URN):
            role, _, member = name.removeprefix(URN).partition(":")
            if role in ROLES:
                return Caller(role, member)
    common = [value.decode(errors="replace") for value in found.get("x509_common_name", ())]
    for name in common:
        if name in ROLES:
            return Caller(name)
    raise PermissionDeniedError(
        f"the certificate of {', '.join([*common, *names]) or 'nobody'} stands for no role; it "
        f"needs the name {URN}ROLE or the common name ROLE, where ROLE is {', '.join(ROLES)}"
    )


class TokenInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Refuses a call without the token before a byte of its body is read."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """The handler of the call, or one that refuses it. Health has nothing to hide."""
        if details.method.startswith(HEALTH):
            return await continuation(details)
        try:
            sent = [value for key, value in details.invocation_metadata if key == "authorization"]
            self._guard.check_token(sent[0] if len(sent) == 1 else None)
        except AuthenticationError as error:
            return self._refusal(details.method, error)
        return await continuation(details)

    def _refusal(self, path: str, error: AuthenticationError) -> Any:
        async def refuse(messages: Any, context: Any) -> None:
            self._guard.tell(context.peer(), path, error)
            await context.abort_with_status(to_status(error))

        return grpc.stream_stream_rpc_method_handler(refuse)
