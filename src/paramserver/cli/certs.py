"""``certs``: a CA for one cluster, and a certificate for each of its roles."""

from __future__ import annotations

import datetime
import ipaddress
import os
import secrets
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from paramserver.errors import ConfigurationError
from paramserver.trust import ROLES

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

    Issuer = tuple[x509.Certificate, EllipticCurvePrivateKey]

HERE = ("localhost", "127.0.0.1", "::1")
CA_DAYS = 3650
SKEW = datetime.timedelta(hours=1)  # of the clock of another machine
SERVING = ("scheduler", "server", "admin")  # what an administrator starts with `run` serves too


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--host",
    "hosts",
    multiple=True,
    metavar="HOST",
    help="Name or address of a machine of the cluster; may be given again. This one is always in.",
)
@click.option(
    "--worker",
    "workers",
    multiple=True,
    metavar="NAME",
    help="Also a certificate for the worker of that name alone; may be given again.",
)
@click.option(
    "--days",
    type=click.IntRange(1, CA_DAYS),
    default=365,
    show_default=True,
    metavar="N",
    help="How long certificates hold; that of the CA holds ten years.",
)
def certs(folder: Path, hosts: tuple[str, ...], workers: tuple[str, ...], days: int) -> None:
    """Certificates for a cluster, with a CA of their own, and a token.

    Writes DIR/ca.pem, DIR/ROLE.pem and DIR/ROLE-key.pem, where ROLE is scheduler, server, worker or
    admin, and DIR/token. A CA and a token that are there already are kept, so that the command
    also renews certificates: roles that run read the new ones without a restart.
    """
    made = make_certificates(folder, hosts, workers, days)
    names = ", ".join(path.name for path in made)
    click.echo(f"{folder}: {names}; keep ca-key.pem away from the cluster")


def make_certificates(
    folder: Path, hosts: Sequence[str] = (), workers: Sequence[str] = (), days: int = 365
) -> list[Path]:
    """What ``certs`` does: the files that were written.

    Raises:
        ConfigurationError: a value that cannot work, a folder that cannot be written, or the
            extra ``certs`` is not installed.
    """
    names = _checked_names(workers)
    everywhere = list(dict.fromkeys([*HERE, socket.gethostname(), *hosts]))
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        ca = _authority(folder)
        made = [folder / "ca.pem"]
        for name, role in [*((role, role) for role in ROLES), *((n, f"worker:{n}") for n in names)]:
            subject = _issue(ca, role, everywhere if role in SERVING else (), days)
            made.append(_write_pair(folder, name, *subject))
        if not (folder / "token").exists():
            _write(folder / "token", f"{secrets.token_urlsafe()}\n".encode(), private=True)
    except OSError as error:
        raise ConfigurationError(f"{folder}: {error.strerror}: {error.filename}") from error
    return made


def _checked_names(workers: Sequence[str]) -> Sequence[str]:
    for name in workers:
        fine = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
        if not fine or name in (*ROLES, "ca"):
            raise ConfigurationError(
                f"--worker {name!r}: must be letters, digits, - and _, and no name of a role"
            )
    return workers


def _x509() -> Any:
    try:
        from cryptography import x509
    except ImportError as error:
        raise ConfigurationError(
            "certs needs the package cryptography: pip install 'paramserver[certs]'"
        ) from error
    return x509


def _authority(folder: Path) -> Issuer:
    """The CA of a folder; made if it has none."""
    x509 = _x509()
    from cryptography.hazmat.primitives import serialization

    path, key_path = folder / "ca.pem", folder / "ca-key.pem"
    if path.exists() and key_path.exists():
        try:
            certificate = x509.load_pem_x509_certificate(path.read_bytes())
            key: Any = serialization.load_pem_private_key(key_path.read_bytes(), None)
        except (ValueError, TypeError) as error:
            raise ConfigurationError(
                f"{path}, {key_path}: {error}; delete both to begin with another CA"
            ) from error
        return certificate, key
    certificate, key = _issue(None, "paramserver CA", (), CA_DAYS)
    _write_pair(folder, "ca", certificate, key)
    return certificate, key


def _issue(ca: Issuer | None, role: str, hosts: Sequence[str], days: int) -> Issuer:
    """A certificate of ``ca`` for a role, or of its own for a CA, and its key."""
    x509 = _x509()
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, role)])
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name if ca is None else ca[0].subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + datetime.timedelta(days=days))
    )
    for extension, critical in _extensions(ca, key, role, hosts):
        builder = builder.add_extension(extension, critical)
    return builder.sign(key if ca is None else ca[1], hashes.SHA256()), key


def _extensions(
    ca: Issuer | None, key: EllipticCurvePrivateKey, role: str, hosts: Sequence[str]
) -> list[tuple[Any, bool]]:
    x509 = _x509()
    from cryptography.x509.oid import ExtendedKeyUsageOID

    issuer = key if ca is None else ca[1]
    common = [
        (x509.BasicConstraints(ca=ca is None, path_length=0 if ca is None else None), True),
        (_usage(ca is None), True),
        (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()), False),
    ]
    if ca is None:
        return common
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
    usages += [ExtendedKeyUsageOID.SERVER_AUTH] if hosts else []
    names = [x509.UniformResourceIdentifier(f"urn:paramserver:{role}"), *map(_general, hosts)]
    return [
        *common,
        (x509.ExtendedKeyUsage(usages), False),
        (x509.SubjectAlternativeName(names), False),
    ]


def _usage(is_ca: bool) -> Any:
    others = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    return _x509().KeyUsage(
        digital_signature=True,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        encipher_only=False,
        decipher_only=False,
        **dict.fromkeys(others, False),
    )


def _general(host: str) -> Any:
    x509 = _x509()
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError as error:
        raise ConfigurationError(f"--host {host!r}: {error}; write names as in DNS") from error


def _write_pair(
    folder: Path, name: str, certificate: x509.Certificate, key: EllipticCurvePrivateKey
) -> Path:
    from cryptography.hazmat.primitives import serialization as s

    private = key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())
    _write(folder / f"{name}-key.pem", private, private=True)
    path = folder / f"{name}.pem"
    _write(path, certificate.public_bytes(s.Encoding.PEM), private=False)
    return path


def _write(path: Path, data: bytes, *, private: bool) -> None:
    """A whole file or none, readable by its owner alone where it is private."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    file = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o644)
    with os.fdopen(file, "wb") as stream:
        stream.write(data)
    unfinished.replace(path)
