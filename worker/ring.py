"""One formation of replicas: a process group of torch.distributed, and how idle ones are woken."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, TCPStore

from paramserver.wire.serve import split_address

SLICES_S = (0.002, 0.25)  # a wait looks around after the first, then after each of the second
GRACE_S = 10.0  # that torch's own time-outs come after ours
FOREVER = timedelta(days=30)
HOLD_S = 0.1  # between looks at reductions that were given up
LOOPBACK = "127.0.0.1"


class BrokenRingError(Exception):
    """Replicas must form anew; never leaves this package."""


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
        self._number = number
        self._left = f"left-{number}"
        self._works: list[Any] = []
        self._mute = False
        # Ours comes first: it says for whom.
        self._timeout = timedelta(seconds=wait_timeout + GRACE_S)
        try:
            self._store = _connect(endpoint, timeout)
            self._waker: Any = _connect(endpoint, timeout)  # while the other one waits
            gloo: Any = dist.ProcessGroupGloo
            options = gloo._Options()
            options._devices = [gloo.create_device(hostname=host)]
            options._timeout = timedelta(seconds=timeout)
            store = PrefixStore(f"ring-{number}", self._store)
            self._group: Any = gloo(store, index, size, options)
        except RuntimeError as error:
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
                self._check_left()
                look()
            seconds = SLICES_S[1]

    def _check_left(self) -> None:
        """A replica that left says so: its connections may stay open for a while."""
        try:
            if self._waker.check([self._left]):
                raise BrokenRingError("a replica left the formation")
        except RuntimeError as error:
            self._mute = True
            raise BrokenRingError(str(error)) from error

    # Idle replicas wait for a word instead of joining a step that nobody has begun.

    def _key(self, index: int) -> str:
        return f"wake-{self._number}-{index}"

    def await_word(self, clock: int) -> bool:
        """Returns when another replica has begun this clock, or ``interrupt`` was called (False).

        A word that is lost is said again by those who wait.
        """
        key = self._key(self.index)
        try:
            while True:
                self._store.wait([key], FOREVER)
                kind, said = self._store.get(key).decode().split()
                if kind == "step" and int(said) >= clock:
                    return True
                self._store.delete_key(key)
                if kind == "look":
                    return False
        except RuntimeError as error:
            self._mute = True
            raise BrokenRingError(str(error)) from error

    def wake(self, indices: Iterable[int], clock: int) -> None:
        """Tells idle replicas that this clock has begun; silent where nobody listens."""
        keys = [self._key(i) for i in indices if i != self.index]
        if keys:
            self._say(lambda: self._waker.multi_set(keys, [f"step {clock}"] * len(keys)))

    def interrupt(self) -> None:
        """Ends ``await_word`` of this replica, now or when it begins."""
        self._say(lambda: self._waker.set(self._key(self.index), "look 0"))

    def mark(self, clock: int) -> None:
        """Says that this replica has come to a clock; for ``absent``."""
        self._say(lambda: self._waker.set(f"at-{self._number}-{self.index}", str(clock)))

    def absent(self, clock: int) -> list[int]:
        """Replicas that have not said so: others wait for them."""
        found = []
        for index in range(self.size):
            key = f"at-{self._number}-{index}"
            if not self._waker.check([key]) or int(self._waker.get(key)) < clock:
                found.append(index)
        return found

    def _say(self, call: Callable[[], object]) -> None:
        try:
            if not self._mute:
                call()
        except RuntimeError:
            self._mute = True  # the store went with its process: others see that too

    def close(self) -> None:
        """Leaves, and says so. Reductions under way outlive it: they end when others leave too."""
        if self._group is None:
            return
        self._say(lambda: self._waker.set(self._left, ""))
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


def _connect(endpoint: str, timeout: float) -> TCPStore:
    host, port = split_address(endpoint)
    return TCPStore(
        host.strip("[]"),
        port,
        is_master=False,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout),
    )
