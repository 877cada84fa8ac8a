"""Which slices move when the number of servers changes: as few bytes as balance allows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from paramserver.core.placement import SliceMap
from paramserver.errors import ConfigurationError, InvalidRequestError


@dataclass(frozen=True, slots=True)
class Move:
    """Some slices of one group go from one server to another, all at once."""

    slices: tuple[int, ...]
    source: str
    destination: str


def redeal(owners: Sequence[str], sizes: Sequence[int], servers: Sequence[str]) -> list[Move]:
    """One move for each slice that is to have another server.

    What is on servers that are not among ``servers`` moves, the largest first, each to the
    lightest; then slices go from the heaviest to the lightest until no server has more than one
    slice's worth above another. Slice 0 stays where it is if it can: its server is the lead.

    Args:
        owners: the server of each slice.
        sizes: beside them, bytes; equal ones balance the number of slices.
        servers: those that are to hold slices, in the order in which ties go.

    Raises:
        ConfigurationError: no server.
    """
    if not servers:
        raise ConfigurationError("servers=[]: at least one server must hold slices")
    now = list(owners)
    loads = dict.fromkeys(servers, 0)
    for owner, size in zip(now, sizes, strict=True):
        if owner in loads:
            loads[owner] += size

    def give(slice_: int, server: str) -> None:
        if now[slice_] in loads:
            loads[now[slice_]] -= sizes[slice_]
        loads[server] += sizes[slice_]
        now[slice_] = server

    homeless = [i for i, owner in enumerate(now) if owner not in loads]
    for slice_ in sorted(homeless, key=lambda i: (-sizes[i], i)):
        give(slice_, min(servers, key=loads.__getitem__))
    while (step := _step(now, sizes, servers, loads)) is not None:
        give(*step)
    return [
        Move((i,), before, after)
        for i, (before, after) in enumerate(zip(owners, now, strict=True))
        if before != after
    ]


def _step(
    now: Sequence[str], sizes: Sequence[int], servers: Sequence[str], loads: Mapping[str, int]
) -> tuple[int, str] | None:
    """A slice of the heaviest server that the lightest should have; None: they are balanced."""
    heavy = max(servers, key=loads.__getitem__)
    light = min(servers, key=loads.__getitem__)
    gap = loads[heavy] - loads[light]
    if gap <= max(sizes, default=0):
        return None
    fitting = [i for i, owner in enumerate(now) if i and owner == heavy and 0 < sizes[i] < gap]
    if not fitting:
        return None
    # The largest that does not overshoot: few moves, and each byte moves once.
    return min(fitting, key=lambda i: (abs(gap - 2 * sizes[i]), i)), light


def batches(moves: Sequence[Move], sizes: Sequence[int], limit: int) -> Iterator[Move]:
    """The same moves, neighbours between the same servers together, of at most ``limit`` bytes."""
    ordered = sorted(moves, key=lambda m: (m.source, m.destination, m.slices))
    for (source, destination), group in groupby(ordered, key=lambda m: (m.source, m.destination)):
        part: list[int] = []
        for slice_ in (s for move in group for s in move.slices):
            if part and sum(sizes[i] for i in part) + sizes[slice_] > limit:
                yield Move(tuple(part), source, destination)
                part = []
            part.append(slice_)
        yield Move(tuple(part), source, destination)


def moved(slice_map: SliceMap, move: Move, version: int, addresses: Mapping[str, str]) -> SliceMap:
    """The map after a move; it names the servers that hold slices, and no other.

    Args:
        addresses: of servers that the map does not name yet.

    Raises:
        InvalidRequestError: a slice that is not where the move says.
    """
    names = [slice_map.servers[owner] for owner in slice_map.owners]
    for slice_ in move.slices:
        if names[slice_] != move.source:
            raise InvalidRequestError(
                f"slice {slice_} is on {names[slice_]}, not on {move.source}: it moved before"
            )
        names[slice_] = move.destination
    known = {**addresses, **dict(zip(slice_map.servers, slice_map.addresses, strict=True))}
    servers = sorted(set(names), key=lambda name: (len(name), name))
    at = {name: i for i, name in enumerate(servers)}
    return replace(
        slice_map,
        version=version,
        servers=tuple(servers),
        addresses=tuple(known[name] for name in servers),
        owners=tuple(at[name] for name in names),
        lead=at[names[0]],
    )


def holders(slice_map: SliceMap) -> list[str]:
    """The servers that have slices."""
    return [slice_map.servers[owner] for owner in sorted(set(slice_map.owners))]
