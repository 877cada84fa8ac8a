"""The comparison as a table."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from paramserver.compare.summary import Summary, Target

NOTHING = "-"


def show(
    summaries: Sequence[Summary], target: Target | None, finals: Sequence[str], console: Console
) -> None:
    """Prints one row for each scheme; what failed says why.

    Args:
        finals: scalars whose last values are shown.
    """
    head, rows = grid(summaries, target, finals)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, name in enumerate(head):
        reason = name == "failed"
        table.add_column(
            name,
            justify="left" if number == 0 or reason else "right",
            no_wrap=not reason,
            overflow="fold",
        )
    for row in rows:
        table.add_row(*row)
    console.print(table)


def grid(
    summaries: Sequence[Summary], target: Target | None, finals: Sequence[str]
) -> tuple[list[str], list[list[str]]]:
    """Headings and rows, as text."""
    failed = any(summary.error for summary in summaries)
    head = ["scheme"]
    if target is not None:
        head += [f"s to {target}", "samples to it"]
    head += ["samples/s", "staleness p50", "p99", "waited", "sent/sample", "received/sample"]
    head += [f"final {name}" for name in finals] + (["failed"] if failed else [])
    rows = [_row(summary, target, finals) for summary in summaries]
    if failed:
        rows = [[*row, summary.error] for row, summary in zip(rows, summaries, strict=True)]
    return head, rows


def _row(summary: Summary, target: Target | None, finals: Sequence[str]) -> list[str]:
    s = summary
    goal = [] if target is None else [number(s.target_s), count(s.target_samples)]
    if not s.samples:
        return [s.scheme, *([NOTHING] * (len(goal) + 6 + len(finals)))]
    return [
        s.scheme,
        *goal,
        count(s.samples_per_s),
        number(s.staleness_p50),
        number(s.staleness_p99),
        f"{100 * s.waited:.0f} %",
        size(s.sent_per_sample),
        size(s.received_per_sample),
        *(number(s.finals.get(name), 4) for name in finals),
    ]


def number(value: float | None, digits: int = 3) -> str:
    """A few significant digits, without an exponent."""
    if value is None:
        return NOTHING
    if not math.isfinite(value):
        return "diverged"
    shown = f"{value:.{digits}g}"
    return shown if "e" not in shown else f"{value:,.0f}" if abs(value) >= 1 else f"{value:.6f}"


def count(value: float | None) -> str:
    """Whole, thousands separated."""
    return NOTHING if value is None else f"{value:,.0f}"


def size(value: float) -> str:
    """Bytes as people say them: ``812 B``, ``3.4 KiB``."""
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} GiB"
