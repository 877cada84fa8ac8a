"""Grow one table through the API, in a server whose memory is capped, and watch pulls meanwhile.

python benchmarks/table_growth.py [--rows 100_000_000] [--dim 4] [--cap-gib 16]
"""

from __future__ import annotations

import argparse
import resource
import threading
import time

import paramserver as ps
from paramserver.bench.processes import Agent, peak_rss, rss
from paramserver.bench.product import start_workers
from paramserver.bench.row_agents import PIECE, Filler
from paramserver.bench.rows import allowed_bytes

GIB = 1 << 30
WATCHED = 1000  # rows of a watched pull
STEP = 20 * PIECE


def main() -> None:
    """Prints a line now and then, and the figures at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--dim", type=int, default=4)
    parser.add_argument("--cap-gib", type=int, default=16, help="address space of the server")
    options = parser.parse_args()
    with ps.local_cluster(1, workers=2) as cluster:
        agents = [Agent(Filler, (cluster.address, options.dim, "growth"))] * 2
        with start_workers(agents) as fleet:
            server = cluster.processes["ps-0"]
            resource.prlimit(server, resource.RLIMIT_AS, (options.cap_gib * GIB,) * 2)
            before, began = rss(server), time.perf_counter()
            took: list[float] = []
            done = threading.Event()

            def watch() -> None:
                while not done.is_set():
                    took.extend(fleet.ask(1, "watch", WATCHED, options.rows, 1.0))

            watcher = threading.Thread(target=watch)
            watcher.start()
            try:
                for start in range(0, options.rows, STEP):
                    fleet.ask(0, "fill", start, min(start + STEP, options.rows), timeout=600.0)
                    seconds = time.perf_counter() - began
                    if start // STEP % 5 == 4:
                        print(f"{start + STEP:>12,} rows after {seconds:.0f} s", flush=True)
            finally:
                done.set()
                watcher.join()
            seconds, size = time.perf_counter() - began, fleet.ask(0, "size")
            after, peak = rss(server), peak_rss(server)
    took.sort()
    allowed = allowed_bytes(options.rows, options.dim, options.dim)
    print(f"{size:,} rows of {options.dim} floats with Adagrad in {seconds:.0f} s")
    print(f"server: {(after - before) / GIB:.2f} GiB for rows, peak {peak / GIB:.2f} GiB in all")
    print(f"bytes per row: {(after - before) / size:.0f}; allowed {allowed / options.rows:.0f}")
    middle, late, worst = (1e3 * took[int(q * (len(took) - 1))] for q in (0.5, 0.99, 1.0))
    print(
        f"pulls of {WATCHED} rows meanwhile: {len(took)}, median {middle:.1f} ms, "
        f"p99 {late:.1f} ms, longest {worst:.0f} ms"
    )


if __name__ == "__main__":
    main()
