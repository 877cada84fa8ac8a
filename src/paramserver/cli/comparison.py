"""One scheme of a comparison after the other: each on a fresh cluster, each with its budget."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from paramserver.cli import options
from paramserver.cli.output import Output
from paramserver.cli.plan import Plan
from paramserver.cli.progress import count
from paramserver.cli.supervisor import Supervisor
from paramserver.launch import Child
from paramserver.trust import from_environment

if TYPE_CHECKING:
    from paramserver.compare.runs import Budget, Meter
    from paramserver.compare.summary import Summary, Target


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What all schemes have in common."""

    servers: int
    workers: int
    assign: str
    lease_s: float
    command: list[str]
    environment: dict[str, str]
    budget: Budget
    target: Target | None
    limit_s: float
    out: Path

    def run(self, scheme: str, label: str) -> tuple[Summary, int]:
        """Runs one scheme to the end of its budget: its figures, and the exit code."""
        from paramserver.compare.runs import Meter, read_run
        from paramserver.compare.summary import summarise

        folder = self.out / re.sub(r"[^\w.=-]+", "_", scheme)
        make_folder(folder)
        for file in folder.glob("*.jsonl"):
            file.unlink()
        watch = Watch(Meter(folder, self.budget), self.limit_s)
        plan = Plan(
            servers=self.servers,
            workers=self.workers,
            assign=self.assign,
            lease_s=self.lease_s,
            max_restarts=3,
            command=self.command,
            environment={**self.environment, **options.worker_settings(scheme, folder)},
            trust=from_environment(os.environ),
            enough=watch,
        )
        with (
            tempfile.TemporaryDirectory(prefix="paramserver-") as identities,
            (folder / "output.txt").open("w", encoding="utf-8") as log,
            Recorder(label, log) as output,
        ):
            supervisor = Supervisor(plan, output, Path(identities))
            code = supervisor.run()
        error = supervisor.why
        if watch.late and not error:
            error = f"not done after {self.limit_s:g} s (--limit)"
        summary = summarise(scheme, read_run(folder, self.budget), self.target, error)
        if code <= 128:  # not ended by a signal
            _warn_of_rest(summary, self.budget)
        return summary, code


def make_folder(folder: Path) -> None:
    """Makes a folder for results, if it is not there.

    Raises:
        click.UsageError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.UsageError(f"{folder}: {error.strerror}; name another folder") from error


class Watch:
    """Tells a supervisor when a run has had enough.

    Attributes:
        late: it was stopped for taking too long, whatever its budget.
    """

    def __init__(self, meter: Meter, limit_s: float) -> None:
        """The limit counts from now."""
        self._meter = meter
        self._deadline = time.monotonic() + limit_s
        self.late = False

    def __call__(self) -> bool:
        """Looks at the run files."""
        if self._meter.used_up(time.time()):
            return True
        self.late = time.monotonic() > self._deadline
        return self.late


class Recorder(Output):
    """Output of one scheme: what its processes say goes to a file, not to the terminal."""

    def __init__(self, label: str, log: TextIO) -> None:
        """``label`` begins the live line."""
        super().__init__()
        self._label = label
        self._log = log

    def line(self, child: Child, stream: str, line: str) -> None:
        """A line that a child wrote."""
        with self._lock:
            if not self._log.closed:  # what a dying process says last may come late
                self._log.write(f"{child.name} │ {line}\n")

    def status(self, line: str) -> None:
        """The live line, behind the scheme's name."""
        super().status(f"{self._label}: {line}")


def _warn_of_rest(summary: Summary, budget: Budget) -> None:
    wanted = budget.samples
    if not summary.error and wanted is not None and summary.samples < wanted:
        short = budget.seconds is None
        click.echo(
            f"{summary.scheme}: {summary.samples:,.0f} of {wanted:,} samples, then "
            + ("the script had ended: let it run for more epochs" if short else "the time was up"),
            err=True,
        )


def report(
    comparison: Comparison, summaries: Sequence[Summary], curve: str | None, json_file: Path | None
) -> None:
    """The table, the picture and the JSON."""
    from rich.console import Console

    from paramserver.compare import picture, summary, tables

    name = summary.main_curve(summaries, curve)
    target = comparison.target
    wanted = [curve, target.name if target is not None else None]
    logged = sorted({found for one in summaries for found in one.finals})
    for missing in {want for want in wanted if want is not None and want not in logged}:
        said = ", ".join(logged) or "nothing"
        click.echo(f"{missing} was never logged; client.log was given: {said}", err=True)
    finals = list(dict.fromkeys(one for one in (name, wanted[1]) if one in logged))
    console = Console() if sys.stdout.isatty() else Console(width=200)
    tables.show(summaries, target, [one for one in finals if one is not None], console)
    if name is not None and picture.can_draw():
        files = picture.draw(
            summaries, name, target, _title(comparison), comparison.out / "compare"
        )
        click.echo(f"picture: {', '.join(map(str, files))}")
    if json_file is not None:
        summary.save(summaries, _settings(comparison), json_file)


def _title(comparison: Comparison) -> str:
    emulated = comparison.environment.get("PARAMSERVER_EMULATE", "")
    how = [count(comparison.workers, "worker"), count(comparison.servers, "server")]
    slow = re.search(r"slow=\d+:([\d.]+)", emulated)
    jitter = re.search(r"jitter=([\d.]+):([\d.]+)", emulated)
    how += [f"one worker {slow[1]} times slower"] if slow else []
    how += [f"{100 * float(jitter[1]):g} % of steps {jitter[2]} times slower"] if jitter else []
    return ", ".join(how)


def _settings(comparison: Comparison) -> dict[str, object]:
    budget, target = comparison.budget, comparison.target
    return {
        "command": " ".join(["paramserver", *sys.argv[1:]]),
        "servers": comparison.servers,
        "workers": comparison.workers,
        "assign": comparison.assign,
        "budget_samples": budget.samples,
        "budget_seconds": budget.seconds,
        "target": None if target is None else {"name": target.name, "value": target.value},
        "environment": comparison.environment,
    }
