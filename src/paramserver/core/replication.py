"""Which process hosts which server, which one keeps its backup, and who takes over from whom.

A server is a holder of slices; a host is a process. Every server has a primary, and a backup on
another host where there is one. A place is one such arrangement; each new one has a larger epoch,
and what speaks of an older epoch is refused: at most one primary per server and epoch can have
anything acknowledged, as a backup takes over only under a larger epoch than its primary's.

    filling ──filled──> ready ──primary lost──> its backup is primary, the next host is filled
       └──primary lost──> the server is gone       └──backup lost──> the next host is filled
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from paramserver.errors import ConfigurationError, FencedError


@dataclass(frozen=True, slots=True)
class Host:
    """A process that can host servers.

    Attributes:
        name: of the member; a server of the same name begins on it.
        address: HOST:PORT.
        incarnation: a process that came again under its name is another host.
    """

    name: str
    address: str
    incarnation: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server is.

    Attributes:
        server: its name.
        epoch: grows whenever the primary or the backup becomes another.
        primary: the host that serves it.
        backup: the host that follows it; None where there is no other.
        ready: the backup has all that was acknowledged, and from now on all that will be.
    """

    server: str
    epoch: int
    primary: Host
    backup: Host | None
    ready: bool = False

    @property
    def address(self) -> str:
        """How clients reach the server: HOST:PORT, or HOST:PORT/NAME on a host of another name."""
        own = self.primary.name == self.server
        return self.primary.address if own else f"{self.primary.address}/{self.server}"


class Replication:
    """The places of the servers of one job.

    Events go in, in the order in which they happened; places come out. Not thread-safe; never
    blocks.
    """

    def __init__(self) -> None:
        self._hosts: dict[str, Host] = {}  # in ring order: by length, so ps-10 is behind ps-9
        self._places: dict[str, Place] = {}
        self._epoch = 0

    @property
    def places(self) -> tuple[Place, ...]:
        """All of them, in ring order."""
        return tuple(sorted(self._places.values(), key=lambda p: _order(p.server)))

    def place(self, server: str) -> Place | None:
        """Where a server is; None: it has no place, or is gone."""
        return self._places.get(server)

    def begin(self, hosts: Iterable[Host]) -> None:
        """A job begins: each host serves the server of its name, the next host keeps its backup.

        Raises:
            ConfigurationError: fewer than two hosts.
        """
        self._hosts = {h.name: h for h in sorted(hosts, key=lambda h: _order(h.name))}
        if len(self._hosts) < 2:
            raise ConfigurationError(
                f"durability 'replica' with {len(self._hosts)} server: a backup is kept by another "
                "server; use at least 2, or durability 'wal'"
            )
        self._places = {}
        for host in self._hosts.values():
            self._put(host.name, host)

    def join(self, host: Host) -> Sequence[str]:
        """A process came, for the first time or again: it keeps backups that are missing.

        A host of a new name serves the server of its name.

        Returns:
            As ``lose``: a process that comes again has lost what it had.
        """
        old = self._hosts.get(host.name)
        gone = self.lose(old.name, old.incarnation) if old is not None else ()
        self._hosts[host.name] = host
        self._hosts = {n: self._hosts[n] for n in sorted(self._hosts, key=_order)}
        if host.name not in self._places and host.name not in gone:
            self._put(host.name, host)
        for place in self.places:
            if place.backup is None:
                self._put(place.server, place.primary)
        return gone

    def lose(self, name: str, incarnation: int) -> Sequence[str]:
        """A host is gone: its servers move to their backups. Repeated, it changes nothing.

        Returns:
            Servers that are gone with it: they had no backup that was ready.
        """
        host = self._hosts.get(name)
        if host is None or host.incarnation != incarnation:
            return ()
        del self._hosts[name]
        gone = []
        for place in self.places:
            if place.primary == host:
                if place.ready and place.backup is not None:
                    self._put(place.server, place.backup)
                else:
                    gone.append(place.server)
                    del self._places[place.server]
            elif place.backup == host:
                self._put(place.server, place.primary)
        return gone

    def filled(self, server: str, epoch: int) -> bool:
        """The primary of this epoch says that its backup is complete, and acknowledges nothing
        without it from now on. Whether that is news; repeated, it changes nothing.

        Raises:
            FencedError: an older epoch.
        """
        place = self._places.get(server)
        if place is None or place.epoch != epoch or place.backup is None:
            now = "gone" if place is None else f"at epoch {place.epoch}"
            raise FencedError(f"server {server}, epoch {epoch}: it is {now}; stop serving it")
        self._places[server] = replace(place, ready=True)
        return not place.ready

    def missing(self) -> str:
        """The backups that are not ready, in words; empty: none."""
        names = [
            f"{p.server} on {p.backup.name}"
            for p in self.places
            if p.backup is not None and not p.ready
        ]
        return f"the backup of {', '.join(names)} is being filled" if names else ""

    def check_invariants(self) -> None:
        """Raises AssertionError where the state cannot be."""
        epochs = [p.epoch for p in self._places.values()]
        assert len(set(epochs)) == len(epochs), "two places have one epoch"
        assert max(epochs, default=0) <= self._epoch
        for place in self._places.values():
            assert self._hosts.get(place.primary.name) == place.primary, f"{place}: primary is gone"
            assert place.backup != place.primary, f"{place}: a host backs itself up"
            if place.backup is None:
                assert not place.ready
                assert len(self._hosts) < 2, f"{place}: could have a backup"
            else:
                assert self._hosts.get(place.backup.name) == place.backup, f"{place}: backup gone"

    def _put(self, server: str, primary: Host) -> None:
        self._epoch += 1
        self._places[server] = Place(server, self._epoch, primary, self._after(primary))

    def _after(self, host: Host) -> Host | None:
        """The next host of the ring."""
        ring = list(self._hosts.values())
        following = ring[(ring.index(host) + 1) % len(ring)]
        return None if following == host else following


def _order(name: str) -> tuple[int, str]:
    return len(name), name
