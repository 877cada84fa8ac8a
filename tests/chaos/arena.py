"""One job of real processes, its faults, and what must hold when it is over."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path

import psutil
import torch

from paramserver import failpoints
from paramserver.launch import Child, cores, role_command, role_environment, stop
from paramserver.rpc_chaos import VARIABLE as RPC_CHAOS
from paramserver.snapshot_files import Manifest, complete, open_store, verify
from tests.chaos import job
from tests.chaos.hazards import HOUR_S, Clock, Disk
from tests.chaos.plan import CLOCK, DISK, LEASE_S, Fault, Means, Plan
from tests.cluster import cluster
from tests.proxy import Proxy, ProxyThread

DEADLINE_S = 150.0
SNAPSHOT_EVERY = 2
CANNOT_KEEP = "cannot be kept any more"  # says a server whose journal's disk has failed
NO_CUT = ("hole", "one-way", "slow", "damage")  # faults of the network that end by themselves


class Broken(AssertionError):
    """A promise that a schedule broke."""


def busy() -> float:
    """How many times as long things take now as on an idle machine."""
    return max(1.0, os.getloadavg()[0] / cores())


class Arena:
    """The processes of one schedule; everything is ended by ``close``.

    Attributes:
        story: what befell the job, in words.
    """

    def __init__(self, plan: Plan, folder: Path, means: Means) -> None:
        self.plan = plan
        self.folder = folder
        self.means = means
        self.story: list[str] = []
        self.said: dict[str, list[str]] = {}
        self._began = time.monotonic()
        self._proxies = ProxyThread()
        self._behind: dict[str, Proxy] = {}
        self._children: dict[str, Child] = {}
        self._undo: list[tuple[float, Callable[[], None]]] = []
        self._seen: set[psutil.Process] = set()
        self._disks: dict[str, Disk] = {}
        self._clocks: dict[str, Clock] = {}
        self._stood: set[str] = set()  # snapshots that were complete when their disk was struck
        self._may_end: set[str] = set()  # servers that could not keep their journals

    def say(self, text: str) -> None:
        self.story.append(f"{time.monotonic() - self._began:.1f} s: {text}")

    # -- starting

    def start(self) -> None:
        """Starts all roles and workers, at once; each role is behind a proxy."""
        servers = [f"ps-{i}" for i in range(self.plan.servers)]
        self._equip()
        for name in ("scheduler", *servers):
            self._behind[name] = self._proxies.proxy(self.plan.seed)
        self._there = self._behind["scheduler"].address
        self._spawn_scheduler("127.0.0.1:0")
        for name in servers:
            self._spawn_server(name)
        for index in range(self.plan.workers):
            self._spawn_worker(f"worker-{index}")
        self._await_scheduler()
        for name in servers:
            self._await_server(name)

    def _equip(self) -> None:
        """Disks and clocks that will be struck."""
        self._switches.mkdir()
        for name in {fault.target for fault in self.plan.faults if fault.kind in DISK}:
            full = any((f.kind, f.target) == ("full", name) for f in self.plan.faults)
            self._disks[name] = Disk(name, self.folder / name, self._switches, own=full)
        for name in {fault.target for fault in self.plan.faults if fault.kind in CLOCK}:
            self._clocks[name] = Clock(self.folder / f"{name}.clock")

    @property
    def _switches(self) -> Path:
        return self.folder / "switches"

    def _start_again(self, name: str) -> None:
        """A role that has ended; its disk is well again, or it could not."""
        if name in self._disks:
            self._disks[name].calm()
        if name == "scheduler":
            self._spawn_scheduler(self._bind)
            self._await_scheduler()
        else:
            self._spawn_server(name)
            self._await_server(name)

    def _spawn_scheduler(self, bind: str) -> None:
        state = self.folder / "scheduler" if self.means.scheduler else None
        durable = self.plan.durability if len(self.means.durabilities) > 1 else None
        command = role_command(
            "scheduler",
            bind=bind,
            workers=self.plan.workers,
            servers=self.plan.servers,
            lease=LEASE_S,
            state_dir=state,
            durability=durable,
            snapshot_dir=self.folder / "snapshots" if self.plan.snapshots else None,
            snapshot_every=SNAPSHOT_EVERY if self.plan.snapshots else None,
        )
        self._child("scheduler", "scheduler", command)

    def _await_scheduler(self) -> None:
        self._bind = self._ready(self._children["scheduler"])
        self._behind["scheduler"].forward_to(self._bind)

    def _spawn_server(self, name: str) -> None:
        state = self.folder / name if self.plan.durability == "wal" else None
        command = role_command(
            "ps",
            scheduler=self._there,
            name=name,
            bind="127.0.0.1:0",
            advertise=self._behind[name].address,
            state_dir=state,
        )
        self._child(name, "ps", command)

    def _await_server(self, name: str) -> None:
        child = self._children[name]
        process = psutil.Process(child.pid)
        self._until(lambda: bool(_ports(process)) or child.code is not None, f"the port of {name}")
        for port in _ports(process)[:1]:
            self._behind[name].forward_to(f"127.0.0.1:{port}")
        self._ready(child)

    def _spawn_worker(self, name: str) -> None:
        command = [sys.executable, "-m", "paramserver", "worker", "--scheduler", self._there]
        command += ["--name", name, "--max-restarts", "20", job.__file__, str(self.folder)]
        self._child(name, "worker", [*command, self.plan.consistency, self.plan.assign])

    def _child(self, name: str, role: str, command: list[str]) -> Child:
        env = {**role_environment(os.environ), "OMP_NUM_THREADS": "1"}
        disks = [self._disks[d] for d in (name, "snapshots") if d in self._disks]
        if rules := [rule for disk in disks for rule in disk.rules]:
            env[failpoints.VARIABLE] = ",".join(rules)
            env[failpoints.FOLDER] = str(self._switches)
        if name in self._clocks:
            env |= self._clocks[name].environment
        if self.plan.rpc:
            env[RPC_CHAOS] = f"rate={self.plan.rpc},seed={self.plan.seed}"
        lines = self.said.setdefault(name, [])
        child = Child(name, role, command, env=env, on_line=lambda c, s, line: lines.append(line))
        self._children[name] = child
        return child

    # -- running

    def run(self) -> None:
        """To the end of the job.

        Raises:
            Broken: it did not end, or did not end well.
        """
        todo = list(self.plan.faults)
        deadline = time.monotonic() + DEADLINE_S * busy()
        workers = [c for c in self._children.values() if c.role == "worker"]
        while any(worker.code is None for worker in workers) and not self._is_done(workers):
            if time.monotonic() > deadline:
                raise Broken(f"not over after {DEADLINE_S * busy():.0f} s")
            while todo and self.counted() >= todo[0].after:
                self._strike(todo.pop(0))
            self._end_faults()
            self._look_at_roles()
            self._look_at_processes()
            threading.Event().wait(0.05)
        self._end_faults(all_of_them=True)
        codes = {w.name: w.code for w in workers if w.code != 0 and w.name not in self._lost()}
        if codes or not self._job_is_done():
            raise Broken(f"the job did not end well; exit codes {codes}")

    def _is_done(self, workers: list[Child]) -> bool:
        """Whether the job is over, and only workers that were lost have not ended."""
        late = {worker.name for worker in workers if worker.code is None}
        return self._job_is_done() and late <= self._lost()

    def _job_is_done(self) -> bool:
        return any("job 1 is done" in line for line in self.said["scheduler"])

    def _lost(self) -> set[str]:
        """Workers that were killed, or stood still for longer than their lease: the job may have
        ended without them."""
        return {
            fault.target
            for fault in self.plan.faults
            if fault.target.startswith("worker")
            and (fault.kind == "kill" or fault.seconds > LEASE_S / 2)
        }

    def _look_at_roles(self) -> None:
        for name, child in self._children.items():
            if child.role == "worker" or child.code is None or child.stopped:
                continue
            if name not in self._may_end or not any(CANNOT_KEEP in s for s in self.said[name]):
                raise Broken(f"{name} ended by itself with {child.code}")
            self.say(f"{name} has ended for its disk, and is started again")
            self._may_end.discard(name)
            self._start_again(name)

    def _look_at_processes(self) -> None:
        for child in self._children.values():
            try:
                self._seen |= {*psutil.Process(child.pid).children(recursive=True)}
            except psutil.NoSuchProcess:
                continue

    def counted(self) -> int:
        """Batches that were counted so far, by the workers' logs."""
        return sum(line.startswith("counted") for log in self.logs().values() for line in log)

    def logs(self) -> dict[str, list[str]]:
        """What the workers wrote, by name."""
        return {path.stem: path.read_text().splitlines() for path in self.folder.glob("*.log")}

    def _strike(self, fault: Fault) -> None:
        self.say(str(fault))
        if fault.kind in ("kill", "freeze"):
            self._signal(fault)
            return
        if fault.kind in (*DISK, *CLOCK):
            self._strike_machine(fault)
            return
        proxy = self._behind[fault.target]
        if fault.kind in ("cut", "reset"):
            self._proxies.do(proxy, "cut_all", reset=fault.kind == "reset")
        elif fault.kind == "hole":
            proxy.holes = frozenset({"up", "down"})
        elif fault.kind == "one-way":
            proxy.holes = frozenset({"down" if self.plan.seed % 2 else "up"})
        elif fault.kind == "slow":
            proxy.delay = (0.02, 0.2)
        else:
            proxy.mangle = ("flip", 0.02)
        if fault.kind in NO_CUT:
            self._later(fault.seconds, lambda: self._calm(proxy))

    def _strike_machine(self, fault: Fault) -> None:
        if fault.kind in CLOCK:
            clock = self._clocks[fault.target]
            clock.jump(HOUR_S if fault.kind == "ahead" else -HOUR_S)
            self._later(fault.seconds, lambda: clock.jump(0))
            return
        disk = self._disks[fault.target]
        if fault.target == "snapshots":
            self._stood |= {manifest.name for manifest in self._snapshots()}
        elif fault.kind == "read-only" and fault.target != "scheduler":
            self._may_end.add(fault.target)
        disk.strike(fault.kind)
        self._later(fault.seconds, disk.calm)

    def _snapshots(self) -> list[Manifest]:
        return complete(open_store(str(self.folder / "snapshots")))

    def _calm(self, proxy: Proxy) -> None:
        proxy.calm()
        self._proxies.do(proxy, "cut_all")  # what got lost on the way never comes again

    def _signal(self, fault: Fault) -> None:
        process = self._process(fault.target)
        if process is None:
            self.say(f"{fault.target} is not there")
            return
        if fault.kind == "freeze":
            process.send_signal(signal.SIGSTOP)
            self._later(fault.seconds, lambda: _resume(process))
        elif fault.target.startswith("worker"):
            process.kill()
        else:
            child = self._children[fault.target]
            child.stopped = True
            child.send(signal.SIGKILL)
            child.wait(10.0)
            self._later(fault.seconds, lambda: self._start_again(fault.target))

    def _process(self, name: str) -> psutil.Process | None:
        """A role's process; of a worker its script's, not its launcher's."""
        try:
            if not name.startswith("worker"):
                return psutil.Process(self._children[name].pid)
            pids = [line.split()[1] for line in self.logs().get(name, []) if line.startswith("pid")]
            return psutil.Process(int(pids[-1])) if pids else None
        except psutil.NoSuchProcess:
            return None

    def _later(self, seconds: float, what: Callable[[], None]) -> None:
        self._undo.append((time.monotonic() + seconds, what))

    def _end_faults(self, *, all_of_them: bool = False) -> None:
        for entry in list(self._undo):
            due = all_of_them or entry[0] <= time.monotonic()
            if due and entry in self._undo:  # ending one may end others
                self._undo.remove(entry)
                entry[1]()

    def _ready(self, child: Child) -> str:
        up = child.name + " to come up"
        self._until(lambda: child.address is not None or child.code is not None, up)
        return child.wait_ready(0.0)

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        """Waits; faults end meanwhile, since what is waited for may need what they hit."""
        deadline = time.monotonic() + 60.0 * busy()
        while not condition():
            self._end_faults()
            if time.monotonic() > deadline:
                raise Broken(f"{what}: not within a minute")
            threading.Event().wait(0.02)

    # -- what must hold

    def check(self) -> None:
        """Raises Broken when a promise does not hold."""
        results = [torch.load(path) for path in sorted(self.folder.glob("*.pt"))]
        if not results:
            raise Broken("no worker has saved its result")
        counts = list(results[0]["counts"].values())
        began, acknowledged = self._batches("began"), self._batches("counted")
        for copy in counts:
            for position, count in enumerate(copy.tolist()):
                low, high = max(1, acknowledged[position]), began[position]
                if self.plan.consistency == "sync":
                    low = high = 1
                if not low <= count <= high:
                    epoch, sample = divmod(position, job.SAMPLES)
                    raise Broken(
                        f"sample {sample} of epoch {epoch} counts {count:g} times, "
                        f"not {low} to {high}"
                    )
        for other in results[1:]:
            if not _same(other["model"], results[0]["model"]):
                raise Broken("two workers have read different models at the end")
        self._check_snapshots()
        if self._is_exact() and not _same(results[0]["model"], self._wanted()):
            raise Broken("the model is not that of a run without faults")

    def _check_snapshots(self) -> None:
        """What was complete when the disk was struck is there still, or newer; all are whole."""
        found = self._snapshots() if self.plan.snapshots else []
        for manifest in found:
            verify(open_store(str(self.folder / "snapshots")), manifest)
        if max(self._stood, default="") > max((m.name for m in found), default=""):
            raise Broken(f"snapshot {max(self._stood)} is gone, and no newer one is there")

    def _batches(self, what: str) -> Counter[int]:
        found: Counter[int] = Counter()
        for log in self.logs().values():
            for line in log:
                if line.startswith(f"{what} "):
                    _, epoch, numbers = line.split()
                    found.update(int(epoch) * job.SAMPLES + int(n) for n in numbers.split(","))
        return found

    def _is_exact(self) -> bool:
        """Whether values must equal a run without faults: Sync, a static deal, nobody lost."""
        through = all(
            log[-1] == "finished" and sum(line.startswith("joined") for line in log) == 1
            for log in self.logs().values()
        )
        return self.plan.consistency == "sync" and self.plan.assign != "dynamic" and through

    def _wanted(self) -> dict[str, torch.Tensor]:
        return fault_free(self.plan.workers, self.plan.assign)

    def close(self) -> None:
        """Ends all processes.

        Raises:
            Broken: one was left behind.
        """
        self._end_faults(all_of_them=True)
        children = list(self._children.values())
        own = [
            psutil.Process(c.pid) for c in children if c.code is None and psutil.pid_exists(c.pid)
        ]
        for process in own:
            _resume(process)
        stop([c for c in children if c.role == "worker"])
        stop([c for c in children if c.role != "worker"])
        self._proxies.close()
        left = [p for p in {*self._seen, *own} if not _gone(p)]
        _, left = psutil.wait_procs(left, timeout=10.0)
        for disk in self._disks.values():
            disk.close()
        for process in left:
            process.kill()
        if left:
            raise Broken(f"left behind: {left}")


def _ports(process: psutil.Process) -> list[int]:
    try:
        return [c.laddr.port for c in process.net_connections("tcp") if c.status == "LISTEN"]
    except psutil.NoSuchProcess:
        return []


def _resume(process: psutil.Process) -> None:
    try:
        process.resume()
    except psutil.NoSuchProcess:
        return


def _gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@cache
def fault_free(workers: int, assign: str) -> dict[str, torch.Tensor]:
    """The model of a run in which nothing goes wrong; the number of servers changes nothing."""
    with (
        tempfile.TemporaryDirectory(prefix="paramserver-") as folder,
        cluster(1, workers, assign=assign, chaos="rate=0") as made,
    ):
        log = job.Log(Path(folder, "log"))
        found = made.workers(lambda client: job.work(client, log, "sync", assign)["model"])
    return found[0]
