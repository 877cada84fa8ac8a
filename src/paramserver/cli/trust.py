"""Options by which a command proves who it is, and what it demands of others."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

from paramserver.trust import Trust, make_trust

F = TypeVar("F", bound=Callable[..., Any])


def _path_option(name: str, help: str) -> Callable[[F], F]:
    made: Callable[[F], F] = click.option(
        f"--{name}",
        envvar=f"PARAMSERVER_{name.upper().replace('-', '_')}",
        metavar="FILE",
        show_envvar=True,
        help=help,
    )
    return made


_CLIENT = (
    _path_option("tls-cert", "Certificate of this process, PEM, with its chain."),
    _path_option("tls-key", "Private key of the certificate."),
    _path_option("tls-ca", "Certificates that those of others must be signed by."),
    _path_option("token-file", "File with the cluster's token; or set PARAMSERVER_TOKEN."),
)
_ROLE = (
    click.option(
        "--tls-clients",
        envvar="PARAMSERVER_TLS_CLIENTS",
        type=click.Choice(["certificate", "any"]),
        default="certificate",
        show_default=True,
        show_envvar=True,
        help="Whether clients must show a certificate, where --tls-ca is given.",
    ),
    click.option(
        "--insecure",
        envvar="PARAMSERVER_INSECURE",
        is_flag=True,
        show_envvar=True,
        help="Let other machines in without encryption, certificates or token.",
    ),
)


def trust_options(command: F) -> F:
    """The options of a client; the command gets them as ``trust``."""
    return _with_trust(command, _CLIENT)


def role_trust_options(command: F) -> F:
    """The options of a scheduler or server; the command gets them as ``trust``."""
    return _with_trust(command, (*_CLIENT, *_ROLE))


def _with_trust(command: F, options: tuple[Callable[[Any], Any], ...]) -> F:
    @functools.wraps(command)
    def run(*args: Any, **values: Any) -> Any:
        return command(*args, trust=_take(values), **values)

    made: Any = run
    for option in reversed(options):
        made = option(made)
    result: F = made
    return result


def _take(values: dict[str, Any]) -> Trust:
    """Trust from the options of a command, which are taken out of ``values``."""
    return make_trust(
        cert=values.pop("tls_cert") or None,
        key=values.pop("tls_key") or None,
        ca=values.pop("tls_ca") or None,
        clients=values.pop("tls_clients", "certificate"),
        token=os.environ.get("PARAMSERVER_TOKEN", ""),
        token_file=values.pop("token_file") or None,
        admin_token=os.environ.get("PARAMSERVER_ADMIN_TOKEN", ""),
        insecure=values.pop("insecure", False),
    )
