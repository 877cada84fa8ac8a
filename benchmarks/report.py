"""Turns the JSON of ``paramserver bench --json FILE`` into docs/explanation/benchmarks.md.

python benchmarks/report.py FILE... [--output PAGE]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from paramserver.bench.results import Results, Section, from_json
from paramserver.bench.tables import TITLES, check_grid, grids, markdown

PAGE = Path(__file__).resolve().parent.parent / "docs" / "explanation" / "benchmarks.md"
HOW = """\
Everything ran on loopback, each role in a process of its own, kernels on one thread. The
contenders of a table were started side by side and sampled in turn, so the ratios hold where
the absolute figures depend on the machine. A figure is the median of {samples} samples after a
warm-up; (a to b) is the range of the samples. A ratio is the median of the ratios of the rounds.
GB are 1e9 bytes of float32 payload; push_pull counts both directions. CPU-seconds are user +
system of all processes of a contender.

- **socket copy**: plain Python TCP sockets, without names, checks or checksums, that receive into
  a fresh buffer each time, as code that hands its values out does; **kept buffers**: both sides
  receive into buffers made once, a ceiling; **kept, add**: the server adds with NumPy too.
- **torch.rpc (uv)**: `torch.distributed.rpc` over its TCP transport; the server adds and returns.
- **DDP gloo**, **torch.rpc PS**: two ranks; one server with SGD and two workers.
- Our workers run with the allocator settings that `paramserver run` gives them, the baselines with
  plain malloc.
- A pull is preceded by a push that is not timed: an unchanged value would not be sent again.
"""


def joined(runs: Sequence[Results]) -> Results:
    """Several runs on one machine as one; ratios hold within each section, not between them."""
    return replace(
        runs[0],
        command="\n$ ".join(run.command for run in runs),
        quick=any(run.quick for run in runs),
        seconds=sum(run.seconds for run in runs),
        sections=[section for run in runs for section in run.sections],
    )


def page(results: Results) -> str:
    """The whole page as Markdown."""
    parts = ["# Benchmarks", "<!-- made by benchmarks/report.py; do not edit -->"]
    if results.quick:
        parts.append("**A quick try-out: not figures to quote.**")
    parts.append(f"```console\n$ {results.command}\n```")
    parts.append(f"It took {results.seconds / 60:.0f} minutes on this machine:")
    parts.append("\n".join(f"- {name}: {value}" for name, value in results.machine.items()))
    parts.append(HOW.format(samples=_samples(results)).rstrip())
    checks = [check for section in results.sections for check in section.checks]
    if checks:
        parts += ["## Wanted and seen", markdown(check_grid(checks)).rstrip()]
    for section in results.sections:
        parts += _section(section)
    return "\n\n".join(parts) + "\n"


def _section(section: Section) -> list[str]:
    parts = [f"## {TITLES.get(section.name, section.name)}"]
    for grid in grids(section):
        if section.name == "goodput":
            parts.append(f"### {grid.title}")
        parts.append(markdown(grid).rstrip())
    return parts + [f"Note: {note}" for note in section.notes]


def _samples(results: Results) -> int:
    rows = [row for section in results.sections for row in section.rows]
    return max((len(s.samples) for row in rows for s in row.metrics.values()), default=0)


def main() -> None:
    """Read the arguments and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("files", type=Path, nargs="+", help="JSON of paramserver bench")
    parser.add_argument("--output", type=Path, default=PAGE, help="the page to write")
    arguments = parser.parse_args()
    text = page(joined([from_json(f.read_text(encoding="utf-8")) for f in arguments.files]))
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
