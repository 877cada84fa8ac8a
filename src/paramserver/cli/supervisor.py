"""A cluster on this machine, watched from its start to its last process."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import threading
import time
from pathlib import Path
from queue import Empty, SimpleQueue

from paramserver.cli.exits import (
    DONE,
    FAILED,
    KILLED,
    Failure,
    block,
    failure_of,
    report_loss,
    restart_reason,
    root_cause,
    was_rolled_back,
)
from paramserver.cli.output import Output
from paramserver.cli.plan import Plan
from paramserver.cli.progress import Progress
from paramserver.cli.signals import handled
from paramserver.cli.state import Source, State
from paramserver.errors import JobFailedError, ParameterServerError
from paramserver.launch import (
    RESTARTABLE,
    Child,
    RestartRule,
    describe_exit,
    report_exit,
    role_command,
    role_environment,
    signal_name,
    stop,
    worker_environment,
)

POLL_S = 1.0
ENOUGH_S = 0.1  # between looks at whether a run has had enough
PRINT_S = 5.0  # between status lines where there is no terminal
SETTLE_S = 3.0  # for the process that failed first to end, when one that followed was faster
OBEY_S = 15.0  # for workers to end by themselves once the scheduler says that the job failed


class Supervisor:
    """Starts a cluster, watches it, and ends all of it.

    Attributes:
        children: its processes by name; of a worker, the newest.
        why: in one line, why the job failed; empty if it did not.
    """

    def __init__(self, plan: Plan, output: Output, folder: Path) -> None:
        """Nothing is started yet; ``folder`` is for the workers' identities."""
        self._plan = plan
        self._output = output
        self._folder = folder
        self._rule = RestartRule(plan.max_restarts)
        self._progress = Progress()
        self._events: SimpleQueue[Child | State | tuple[str, bool] | int] = SimpleQueue()
        self.children: dict[str, Child] = {}
        self.why = ""
        self._cut = False
        self._todo: set[str] = set()
        self._failures: list[Failure] = []
        self._deadline: float | None = None
        self._signals: list[int] = []
        self._hurry = threading.Event()
        self._printed = ("", 0.0)
        self._address = ""
        self._ended = threading.Event()

    def run(self) -> int:
        """The exit code; no child is left when it returns."""
        began = time.monotonic()
        with handled(self._on_signal):
            try:
                self._start()
                self._watch()
                if not self._failed and not self._signals:
                    self._last_look()
            except JobFailedError as error:
                self._failures.append(Failure(name="cluster", code=None, text=str(error)))
            finally:
                self._stop_all()
            return self._verdict(time.monotonic() - began)

    @property
    def _failed(self) -> bool:
        return bool(self._failures)

    def _start_scheduler(self) -> Child:
        """Again and again, if need be: its state and its address outlast its process."""
        flags = self._plan.scheduler_flags()
        state_dir = self._folder / "scheduler"
        return self._start_role(
            "scheduler", "scheduler", bind="127.0.0.1:0", state_dir=state_dir, **flags
        )

    def _start(self) -> None:
        self._address = self._start_scheduler().wait_ready()
        self._start_servers(self._plan.servers)
        for i in range(self._plan.workers):
            self._start_worker(f"worker-{i}")
        threading.Thread(target=self._poll, name="poll", daemon=True).start()

    def _start_servers(self, count: int) -> None:
        """Starts servers until there are so many: ``scale`` may have asked for more."""
        free = (name for i in itertools.count() if (name := f"ps-{i}") not in self.children)
        for _ in range(count - sum(c.role == "ps" for c in self.children.values())):
            self._start_server(next(free))

    def _start_server(self, name: str) -> None:
        """Again and again, if need be, where its state outlasts its process."""
        state = self._folder / name if self._plan.durability == "wal" else None
        self._start_role(
            name, "ps", scheduler=self._address, name=name, bind="127.0.0.1:0", state_dir=state
        )

    def _start_role(self, name: str, role: str, /, **flags: object) -> Child:
        child = Child(
            name,
            role,
            role_command(role, **flags),
            env=role_environment({**os.environ, **self._plan.trust.environment()}),
            on_line=self._output.line,
            on_exit=self._events.put,
        )
        self.children[name] = child
        return child

    def _identity(self, name: str) -> Path:
        return self._folder / f"{name}.json"

    def _start_worker(self, name: str) -> None:
        self._identity(name).unlink(missing_ok=True)
        env = worker_environment(
            {**os.environ, **self._plan.trust.environment(), **self._plan.environment},
            scheduler=self._address,
            name=name,
            identity=self._identity(name),
            workers=self._plan.workers,
        )
        self._todo.add(name)
        self.children[name] = Child(
            name,
            "worker",
            self._plan.command,
            env=env,
            on_line=self._output.line,
            on_exit=self._events.put,
        )

    # -- watching

    def _watch(self) -> None:
        while self._todo and not self._signals:
            wait = 1.0 if self._deadline is None else self._deadline - time.monotonic()
            if self._plan.enough is not None and not self._failed:
                self._cut, wait = self._plan.enough(), min(wait, ENOUGH_S)
            if wait <= 0 or self._cut:
                return
            with contextlib.suppress(Empty):
                event = self._events.get(timeout=min(wait, 1.0))
                if isinstance(event, Child):
                    self._on_exit(event)
                elif isinstance(event, dict):
                    self._on_state(event)
                elif isinstance(event, tuple):
                    self._on_report(*event)
            if any(not failure.consequence for failure in self._failures):
                return

    def _on_exit(self, child: Child) -> None:
        code = child.code
        assert code is not None
        if child is not self.children[child.name]:
            return
        if child.role == "ps" and code == DONE and self._left_over():
            self._output.say(f"{child.name} has no slices any more and left")
            del self.children[child.name]
        elif child.role == "ps" and self._plan.durability != "memory":
            self._on_server_exit(child)
        elif child.role == "scheduler" and self._rule.restarts(child.name, code):
            self._say_restart(child, "was killed")
            self._start_scheduler()
        elif child.role != "worker":
            self._on_role_exit(child)
        elif code == DONE:
            threading.Thread(target=self._report, args=(child.name,), daemon=True).start()
        elif was_rolled_back(child):
            self._again(child.name)
        elif (why := restart_reason(child)) and self._done():
            self._todo.discard(child.name)
            self._output.say(f"{child.name} {why}; the job is done without it")
        elif why and self._rule.restarts(child.name, KILLED):
            self._say_restart(child, why)
            self._start_worker(child.name)
        else:
            self._fail(child)

    def _report(self, name: str) -> None:
        """Tells the scheduler of a worker that is done, however long it takes to come back."""
        identity, trust = self._identity(name), self._plan.trust
        self._events.put((name, report_exit(self._address, identity, name, DONE, trust)))

    def _on_report(self, name: str, undone: bool) -> None:
        self._todo.discard(name)
        if undone:
            self._again(name)

    def _left_over(self) -> bool:
        """Whether fewer servers are wanted than there were: ``scale`` has let one go."""
        self._last_look()
        state = self._progress.state
        wanted = self._plan.servers if state is None else state["job"]["expected_servers"]
        return sum(c.role == "ps" for c in self.children.values()) > int(wanted)

    def _again(self, name: str) -> None:
        """A worker whose job went back to a snapshot: no failure of its own."""
        self._output.say(f"{name} was sent back to a snapshot: starting it again")
        self._start_worker(name)

    def _say_restart(self, child: Child, why: str) -> None:
        count = f"restart {self._rule.used[child.name]} of {self._rule.limit}"
        name = "the scheduler" if child.role == "scheduler" else child.name
        self._output.say(f"{name} {why}, {describe_exit(child.code or 0)}: {count}")

    def _on_role_exit(self, child: Child) -> None:
        """A server that was killed starts again where the job can go back to a snapshot."""
        needed = child.role == "ps" and bool(self._plan.snapshots.directory)
        if needed and self._rule.restarts(child.name, child.code or 0):
            self._say_restart(child, "was killed")
            self._start_server(child.name)
        else:
            self._fail(child)

    def _on_server_exit(self, child: Child) -> None:
        """A server that was killed starts again; one with a backup is not even waited for."""
        code, backed = child.code or 0, self._plan.durability == "replica"
        if backed:
            report_loss(self._address, child.name, code, self._plan.trust)
        if self._rule.restarts(child.name, code):
            self._say_restart(child, "was killed")
            self._start_server(child.name)
        elif not backed or code not in RESTARTABLE:
            self._fail(child)

    def _done(self) -> bool:
        """Whether the others have finished the job: one that came now would begin the next."""
        self._last_look()
        state = self._progress.state
        return state is not None and state["job"]["state"] == "done"

    def _fail(self, child: Child) -> None:
        self._failures.append(failure_of(child, self._rule.used.get(child.name, 0)))
        self._todo.discard(child.name)
        self._limit(SETTLE_S)

    def _limit(self, seconds: float) -> None:
        if self._deadline is None:
            self._deadline = time.monotonic() + seconds

    def _poll(self) -> None:
        source = Source(self._address, self._plan.trust)
        while not self._ended.wait(POLL_S):
            with contextlib.suppress(ParameterServerError):
                self._events.put(source.gather(timeout=2.0))
        source.close()

    def _on_state(self, state: State) -> None:
        self._progress.update(state, time.monotonic())
        if state["job"]["state"] == "failed":
            self._limit(OBEY_S)
        elif state["job"]["state"] == "running":
            self._start_servers(state["job"]["expected_servers"])
        line, at = self._progress.line(), time.monotonic()
        if self._output.live:
            self._output.status(line)
        elif line != self._printed[0] and at - self._printed[1] >= PRINT_S:
            self._output.status(line)
            self._printed = (line, at)

    def _last_look(self) -> None:
        source = Source(self._address, self._plan.trust)
        with contextlib.suppress(ParameterServerError):
            self._progress.update(source.gather(servers=False, timeout=1.0), time.monotonic())
        source.close()

    # -- ending

    def _on_signal(self, number: int, frame: object) -> None:
        self._signals.append(number)
        if len(self._signals) > 1:
            self._hurry.set()
        self._events.put(number)

    def _stop_all(self) -> None:
        self._ended.set()
        self._output.end()
        there = [child for child in self.children.values() if child.code is None]
        if self._signals:
            name = signal_name(128 + self._signals[0])
            self._output.say(f"{name}: stopping {len(there)} processes; once more kills them")
        workers = [child for child in there if child.role == "worker"]
        roles = [child for child in there if child.role != "worker"]
        # Ctrl-C reaches scripts as such; a scheduler that went first would make them wait for it.
        stop(workers, self._signals[0] if self._signals else signal.SIGTERM, hurry=self._hurry)
        stop(roles, hurry=self._hurry)

    def _verdict(self, seconds: float) -> int:
        job = self._progress.state["job"] if self._progress.state is not None else {}
        message = str(job.get("message", ""))  # of one that failed, or is not complete
        if self._signals:
            return 128 + self._signals[0]
        if self._cut and not self._failed:
            return DONE
        if self._failed or self._todo or message:
            cause = root_cause(self._failures, message)
            self.why = f"{cause.name}: {cause.text.strip().rpartition(chr(10))[2] or 'no word'}"
            self._output.say(block(cause, self._failures, message))
            return FAILED
        if not self._output.quiet:
            restarts = sum(self._rule.used.values())
            self._output.say(self._progress.summary(seconds, restarts))
        return DONE
