"""Certificates for tests: a CA and all roles in one folder, made once; and ones that are wrong."""

from __future__ import annotations

import datetime
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from unittest.mock import patch

from paramserver.cli import certs
from paramserver.cli.certs import make_certificates
from paramserver.trust import Tls, Trust

TOKEN = "a-token-for-tests-0123456789"
ADMIN = "an-admin-token-0123456789"


@cache
def folder(name: str = "cluster") -> Path:
    """A folder with a CA of its own; another name, another CA."""
    made = Path(mkdtemp(prefix=f"pki-{name}-"))
    make_certificates(made, workers=["worker-1"])
    return made


@cache
def expired() -> Path:
    """A folder with the CA of ``folder()``, whose certificates are out of date."""
    made = Path(mkdtemp(prefix="pki-expired-"))
    for name in ("ca.pem", "ca-key.pem"):
        (made / name).write_bytes((folder() / name).read_bytes())
    with patch.object(certs, "SKEW", datetime.timedelta(days=3)):
        make_certificates(made, days=-1)
    return made


def tls(role: str, where: Path | None = None, *, clients: bool = True) -> Tls:
    """The certificates of a role."""
    path = folder() if where is None else where
    return Tls(
        cert=str(path / f"{role}.pem"),
        key=str(path / f"{role}-key.pem"),
        ca=str(path / "ca.pem"),
        clients=clients,
    )


def mutual(where: Path | None = None, token: str = "") -> dict[str, Trust]:
    """Mutual TLS for all roles of a cluster."""
    roles = ("scheduler", "server", "worker", "admin")
    return {role: Trust(tls=tls(role, where), token=token) for role in roles}


def token_and_tls() -> dict[str, Trust]:
    """Clients show a token, servers a certificate."""
    ca = Tls(ca=str(folder() / "ca.pem"))
    found = {
        role: Trust(tls=tls(role, clients=False), token=TOKEN, admin_token=ADMIN)
        for role in ("scheduler", "server")
    }
    return {
        **found,
        "worker": Trust(tls=ca, token=TOKEN),
        "admin": Trust(tls=ca, token=ADMIN),
    }


def token_only() -> dict[str, Trust]:
    """A token without encryption, as on one machine."""
    roles = dict.fromkeys(("scheduler", "server"), Trust(token=TOKEN, admin_token=ADMIN))
    return {**roles, "worker": Trust(token=TOKEN), "admin": Trust(token=ADMIN)}
