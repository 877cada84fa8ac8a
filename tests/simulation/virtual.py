"""An event loop in virtual time, machines that it plays, and a network between them.

The roles of the product run on it as they are: all that they await is a message, a timer or work
that another thread would do, and all of these are events of this loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import heapq
import random
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

from google.protobuf.message import Message

from paramserver.errors import ConnectionLostError
from paramserver.wire.serve import as_refusal

DISK_S = (0.0, 0.005)  # what work in another thread takes
NOTICE_S = (0.01, 1.0)  # until a caller knows that its message got lost
_END = object()
_BROKEN = object()


class Died(BaseException):
    """The process ends here, at once."""


class Stuck(AssertionError):
    """Nothing will ever happen again."""


class VirtualLoop(asyncio.BaseEventLoop):
    """Time stands still while something can be done, and jumps to the next timer otherwise.

    Attributes:
        steps: callbacks so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0
        self._now = 0.0
        self._draw = random.Random(0)
        self._ready: deque[Any] = deque()
        self._scheduled: list[Any] = []
        self.set_task_factory(_made)  # type: ignore[arg-type]
        self.set_exception_handler(lambda loop, context: None)

    def time(self) -> float:
        """Virtual seconds."""
        return self._now

    def _process_events(self, event_list: object) -> None:
        """There are none but those of this loop."""

    def _write_to_self(self) -> None:
        """Nothing sleeps in a system call."""

    def _run_once(self) -> None:
        timers = self._scheduled
        if not self._ready:
            while timers and timers[0]._cancelled:
                heapq.heappop(timers)._scheduled = False
            if not timers:
                raise Stuck("nothing is left to happen")
            self._now = max(self._now, timers[0].when())
        while timers and timers[0].when() <= self._now:
            due = heapq.heappop(timers)
            due._scheduled = False
            self._ready.append(due)
        for _ in range(len(self._ready)):
            handle = self._ready.popleft()
            machine = handle._context.get(_machine)
            if handle._cancelled:
                continue
            if machine is not None and machine.frozen:
                machine.held.append(handle)
            else:
                self.steps += 1
                handle._run()

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """Does the work a moment later, on this thread."""
        done: asyncio.Future[Any] = self.create_future()

        def work() -> None:
            if done.cancelled():
                return
            try:
                done.set_result(func(*args))
            except Exception as error:
                done.set_exception(error)
            except Died:
                running().dies()

        self.call_later(self._draw.uniform(*DISK_S), work)
        return done

    def thaw(self, machine: Machine) -> None:
        """What a machine did not do while it stood still, it does now."""
        machine.frozen = False
        self._ready.extend(machine.held)
        machine.held.clear()

    def end(self) -> None:
        """Cancels what is left, and closes."""
        for _ in range(5):
            left = asyncio.all_tasks(self)
            if not left:
                break
            for task in left:
                task.cancel()
            with contextlib.suppress(Stuck):
                self.run_until_complete(asyncio.wait(left, timeout=60.0))
        self.run_until_complete(self.shutdown_asyncgens())
        self.close()


_machine: contextvars.ContextVar[Machine | None] = contextvars.ContextVar("machine", default=None)


def running() -> Machine:
    """The machine whose code runs now."""
    machine = _machine.get()
    assert machine is not None
    return machine


def _made(loop: Any, coroutine: Coroutine[Any, Any, Any], **how: Any) -> asyncio.Task[Any]:
    """A task, known to the machine that it is of."""
    task = asyncio.Task(coroutine, loop=loop, **how)
    machine = _machine.get()
    if machine is not None:
        machine.tasks[task] = None
        task.add_done_callback(lambda done: machine.tasks.pop(done, None))
    return task


class Machine:
    """One life of a process.

    Attributes:
        serve: what answers a call: given the name of a server (or "") and a method, the method.
        dies: what is to be done when it ends at an instant of its own.
        disk: of a process that has one.
        alive: what is dead says nothing any more.
        frozen: it stands still.
    """

    def __init__(self, name: str, address: str = "") -> None:
        self.name, self.address = name, address
        self.alive = True
        self.frozen = False
        self.held: list[Any] = []
        self.tasks: dict[asyncio.Task[Any], None] = {}
        self.streams: dict[Stream, None] = {}
        self.serve: Callable[[str, str], Any] = _not_there
        self.dies: Callable[[], None] = lambda: None
        self.disk: Any = None
        self.context = contextvars.copy_context()
        self.context.run(_machine.set, self)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A task of this process."""
        return self.context.run(asyncio.get_running_loop().create_task, work)

    def later(self, seconds: float, do: Callable[[], None]) -> None:
        """A timer of this process."""
        asyncio.get_running_loop().call_later(seconds, do, context=self.context)

    def kill(self, loop: VirtualLoop) -> None:
        """Ends at once. What its tasks do as they are cancelled, nobody hears."""
        self.alive = False
        loop.thaw(self)
        for task in list(self.tasks):
            task.cancel()
        for stream in list(self.streams):
            stream.machine_died(self)


def _not_there(name: str, method: str) -> Any:
    raise ConnectionLostError("nobody listens there")


class Network:
    """Machines by address; messages take a while, get lost, and do not pass a cut link.

    Attributes:
        cut: from machine, to machine: until when nothing passes.
        surprises: errors of ours that no peer should ever see.
    """

    def __init__(self, loop: VirtualLoop, seed: int, loss: float, delay: tuple[float, float]):
        self.loop = loop
        self.cut: dict[tuple[str, str], float] = {}
        self.surprises: list[str] = []
        self.on_reply: Callable[[Machine, str, Any], None] = lambda machine, server, reply: None
        self._at: dict[str, Machine] = {}
        self._seed, self._loss, self._delay = seed, loss, delay
        self._draws: dict[tuple[str, str], random.Random] = {}

    def listen(self, machine: Machine) -> None:
        """Takes calls at its address from now on."""
        self._at[machine.address] = machine

    def find(self, address: str) -> Machine:
        """The machine at an address.

        Raises:
            ConnectionLostError: none.
        """
        machine = self._at.get(address)
        if machine is None or not machine.alive:
            raise ConnectionLostError(f"nobody listens at {address}")
        return machine

    def draw(self, source: Machine, target: Machine) -> random.Random:
        """The chance of one direction; it does not depend on what happens elsewhere."""
        link = source.name, target.name
        return self._draws.setdefault(link, random.Random(f"{self._seed}/{link}"))

    def passes(self, source: Machine, target: Machine) -> bool:
        """Whether a message gets through."""
        whole = self.cut.get((source.name, target.name), 0.0) <= self.loop.time()
        lost = self.draw(source, target).random() < self._loss
        return whole and not lost and source.alive and target.alive

    def delay(self, source: Machine, target: Machine) -> float:
        """Seconds on the way."""
        return self.draw(source, target).uniform(*self._delay)

    def notice(self, source: Machine, target: Machine) -> float:
        """Seconds until a loss is noticed."""
        return self.draw(source, target).uniform(*NOTICE_S)

    def refusal(self, machine: Machine, error: BaseException) -> Exception:
        """What a peer is told of an error."""
        if not isinstance(error, Exception):
            return ConnectionLostError("the call was cancelled")
        told = as_refusal(error)
        if told is not error and machine.alive:
            self.surprises.append(f"{machine.name}: {type(error).__name__}: {error}")
        return told


class Pipe:
    """One direction of a stream: in order, or broken."""

    def __init__(self, network: Network, source: Machine, target: Machine) -> None:
        self._network, self._source, self._target = network, source, target
        self._queue: asyncio.Queue[Any] = asyncio.Queue()
        self._last = 0.0
        self.broken = False

    def put(self, item: Any, pause: float = 0.0) -> None:
        """Sends; what gets lost breaks the pipe."""
        network, source, target = self._network, self._source, self._target
        if self.broken:
            return
        if item is not _BROKEN and not network.passes(source, target):
            item, pause = _BROKEN, network.notice(source, target)
        self.broken = item is _BROKEN
        when = network.loop.time() + pause + network.delay(source, target)
        self._last = max(self._last + 1e-9, when)  # timers of one instant have no order
        network.loop.call_at(self._last, self._queue.put_nowait, item, context=target.context)

    async def items(self) -> AsyncIterator[Any]:
        """What arrives.

        Raises:
            ConnectionLostError: it broke.
            Exception: what the other side raised.
        """
        while (item := await self._queue.get()) is not _END:
            if item is _BROKEN:
                raise ConnectionLostError("the stream broke")
            if isinstance(item, Exception):
                raise item
            yield item


class Stream:
    """A call with any number of messages both ways."""

    def __init__(self, network: Network, source: Machine, target: Machine) -> None:
        self._network, self.source, self.target = network, source, target
        self.up, self.down = Pipe(network, source, target), Pipe(network, target, source)
        self._work: asyncio.Task[None] | None = None
        for machine in (source, target):
            machine.streams[self] = None

    def begin(self, handle: Callable[[Stream], Awaitable[None]]) -> None:
        """The other side begins to work on it."""
        self._work = self.target.spawn(self._serve(handle))

    async def _serve(self, handle: Callable[[Stream], Awaitable[None]]) -> None:
        try:
            await handle(self)
            self.down.put(_END)
        except asyncio.CancelledError:
            self.down.put(_BROKEN)
            raise
        except Exception as error:
            if self.up.broken and isinstance(error, ConnectionLostError):
                self.down.put(_BROKEN)
            else:
                self.down.put(self._network.refusal(self.target, error))

    def machine_died(self, machine: Machine) -> None:
        """The other side hears of it."""
        other = self.target if machine is self.source else self.source
        pipe = self.up if other is self.target else self.down
        pipe.put(_BROKEN, self._network.notice(machine, other))
        if other is self.target:
            self.abandon()

    def abandon(self) -> None:
        """The source does not want it any more: its handler is cancelled, once that is heard."""
        for machine in (self.source, self.target):
            machine.streams.pop(self, None)
        if self._work is not None and not self._work.done():
            pause = self._network.notice(self.source, self.target)
            self._network.loop.call_later(pause, self._work.cancel, context=self.target.context)


class Channel:
    """From one machine to a server at an address, as roles use it."""

    def __init__(self, network: Network, address: str) -> None:
        self._network = network
        self._address, _, self.server = address.partition("/")

    async def close(self) -> None:
        """Nothing to close."""

    async def call(self, method: str, request: Message, *, timeout: float = 30.0) -> Any:
        """As ``AsyncChannel.call``: tried again until ``timeout`` while the peer is away."""
        end, pause = self._network.loop.time() + timeout, 0.05
        while True:
            left = end - self._network.loop.time()
            try:
                return await asyncio.wait_for(self._once(method, request), max(left, 0.001))
            except asyncio.TimeoutError:
                raise ConnectionLostError(f"{method}: no answer in {timeout:g} s") from None
            except ConnectionLostError:
                if left <= pause:
                    raise
            await asyncio.sleep(pause)
            pause = min(2 * pause, 1.0)

    async def _once(self, method: str, request: Message) -> Any:
        async def one() -> AsyncIterator[Message]:
            yield request

        async def handle(stream: Stream, found: Any) -> None:
            async for asked in stream.up.items():
                reply = await found(asked)
                self._network.on_reply(stream.target, self.server, reply)
                stream.down.put(reply)

        async for reply in self._open(method, one(), handle):
            return reply
        raise ConnectionLostError("no answer")

    async def stream(self, method: str, request: Message) -> AsyncIterator[Any]:
        """As ``AsyncChannel.stream``."""

        async def one() -> AsyncIterator[Message]:
            yield request

        async def handle(stream: Stream, found: Any) -> None:
            async for asked in stream.up.items():
                async for reply in found(asked):
                    stream.down.put(reply)

        async for reply in self._open(method, one(), handle):
            yield reply

    async def duplex(self, method: str, requests: AsyncIterator[Message]) -> AsyncIterator[Any]:
        """As ``AsyncChannel.duplex``."""

        async def handle(stream: Stream, found: Any) -> None:
            async for reply in found(stream.up.items()):
                stream.down.put(reply)

        async for reply in self._open(method, requests, handle):
            yield reply

    async def exchange(self, frames: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Frames in and out."""

        async def handle(stream: Stream, found: Any) -> None:
            async def send(frame: bytes) -> None:
                self._network.on_reply(stream.target, self.server, frame)
                stream.down.put(frame)

            await found(stream.up.items(), send)

        async for reply in self._open("Exchange", frames, handle):
            yield reply

    async def _open(
        self,
        method: str,
        requests: AsyncIterator[Any],
        handle: Callable[[Stream, Any], Awaitable[None]],
    ) -> AsyncIterator[Any]:
        source = running()
        network = self._network
        try:
            target = network.find(self._address)
        except ConnectionLostError:
            await asyncio.sleep(0.01)
            raise
        stream = Stream(network, source, target)

        async def serve(stream: Stream) -> None:
            await handle(stream, target.serve(self.server, method))

        async def pump() -> None:
            async for request in requests:
                stream.up.put(_copied(request))
            stream.up.put(_END)

        stream.begin(serve)
        sending = asyncio.ensure_future(pump())
        replies = stream.down.items()
        try:
            async for reply in replies:
                yield _copied(reply)
        finally:
            sending.cancel()
            stream.abandon()


def _copied(message: Any) -> Any:
    """What arrives is never the object that was sent."""
    if not isinstance(message, Message):
        return message
    made = type(message)()
    made.CopyFrom(message)
    return made
