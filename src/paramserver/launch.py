"""Processes of a cluster on this machine: started, heard, stopped, and never left behind.

Each child leads a session of its own, so that one signal reaches all it started, and dies with the
launcher, however that ends (``paramserver._guard``). Roles announce their address in a ready line;
nothing here picks a port.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any, TypeVar

from paramserver.errors import JobFailedError, ParameterServerError, RolledBackError
from paramserver.trust import Trust, public_environment
from paramserver.wire.options import MALLOC_ENVIRONMENT

READY = re.compile(r"^paramserver \S+ ready at (\S+)$")
RESTARTABLE = frozenset({137, 138, 143})
TAIL_LINES = 400
LINE_BYTES = 64 * 1024
GRACE_S = 5.0
START_S = 60.0
REPORT_S = 30.0  # for a scheduler that is being started again
# What a process raises because another one has failed.
CONSEQUENCES = "JobFailedError|ConnectionLostError|WaitTimeoutError|FencedError|RolledBackError"
_CONSEQUENCE = re.compile(rf"^(?:[\w.]+\.)?(?:{CONSEQUENCES})\b", re.MULTILINE)

T = TypeVar("T")
OnLine = Callable[["Child", str, str], None]
OnExit = Callable[["Child"], None]


def exit_code(returncode: int) -> int:
    """A shell's exit code: a child killed by signal n ends with 128 + n."""
    return 128 - returncode if returncode < 0 else returncode


def signal_name(code: int) -> str:
    """``SIGKILL`` for 137; empty for a code that names no signal."""
    try:
        return signal.Signals(code - 128).name
    except ValueError:
        return ""


def describe_exit(code: int) -> str:
    """``exit code 137 (SIGKILL)``."""
    name = signal_name(code)
    return f"exit code {code} ({name})" if name else f"exit code {code}"


def is_consequence(text: str) -> bool:
    """Whether a traceback says that its process ended because another one had failed."""
    return _CONSEQUENCE.search(text) is not None


@dataclass(slots=True)
class RestartRule:
    """Which workers start again: those that were killed, each at most ``limit`` times.

    Attributes:
        limit: restarts of one worker.
        used: restarts so far, by name.
    """

    limit: int = 3
    used: dict[str, int] = field(default_factory=dict)

    def restarts(self, name: str, code: int) -> bool:
        """Whether the worker starts again after this exit code; counts it if so."""
        if code not in RESTARTABLE or self.used.get(name, 0) >= self.limit:
            return False
        self.used[name] = self.used.get(name, 0) + 1
        return True


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def child_environment(base: Mapping[str, str]) -> dict[str, str]:
    """The environment of any child: ``base`` and the allocator settings it does not have."""
    return {**MALLOC_ENVIRONMENT, "GRPC_VERBOSITY": "NONE", **base, "PYTHONUNBUFFERED": "1"}


def role_environment(base: Mapping[str, str]) -> dict[str, str]:
    """The environment of a scheduler or server, which ends when this process does."""
    return {**child_environment(base), "PARAMSERVER_PARENT": str(os.getpid())}


def worker_environment(
    base: Mapping[str, str],
    *,
    scheduler: str,
    name: str | None,
    identity: Path | None = None,
    workers: int = 0,
) -> dict[str, str]:
    """The environment of a worker's script.

    Args:
        base: what it inherits.
        scheduler: HOST:PORT.
        name: None keeps that of ``base``, or lets the scheduler give one.
        identity: file that the client writes its identity to; whoever gives one tells the
            scheduler how the script ended. None: the client does.
        workers: how many share this machine; 0: unknown, and the threads stay as they are.
    """
    env = child_environment(public_environment(base))
    env["PARAMSERVER_SCHEDULER"] = scheduler
    if identity is not None:
        env["PARAMSERVER_LAUNCHED"] = "1"
        env["PARAMSERVER_IDENTITY_FILE"] = str(identity)
    if name is not None:
        env["PARAMSERVER_NAME"] = name
    if workers:
        env["PARAMSERVER_WORKERS"] = str(workers)
        env.setdefault("OMP_NUM_THREADS", str(max(1, cores() // workers)))
    return env


def role_command(role: str, /, **options: object) -> list[str]:
    """The command of a scheduler or server; options by name, those that are None left out."""
    command = [sys.executable, "-m", "paramserver", role]
    for name, value in options.items():
        if value is not None:
            command += [f"--{name.replace('_', '-')}", str(value)]
    return command


def script_command(target: str, args: Sequence[str], *, module: bool) -> list[str]:
    """The command of a script, or of a module with ``module``."""
    return [sys.executable, *(["-m"] if module else []), target, *args]


class Child:
    """A process that this one started.

    Attributes:
        name: "scheduler", "ps-0", "worker-1".
        role: "scheduler", "ps" or "worker".
        pid: process id, which is also its session and process group.
        tail: the newest lines of its standard error.
        code: exit code as a shell has it; None while it runs.
        address: HOST:PORT of its ready line; None until then.
        stopped: whether we asked it to end.
    """

    def __init__(
        self,
        name: str,
        role: str,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        on_line: OnLine | None = None,
        on_exit: OnExit | None = None,
    ) -> None:
        """Starts ``command``.

        Without ``on_line`` it has our standard streams, else its lines go there.

        Raises:
            JobFailedError: it could not be started.
        """
        self.name = name
        self.role = role
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.code: int | None = None
        self.address: str | None = None
        self.stopped = False
        self.started = time.monotonic()
        self.ended = 0.0
        self._on_line = on_line
        self._on_exit = on_exit
        self._lock = threading.Lock()
        self._heard = threading.Event()
        self._done = threading.Event()
        self._process = self._open(command, env)
        self.pid = self._process.pid
        self._pumps = self._start_pumps()
        threading.Thread(target=self._watch, name=f"watch {name}", daemon=True).start()

    def _open(self, command: Sequence[str], env: Mapping[str, str]) -> subprocess.Popen[bytes]:
        piped = self._on_line is not None
        guard = str(Path(__file__).with_name("_guard.py"))
        try:
            return in_lasting_thread(
                lambda: subprocess.Popen(
                    [sys.executable, "-I", "-S", guard, str(os.getpid()), *command],
                    env=dict(env),
                    stdin=subprocess.DEVNULL if piped else None,
                    stdout=subprocess.PIPE if piped else None,
                    stderr=subprocess.PIPE if piped else None,
                    start_new_session=True,
                    bufsize=0,
                )
            )
        except OSError as error:
            raise JobFailedError(f"{self.name} could not be started: {error}") from error

    def _start_pumps(self) -> list[threading.Thread]:
        streams = {"stdout": self._process.stdout, "stderr": self._process.stderr}
        pumps = [
            threading.Thread(target=self._pump, args=(name, stream), daemon=True)
            for name, stream in streams.items()
            if stream is not None
        ]
        for pump in pumps:
            pump.start()
        return pumps

    def _pump(self, stream: str, pipe: IO[bytes]) -> None:
        with pipe:
            for line in lines(lambda: os.read(pipe.fileno(), LINE_BYTES)):
                if stream == "stderr":
                    self.tail.append(line)
                elif self.role != "worker" and (found := READY.match(line)):
                    self.address = found[1]
                    self._heard.set()
                assert self._on_line is not None
                self._on_line(self, stream, line)

    def _watch(self) -> None:
        if hasattr(os, "waitid"):
            # Not reaped yet, so its number is still its own when what it left behind is killed.
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
            with self._lock:
                self._kill_group(signal.SIGKILL)
                self.code = exit_code(self._process.wait())
        else:
            self.code = exit_code(self._process.wait())
        self.ended = time.monotonic()
        for pump in self._pumps:
            pump.join(timeout=1.0)
        self._heard.set()
        self._done.set()
        if self._on_exit is not None:
            self._on_exit(self)

    def _kill_group(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def send(self, number: int) -> None:
        """Signals the process and all it started; nothing if it has ended."""
        with self._lock:
            if self.code is None:
                self._kill_group(number)

    def wait(self, timeout: float | None = None) -> int | None:
        """Its exit code once it has ended and all it said was heard; None after ``timeout`` s."""
        self._done.wait(timeout)
        return self.code if self._done.is_set() else None

    def wait_ready(self, timeout: float = START_S) -> str:
        """The address of its ready line.

        Raises:
            JobFailedError: it ended, or said nothing for ``timeout`` seconds.
        """
        self._heard.wait(timeout)
        if self.address is not None:
            return self.address
        why = f"said nothing for {timeout:g} s" if self.code is None else describe_exit(self.code)
        said = "\n".join(self.tail)
        raise JobFailedError(f"{self.name} did not come up: {why}" + (f"\n{said}" if said else ""))


def lines(read: Callable[[], bytes]) -> Iterable[str]:
    """Lines of a stream of bytes, as a terminal would show them.

    What a carriage return overwrites is left out, and a line is cut at 64 KiB.
    """
    rest = b""
    while chunk := read():
        *whole, rest = (rest + chunk).split(b"\n")
        if len(rest) > LINE_BYTES:
            whole, rest = [*whole, rest], b""
        for line in whole:
            yield _shown(line)
    if rest:
        yield _shown(rest)


def _shown(line: bytes) -> str:
    return line.rstrip(b"\r").rpartition(b"\r")[2].decode("utf-8", "replace")


def stop(
    children: Iterable[Child],
    number: int = signal.SIGTERM,
    *,
    grace: float = GRACE_S,
    hurry: threading.Event | None = None,
) -> None:
    """Ends children: a signal to all, SIGKILL to those still there after ``grace`` seconds.

    Returns when all have ended. ``hurry``, once set, cuts the grace short.
    """
    there = [child for child in children if child.code is None]
    deadline = time.monotonic() + grace
    for child in there:
        child.stopped = True
        child.send(number)
    for child in there:
        while child.wait(0.05) is None:
            if time.monotonic() > deadline or (hurry is not None and hurry.is_set()):
                child.send(signal.SIGKILL)


_lasting: dict[int, SimpleQueue[tuple[Future[Any], Callable[[], Any]]]] = {}
_lasting_lock = threading.Lock()


def _serve(todo: SimpleQueue[tuple[Future[Any], Callable[[], Any]]]) -> None:
    while True:
        future, function = todo.get()
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)


def in_lasting_thread(function: Callable[[], T]) -> T:
    """Runs a function that starts a process in a thread that lives as long as this process.

    The kernel's death signal comes when the thread that forked ends, not the process.
    """
    if threading.current_thread() is threading.main_thread():
        return function()
    with _lasting_lock:
        pid = os.getpid()  # a forked child has the queue, but not the thread
        if pid not in _lasting:
            _lasting[pid] = SimpleQueue()
            threading.Thread(target=_serve, args=(_lasting[pid],), daemon=True).start()
    future: Future[T] = Future()
    _lasting[pid].put((future, function))
    return future.result()


def report_exit(scheduler: str, identity: Path, name: str, code: int, trust: Trust) -> bool:
    """Tells the scheduler how a worker's script ended, by the identity its client left.

    0: finished. Killed (130, 137, 138, 143): nothing, its lease lapses or it starts again.
    Any other code: the job fails. A script that never connected has nothing to report, and a
    scheduler that is gone or knows better is left alone. True: the script is to start again.
    """
    who = read_identity(identity)
    if who is None or code == 130 or code in RESTARTABLE:
        return False
    from paramserver.v1 import scheduler_pb2  # gRPC only where a worker had connected
    from paramserver.wire.client import scheduler_channel

    channel = scheduler_channel(scheduler, trust)
    try:
        if code == 0:
            request = scheduler_pb2.FinishRequest(member=who)
            channel.call("Finish", request, timeout=REPORT_S)
        else:
            why = f"{who.name or name} exited with code {code}"
            failed = scheduler_pb2.FailRequest(member=who, reason=why, fatal=True, exit_code=code)
            channel.call("Fail", failed, timeout=5.0)
    except RolledBackError:
        return True
    except ParameterServerError:
        pass  # it knows better, or is gone
    finally:
        channel.close()
    return False


def read_identity(path: Path) -> Any:
    """The Identity message that a client wrote to ``path`` as JSON; None if it wrote none."""
    try:
        found = json.loads(path.read_text())
        values = {key: found[key] for key in ("name", "incarnation", "rank", "job")}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    from paramserver.v1 import common_pb2

    return common_pb2.Identity(**values)
