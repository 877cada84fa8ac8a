"""Goodput: GB/s and CPU-seconds per GB of push, pull and push_pull, ours beside the peers'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from paramserver.bench.exchange import DIRECTIONS, OPERATIONS, Opener, Rig, Sample, opened
from paramserver.bench.results import Check, Label, Row, Section
from paramserver.bench.settings import MIB, Settings
from paramserver.bench.stats import Stat, flatness, repetitions
from paramserver.bench.tables import size_text

OURS = "paramserver"
SOCKET = "socket copy"
SOCKET_REUSE = "socket, kept buffers"
SOCKET_ADD = "socket, kept, add"
TORCH_RPC = "torch.rpc (uv)"
MOST_REPEATS = 2000


def openers(settings: Settings) -> dict[str, Opener]:
    """How to start each contender."""
    found: dict[str, Opener] = {}
    if settings.ours:
        from paramserver.bench.product import open_product

        found[OURS] = partial(open_product, OURS)
    if settings.peers:
        from paramserver.bench.sockets import open_sockets
        from paramserver.bench.torch_rpc import open_rpc

        found[SOCKET] = partial(open_sockets, SOCKET, False, False)
        found[SOCKET_REUSE] = partial(open_sockets, SOCKET_REUSE, False, True)
        found[SOCKET_ADD] = partial(open_sockets, SOCKET_ADD, True, True)
        found[TORCH_RPC] = partial(open_rpc, TORCH_RPC)
    return found


def interleave(
    rigs: Sequence[Rig], operation: str, settings: Settings, most: int = MOST_REPEATS
) -> dict[str, list[Sample]]:
    """Samples of one operation, each about ``settings.target`` seconds; see ``in_turn``."""
    repeats = {}
    for rig in rigs:
        rig.sample(operation, 1)
        first = rig.sample(operation, 1)
        repeats[rig.name] = repetitions(first.seconds, settings.target, most)
    return in_turn(rigs, operation, settings.samples, repeats)


def in_turn(
    rigs: Sequence[Rig], operation: str, samples: int, repeats: Mapping[str, int]
) -> dict[str, list[Sample]]:
    """A warm-up round and then samples, the contenders in turn, every other round reversed."""
    taken: dict[str, list[Sample]] = {rig.name: [] for rig in rigs}
    for number in range(samples + 1):
        for rig in rigs if number % 2 == 0 else reversed(rigs):
            taken[rig.name].append(rig.sample(operation, repeats[rig.name]))
    return {name: found[1:] for name, found in taken.items()}


def copies_of(size: int) -> int:
    """Independent payloads per worker: a pull of an unchanged value would send nothing, so small
    sizes get several to make a pull worth timing."""
    return max(1, min(16, 4 * MIB // size))


def run(settings: Settings) -> Section:
    """Measure all sizes, operations and topologies."""
    section = Section("goodput")
    for servers, workers in settings.topologies:
        with opened(openers(settings), servers, workers, section.notes, OURS) as rigs:
            for size in settings.sizes:
                settings.say(f"goodput: servers {servers}, workers {workers}, {size_text(size)}")
                for rig in rigs:
                    rig.setup(size, copies_of(size))
                labels = {"bytes": size, "servers": servers, "workers": workers}
                for operation in OPERATIONS:
                    for name, samples in interleave(rigs, operation, settings).items():
                        section.rows.append(_row(name, operation, labels, samples))
    _check(section, settings)
    return section


def _row(contender: str, operation: str, labels: dict[str, int], samples: list[Sample]) -> Row:
    payload = labels["bytes"] * DIRECTIONS[operation] / 1e9
    speeds = tuple(payload * sample.calls / sample.seconds for sample in samples)
    costs = tuple(sample.cpu / (payload * sample.calls) for sample in samples)
    metrics = {"GB/s": Stat(speeds), "CPU-s/GB": Stat(costs)}
    return Row(contender, {"operation": operation, **labels}, metrics)


def _check(section: Section, settings: Settings) -> None:
    where: dict[str, Label] = {
        "operation": "push_pull",
        "bytes": 64 * MIB,
        "servers": 1,
        "workers": 1,
    }
    ours = section.stat("GB/s", OURS, **where)
    for base, wanted in ((SOCKET, 0.6), (SOCKET_REUSE, 0.6), (TORCH_RPC, 0.85)):
        other = section.stat("GB/s", base, **where)
        section.check_ratio(f"64 MiB push_pull over {base}", ours, other, wanted)
    where.pop("bytes")
    large = [size for size in settings.sizes if size >= 4 * MIB]
    found = [section.stat("GB/s", OURS, **where, bytes=size) for size in large]
    medians = [stat.median for stat in found if stat]
    if len(medians) > 1:
        name = f"flatness of push_pull, {large[0] // MIB} to {large[-1] // MIB} MiB"
        section.checks.append(Check(name, flatness(medians), ">=", 0.75))
