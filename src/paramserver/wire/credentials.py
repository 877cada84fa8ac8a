"""Certificates and tokens for gRPC: read, checked, and read again when the files change."""

from __future__ import annotations

import logging
import os
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from paramserver.errors import ConfigurationError
from paramserver.trust import Tls, Trust
from paramserver.wire.addresses import reaches_only_here
from paramserver.wire.targets import call_target

log = logging.getLogger("paramserver")

LOOK_S = 1.0  # between looks at the files of certificates
PEM_BYTES = 1 << 20

Stamp = tuple[tuple[int, int, int], ...]
Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Pems:
    """What the files of a Tls hold; None for those that are not named."""

    cert: bytes | None
    key: bytes | None
    ca: bytes | None


def read_pems(tls: Tls) -> Pems:
    """Reads the files, and sees that they are what they are meant to be.

    Raises:
        ConfigurationError: a file cannot be read or parsed, or the key is not the certificate's.
    """
    cert, key, ca = (_read(path) for path in (tls.cert, tls.key, tls.ca))
    context(tls)
    return Pems(cert, key, ca)


def _read(path: str | None) -> bytes | None:
    if path is None:
        return None
    try:
        with Path(path).open("rb") as file:
            return file.read(PEM_BYTES)
    except OSError as error:
        raise ConfigurationError(
            f"tls: {path}: {error.strerror}; it must be a readable PEM file"
        ) from None


def context(tls: Tls) -> ssl.SSLContext:
    """A context of Python's own TLS with these certificates: to check them, and to find faults.

    Raises:
        ConfigurationError: they cannot be used.
    """
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.set_alpn_protocols(["h2"])
    if tls.ca is None:
        made.load_default_certs()
    else:
        try:
            made.load_verify_locations(tls.ca)
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"tls: ca {tls.ca}: {_why(error)}") from None
    if tls.cert is not None:
        try:
            made.load_cert_chain(tls.cert, tls.key, password=_no_password)
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"tls: cert {tls.cert} with key {tls.key}: {_why(error)}"
            ) from None
    return made


def _no_password() -> str:
    raise ValueError("the key wants a passphrase; store it without one, readable by you alone")


def _why(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        reason = (error.reason or "").replace("_", " ").lower()
        return (
            f"{reason or 'not a PEM file of this kind'}; make them again with `paramserver certs`"
        )
    return str(error.strerror if isinstance(error, OSError) else error)


def stamp(tls: Tls) -> Stamp:
    """Changes whenever one of the files does."""
    found = []
    for path in (tls.cert, tls.key, tls.ca):
        if path is not None:
            try:
                status = os.stat(path)
            except OSError:
                found.append((0, 0, 0))
            else:
                found.append((status.st_mtime_ns, status.st_size, status.st_ino))
    return tuple(found)


class Watched:
    """Certificates that are read again when their files change; thread-safe.

    What cannot be used is told once, as an error in the log, and what was good stays in use.
    """

    def __init__(self, tls: Tls, now: Callable[[], float] = time.monotonic) -> None:
        """Reads the files.

        Raises:
            ConfigurationError: they cannot be used.
        """
        self._tls = tls
        self._now = now
        self._lock = threading.Lock()
        self._stamp = stamp(tls)
        self._looked = now()
        self.pems = read_pems(tls)

    def changed(self) -> bool:
        """Whether ``pems`` are others than at the last call; looks at most once a second."""
        with self._lock:
            if self._now() - self._looked < LOOK_S:
                return False
            self._looked = self._now()
            seen = stamp(self._tls)
            if seen == self._stamp:
                return False
            self._stamp = seen
            try:
                pems = read_pems(self._tls)
            except ConfigurationError as error:
                log.error("new certificates cannot be used, the old ones stay: %s", error)
                return False
            if pems == self.pems:
                return False
            self.pems = pems
        log.info("certificates read again: %s", self._tls.cert or self._tls.ca)
        return True


def channel_credentials(pems: Pems) -> Any:
    """For a client's channel."""
    return grpc.ssl_channel_credentials(pems.ca, pems.key, pems.cert)


def server_credentials(tls: Tls) -> Any:
    """For a server's port; each handshake sees the newest certificates.

    Raises:
        ConfigurationError: the certificates cannot be used.
    """
    if tls.cert is None:
        raise ConfigurationError(
            "TLS without a certificate: a scheduler and a server show one to their clients; "
            "give --tls-cert and --tls-key"
        )
    watched = Watched(tls)

    def configuration() -> Any:
        pems = watched.pems
        roots = pems.ca if tls.mutual else None
        return grpc.ssl_server_certificate_configuration([(pems.key, pems.cert)], roots)

    def newest() -> Any:
        return configuration() if watched.changed() else None

    return grpc.dynamic_ssl_server_credentials(
        configuration(), newest, require_client_authentication=tls.mutual
    )


def call_metadata(trust: Trust, address: str) -> Metadata:
    """What every call to HOST:PORT, or to HOST:PORT/NAME, carries.

    Raises:
        ConfigurationError: the token would leave this machine unencrypted.
    """
    target, server = call_target(address)
    if not trust.token:
        return server
    if trust.tls is None and not trust.insecure and not reaches_only_here(target):
        raise ConfigurationError(
            f"a token for {address} without TLS could be read on the way; set "
            "PARAMSERVER_TLS_CA, or PARAMSERVER_INSECURE=1 on a network that you trust"
        )
    return (("authorization", f"Bearer {trust.token}"), *server)
