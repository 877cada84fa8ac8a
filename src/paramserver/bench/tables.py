"""Results as tables: one layout, drawn by rich in a terminal and as Markdown in the docs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from rich.console import Console
from rich.table import Table

from paramserver.bench.results import Check, Label, Results, Row, Section
from paramserver.bench.settings import KIB, MIB
from paramserver.bench.stats import Stat

TITLES = {
    "goodput": "Goodput",
    "calls": "Small calls",
    "train": "Training: MLP of 25.1 M parameters, batch 64, two workers, one server",
    "memory": "Memory",
    "imports": "Start-up",
    "rows": "Tables: rows of 64 floats with Adagrad, one server",
}
RATIO_METRIC = "GB/s"
NOTHING = "-"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Grid:
    """A table without a look: a title, headings, rows of text."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def size_text(size: int) -> str:
    """Bytes as people say them: 4 KiB, 64 MiB."""
    if size >= MIB and size % MIB == 0:
        return f"{size // MIB} MiB"
    if size >= KIB and size % KIB == 0:
        return f"{size // KIB} KiB"
    return f"{size} B"


def number_text(value: float) -> str:
    """Three significant digits; thousands separated; no exponent."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) >= 100 or value == 0:
        return f"{value:.0f}"
    digits = 2 if abs(value) >= 1 else 3
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.{digits}f}"


def stat_text(stat: Stat) -> str:
    """The median, with the range of the samples where there are several."""
    if len(stat.samples) == 1:
        return number_text(stat.median)
    return f"{number_text(stat.median)} ({number_text(stat.low)} to {number_text(stat.high)})"


def grids(section: Section) -> Iterator[Grid]:
    """The tables of a section."""
    if section.name == "goodput":
        yield from _goodput(section)
    elif section.rows:
        yield _plain(section)


def check_grid(checks: Sequence[Check]) -> Grid:
    """Wanted figures beside those seen."""
    rows = tuple(
        (
            check.name,
            number_text(check.seen),
            f"{'≥' if check.relation == '>=' else '≤'} {number_text(check.wanted)}",
            "yes" if check.met else "no",
        )
        for check in checks
    )
    return Grid("Wanted and seen", ("figure", "seen", "wanted", "met"), rows)


def show(results: Results, console: Console) -> None:
    """Print all tables."""
    for section in results.sections:
        for grid in grids(section):
            console.print(_rich(grid))
        for note in section.notes:
            console.print(f"note: {note}", markup=False)
    checks = [check for section in results.sections for check in section.checks]
    if checks:
        console.print(_rich(check_grid(checks)))


def markdown(grid: Grid) -> str:
    """A grid as a Markdown table, numbers to the right."""
    aligned = ["---" if number == 0 else "---:" for number in range(len(grid.columns))]
    lines = [grid.columns, tuple(aligned), *grid.rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _goodput(section: Section) -> Iterator[Grid]:
    """A table per topology and operation: a row per size, two columns per contender."""
    places = _unique((r.labels["servers"], r.labels["workers"]) for r in section.rows)
    operations = _unique(row.labels["operation"] for row in section.rows)
    names = _unique(row.contender for row in section.rows)
    for servers, workers in places:
        for operation in operations:
            labels = {"operation": operation, "servers": servers, "workers": workers}
            title = f"{operation}: {_count(servers, 'server')}, {_count(workers, 'worker')}"
            yield Grid(title, ("payload", *_heads(names)), _goodput_rows(section, names, labels))


def _heads(names: Sequence[str]) -> list[str]:
    ratios = [f"{names[0]} over {name}" for name in names[1:]]
    return [f"{name}: GB/s (CPU-s/GB)" for name in names] + ratios


def _goodput_rows(
    section: Section, names: Sequence[str], labels: dict[str, Label]
) -> tuple[tuple[str, ...], ...]:
    rows = []
    for size in _unique(row.labels["bytes"] for row in section.rows):
        found = [section.find(name, **labels, bytes=size) for name in names]
        if found[0] is None:
            continue
        first = found[0].metrics[RATIO_METRIC]
        ratios = [
            number_text(first.over(row.metrics[RATIO_METRIC]).median) if row else NOTHING
            for row in found[1:]
        ]
        rows.append((size_text(int(size)), *(_goodput_cell(row) for row in found), *ratios))
    return tuple(rows)


def _goodput_cell(row: Row | None) -> str:
    if row is None:
        return NOTHING
    speed, cost = (row.metrics[name].median for name in (RATIO_METRIC, "CPU-s/GB"))
    return f"{number_text(speed)} ({number_text(cost)})"


def _plain(section: Section) -> Grid:
    """A row per measured row: labels, then metrics with their range."""
    labels = _unique(name for row in section.rows for name in row.labels)
    metrics = _unique(name for row in section.rows for name in row.metrics)
    rows = []
    for row in section.rows:
        told = [_label_text(name, row.labels.get(name)) for name in labels]
        seen = [stat_text(row.metrics[m]) if m in row.metrics else NOTHING for m in metrics]
        rows.append((row.contender, *told, *seen))
    return Grid(TITLES.get(section.name, section.name), ("", *labels, *metrics), tuple(rows))


def _label_text(name: str, value: Label | None) -> str:
    if value is None:
        return NOTHING
    return size_text(int(value)) if name == "bytes" else str(value)


def _rich(grid: Grid) -> Table:
    table = Table(title=grid.title, title_justify="left")
    for number, column in enumerate(grid.columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    for row in grid.rows:
        table.add_row(*row)
    return table


def _unique(values: Iterable[T]) -> list[T]:
    return list(dict.fromkeys(values))


def _count(number: Label, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
