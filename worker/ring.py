"""One formation of replicas: a process group of torch.distributed, and where they meet."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, TCPStore

from paramserver.config import ClientConfig
from paramserver.errors import UnsupportedError
from paramserver.wire.addresses import reaches_only_here, split_address
from paramserver.worker.signals import BrokenRingError, Signals

SLICES_S = (0.002, 0.25)  # a wait looks around after the first, then after each of the second
GRACE_S = 10.0  # that torch's own time-outs come after ours
HOLD_S = 0.1  # between looks at reductions that were given up
LOOPBACK = "127.0.0.1"


class Meeting:
    """A store on this machine at which the replicas of one formation find one another.

    Args:
        scheduler: HOST:PORT; it is bound to the local address of the connection there.
    """

    def __init__(self, scheduler: str | None, timeout: float) -> None:
        host = local_address(scheduler)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, 0), family=family)
        port = listener.getsockname()[1]
        self.host = host
        self.endpoint = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._store = TCPStore(
            host,
            port,
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=timeout),
            master_listen_fd=listener.detach(),
        )


def check_unencrypted(config: ClientConfig) -> None:
    """Raises UnsupportedError where gradients would leave an encrypted cluster in clear."""
    trust, address = config.trust, config.scheduler or LOOPBACK
    if trust.tls is None or trust.insecure or reaches_only_here(address):
        return
    raise UnsupportedError(
        "AllReduce() in a cluster with TLS: replicas talk by torch.distributed, which neither "
        "encrypts nor asks who calls; use Sync(), or set PARAMSERVER_INSECURE=1 on a network that "
        "you trust"
    )


def local_address(scheduler: str | None) -> str:
    """The address that others reach this machine by: that of the way to the scheduler."""
    if scheduler is None:
        return LOOPBACK
    host, port = split_address(scheduler)
    host = host.strip("[]")
    family, kind, *_, address = socket.getaddrinfo(host, port or 1, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(address)  # no packet is sent; the system chooses the local address
        return str(probe.getsockname()[0])


class Ring:
    """The process group of one formation.

    Args:
        endpoint: HOST:PORT of the store.
        number: of the formation.
        size, index: how many replicas, and which one this is.
        host: local address to listen on.
        timeout: seconds to connect.
        wait_timeout: seconds that a reduction may take.

    Attributes:
        signals: words between replicas, beside the reductions.

    Raises:
        BrokenRingError: a replica went away meanwhile.
    """

    def __init__(
        self,
        endpoint: str,
        number: int,
        size: int,
        index: int,
        *,
        host: str,
        timeout: float,
        wait_timeout: float,
    ) -> None:
        self.size, self.index = size, index
        self._works: list[Any] = []
        # Ours comes first: it says for whom.
        self._timeout = timedelta(seconds=wait_timeout + GRACE_S)
        try:
            self.signals = Signals(endpoint, number, size, index, timeout)
        except RuntimeError as error:
            raise BrokenRingError(str(error)) from error
        try:
            gloo: Any = dist.ProcessGroupGloo
            options = gloo._Options()
            options._devices = [gloo.create_device(hostname=host)]
            options._timeout = timedelta(seconds=timeout)
            store = PrefixStore(f"ring-{number}", self.signals.store)
            self._group: Any = gloo(store, index, size, options)
        except RuntimeError as error:
            self.signals.leave()
            raise BrokenRingError(str(error)) from error

    def sum(self, tensor: Tensor, op: Any = dist.ReduceOp.SUM) -> Any:
        """Begins to reduce a CPU tensor in place; what to ``wait`` for."""
        options = dist.AllreduceOptions()
        options.reduceOp = op
        options.timeout = self._timeout
        return self._begin(lambda group: group.allreduce([tensor], options))

    def maximum(self, tensor: Tensor) -> Any:
        """As ``sum``, of the element-wise maximum."""
        return self.sum(tensor, dist.ReduceOp.MAX)

    def broadcast(self, tensor: Tensor, root: int) -> Any:
        """Begins to copy the tensor of replica ``root`` to all; what to ``wait`` for."""
        options = dist.BroadcastOptions()
        options.rootRank = root
        options.timeout = self._timeout
        return self._begin(lambda group: group.broadcast([tensor], options))

    def _begin(self, call: Callable[[Any], Any]) -> Any:
        if self._group is None:
            raise BrokenRingError("this formation was left")
        try:
            work = call(self._group)
        except RuntimeError as error:
            raise BrokenRingError(str(error)) from error
        self._works = [w for w in self._works if not w.is_completed()]
        self._works.append(work)
        return work

    def wait(self, work: Any, look: Callable[[], None] = lambda: None) -> None:
        """Returns when the reduction is done.

        Args:
            look: called now and then meanwhile; may raise to give up.

        Raises:
            BrokenRingError: a replica went away.
        """
        seconds = SLICES_S[0]
        while True:
            over = work.is_completed()  # before: it may end between a time-out and a look at it
            try:
                work.wait(timedelta(seconds=seconds))
                return
            except RuntimeError as error:
                if over:
                    raise BrokenRingError(str(error)) from error
            if not work.is_completed():
                self.signals.check_left()  # its connections may stay open for a while
                look()
            seconds = SLICES_S[1]

    def close(self) -> None:
        """Leaves, and says so. Reductions under way outlive it: they end when others leave too."""
        if self._group is None:
            return
        self.signals.leave()
        held, self._group, self._works = [self._group, *self._works], None, []
        if all(work.is_completed() for work in held[1:]):
            return
        # To end a process group waits for its reductions, and cannot be interrupted.
        thread = threading.Thread(target=_hold, args=(held,), name="paramserver ring", daemon=True)
        thread.start()


def _hold(held: list[Any]) -> None:
    """Keeps a process group until its reductions have ended."""
    pause = threading.Event()
    while not all(work.is_completed() for work in held[1:]):
        pause.wait(HOLD_S)
