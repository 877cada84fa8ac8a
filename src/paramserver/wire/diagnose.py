"""Why two peers cannot agree on TLS: gRPC says "unavailable" whatever the reason.

A handshake of Python's own with the same certificates finds it. A server refuses a client's
certificate without a word, so that case is told by what follows the handshake.
"""

from __future__ import annotations

import socket
import ssl
from contextlib import suppress

from paramserver.errors import AuthenticationError, ConfigurationError
from paramserver.trust import Tls, Trust
from paramserver.wire.addresses import split_address
from paramserver.wire.credentials import context

WAIT_S = 3.0


def check_reachable(address: str, trust: Trust, peer: str) -> None:
    """Raises AuthenticationError if a peer is there, but TLS with it cannot work.

    A peer that is not there yet is no error. Takes at most a few seconds.
    """
    why = explain(address, trust)
    if why:
        raise AuthenticationError(f"{peer} at {address}: {why}")


def explain(address: str, trust: Trust, timeout: float = WAIT_S) -> str:
    """Why TLS with HOST:PORT cannot work, and the cure; empty where that is not the trouble."""
    host, port = split_address(address.partition("/")[0])
    host = host.strip("[]")
    try:
        with socket.create_connection((host, port), timeout) as connection:
            connection.settimeout(timeout)
            if trust.tls is None:
                return _ask_in_clear(connection)
            return _shake(connection, host, trust.tls)
    except ConfigurationError as error:
        return str(error)
    except (OSError, UnicodeError):
        return ""  # nobody there, or silent: not for us to say


def _ask_in_clear(connection: socket.socket) -> str:
    """A server of gRPC without TLS speaks HTTP/2 in clear; one with TLS answers a hello."""
    hello = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    hello.check_hostname = False
    hello.verify_mode = ssl.CERT_NONE
    hello.set_alpn_protocols(["h2"])
    with suppress(ssl.SSLError), hello.wrap_socket(connection):
        return "it speaks TLS, this side does not; set PARAMSERVER_TLS_CA (and _CERT and _KEY)"
    return ""


def _shake(connection: socket.socket, host: str, tls: Tls) -> str:
    try:
        with context(tls).wrap_socket(connection, server_hostname=host) as secure:
            try:
                heard = secure.recv(1)
            except (ssl.SSLError, ConnectionError):
                heard = b""
            return "" if heard else _refused(tls)
    except ssl.SSLCertVerificationError as error:
        return (
            f"its certificate is refused: {error.verify_message.rstrip('.')}; PARAMSERVER_TLS_CA "
            "must be the CA that signed it, and the certificate must be in date and name that host"
        )
    except ssl.SSLError:
        return "it does not speak TLS, this side does; start it with --tls-cert and --tls-key"


def _refused(tls: Tls) -> str:
    if tls.cert is None:
        return (
            "it asks for a certificate, and this side has none; set PARAMSERVER_TLS_CERT and _KEY"
        )
    own = _own_fault(tls)
    return (
        f"it refused the certificate {tls.cert}{f': {own}' if own else ''}; "
        "it must be in date, for clients, and signed by the CA that the peer was given"
    )


def _own_fault(tls: Tls) -> str:
    """What is wrong with our certificate in the eyes of our own CA, by a handshake in memory."""
    assert tls.cert is not None
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tls.cert, tls.key)
    server.verify_mode = ssl.CERT_REQUIRED
    if tls.ca is not None:
        server.load_verify_locations(tls.ca)
    client = context(tls)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (client.wrap_bio(back, there), server.wrap_bio(there, back, server_side=True))
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLCertVerificationError as error:
                return error.verify_message
            except ssl.SSLError as error:
                return (error.reason or "unusable").replace("_", " ").lower()
    return ""
