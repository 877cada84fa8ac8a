"""HOST:PORT: its parts, who can reach it, and who may be let in there."""

from __future__ import annotations

import ipaddress
import socket

from paramserver.errors import ConfigurationError
from paramserver.trust import Trust


def split_address(address: str) -> tuple[str, int]:
    """Host and port of HOST:PORT.

    Raises:
        ConfigurationError: not HOST:PORT with a port from 0 to 65535.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ConfigurationError(f"address {address!r}: must be HOST:PORT, the port 0 to 65535")
    return host, int(port)


def split_host(address: str) -> str:
    """The host of HOST:PORT or HOST:PORT/NAME, without brackets."""
    return address.partition("/")[0].rpartition(":")[0].strip("[]")


def reaches_only_here(address: str) -> bool:
    """Whether only this machine is behind HOST:PORT; False for a name that nobody knows yet."""
    try:
        return is_loopback(split_host(address))
    except (OSError, UnicodeError):
        return False


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches ``host``.

    Raises:
        OSError: the name cannot be resolved.
    """
    found = {info[4][0] for info in socket.getaddrinfo(host, None)}
    return all(ipaddress.ip_address(str(ip).partition("%")[0]).is_loopback for ip in found)


def check_bind(bind: str, trust: Trust) -> None:
    """Refuses to let other machines in where they would not have to prove who they are.

    Raises:
        ConfigurationError: the host is unknown, or needs TLS with a token or certificates.
    """
    host, port = split_host(bind), split_address(bind)[1]
    try:
        local = is_loopback(host)
    except (OSError, UnicodeError) as error:
        raise ConfigurationError(f"--bind {bind}: host {host!r} cannot be resolved") from error
    if local or trust.insecure:
        return
    if trust.tls is None:
        raise ConfigurationError(
            f"--bind {bind} lets other machines in, without encryption or passwords; give "
            "--tls-cert, --tls-key and --tls-ca (`paramserver certs` makes them), "
            f"add --insecure to accept that, or bind 127.0.0.1:{port}"
        )
    if not trust.tls.mutual and not trust.token:
        raise ConfigurationError(
            f"--bind {bind} lets anybody in: clients need neither certificate nor token; give "
            f"--tls-ca or --token-file, add --insecure to accept that, or bind 127.0.0.1:{port}"
        )
