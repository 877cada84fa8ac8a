"""One target guided by coverage, with atheris: ``python -m tests.fuzz.guided frame 60``.

A process of its own: libFuzzer ends the process that it runs in.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from tests.quiet import quiet

GUIDED = ("frame", "snapshot", "journal")
LIMITS = ("-timeout=2", "-rss_limit_mb=2048", "-max_len=65536", "-print_final_stats=1")


def available() -> bool:
    """Whether atheris is installed."""
    return find_spec("atheris") is not None


def guided(target: str, seconds: float) -> tuple[bool, str]:
    """Whether nothing was found, and the end of what libFuzzer said."""
    command = [sys.executable, "-m", "tests.fuzz.guided", target, str(int(seconds))]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    said = done.stdout.decode(errors="replace").splitlines()
    if done.returncode:
        return False, "\n".join(said[-40:])
    return True, " ".join(line for line in said if "number_of_executed_units" in line)


def main() -> None:
    """Does not return."""
    import atheris  # type: ignore[import-not-found, import-untyped, unused-ignore]

    name, seconds = sys.argv[1:]
    with atheris.instrument_imports(include=["paramserver"]):
        from tests.fuzz.targets import targets
    (target,) = [t for t in targets() if t.name == name]
    corpus = Path(tempfile.mkdtemp(prefix="paramserver-corpus-"))
    for number, seed in enumerate(target.seeds):
        (corpus / str(number)).write_bytes(seed)

    def one(data: bytes) -> None:
        with suppress(*target.refusals):
            target.read(data)

    arguments = [sys.argv[0], str(corpus), f"-max_total_time={seconds}", *LIMITS]
    atheris.Setup(arguments, one)
    with quiet():
        atheris.Fuzz()


if __name__ == "__main__":
    main()
