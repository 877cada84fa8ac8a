"""The examples do on a real cluster what they say they do."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from paramserver.compare.runs import read_run

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


def cluster(servers: int, workers: int, example: str, *args: str, parties: int = 1) -> str:
    size = [f"-s{servers}", f"-w{workers}", f"--parties={parties}"]
    return output_of("-m", "paramserver", "run", *size, f"examples/{example}.py", *args)


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


@pytest.mark.parametrize("wire", [(), ("--wire", "int4")], ids=["float32", "int4"])
def test_downpour(wire: tuple[str, ...]) -> None:
    said = cluster(2, 3, "downpour", *wire)
    assert accuracy(said) >= 92
    (sent,) = re.findall(r"sent (\d+) bytes a step", said)
    assert int(sent) < (4810 * 4 / 3 if not wire else 4810 * 0.6 / 3)  # of four steps, one pushes


def test_lbfgs() -> None:
    said = cluster(2, 3, "lbfgs")
    assert accuracy(said) >= 95
    assert "norm of the gradient is <= gtol" in said


def test_diloco() -> None:
    said = cluster(2, 4, "diloco", "--epochs", "1")
    (bits,) = re.findall(r"([\d.]+) bits per character", said)
    # Uniform characters cost 7 bits; by their frequency alone about 4.8.
    assert float(bits) < 3.6


def test_allreduce() -> None:
    said = cluster(1, 3, "allreduce")
    assert accuracy(said) >= 95
    assert "replicas differ by 0.0" in said


def test_vertical() -> None:
    said = cluster(2, 3, "vertical", parties=3)
    assert accuracy(said) >= 95
    (apart,) = re.findall(r"one process with all columns: ([\d.e+-]+)", said)
    assert float(apart) < 1e-12


@pytest.mark.parametrize("how", [[], ["--adapt"]])
def test_straggler(how: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    emulated = {**clean_environment(), "PARAMSERVER_EMULATE": "sample=0.001,slow=3:5"}
    monkeypatch.setattr(f"{__name__}.clean_environment", lambda: emulated)
    said = cluster(2, 4, "straggler", *how)
    assert accuracy(said) >= 88
    samples = [int(n) for n in re.findall(r"(\d+) samples in", said)]
    assert sum(samples) == 12 * 1347
    if not how:  # under a bound all end up at one pace
        assert min(samples) < max(samples) / 2, "the slow machine has less to do"


def test_compare_under_another_scheme(tmp_path: Path) -> None:
    options = ("-s1", "-w2", "--scheme", "stale:2/random", "--run-dir", str(tmp_path))
    output_of("-m", "paramserver", "run", *options, "examples/compare.py", "--epochs", "8")
    run = read_run(tmp_path)
    assert run is not None
    assert run.samples == 8 * 1437
    assert run.curves["accuracy"].values[-1] >= 0.8
    assert '"scheme": "stale:2/random"' in (tmp_path / "worker-1.jsonl").read_text()


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
