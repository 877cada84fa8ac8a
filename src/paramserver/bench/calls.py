"""Small calls: blocking round trips of 4 KiB, and pushes with 64 in flight."""

from __future__ import annotations

from paramserver.bench.exchange import Rig, Sample, opened
from paramserver.bench.goodput import OURS, TORCH_RPC, interleave, openers
from paramserver.bench.results import Row, Section
from paramserver.bench.settings import KIB, Settings
from paramserver.bench.stats import Stat

SIZE = 4 * KIB
BLOCKING = "blocking push_pull"
BLOCKING_PUSH = "blocking push"
PIPELINED = "64 pushes in flight"
OPERATIONS = {"push_pull": BLOCKING, "push": BLOCKING_PUSH, "pipelined": PIPELINED}
MOST_REPEATS = 20_000


def run(settings: Settings) -> Section:
    """Measure calls per second and CPU per call, one server and one worker."""
    section = Section("calls")
    with opened(openers(settings), 1, 1, section.notes, OURS) as rigs:
        for rig in rigs:
            rig.setup(SIZE, 1)
        for operation, label in OPERATIONS.items():
            settings.say(f"calls: {label}")
            able = [rig for rig in rigs if _does(rig, operation)]
            for name, samples in interleave(able, operation, settings, MOST_REPEATS).items():
                section.rows.append(_row(name, label, samples))
    _check(section)
    return section


def _does(rig: Rig, operation: str) -> bool:
    return operation != "pipelined" or rig.name in (OURS, TORCH_RPC)


def _row(contender: str, label: str, samples: list[Sample]) -> Row:
    rates = tuple(sample.calls / sample.seconds for sample in samples)
    costs = tuple(1e6 * sample.cpu / sample.calls for sample in samples)
    metrics = {"calls/s": Stat(rates), "CPU µs/call": Stat(costs)}
    return Row(contender, {"operation": label, "bytes": SIZE}, metrics)


def _check(section: Section) -> None:
    def rate(contender: str, operation: str) -> Stat | None:
        return section.stat("calls/s", contender, operation=operation)

    blocking, peer = rate(OURS, BLOCKING), rate(TORCH_RPC, BLOCKING)
    section.check_ratio(f"4 KiB round trips over {TORCH_RPC}", blocking, peer, 1.1)
    flying, peer = rate(OURS, PIPELINED), rate(TORCH_RPC, BLOCKING_PUSH)
    section.check_ratio(f"64 pushes in flight over blocking {TORCH_RPC}", flying, peer, 5.0)
    flying_peer = rate(TORCH_RPC, PIPELINED)
    section.check_ratio(f"64 pushes in flight over {TORCH_RPC} likewise", flying, flying_peer, 1.0)
