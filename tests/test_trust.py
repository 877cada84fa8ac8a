"""Who is let in and who is not, over real connections, and that everybody hears why."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch

import paramserver as ps
from paramserver.cli.certs import make_certificates
from paramserver.cli.state import Source
from paramserver.config import ClientConfig, SchedulerConfig
from paramserver.core.members import Role
from paramserver.errors import (
    AuthenticationError,
    ConfigurationError,
    PermissionDeniedError,
    UnsupportedError,
)
from paramserver.scheduler.service import SchedulerService
from paramserver.trust import OPEN, Tls, Trust, from_environment
from paramserver.types import PROTOCOL_VERSION
from paramserver.v1 import common_pb2, scheduler_pb2, server_pb2
from paramserver.wire import options
from paramserver.wire.client import AsyncGrpcChannel, GrpcChannel
from paramserver.wire.credentials import (
    Watched,
    call_metadata,
    channel_credentials,
    read_pems,
)
from paramserver.wire.diagnose import explain
from paramserver.wire.frames import decode, encode
from paramserver.wire.health import is_serving
from paramserver.wire.methods import SCHEDULER, SCHEDULER_METHODS, SERVER_METHODS, Method
from paramserver.wire.permissions import PERMISSIONS
from paramserver.wire.serve import RoleServer
from paramserver.worker.ring import check_unencrypted
from tests import pki
from tests.cluster import Cluster, cluster
from tests.pki import TOKEN

WAYS: dict[str, Callable[[], Mapping[str, Trust]]] = {
    "mutual": pki.mutual,
    "mutual and token": lambda: pki.mutual(token=TOKEN),
    "token and tls": pki.token_and_tls,
    "token only": pki.token_only,
}


def train(client: ps.Client) -> torch.Tensor:
    group = client.register("ledger", {"w": torch.zeros(300_000)})
    for step in range(3):
        group.push_pull({"w": torch.full((300_000,), float(1 + client.rank + step))})
    client.barrier("end")
    return group.read()["w"]


@pytest.fixture(scope="module")
def guarded() -> Iterator[Cluster]:
    """A cluster with mutual TLS and a token, that no test breaks."""
    with cluster(1, 1, trust=pki.mutual(token=TOKEN)) as made:
        yield made


@pytest.mark.parametrize("way", WAYS)
def test_a_cluster_trains_behind_its_door(way: str) -> None:
    with cluster(2, 2, trust=WAYS[way]()) as c:
        for found in c.workers(train):
            assert torch.equal(found, torch.full((300_000,), 15.0))


@pytest.mark.parametrize("way", WAYS)
def test_status_asks_for_what_the_cluster_asks_for(way: str) -> None:
    trust = WAYS[way]()
    with cluster(1, 1, trust=trust) as c:
        source = Source(c.address, trust["admin"])
        assert source.gather()["servers"][0]["name"] == "ps-0"
        source.close()


# Handshakes that fail: rows 66 to 68


@contextmanager
def scheduler_alone(trust: Trust) -> Iterator[str]:
    """The address of a scheduler, and nobody else."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def run(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(30)

    async def start() -> tuple[RoleServer, int]:
        service = SchedulerService(SchedulerConfig(trust=trust), connect=AsyncGrpcChannel)
        shell = RoleServer(SCHEDULER.full_name, SCHEDULER_METHODS, service, trust)
        return shell, await shell.start("127.0.0.1:0")

    shell, port = run(start())
    try:
        yield f"127.0.0.1:{port}"
    finally:
        run(shell.stop(0))
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def stranger(address: str, tls: Tls | None, token: str | None = TOKEN) -> str:
    """What a client hears that should not be let in."""
    began = time.monotonic()
    with pytest.raises(AuthenticationError) as error:
        ps.connect(address, tls=tls, token=token, timeout=15.0)
    assert time.monotonic() - began < 12.0, "a wrong certificate is no reason to wait"
    return str(error.value)


def test_no_certificate(guarded: Cluster) -> None:
    said = stranger(guarded.address, Tls(ca=str(pki.folder() / "ca.pem")))
    assert "asks for a certificate, and this side has none" in said
    assert guarded.address in said


def test_an_expired_certificate(guarded: Cluster) -> None:
    said = stranger(guarded.address, pki.tls("worker", pki.expired()))
    assert "refused the certificate" in said
    assert "certificate has expired" in said


def test_a_certificate_of_another_ca(guarded: Cluster) -> None:
    other = replace(pki.tls("worker", pki.folder("other")), ca=str(pki.folder() / "ca.pem"))
    said = stranger(guarded.address, other)
    assert "refused the certificate" in said
    assert "issuer" in said


def test_a_server_of_another_ca(guarded: Cluster) -> None:
    wrong = replace(pki.tls("worker"), ca=str(pki.folder("other") / "ca.pem"))
    assert "its certificate is refused: " in stranger(guarded.address, wrong)


def test_a_server_out_of_date() -> None:
    with scheduler_alone(Trust(tls=pki.tls("scheduler", pki.expired()))) as address:
        assert "certificate has expired" in stranger(address, pki.tls("worker"), None)


def test_a_worker_cannot_play_a_scheduler() -> None:
    """Its certificate is for clients only, so that nobody believes it as a server."""
    with scheduler_alone(Trust(tls=pki.tls("worker"))) as address:
        assert "its certificate is refused" in stranger(address, pki.tls("worker"), None)


def test_in_clear_to_a_port_with_tls(guarded: Cluster) -> None:
    assert "it speaks TLS, this side does not" in stranger(guarded.address, None)


def test_tls_to_a_port_in_clear() -> None:
    with scheduler_alone(OPEN) as address:
        assert "it does not speak TLS" in stranger(address, pki.tls("worker"), None)


def test_nobody_there_is_another_matter() -> None:
    assert explain("127.0.0.1:1", Trust(tls=pki.tls("worker"))) == ""
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and says nothing
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        assert explain(address, Trust(tls=pki.tls("worker")), timeout=0.3) == ""
        assert explain(address, OPEN, timeout=0.3) == ""


# Roles: row 69


def raw_call(c: Cluster, address: str, method: Method, trust: Trust, body: bytes = b"") -> Any:
    """The status of one call with this body, as gRPC has it."""
    metadata = [("authorization", f"Bearer {trust.token}")] if trust.token else []
    assert trust.tls is not None
    credentials = channel_credentials(read_pems(trust.tls))
    with grpc.secure_channel(address, credentials) as channel:
        call = channel.stream_stream(method.path)(iter([body]), timeout=1.0, metadata=metadata)
        try:
            next(call)
        except grpc.RpcError as error:
            return error
        except StopIteration:
            return None
        finally:
            call.cancel()


ALL_METHODS = {**SCHEDULER_METHODS, **SERVER_METHODS}


def test_every_rpc_has_its_roles() -> None:
    there = {m.path.rpartition(".")[2] for m in ALL_METHODS.values()}
    assert there <= set(PERMISSIONS), "an rpc without an entry is for administrators alone"


@pytest.mark.parametrize("role", ["worker", "server", "scheduler", "admin"])
def test_a_role_calls_its_rpcs_and_no_others(guarded: Cluster, role: str) -> None:
    trust = Trust(tls=pki.tls(role), token=TOKEN)
    server = guarded.scheduler.state.members.live(Role.SERVER)[0].address
    refused = set()
    for name, method in ALL_METHODS.items():
        address = guarded.address if name in SCHEDULER_METHODS else server
        error = raw_call(guarded, address, method, trust)
        if error is not None and error.code() is grpc.StatusCode.PERMISSION_DENIED:
            if "may not register as ROLE_UNSPECIFIED" in error.details():
                continue  # it may call Register, with another request than an empty one
            assert f"a {role} may not call" in error.details()
            refused.add(method.path.rpartition(".")[2])
    there = {m.path.rpartition(".")[2] for m in ALL_METHODS.values()}
    wanted = {m for m in there if role != "admin" and role not in PERMISSIONS[m]}
    assert refused == wanted


def test_a_member_without_the_admin_token_is_no_administrator() -> None:
    from paramserver.wire.permissions import check_method

    for path, roles in PERMISSIONS.items():
        check_method("admin", f"/paramserver.v1.{path}")
        if roles != {"admin"}:
            check_method("member", f"/paramserver.v1.{path}")
    check_method("admin", "/paramserver.v1.Scheduler/Unknown")
    with pytest.raises(PermissionDeniedError, match="a member may not call Scheduler/Unknown"):
        check_method("member", "/paramserver.v1.Scheduler/Unknown")


def register(c: Cluster, role: scheduler_pb2.Role, tls: Tls, name: str = "") -> Any:
    channel = GrpcChannel(c.address, "scheduler", Trust(tls=tls, token=TOKEN))
    try:
        request = scheduler_pb2.RegisterRequest(protocol=PROTOCOL_VERSION, role=role, name=name)
        return channel.call("Register", request, timeout=10.0)
    finally:
        channel.close()


def test_a_worker_cannot_register_as_a_server(guarded: Cluster) -> None:
    before = guarded.scheduler.state.members.view
    with pytest.raises(PermissionDeniedError, match="a worker may not register as ROLE_SERVER"):
        register(guarded, scheduler_pb2.ROLE_SERVER, pki.tls("worker"))
    with pytest.raises(PermissionDeniedError, match="a server may not register as ROLE_WORKER"):
        register(guarded, scheduler_pb2.ROLE_WORKER, pki.tls("server"))
    assert guarded.scheduler.state.members.view == before


def test_a_certificate_with_a_name_is_for_that_member(guarded: Cluster) -> None:
    """Row 43: nobody speaks for another worker."""
    tls = pki.tls("worker-1")
    with pytest.raises(PermissionDeniedError, match="is for 'worker-1', the request says 'w'"):
        register(guarded, scheduler_pb2.ROLE_WORKER, tls, "w")
    channel = GrpcChannel(guarded.address, "scheduler", Trust(tls=tls, token=TOKEN))
    other = common_pb2.Identity(name="worker-0", incarnation=1)
    with pytest.raises(PermissionDeniedError, match="the request says 'worker-0'"):
        channel.call("Heartbeat", scheduler_pb2.HeartbeatRequest(member=other), timeout=10.0)
    channel.close()


def test_a_worker_does_not_speak_as_a_server(guarded: Cluster) -> None:
    """Nor with a certificate that is for any worker."""
    before = guarded.scheduler.state.members.view()
    (server,) = guarded.scheduler.state.members.live(Role.SERVER)
    who = common_pb2.Identity(name=server.name, incarnation=server.incarnation, job=before.job)
    calls = {
        "Heartbeat": scheduler_pb2.HeartbeatRequest(member=who),
        "Finish": scheduler_pb2.FinishRequest(member=who),
        "Fail": scheduler_pb2.FailRequest(member=who, reason="spite", fatal=True),
        "OpenDataset": scheduler_pb2.OpenDatasetRequest(member=who),
    }
    channel = GrpcChannel(guarded.address, "scheduler", Trust(tls=pki.tls("worker"), token=TOKEN))
    for method, request in calls.items():
        with pytest.raises(PermissionDeniedError, match="a worker may not speak as ROLE_SERVER"):
            channel.call(method, request, timeout=10.0)
    channel.close()
    assert guarded.scheduler.state.members.view() == before


def test_a_certificate_with_a_name_pushes_for_that_member_alone(guarded: Cluster) -> None:
    """Nor in the frames of a stream, whoever the request says to be."""
    alone = common_pb2.Identity()

    def said(role: str, name: str) -> str:
        who = common_pb2.Identity()
        who.CopyFrom(alone)
        who.name = name
        push = server_pb2.Record(request=1, push=server_pb2.Push(worker=who, group="none"))
        server = guarded.scheduler.state.members.live(Role.SERVER)[0].address
        credentials = channel_credentials(read_pems(pki.tls(role)))
        with grpc.secure_channel(server, credentials) as channel:
            call = channel.stream_stream(SERVER_METHODS["Exchange"].path)
            metadata = [("authorization", f"Bearer {TOKEN}")]
            replies = call(iter([encode([push])]), timeout=10.0, metadata=metadata)
            return next(record.failure.message for record in decode(next(replies))[0])

    def work(client: ps.Client) -> None:
        client.barrier("there")
        alone.CopyFrom(client._session.identity())
        assert "is for 'worker-1', the request says" in said("worker-1", alone.name)
        assert "is for 'worker-1', the request says" in said("worker-1", "worker-1")
        assert "group 'none'" in said("worker", alone.name)

    guarded.workers(work)


def test_a_certificate_without_a_role(guarded: Cluster, tmp_path: Path) -> None:
    from paramserver.cli import certs

    ca = certs._authority(pki.folder())
    certs._write_pair(tmp_path, "guest", *certs._issue(ca, "guest", (), 1))
    tls = replace(pki.tls("worker"), cert=str(tmp_path / "guest.pem"))
    tls = replace(tls, key=str(tmp_path / "guest-key.pem"))
    with pytest.raises(PermissionDeniedError, match=r"guest.* stands for no role"):
        ps.connect(guarded.address, tls=tls, token=TOKEN, timeout=5.0)


def test_the_common_name_will_do(tmp_path: Path) -> None:
    from paramserver.wire.guard import _by_certificate

    assert _by_certificate({"x509_common_name": [b"worker"]}) == ("worker", "")
    assert _by_certificate(
        {
            "x509_common_name": [b"admin"],
            "x509_subject_alternative_name": [b"host", b"urn:paramserver:worker:w-3"],
        }
    ) == ("worker", "w-3")


# Tokens: rows 70 and 71


@pytest.mark.parametrize("token", [None, "", TOKEN[:-1], TOKEN + "x", "x" * 200])
def test_a_wrong_token_is_refused(
    guarded: Cluster, token: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "paramserver"):
        error = raw_call(
            guarded,
            guarded.address,
            SCHEDULER_METHODS["Status"],
            Trust(tls=pki.tls("admin")) if not token else Trust(tls=pki.tls("admin"), token=token),
        )
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    assert "PARAMSERVER_TOKEN" in error.details()
    assert TOKEN not in caplog.text
    assert TOKEN not in error.details()


def test_a_token_is_looked_at_before_the_body(guarded: Cluster) -> None:
    status, garbage = SCHEDULER_METHODS["Register"], b"\xff" * 9
    trust = Trust(tls=pki.tls("worker"))
    error = raw_call(guarded, guarded.address, status, trust, garbage)
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    error = raw_call(guarded, guarded.address, status, replace(trust, token=TOKEN), garbage)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_two_tokens_are_none(guarded: Cluster) -> None:
    credentials = channel_credentials(read_pems(pki.tls("worker")))
    with grpc.secure_channel(guarded.address, credentials) as channel:
        call = channel.stream_stream(SCHEDULER_METHODS["Status"].path)
        twice = [("authorization", f"Bearer {TOKEN}")] * 2
        with pytest.raises(grpc.RpcError) as error:
            next(call(iter([b""]), timeout=5.0, metadata=twice))
    assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_a_refusal_is_logged_with_its_peer(
    guarded: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "paramserver"):
        deadline = time.monotonic() + 20
        while "refused '/paramserver.v1.Scheduler/Status' for" not in caplog.text:
            assert time.monotonic() < deadline
            raw_call(
                guarded,
                guarded.address,
                SCHEDULER_METHODS["Status"],
                Trust(tls=pki.tls("admin")),
            )
            threading.Event().wait(0.2)
    assert "127.0.0.1" in caplog.text
    assert "has no token" in caplog.text


def test_a_token_does_not_travel_in_clear() -> None:
    with pytest.raises(ConfigurationError, match="could be read on the way"):
        GrpcChannel("192.0.2.1:7070", "scheduler", Trust(token=TOKEN))
    with pytest.raises(ConfigurationError, match="could be read on the way"):
        ps.connect("192.0.2.1:7070", token=TOKEN)
    GrpcChannel("192.0.2.1:7070", "scheduler", Trust(token=TOKEN, insecure=True)).close()


def test_a_server_that_lost_its_credentials_keeps_its_place(guarded: Cluster) -> None:
    """An AuthenticationError tells nothing about membership: a server does not empty itself."""
    assert not issubclass(AuthenticationError, ps.errors.RefusedError)


# Certificates that change: rows 73 and 74


class Clock:
    now = 0.0

    def __call__(self) -> float:
        self.now += 10.0
        return self.now


def test_certificates_are_read_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_certificates(tmp_path)
    watched = Watched(pki.tls("server", tmp_path), Clock())
    first = watched.pems
    assert not watched.changed()
    (tmp_path / "server.pem").write_text("garbage")
    with caplog.at_level(logging.ERROR, "paramserver"):
        assert not watched.changed()
    assert "the old ones stay" in caplog.text
    assert watched.pems == first
    caplog.clear()
    assert not watched.changed()
    assert caplog.text == "", "told once"
    make_certificates(tmp_path)
    assert watched.changed()
    assert watched.pems not in (first, None)
    (tmp_path / "server-key.pem").unlink()
    assert not watched.changed()


def test_another_ca_while_training_goes_on(tmp_path: Path) -> None:
    """Certificates of all roles change to another CA; connections made anew use them."""
    shutil.copytree(pki.folder(), tmp_path, dirs_exist_ok=True)
    halfway, changed = threading.Event(), threading.Event()

    def work(client: ps.Client) -> torch.Tensor:
        group = client.register("ledger", {"w": torch.zeros(10)})
        group.push_pull({"w": torch.ones(10)})
        halfway.set()
        assert changed.wait(30)
        for _ in range(3):
            group.push_pull({"w": torch.ones(10)})
        return group.read()["w"]

    with cluster(1, 1, trust=pki.mutual(tmp_path), proxies=True) as c:
        with_thread: list[torch.Tensor] = []
        worker = threading.Thread(target=lambda: with_thread.extend(c.workers(work)))
        worker.start()
        assert halfway.wait(30)
        for name in ("ca.pem", "ca-key.pem"):
            (tmp_path / name).unlink()
        make_certificates(tmp_path)
        threading.Event().wait(
            options.CONNECTION_AGE_S and 1.1
        )  # files are looked at once a second
        assert c.proxies is not None
        c.loop.call_soon_threadsafe(c.proxies[0].cut_all)
        changed.set()
        worker.join(60)
        assert torch.equal(with_thread[0], torch.full((10,), 4.0))
        assert "its certificate is refused" in stranger(c.address, pki.tls("worker"), None)


def test_old_connections_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 73: who was let in once proves it again after an hour; here, every second."""
    monkeypatch.setattr(options, "CONNECTION_AGE_S", 1)
    monkeypatch.setattr(options, "LAST_CALLS_S", 0)

    def work(client: ps.Client) -> torch.Tensor:
        group = client.register("ledger", {"w": torch.zeros(10)}, consistency=ps.Async("none"))
        until = time.monotonic() + 4
        pushes = 0
        while time.monotonic() < until:
            group.push_pull({"w": torch.ones(10)})
            pushes += 1
        return group.read()["w"] - pushes

    with cluster(1, 1, trust=pki.mutual()) as c:
        assert torch.equal(c.workers(work)[0], torch.zeros(10))


# Settings


def test_a_token_is_in_no_repr() -> None:
    trust = Trust(tls=pki.tls("worker"), token=TOKEN, admin_token=pki.ADMIN)
    for shown in (repr(trust), str(ClientConfig(trust=trust)), f"{trust}"):
        assert TOKEN not in shown
        assert pki.ADMIN not in shown


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"TLS_CERT": "a.pem"}, "give both, or neither"),
        ({"TLS_KEY": "a.pem"}, "give both, or neither"),
        ({"TLS_CLIENTS": "some"}, "must be certificate or any"),
        ({"TOKEN": "short"}, "must be 16 to 1024"),
        ({"TOKEN": "with space " * 3}, "spaces or characters"),
        ({"TOKEN": "ä" * 20}, "spaces or characters"),
        ({"TOKEN": "x" * 2000}, "must be 16 to 1024"),
        ({"TOKEN_FILE": "/nowhere/token"}, "No such file"),
        ({"TOKEN_FILE": os.devnull}, "empty"),
        ({"ADMIN_TOKEN": TOKEN}, "an admin token without a token"),
        ({"ADMIN_TOKEN": TOKEN, "TOKEN": TOKEN}, "choose two different ones"),
    ],
)
def test_settings_that_cannot_work(variables: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as error:
        from_environment({f"PARAMSERVER_{k}": v for k, v in variables.items()})
    assert not any(value in str(error.value) for k, value in variables.items() if k == "TOKEN")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cert": "/nowhere.pem"}, "No such file"),
        ({"ca": "/nowhere.pem"}, "No such file"),
        ({"key": str(pki.folder() / "server-key.pem")}, "key values mismatch"),
        ({"cert": str(pki.folder() / "token")}, "not a PEM file|no start line"),
        ({"ca": str(pki.folder() / "token")}, "no certificate or crl found|not a PEM"),
    ],
)
def test_certificates_that_cannot_work(change: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        ps.connect("127.0.0.1:1", tls=replace(pki.tls("worker"), **change))  # type: ignore[arg-type]


def test_arguments_without_an_address() -> None:
    with pytest.raises(ConfigurationError, match="tls or token without a scheduler"):
        ps.connect(token=TOKEN)


def test_the_environment_of_a_child_says_the_same() -> None:
    for way in WAYS.values():
        for trust in way().values():
            assert from_environment(trust.environment()) == trust
    assert from_environment({}) == OPEN
    inherited = {"PARAMSERVER_TOKEN_FILE": "/nowhere"} | Trust(token=TOKEN).environment()
    assert from_environment(inherited).token == TOKEN


def test_a_proxy_of_the_environment_is_not_used(
    monkeypatch: pytest.MonkeyPatch, guarded: Cluster
) -> None:
    """Row 82: a variable cannot send our calls through somebody else's machine."""
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    source = Source(guarded.address, Trust(tls=pki.tls("admin"), token=TOKEN))
    assert source.gather(timeout=10.0)["servers"]
    source.close()


def test_health_with_certificates(guarded: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in Trust(tls=pki.tls("scheduler")).environment().items():
        monkeypatch.setenv(key, value)
    guarded.run(guarded.shells[0].serving(True))
    assert is_serving(guarded.address)
    assert not is_serving(guarded.address, trust=OPEN)


# The commands


def test_keys_are_for_their_owner(tmp_path: Path) -> None:
    made = tmp_path / "new"
    make_certificates(made, hosts=["a.example", "10.1.2.3"])
    assert made.stat().st_mode & 0o777 == 0o700
    for path in made.iterdir():
        private = path.name == "token" or path.name.endswith("-key.pem")
        assert path.stat().st_mode & 0o777 == (0o600 if private else 0o644), path
    token = (made / "token").read_text()
    ca = (made / "ca.pem").read_bytes()
    make_certificates(made)
    assert (made / "token").read_text() == token
    assert (made / "ca.pem").read_bytes() == ca


def command(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "paramserver", *args],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("certs",), "Missing argument 'DIR'"),
        (("certs", "/proc/nowhere"), "/proc/nowhere"),
        (("certs", "{}", "--worker", "../w"), "must be letters"),
        (("certs", "{}", "--worker", "admin"), "no name of a role"),
        (("certs", "{}", "--days", "0"), "1<=x<=3650"),
        (("scheduler", "--tls-cert", "a.pem"), "give both, or neither"),
        (("scheduler", "--tls-ca", "{}"), "a scheduler and a server show one"),
        (("scheduler", "--token-file", "/nowhere"), "No such file"),
        (("scheduler", "--bind", "0.0.0.0:0", "--tls-cert", "c", "--tls-key", "k"), "anybody in"),
        (("scheduler", "--tls-cert", "c", "--tls-key", "k"), "c: No such file"),
    ],
)
def test_bad_usage_of_a_command(args: tuple[str, ...], words: str, tmp_path: Path) -> None:
    done = command(*(arg.format(tmp_path) for arg in args))
    assert done.returncode in (1, 2)
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_secrets_stay_secret(tmp_path: Path) -> None:
    """A run with certificates and a token by file: no word of it in any output or title."""
    secret = (pki.folder() / "token").read_text().strip()
    script = tmp_path / "job.py"
    script.write_text(
        "import os, pathlib, paramserver as ps, torch\n"
        "with ps.connect() as client:\n"
        "    group = client.register('w', {'w': torch.zeros(3)})\n"
        "    group.push_pull({'w': torch.ones(3)})\n"
        "    client.log(loss=1.0)\n"
        "    print(client, client.barrier('x'), repr(vars(client)))\n"
        "    for path in pathlib.Path('/proc').glob('[0-9]*/cmdline'):\n"
        "        try:\n"
        "            print(path.read_bytes().replace(b'\\0', b' '))\n"
        "        except OSError:\n"
        "            pass\n"
        "    assert not os.environ.get('PARAMSERVER_ADMIN_TOKEN')\n"
    )
    tls = pki.tls("admin")
    assert tls.cert
    assert tls.key
    assert tls.ca
    done = command(
        *("run", "-s", "1", "-w", "2", "--run-dir", str(tmp_path / "run")),
        *("--tls-cert", tls.cert, "--tls-key", tls.key, "--tls-ca", tls.ca),
        *("--token-file", str(pki.folder() / "token"), str(script)),
        PARAMSERVER_ADMIN_TOKEN=pki.ADMIN,
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    said += "".join(path.read_text() for path in (tmp_path / "run").iterdir())
    assert "paramserver" in said
    assert secret not in said
    assert pki.ADMIN not in said


@pytest.mark.parametrize(
    ("trust", "address", "fine"),
    [
        (OPEN, "192.0.2.1:7070", True),
        (pki.mutual()["worker"], "127.0.0.1:7070", True),
        (pki.mutual()["worker"], "192.0.2.1:7070", False),
        (replace(pki.mutual()["worker"], insecure=True), "192.0.2.1:7070", True),
    ],
)
def test_replicas_do_not_leave_an_encrypted_cluster(trust: Trust, address: str, fine: bool) -> None:
    """torch.distributed does not encrypt: what cannot be kept secret is refused."""
    config = ClientConfig(scheduler=address, trust=trust)
    if fine:
        check_unencrypted(config)
    else:
        with pytest.raises(UnsupportedError, match=r"AllReduce\(\) in a cluster with TLS"):
            check_unencrypted(config)


def test_a_server_that_another_hosts_is_reached_by_the_same_rules(guarded: Cluster) -> None:
    """HOST:PORT/NAME is a server of the process at HOST:PORT."""
    assert call_metadata(Trust(token=TOKEN), "127.0.0.1:1/ps-1")
    with pytest.raises(ConfigurationError, match="could be read on the way"):
        call_metadata(Trust(token=TOKEN), "192.0.2.1:1/ps-1")
    assert "speaks TLS" in explain(f"{guarded.address}/ps-1", OPEN)
