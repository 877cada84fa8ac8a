"""Puts a comparison into the docs: ``python benchmarks/schemes.py build/compare/results.json``.

Copies compare.svg and compare.png from the folder of the results to docs/explanation/schemes.*,
and writes the table between the two marks of docs/explanation/schemes.md.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from paramserver.compare.summary import Summary, Target
from paramserver.compare.tables import grid

PAGE = Path(__file__).resolve().parents[1] / "docs" / "explanation" / "schemes.md"
BEGIN, END = "<!-- begin: written by benchmarks/schemes.py -->", "<!-- end -->"


def main() -> None:
    results = Path(sys.argv[1])
    content = json.loads(results.read_text())
    for kind in ("svg", "png"):
        shutil.copyfile(results.with_name(f"compare.{kind}"), PAGE.with_suffix(f".{kind}"))
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{body(content)}\n{END}{after}")


def body(content: Mapping[str, Any]) -> str:
    """The command and the table, as Markdown."""
    settings = content["settings"]
    goal = settings["target"]
    target = Target(goal["name"], goal["value"]) if goal else None
    fields = Summary.__dataclass_fields__.keys() - {"curves"}
    summaries = [Summary(**{f: found[f] for f in fields}) for found in content["schemes"]]
    finals = sorted({name for one in summaries for name in one.finals} - {"loss"})
    head, rows = grid(summaries, target, finals)
    lines = [f"```\n{settings['command']}\n```\n"]
    lines += [f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
