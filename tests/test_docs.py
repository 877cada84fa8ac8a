"""What the pages say is there is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def prose(text: str) -> str:
    """The text without its code blocks."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as Markdown renderers name them."""
    headings = re.findall(r"^#+ (.+)$", prose(path.read_text()), re.MULTILINE)
    kept = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.strip().replace(" ", "-") for heading in kept}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_resolve(path: Path) -> None:
    broken = []
    for target in LINK.findall(prose(path.read_text())):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_make_targets_named_exist(path: Path) -> None:
    named = re.findall(r"(?:^|`|\$ )make ([a-z][\w-]*)", path.read_text(), re.MULTILINE)
    assert set(named) <= TARGETS


def test_every_page_is_reached_from_the_index() -> None:
    seen: set[Path] = set()
    todo = [ROOT / "docs" / "index.md"]
    while todo:
        path = todo.pop()
        if path in seen or path.suffix != ".md":
            continue
        seen.add(path)
        names = [target.partition("#")[0] for target in LINK.findall(prose(path.read_text()))]
        local = [name for name in names if name and "://" not in name]
        todo += [found for name in local if (found := (path.parent / name).resolve()).is_file()]
    assert sorted(str(path) for path in PAGES if "docs" in path.parts and path not in seen) == []


def test_reference_is_what_the_code_says() -> None:
    command = [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_readme_shows_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text()
    assert "make demo" in text
    assert "make test" in text


def test_readme_api_is_the_size_it_claims() -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    lines = [line for line in blocks[0].splitlines() if line.strip()]
    assert len(lines) <= 20
    compile(blocks[0], "README.md", "exec")


@pytest.mark.parametrize(
    "name", ["allreduce", "compare", "diloco", "downpour", "lbfgs", "straggler", "vertical"]
)
def test_each_scheme_has_a_short_example(name: str) -> None:
    assert len((ROOT / f"examples/{name}.py").read_text().splitlines()) <= 60
    assert f"examples/{name}.py" in (ROOT / "Makefile").read_text()
    said = "\n".join(p.read_text() for p in (ROOT / "docs").rglob("*.md"))
    assert f"examples/{name}.py" in said
    for page in (ROOT / "docs/schemes").glob("*.md"):
        assert "choose" in page.read_text().lower(), page
