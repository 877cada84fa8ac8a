"""Events per second of the scheduler's core: many workers, many data shards, no network.

Every worker asks for a shard and reports it done, in turn, until the epoch is drained.
"""

from __future__ import annotations

import argparse
import json
import time

from paramserver.config import SchedulerConfig
from paramserver.core.dataset import DatasetSpec, Drained, Leased
from paramserver.core.members import Caller, Role
from paramserver.scheduler.state import SchedulerState
from paramserver.types import ASSIGNMENTS, Span

BATCH = 32


def build(workers: int, shards: int, assign: str) -> tuple[SchedulerState, list[Caller]]:
    """A started job with one data set."""
    config = SchedulerConfig(workers=workers, assign=assign)
    state = SchedulerState(config, 0.0)
    state.register(Role.SERVER, "", 0.0, address="none:1", host="", pid=0)
    callers = []
    for _ in range(workers):
        done = state.register(Role.WORKER, "", 0.0, address="", host="", pid=0)
        callers.append(Caller(done.member.name, done.member.incarnation, state.members.job))
    spec = DatasetSpec("train", shards * BATCH, BATCH, BATCH, 0, True, assign)
    for caller in callers:
        state.open_dataset(caller, spec, 0.0)
    return state, callers


def epoch(state: SchedulerState, callers: list[Caller], number: int, sequence: int) -> int:
    """Drains one epoch; returns the events it took."""
    events = 0
    todo = list(callers)
    while todo:
        sequence += 1
        still = []
        for caller in todo:
            found = state.next_shard(caller, "train", number, sequence, False, 0.0)
            events += 1
            if isinstance(found, Leased):
                span = Span(found.lease, found.start, found.stop)
                state.report(caller, "train", [span], [], 0, 0.0)
                events += 1
                still.append(caller)
            elif not isinstance(found, Drained):
                still.append(caller)
        todo = still
    return events


def measure(workers: int, shards: int, assign: str) -> float:
    """Events per CPU-second of one drained epoch; one thread, so neighbours do not count."""
    state, callers = build(workers, shards, assign)
    begun = time.process_time()
    events = epoch(state, callers, 0, 0)
    seconds = time.process_time() - begun
    state.check_invariants()
    counts = state.data.get("train").counts()
    assert counts.samples_done == shards * BATCH
    return events / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=1_000)
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--repeat", type=int, default=3, help="the best of so many counts")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    args = parser.parse_args()
    rates = {
        a: round(max(measure(args.workers, args.shards, a) for _ in range(args.repeat)))
        for a in ASSIGNMENTS
    }
    if args.json:
        print(json.dumps({"workers": args.workers, "shards": args.shards, "events_per_s": rates}))
        return
    print(
        f"{args.workers} workers, {args.shards} data shards (wanted: 50,000 events per CPU-second)"
    )
    for assign, rate in rates.items():
        print(f"{assign:12} {rate:>10,} events per CPU-second")


if __name__ == "__main__":
    main()
