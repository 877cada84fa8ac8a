"""The examples do on a real cluster what they say they do."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def clean_environment() -> dict[str, str]:
    """Ours without what names a cluster."""
    return {key: value for key, value in os.environ.items() if not key.startswith("PARAMSERVER_")}


def output_of(*command: str, timeout: float = 240) -> str:
    """What a command printed, once it has ended well."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def cluster(servers: int, workers: int, example: str, *args: str) -> str:
    return output_of(
        "-m", "paramserver", "run", f"-s{servers}", f"-w{workers}", f"examples/{example}.py", *args
    )


def accuracy(text: str) -> float:
    """The one accuracy that the chief printed, in percent."""
    found = re.findall(r"test accuracy ([\d.]+) %", text)
    assert len(found) == 1, text
    return float(found[0])


@pytest.mark.parametrize("consistency", ["sync", "stale:3", "async"])
def test_digits(consistency: str) -> None:
    assert accuracy(cluster(2, 4, "digits", "--consistency", consistency)) >= 97


def test_digits_without_a_cluster() -> None:
    assert accuracy(output_of("examples/digits.py", "--epochs", "8")) >= 97


def test_by_hand() -> None:
    assert accuracy(cluster(1, 2, "by_hand")) >= 95


def test_char_lm(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("to be or not to be, that is the question. " * 2_000)
    said = cluster(2, 2, "char_lm", "--text", str(text), "--epochs", "1")
    bits = re.findall(r"epoch 0: ([\d.]+) bits per byte", said)
    assert len(bits) == 1, said
    # Uniform bytes cost 8 bits; letters by their frequency alone about 4.
    assert float(bits[0]) < 3


def test_words() -> None:
    said = cluster(2, 2, "words")
    near = dict(re.findall(r"(\w+): ([\w ]+)\n", said))
    assert {"stdin", "stderr"} & set(near["stdout"].split()), said


def area(text: str) -> float:
    """The one area under the ROC curve that the chief printed."""
    found = re.findall(r"test AUC ([\d.]+)", text)
    assert len(found) == 1, text
    return float(found[0])


@pytest.mark.parametrize("tables", [(), ("--tables", "async", "--tau", "4")], ids=["sync", "async"])
def test_wide_and_deep(tables: tuple[str, ...]) -> None:
    said = cluster(2, 2, "wide_and_deep", "--synthetic", "--epochs", "2", *tables)
    assert "synthetic clicks" in said
    # The model that drew the clicks has an area of 0.92; by chance it is 0.5.
    assert area(said) > 0.84


def test_wide_and_deep_of_a_csv(tmp_path: Path) -> None:
    data = tmp_path / "answers.csv"
    answers = ["yes" if n % 7 > 4 or n % 4 == 1 else "no" for n in range(2_000)]
    lines = [f"{n % 7},{'abcd'[n % 4]},{answer}" for n, answer in enumerate(answers)]
    data.write_text("\n".join(["number,letter,answer", *lines]))
    assert area(output_of("examples/wide_and_deep.py", "--data", str(data))) > 0.97
