"""All sections in one run."""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence

from paramserver.bench.machine import describe
from paramserver.bench.processes import environment
from paramserver.bench.results import Results
from paramserver.bench.settings import Settings

SECTIONS = ("goodput", "calls", "train", "memory", "imports", "rows")
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",  # rpc warns of peers that leave at the end
}


def measure(names: Sequence[str], settings: Settings, command: str, quick: bool) -> Results:
    """Run these sections, kernels on one thread."""
    results = Results(command=command, machine=describe(), quick=quick)
    start = time.monotonic()
    with environment(ENVIRONMENT):
        for name in names:
            section = importlib.import_module(f"paramserver.bench.{name}")
            results.sections.append(section.run(settings))
    results.seconds = time.monotonic() - start
    return results
