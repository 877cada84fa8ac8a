"""``paramserver.connect``: arguments and environment become a client."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from paramserver import failpoints, rpc_chaos
from paramserver.config import ClientConfig
from paramserver.emulation import parse_emulation
from paramserver.errors import ConfigurationError
from paramserver.scheme_text import parse_scheme
from paramserver.trust import Tls, Trust, from_environment, with_arguments
from paramserver.wire.addresses import split_address
from paramserver.wire.client import GrpcTransport
from paramserver.wire.transport import Transport
from paramserver.worker import drain
from paramserver.worker.client import Client
from paramserver.worker.session import Session

PREFIX = "PARAMSERVER_"
ANYWHERE = {
    f"{PREFIX}{name}"
    for name in (
        *("EMULATE", "RUN_DIR", "SCHEME", "SEED"),
        *("FAILPOINTS", "FAILPOINTS_DIR", "RPC_CHAOS"),
    )
}


def connect(
    address: str | None = None,
    *,
    name: str | None = None,
    reader: bool = False,
    timeout: float = 30.0,
    wait_timeout: float = 1800.0,
    tls: Tls | None = None,
    token: str | None = None,
) -> Client:
    """Joins the job of a cluster, or starts an embedded cluster in this process.

    Returns when the expected workers have registered. What is not given comes from the environment:
    ``PARAMSERVER_SCHEDULER`` and ``PARAMSERVER_NAME``, which ``paramserver run`` and
    ``paramserver worker`` set. Embedded only if neither is set. ``PARAMSERVER_EMULATE``
    makes this worker play a slower machine (``paramserver.emulation``), ``PARAMSERVER_SCHEME``
    replaces the scheme that the script asks for, and ``PARAMSERVER_RUN_DIR`` names a folder where
    each worker writes its steps and scalars to NAME.jsonl.

    Args:
        address: HOST:PORT of the scheduler.
        name: of this worker in the job; default: the lowest free one.
        reader: no rank, pulls only, awaited by nobody.
        timeout: seconds to connect, counted from the last arrival of a role.
        wait_timeout: seconds that a wait on a peer that still heartbeats may take.
        tls: certificates; default: ``PARAMSERVER_TLS_CERT``, ``_KEY`` and ``_CA``.
        token: of the cluster; default: ``PARAMSERVER_TOKEN``, or what is in the file that
            ``PARAMSERVER_TOKEN_FILE`` names.

    Raises:
        AuthenticationError: this client and the cluster cannot prove to one another who they are.
        ConfigurationError: ``PARAMSERVER_*`` variables without a scheduler, or bad values.
        ConnectionLostError: nobody answers at the address.
        WaitTimeoutError: servers or workers are missing; says which.
    """
    config = _configuration(address, name, reader, timeout, wait_timeout)
    failpoints.arm_from(os.environ)
    rpc_chaos.arm_from(os.environ)
    config = replace(config, trust=_trust(config.scheduler, tls, token))
    identity = None if reader else os.environ.get("PARAMSERVER_IDENTITY_FILE")
    transport = _transport(config)
    session = Session(
        config,
        transport.scheduler(),
        launched=os.environ.get("PARAMSERVER_LAUNCHED") == "1",
        identity_file=Path(identity) if identity else None,
    )
    try:
        session.open()
        if config.scheduler is not None and not config.reader:
            drain.install(session.drain)
        return Client(session, transport)
    except BaseException:
        transport.close()
        raise


def _configuration(
    address: str | None, name: str | None, reader: bool, timeout: float, wait_timeout: float
) -> ClientConfig:
    """Arguments first, then the environment; arguments as of ``connect``."""
    for what, value in (("timeout", timeout), ("wait_timeout", wait_timeout)):
        if not value > 0:
            raise ConfigurationError(f"{what}={value}: must be > 0 seconds")
    scheduler = address or os.environ.get("PARAMSERVER_SCHEDULER") or None
    if scheduler is None:
        _refuse_half_an_environment()
    else:
        split_address(scheduler)
    # A reader beside a worker must not take the worker's name.
    given = None if reader else os.environ.get("PARAMSERVER_NAME")
    emulate = os.environ.get("PARAMSERVER_EMULATE")
    scheme = os.environ.get("PARAMSERVER_SCHEME")
    return ClientConfig(
        scheduler=scheduler,
        name=name or given or None,
        reader=reader,
        timeout=timeout,
        wait_timeout=wait_timeout,
        emulation=parse_emulation(emulate) if emulate else None,
        run_dir=os.environ.get("PARAMSERVER_RUN_DIR") or None,
        scheme=parse_scheme(scheme) if scheme else None,
    )


def _trust(scheduler: str | None, tls: Tls | None, token: str | None) -> Trust:
    if scheduler is None and (tls is not None or token is not None):
        raise ConfigurationError(
            "tls or token without a scheduler: an embedded cluster has no connections; give "
            "connect an address, or set PARAMSERVER_SCHEDULER"
        )
    return with_arguments(from_environment(os.environ), tls, token)


def _refuse_half_an_environment() -> None:
    found = sorted(key for key in os.environ if key.startswith(PREFIX) and key not in ANYWHERE)
    if found:
        raise ConfigurationError(
            f"{', '.join(found)} set, but no scheduler: set PARAMSERVER_SCHEDULER=HOST:PORT, give "
            "connect an address, or unset them to run an embedded cluster in this process"
        )


def _transport(config: ClientConfig) -> Transport:
    if config.scheduler is not None:
        return GrpcTransport(config.scheduler, config.trust)
    from paramserver.embedded import EmbeddedTransport

    print("paramserver: no scheduler named, running an embedded cluster in this process")
    return EmbeddedTransport()
