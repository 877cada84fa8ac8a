"""What a run of the benchmarks leaves behind: rows of figures, checks, and their JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from paramserver.bench.stats import Stat

FORMAT = 1
Label = str | int
Relation = Literal[">=", "<="]


@dataclass(frozen=True, slots=True)
class Row:
    """The figures of one contender in one situation.

    Attributes:
        contender: who was measured.
        labels: the situation: operation, bytes, servers, workers ...
        metrics: figures by name; the unit is part of the name.
    """

    contender: str
    labels: Mapping[str, Label]
    metrics: Mapping[str, Stat]

    def matches(self, contender: str, labels: Mapping[str, Label]) -> bool:
        """Whether this is the row of that contender in a situation with these labels."""
        if self.contender != contender:
            return False
        return all(self.labels.get(name) == value for name, value in labels.items())


@dataclass(frozen=True, slots=True)
class Check:
    """A wanted figure beside the one seen."""

    name: str
    seen: float
    relation: Relation
    wanted: float

    @property
    def met(self) -> bool:
        return self.seen >= self.wanted if self.relation == ">=" else self.seen <= self.wanted


@dataclass(slots=True)
class Section:
    """One benchmark: rows, checks, and notes in words (a contender that could not run)."""

    name: str
    rows: list[Row] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def find(self, contender: str, **labels: Label) -> Row | None:
        """The first row of a contender with these labels."""
        return next((row for row in self.rows if row.matches(contender, labels)), None)

    def stat(self, metric: str, contender: str, **labels: Label) -> Stat | None:
        """One figure of the row ``find`` gives."""
        row = self.find(contender, **labels)
        return row.metrics.get(metric) if row else None

    def check_ratio(self, name: str, ours: Stat | None, base: Stat | None, wanted: float) -> None:
        """Add "ours is at least ``wanted`` times the base", where both were measured."""
        if ours is not None and base is not None:
            self.checks.append(Check(name, ours.over(base).median, ">=", wanted))


@dataclass(slots=True)
class Results:
    """A whole run.

    Attributes:
        command: the exact command that made it.
        machine: facts of the machine and the versions, as text.
        quick: few samples: a try-out, not figures to quote.
    """

    command: str
    machine: Mapping[str, str]
    quick: bool
    seconds: float = 0.0
    sections: list[Section] = field(default_factory=list)


def to_json(results: Results) -> str:
    """The run as JSON text."""
    body = {
        "format": FORMAT,
        "command": results.command,
        "machine": dict(results.machine),
        "quick": results.quick,
        "seconds": round(results.seconds, 1),
        "sections": {section.name: _section_out(section) for section in results.sections},
    }
    return json.dumps(body, indent=1) + "\n"


def from_json(text: str) -> Results:
    """The run that ``to_json`` wrote; raises ValueError for another format."""
    body = json.loads(text)
    if body.get("format") != FORMAT:
        raise ValueError(f"benchmark results of format {body.get('format')!r}: must be {FORMAT}")
    return Results(
        command=body["command"],
        machine=body["machine"],
        quick=body["quick"],
        seconds=body["seconds"],
        sections=[_section_in(name, part) for name, part in body["sections"].items()],
    )


def save(results: Results, path: Path) -> None:
    """Write the run to a file."""
    path.write_text(to_json(results), encoding="utf-8")


def unmet(sections: Iterable[Section]) -> list[Check]:
    """The checks that a run did not meet."""
    return [check for section in sections for check in section.checks if not check.met]


def _section_out(section: Section) -> dict[str, Any]:
    return {
        "rows": [
            {
                "contender": row.contender,
                **row.labels,
                "metrics": {name: _stat_out(stat) for name, stat in row.metrics.items()},
            }
            for row in section.rows
        ],
        "checks": [
            {
                "name": check.name,
                "seen": round(check.seen, 4),
                "relation": check.relation,
                "wanted": check.wanted,
                "met": check.met,
            }
            for check in section.checks
        ],
        "notes": section.notes,
    }


def _stat_out(stat: Stat) -> dict[str, Any]:
    return {
        "median": float(f"{stat.median:.6g}"),
        "samples": [float(f"{sample:.6g}") for sample in stat.samples],
    }


def _section_in(name: str, part: Mapping[str, Any]) -> Section:
    rows = []
    for row in part["rows"]:
        labels = {k: v for k, v in row.items() if k not in ("contender", "metrics")}
        metrics = {k: Stat(tuple(v["samples"])) for k, v in row["metrics"].items()}
        rows.append(Row(row["contender"], labels, metrics))
    checks = [Check(c["name"], c["seen"], c["relation"], c["wanted"]) for c in part["checks"]]
    return Section(name, rows, checks, list(part["notes"]))
