"""Configuration: frozen values; the environment is read at two edges only (cli, connect)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from paramserver.emulation import Emulation
from paramserver.errors import ConfigurationError
from paramserver.scheme_text import Choice
from paramserver.trust import OPEN, Trust
from paramserver.types import DURABILITIES, Durability


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds that no peer can exceed.

    Attributes:
        frame_bytes: payload of one frame.
        tensors: tensors of one group.
        groups: groups of one job.
        name_length: characters of a name.
        in_flight: pushes of one client and group that may be unanswered.
        parked_calls: calls that may wait at one role.
        outbox_bytes: answer bytes queued for one slow reader.
        stall_s: seconds that one answer may wait for a reader that takes nothing.
        peer_bytes: of one worker's pushes that wait on one server for their clock.
        staged_bytes: the same of all workers.
        work_bytes: of frames that one server works on at a time.
        collective_bytes: bytes kept for open collectives.
        vectors: of one group, beside its values.
        vector_bytes: bytes of the vectors of all groups on one server.
    """

    frame_bytes: int = 1 << 20
    tensors: int = 100_000
    groups: int = 256
    name_length: int = 255
    in_flight: int = 64
    parked_calls: int = 10_000
    outbox_bytes: int = 8 << 20
    stall_s: float = 60.0
    peer_bytes: int = 16 << 30
    staged_bytes: int = 64 << 30
    work_bytes: int = 1 << 30
    collective_bytes: int = 1 << 30
    vectors: int = 1024
    vector_bytes: int = 16 << 30


def check_parties(workers: int, parties: int) -> None:
    """Raises ConfigurationError unless the workers make whole replicas of so many parties."""
    if parties < 1 or workers % parties:
        raise ConfigurationError(
            f"parties={parties}, workers={workers}: the workers must make whole replicas; "
            "use a number of workers that the parties divide"
        )


def check_durability(durability: str, servers: int) -> None:
    """Raises ConfigurationError for an unknown one, or one that so few servers cannot keep."""
    if durability not in DURABILITIES:
        raise ConfigurationError(
            f"durability={durability!r}: must be one of {', '.join(DURABILITIES)}"
        )
    if durability == "replica" and servers < 2:
        raise ConfigurationError(
            f"durability='replica', servers={servers}: a backup is kept by another server; use at "
            "least 2 servers, or durability 'wal'"
        )


MAX_DELTAS = 100
SNAPSHOT_S = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotConfig:
    """Where snapshots are kept, and when one is taken.

    Attributes:
        directory: a path, or a URL that fsspec knows; the same for the scheduler and all servers.
            Empty: no snapshots.
        every: clocks from one to the next; 0: clocks do not matter.
        seconds: from one to the next; 0: time does not matter.
        keep: how many are kept of those that nobody named.
        delta: after a whole one, how many hold of tables only the rows that changed since the one
            before.
        resume: name of the one that the first job goes on from, or "latest"; empty: it begins
            empty.
    """

    directory: str = ""
    every: int = 0
    seconds: float = 0.0
    keep: int = 3
    delta: int = 0
    resume: str = ""

    def __post_init__(self) -> None:
        for name, low in (("every", 0), ("seconds", 0), ("keep", 1), ("delta", 0)):
            if not getattr(self, name) >= low:
                raise ConfigurationError(
                    f"snapshots: {name}={getattr(self, name)}: must be >= {low}"
                )
        if self.delta > MAX_DELTAS:
            raise ConfigurationError(
                f"snapshots: delta={self.delta}: at most {MAX_DELTAS}, as all that one builds on "
                "has to be read, and to be whole; take a whole one more often"
            )
        if not self.directory and (self.every or self.seconds or self.resume):
            raise ConfigurationError(
                "snapshots: no directory is given to write them to or read them from; "
                "use --snapshot-dir DIR"
            )

    def flags(self) -> dict[str, object]:
        """Options of the scheduler's command that make it the same."""
        if not self.directory:
            return {}
        return {
            "snapshot_dir": self.directory,
            "snapshot_every": self.every or None,
            "snapshot_seconds": self.seconds or None,
            "snapshot_keep": self.keep,
            "snapshot_delta": self.delta,
            "resume": self.resume or None,
        }


def snapshot_config(
    snapshot_dir: str | None,
    snapshot_every: int | None,
    snapshot_seconds: float | None,
    snapshot_keep: int,
    snapshot_delta: int,
    resume: str | None,
) -> SnapshotConfig:
    """From options as ``run`` has them; None is what nobody said.

    Raises:
        ConfigurationError: snapshots without a place for them, or a value that cannot work.
    """
    directory = snapshot_dir or ""
    if directory and "://" not in directory:
        directory = str(Path(directory).resolve())
    default = SNAPSHOT_S if directory and not snapshot_every else 0.0
    return SnapshotConfig(
        directory=directory,
        every=snapshot_every or 0,
        seconds=snapshot_seconds or default,
        keep=snapshot_keep,
        delta=snapshot_delta,
        resume=resume or "",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """What a scheduler is told.

    Attributes:
        bind: HOST:PORT; port 0 lets the system choose.
        workers, servers: how many must register before a job starts.
        parties: of one replica; worker r is party r % parties of replica r // parties.
        assign: how data shards are dealt: "round-robin", "random" or "dynamic".
        lease_s: seconds without a heartbeat after which a member is lost.
        heartbeat_s: seconds between heartbeats.
        once: end when the job ends.
        durability: what an applied push survives: "memory": nothing (the job ends with a server);
            "wal": the end of a server's process, which finds its journal again; "replica": the
            loss of a server, whose backup takes over.
        server_timeout_s: seconds that a lost server is waited for, where it may come back.
        trust: what it proves to others, and demands of them.
        state_dir: folder that outlives this process; a scheduler on it goes on where the one
            before it was. None: a scheduler that ends takes its job with it.
        snapshots: where, and when.
    """

    bind: str = "127.0.0.1:0"
    workers: int = 1
    servers: int = 1
    parties: int = 1
    assign: str = "dynamic"
    lease_s: float = 10.0
    heartbeat_s: float = 1.0
    once: bool = False
    durability: Durability = "memory"
    server_timeout_s: float = 300.0
    trust: Trust = OPEN
    state_dir: str | None = None
    snapshots: SnapshotConfig = field(default_factory=SnapshotConfig)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        for name in ("workers", "servers"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"{name}={getattr(self, name)}: must be >= 1")
        check_parties(self.workers, self.parties)
        check_durability(self.durability, self.servers)
        if not 0 < self.heartbeat_s < self.lease_s:
            raise ConfigurationError(
                f"heartbeat_s={self.heartbeat_s}, lease_s={self.lease_s}: "
                "the lease must be longer than a heartbeat; use at least three heartbeats"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """What a server is told.

    Attributes:
        scheduler: HOST:PORT of the scheduler.
        bind: HOST:PORT to listen on.
        advertise: HOST or HOST:PORT that others reach this server by; None: the local address of
            the connection to the scheduler.
        name: None lets the scheduler give the lowest free one.
        threads: tensor operations at a time; 0: the number of cores, at most 4.
        once: end when the job ends.
        state_dir: folder of this server alone, for its journal; None: it keeps none.
        journal_bytes: a journal that grows beyond is replaced by a dump of the state.
        trust: what it proves to others, and demands of them.
    """

    scheduler: str
    bind: str = "127.0.0.1:0"
    advertise: str | None = None
    name: str | None = None
    threads: int = 0
    once: bool = False
    state_dir: str | None = None
    journal_bytes: int = 256 << 20
    trust: Trust = OPEN
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """What a client is told; ``paramserver.connect`` makes it from arguments and environment.

    Attributes:
        scheduler: HOST:PORT; None: an embedded cluster in this process.
        name: None lets the scheduler give the lowest free one.
        reader: no rank, pulls only, never awaited.
        timeout: seconds to connect, counted from the last arrival of a role.
        wait_timeout: seconds that a wait on a peer that still heartbeats may take.
        emulation: the machine that this worker plays; None: it is as fast as it is.
        run_dir: folder for this worker's run file; None: no such file.
        scheme: replaces ``consistency=`` of optimizers and ``assign=`` of loaders.
        trust: what it proves to others, and demands of them.
    """

    scheduler: str | None = None
    name: str | None = None
    reader: bool = False
    timeout: float = 30.0
    wait_timeout: float = 1800.0
    emulation: Emulation | None = None
    run_dir: str | None = None
    scheme: Choice | None = None
    trust: Trust = OPEN
    limits: Limits = field(default_factory=Limits)
