"""The tree is what pyproject says, and what a stranger may read."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
ROLES = ("ps", "worker", "scheduler")
MAX_LINES = 400

# A file may outgrow the limit for a reason that is written here.
LONGER: dict[str, str] = {}

# Words that tie the tree to one machine or one registry. Spelt in pieces, so that this file passes.
FORBIDDEN = [
    re.compile(pattern)
    for pattern in (
        "/" + r"work/(main|shared)",
        "/" + r"tmp/w/",
        r"\b" + "py" + r"pi\.(org|python)",
        "files.python" + r"hosted",
        "download.py" + r"torch",
        "registry.np" + r"mjs",
        "docker" + r"\.io/",
        "deb." + r"debian",
    )
]


def directory_of(package: str) -> Path:
    """Where setuptools takes a package from: the longest prefix in package-dir wins."""
    parts = package.split(".")
    for cut in range(len(parts), 0, -1):
        base = SETUPTOOLS["package-dir"].get(".".join(parts[:cut]))
        if base is not None:
            return ROOT.joinpath(base, *parts[cut:])
    raise AssertionError(f"{package} has no package-dir")


def packages_on_disk() -> Iterator[str]:
    """Every folder with Python files under a package-dir, links aside."""
    for name, base in SETUPTOOLS["package-dir"].items():
        top = ROOT / base
        for file in top.rglob("*.py"):
            inner = file.parent.relative_to(top)
            if not (top / inner.parts[0]).is_symlink() if inner.parts else True:
                yield ".".join([name, *inner.parts])


def tracked_files() -> list[Path]:
    """Files of the repository as git sees them: tracked, or new and not ignored."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in listing.stdout.split("\0") if name]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def test_packages_on_disk_are_those_of_pyproject() -> None:
    assert sorted(set(packages_on_disk())) == sorted(SETUPTOOLS["packages"])


@pytest.mark.parametrize("package", SETUPTOOLS["packages"])
def test_every_package_is_a_regular_package(package: str) -> None:
    assert (directory_of(package) / "__init__.py").is_file()


@pytest.mark.parametrize("role", ROLES)
def test_link_resolves_to_its_role(role: str) -> None:
    link = ROOT / "src" / "paramserver" / role
    assert link.is_symlink()
    assert link.resolve() == ROOT / role


def test_files_stay_readable_in_one_sitting() -> None:
    long = {
        str(path.relative_to(ROOT)): lines
        for path in tracked_files()
        if path.suffix == ".py"
        and "_pb2" not in path.name
        and path.relative_to(ROOT).parts[0] != "tests"
        and (lines := len(path.read_text().splitlines())) > MAX_LINES
    }
    assert {name: lines for name, lines in long.items() if name not in LONGER} == {}
    assert set(LONGER) <= set(long), "a file in LONGER is short again: take it off the list"


def test_nothing_names_a_machine_or_a_registry() -> None:
    found = []
    for path in tracked_files():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            found += [
                f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
                for pattern in FORBIDDEN
                if pattern.search(line)
            ]
    assert found == []


def test_roles_import_one_another_by_full_name_only() -> None:
    relative = re.compile(r"^\s*from \.", re.MULTILINE)
    sources = [path for path in tracked_files() if path.suffix == ".py" and "_pb2" not in path.name]
    assert [str(path) for path in sources if relative.search(path.read_text())] == []
