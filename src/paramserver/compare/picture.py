"""The comparison as one picture: a curve over wall time, and over samples."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from paramserver.compare.summary import POINTS, Summary, Target, falls

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Told apart by people who see colours differently too (Okabe and Ito, 2008), and by their dashes.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C564B")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
STYLE = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 10,
    "grid.alpha": 0.25,
    "svg.fonttype": "path",
    "svg.hashsalt": "paramserver",  # the same picture has the same bytes
}


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def draw(
    summaries: Sequence[Summary], name: str, target: Target | None, title: str, stem: Path
) -> list[Path]:
    """Writes STEM.svg and STEM.png; schemes that never logged the scalar are left out.

    Args:
        name: of the scalar.
        target: a line, if it is of this scalar.
        title: above both panels.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = [summary for summary in summaries if name in summary.curves]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 4.6), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2, sharey=True)
        for axes, over in ((left, "seconds"), (right, "samples")):
            _panel(axes, drawn, name, over, target)
        left.set_ylabel(name.replace("_", " "))
        figure.suptitle(title, fontsize=11)
        handles, labels = left.get_legend_handles_labels()
        columns = min(5, max(1, len(labels)))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
        stem.parent.mkdir(parents=True, exist_ok=True)
        files = [stem.with_name(f"{stem.name}.{kind}") for kind in ("svg", "png")]
        figure.savefig(files[0], metadata={"Date": None})
        figure.savefig(files[1], dpi=150)
    return files


def _panel(
    axes: Axes, drawn: Sequence[Summary], name: str, over: str, target: Target | None
) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    for i, summary in enumerate(drawn):
        curve = summary.curves[name].thinned(POINTS)
        colour, dash = COLOURS[i % len(COLOURS)], DASHES[i // 2 % len(DASHES)]
        axes.plot(
            getattr(curve, over),
            curve.values,
            color=colour,
            linestyle=dash,
            linewidth=1.6,
            label=summary.scheme,
        )
    if target is not None and target.name == name:
        axes.axhline(target.value, color="0.5", linewidth=1, linestyle=":")
    axes.set_xlabel("wall time (s)" if over == "seconds" else "samples, all workers")
    axes.set_xlim(left=0)
    if over == "samples":
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    low, high = _limits(drawn, name)
    if falls(name) and low > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylim(low, high)


def _limits(drawn: Sequence[Summary], name: str) -> tuple[float, float]:
    """From the best value of all to the worst that a curve begins with: who diverges leaves."""
    values = [summary.curves[name].values for summary in drawn]
    finite = np.concatenate([v[np.isfinite(v)] for v in values])
    firsts = [float(v[np.isfinite(v)][0]) for v in values if np.isfinite(v).any()]
    if not firsts:
        return 0.0, 1.0
    if falls(name):
        low, high = float(finite.min()), max(firsts)
        return (0.9 * low if low > 0 else low - 0.05 * abs(high - low)), high + 0.1 * abs(high)
    low, high = min(firsts), float(finite.max())
    room = 0.03 * (high - low) or 0.1
    return low - room, high + room
