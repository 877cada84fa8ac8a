"""The proxy does what it says; and over the worst of it, what was pushed counts once."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest
import torch

import paramserver as ps
from tests.cluster import cluster
from tests.proxy import MANGLES, Proxy, ProxyThread

SIZE = 300_000  # two slices


class Echo:
    """A server that sends back what it gets, behind a proxy; and a client of it."""

    def __init__(self, proxies: ProxyThread) -> None:
        self.proxies = proxies
        self.proxy: Proxy = proxies.proxy(7)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.proxy.forward_to(f"127.0.0.1:{self._listener.getsockname()[1]}")
        host, _, port = self.proxy.address.rpartition(":")
        self.client = socket.create_connection((host, int(port)))
        self.client.settimeout(0.3)
        self.server, _ = self._listener.accept()
        self.server.settimeout(0.3)

    def close(self) -> None:
        for end in (self.client, self.server, self._listener):
            end.close()

    def there(self, data: bytes) -> bytes:
        """What arrives at the server of what the client sends."""
        self.client.sendall(data)
        return received(self.server)

    def back(self, data: bytes) -> bytes:
        """What arrives at the client of what the server sends."""
        self.server.sendall(data)
        return received(self.client)


def received(end: socket.socket) -> bytes:
    got = b""
    try:
        while chunk := end.recv(4096):
            got += chunk
    except TimeoutError:
        pass
    return got


@pytest.fixture
def echo() -> Iterator[Echo]:
    proxies = ProxyThread()
    made = Echo(proxies)
    yield made
    made.close()
    proxies.close()


def test_one_way_and_back_again(echo: Echo) -> None:
    assert echo.there(b"one") == b"one"
    echo.proxy.holes = frozenset({"down"})
    assert echo.back(b"lost") == b""
    assert echo.there(b"two") == b"two"
    echo.proxy.calm()
    assert echo.back(b"three") == b"three"


def test_a_delay_delays(echo: Echo) -> None:
    echo.proxy.delay = (0.1, 0.2)
    began = time.monotonic()
    echo.client.sendall(b"x")
    assert echo.server.recv(1) == b"x"
    assert time.monotonic() - began >= 0.1


def test_a_reset_reaches_both_ends(echo: Echo) -> None:
    assert echo.there(b"x") == b"x"
    echo.proxies.do(echo.proxy, "cut_all", reset=True)
    for end in (echo.client, echo.server):
        with pytest.raises(ConnectionResetError):
            end.recv(1)
    assert echo.proxy.cuts == 2


@pytest.mark.parametrize("how", MANGLES)
def test_each_damage_is_what_it_says(echo: Echo, how: str) -> None:
    echo.proxy.mangle = (how, 1.0)
    first = echo.there(b"abcdefgh")
    echo.proxy.calm()
    got = first + echo.there(b"12345678")
    assert echo.proxy.mangled == 1
    wrong = sum(a != b for a, b in zip(got, b"abcdefgh12345678", strict=False))
    assert {
        "flip": len(got) == 16 and wrong == 1,
        "drop": got == b"12345678",
        "duplicate": got == b"abcdefghabcdefgh12345678",
        "truncate": got.endswith(b"12345678") and len(got) < 16,
        "swap": got == b"12345678abcdefgh",
    }[how]


@pytest.mark.slow  # a connection that lost bytes is found dead by its keepalive only
@pytest.mark.timeout(400)
@pytest.mark.parametrize("how", MANGLES)
def test_damaged_bytes_never_count(how: str) -> None:
    """HTTP/2 over TCP has no checksum of its own: the stream breaks, or our checksums speak."""

    def work(client: ps.Client) -> torch.Tensor:
        group = client.register("sum", {"w": torch.zeros(SIZE)}, consistency=ps.Async("none"))
        for step in range(6):
            group.push({"w": torch.full((SIZE,), 1.0 + step)})
        return group.read()["w"]

    with cluster(1, 1, proxies=True, chaos="rate=0") as c:
        assert c.proxies is not None
        c.proxies[0].mangle, c.proxies[0].mangle_at_most = (how, 0.1), 6
        with c.connect(wait_timeout=300) as client:  # each may cost 15 s
            found = work(client)
        assert c.proxies[0].mangled > 0
    assert torch.equal(found, torch.full((SIZE,), 21.0))
