"""Who may talk to whom: certificates, tokens, and the rule for addresses that others can reach.

Values only; reading certificates and speaking TLS is ``wire.credentials``. A token never appears in
a ``repr``, so that no log line, traceback or status can carry it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from paramserver.errors import ConfigurationError

ROLES = ("scheduler", "server", "worker", "admin")
TOKEN_LENGTH = (16, 1024)
PREFIX = "PARAMSERVER_"
ADMIN_TOKEN = f"{PREFIX}ADMIN_TOKEN"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Certificates of one process, as paths of PEM files; read again when they change.

    Attributes:
        cert, key: what this process shows to others, with its chain, and its private key. A
            scheduler and a server need them; so does a worker where certificates are demanded.
        ca: the certificates that others' must be signed by; None: those that gRPC brings.
        clients: whether a scheduler or server with a ``ca`` demands certificates of its clients
            (mutual TLS). Without, clients are known by the token.
    """

    cert: str | None = None
    key: str | None = None
    ca: str | None = None
    clients: bool = True

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ConfigurationError(
                f"tls: cert={self.cert}, key={self.key}: a certificate and its private key go "
                "together; give both, or neither"
            )

    @property
    def mutual(self) -> bool:
        """Whether a role with these demands certificates of its clients."""
        return self.ca is not None and self.clients


def check_token(token: str, what: str) -> None:
    """Raises ConfigurationError unless a token can be sent and is not too easy to guess."""
    shortest, longest = TOKEN_LENGTH
    if not token:
        return
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise ConfigurationError(f"{what}: has spaces or characters that cannot be sent; use ASCII")
    if not shortest <= len(token) <= longest:
        raise ConfigurationError(
            f"{what}: {len(token)} characters, must be {shortest} to {longest}; "
            "make one with `python -c 'import secrets; print(secrets.token_urlsafe())'`"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """How a process proves who it is, and what it demands of others.

    Attributes:
        tls: certificates; None: no encryption.
        token: shared by the members of the cluster; empty: none is sent or asked for.
        admin_token: what administrators send instead; empty: the token administers too.
        insecure: a token may travel unencrypted to other machines.
    """

    tls: Tls | None = None
    token: str = field(default="", repr=False)
    admin_token: str = field(default="", repr=False)
    insecure: bool = False

    def __post_init__(self) -> None:
        check_token(self.token, "token")
        check_token(self.admin_token, "admin token")
        if self.admin_token and not self.token:
            raise ConfigurationError("an admin token without a token: set PARAMSERVER_TOKEN too")
        if self.admin_token and self.admin_token == self.token:
            raise ConfigurationError("the admin token is the token: choose two different ones")

    def environment(self) -> dict[str, str]:
        """The variables that make ``from_environment`` of a child find the same."""
        tls = self.tls or Tls()
        found = {
            "TLS_CERT": tls.cert,
            "TLS_KEY": tls.key,
            "TLS_CA": tls.ca,
            "TLS_CLIENTS": None if tls.clients else "any",
            "TOKEN": self.token,
            "ADMIN_TOKEN": self.admin_token,
            "INSECURE": "1" if self.insecure else None,
        }
        named = {PREFIX + name: value for name, value in found.items() if value}
        return {**named, f"{PREFIX}TOKEN_FILE": ""} if self.token else named


OPEN = Trust()


def read_token(path: str) -> str:
    """The token in a file, which holds nothing else.

    Raises:
        ConfigurationError: the file cannot be read, or is empty.
    """
    try:
        with Path(path).open(encoding="ascii") as file:
            token = file.read(TOKEN_LENGTH[1] + 2).strip()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "not ASCII text"
        raise ConfigurationError(f"token file {path}: {why}; it must hold one token") from None
    if not token:
        raise ConfigurationError(f"token file {path}: empty; it must hold one token")
    return token


def from_environment(environment: Mapping[str, str]) -> Trust:
    """What ``PARAMSERVER_TLS_{CERT,KEY,CA,CLIENTS}``, ``_TOKEN``, ``_TOKEN_FILE``,
    ``_ADMIN_TOKEN`` and ``_INSECURE`` say.

    Raises:
        ConfigurationError: a value that cannot work.
    """

    def get(name: str) -> str | None:
        return environment.get(PREFIX + name) or None

    return make_trust(
        cert=get("TLS_CERT"),
        key=get("TLS_KEY"),
        ca=get("TLS_CA"),
        clients=get("TLS_CLIENTS") or "certificate",
        token=get("TOKEN") or "",
        token_file=get("TOKEN_FILE"),
        admin_token=get("ADMIN_TOKEN") or "",
        insecure=(get("INSECURE") or "0").lower() in ("1", "true", "yes", "on"),
    )


def make_trust(
    *,
    cert: str | None,
    key: str | None,
    ca: str | None,
    clients: str = "certificate",
    token: str = "",
    token_file: str | None = None,
    admin_token: str = "",
    insecure: bool = False,
) -> Trust:
    """Trust from single settings; a token file goes before a token.

    Raises:
        ConfigurationError: a value that cannot work.
    """
    if clients not in ("certificate", "any"):
        raise ConfigurationError(f"tls clients {clients!r}: must be certificate or any")
    tls = None
    if cert or key or ca:
        tls = Tls(cert=cert, key=key, ca=ca, clients=clients == "certificate")
    found = read_token(token_file) if token_file else token
    return Trust(tls=tls, token=found, admin_token=admin_token, insecure=insecure)


def with_arguments(trust: Trust, tls: Tls | None, token: str | None) -> Trust:
    """``trust``, where arguments that are given go before it."""
    return replace(
        trust,
        tls=trust.tls if tls is None else tls,
        token=trust.token if token is None else token,
    )


def public_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """A copy for a worker: without what only administrators have."""
    hidden = {ADMIN_TOKEN: ""} if environment.get(ADMIN_TOKEN) else {}
    return {**environment, **hidden}
