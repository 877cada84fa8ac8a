"""Write docs/reference from the code: ``python docs/generate.py [--check]``.

--check writes nothing, and fails when a page on disk is not what the code says.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType

import click

import paramserver
from paramserver import errors
from paramserver.cli.main import main as cli

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "docs" / "reference"
WIDTH = 96
SECTIONS = ("Args:", "Attributes:", "Raises:", "Returns:", "Yields:")
NOTE = "<!-- Written by docs/generate.py from the code; `make docs` writes it anew. -->"


def page(title: str, lines: Iterator[str]) -> str:
    """A Markdown page: at most one empty line in a row, one newline at the end."""
    text = "\n".join([f"# {title}", "", NOTE, "", *lines])
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


# --- the command line ---------------------------------------------------------------------------


def cli_lines() -> Iterator[str]:
    yield "Every option may also be given by the environment variable beside it."
    yield from command_lines(cli, "paramserver", None)


def command_lines(command: click.Command, path: str, parent: click.Context | None) -> Iterator[str]:
    context = click.Context(command, info_name=path.rsplit(" ", 1)[-1], parent=parent)
    context.auto_envvar_prefix = "_".join(path.upper().split())
    yield f"\n## `{path}`\n"
    yield inspect.cleandoc(command.help or "").replace("\b\n", "") + "\n"
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"```\n{path} {usage}\n```\n"
    rows = [row for option in command.params if (row := option_row(option, context))]
    if rows:
        yield "| option | environment | default | meaning |\n|---|---|---|---|"
        yield "\n".join(rows)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            if inner is not None and not inner.hidden:
                yield from command_lines(inner, f"{path} {name}", context)


def option_row(option: click.Parameter, context: click.Context) -> str | None:
    """One row of an option table; None for arguments and hidden options."""
    if not isinstance(option, click.Option) or option.hidden:
        return None
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    if not option.is_flag and not option.count:
        names += f" {escape(option.make_metavar(context))}"
    return f"| {names} | {environment(option, context)} | {default(option)} | {about(option)} |"


def environment(option: click.Option, context: click.Context) -> str:
    if option.envvar is not None:
        given = [option.envvar] if isinstance(option.envvar, str) else list(option.envvar)
    elif option.allow_from_autoenv and option.name not in (None, "help", "version"):
        given = [f"{context.auto_envvar_prefix}_{str(option.name).upper()}"]
    else:
        given = []
    return " ".join(f"`{name}`" for name in given)


def default(option: click.Option) -> str:
    if option.required:
        return "required"
    value = option.default
    # click marks "no default" with a sentinel of its own.
    shown = isinstance(value, (str, int, float)) and not isinstance(value, bool) and value != ""
    return f"`{value}`" if shown and not option.is_flag else ""


def about(option: click.Option) -> str:
    """The help of an option, less the environment variable, which has a column of its own."""
    return escape(re.sub(r"\s*\[env: \w+\]", "", " ".join((option.help or "").split())))


def escape(text: str) -> str:
    return text.replace("|", "\\|")


# --- the Python face ----------------------------------------------------------------------------


def api_lines() -> Iterator[str]:
    yield "`import paramserver as ps`\n"
    for name in sorted(paramserver.__all__):
        item = getattr(paramserver, name)
        if inspect.isclass(item):
            yield from class_lines(f"ps.{name}", item)
        elif callable(item):
            yield from function_lines(f"ps.{name}", item, "##")
    yield "\nErrors: see [errors](errors.md). Commands: see [the command line](cli.md)."


def class_lines(name: str, item: type) -> Iterator[str]:
    yield f"\n## `{name}`\n"
    if dataclasses.is_dataclass(item):
        yield f"```python\n{signature(name.split('.')[-1], item)}\n```\n"
    yield from prose(item)
    ours = [base for base in reversed(item.__mro__) if base.__module__.startswith("paramserver")]
    members = {member: value for base in ours for member, value in vars(base).items()}
    for member, value in members.items():
        if member.startswith("_"):
            continue
        if isinstance(value, property):
            yield f"\n### `.{member}`\n"
            yield from prose(value)
        elif isinstance(value, (FunctionType, staticmethod, classmethod)):
            yield from function_lines(f".{member}", getattr(item, member), "###")


def function_lines(name: str, item: object, heading: str) -> Iterator[str]:
    yield f"\n{heading} `{name}()`\n"
    yield f"```python\n{signature(name.split('.')[-1], item)}\n```\n"
    yield from prose(item)


def signature(name: str, item: object) -> str:
    """The signature as written, less self; one parameter a line where it is long."""
    assert callable(item)
    found = inspect.signature(item)
    parts = [str(one) for one in map(plain, found.parameters.values()) if one.name != "self"]
    names = list(found.parameters)
    keyword = [one.kind is inspect.Parameter.KEYWORD_ONLY for one in found.parameters.values()]
    if any(keyword) and not any("*" in part[:1] for part in parts[: keyword.index(True)]):
        parts.insert(keyword.index(True) - ("self" in names), "*")
    back = found.return_annotation
    after = (
        "" if back in (inspect.Signature.empty, None, "None") else f" -> {Verbatim(str(back))!r}"
    )
    line = f"{name}({', '.join(parts)}){after}"
    if len(line) <= WIDTH:
        return line
    return "\n".join([f"{name}(", *(f"    {part}," for part in parts), f"){after}"])


class Verbatim(str):
    """Text whose repr is itself: annotations are strings already."""

    def __repr__(self) -> str:
        return self.replace("'", "")


def plain(one: inspect.Parameter) -> inspect.Parameter:
    """A parameter whose annotation prints as it was written."""
    if one.annotation is inspect.Parameter.empty:
        return one
    return one.replace(annotation=Verbatim(str(one.annotation)))


def prose(item: object) -> Iterator[str]:
    """A docstring: its text, then each of its sections as a list."""
    for block in (inspect.getdoc(item) or "").replace("``", "`").split("\n\n"):
        title, _, rest = block.partition("\n")
        if title in SECTIONS:
            yield f"\n**{title[:-1]}**\n"
            entries = re.split(r"\n(?! )", inspect.cleandoc(rest))
            yield from (list_entry(entry) for entry in entries)
        else:
            yield f"\n{block}"


def list_entry(entry: str) -> str:
    name, colon, text = " ".join(entry.split()).partition(": ")
    return f"- `{name}`{colon}{text}" if colon else f"- {name}"


# --- errors -------------------------------------------------------------------------------------


def errors_lines() -> Iterator[str]:
    yield "All are classes of `ps.errors`. A class is caught by catching one that it stands under."
    yield "An error crosses the wire as its reason, and becomes the same class on the other side.\n"
    yield "| class | reason | worth sending again | meaning |\n|---|---|---|---|"
    yield from error_rows(errors.ParameterServerError, 0)


def error_rows(kind: type[errors.ParameterServerError], depth: int) -> Iterator[str]:
    indent = "&nbsp;&nbsp;" * depth
    again = "yes" if kind.retryable else "no"
    meaning = (inspect.getdoc(kind) or "").split("\n\n")[0].replace("\n", " ")
    yield f"| {indent}`{kind.__name__}` | `{kind.reason}` | {again} | {escape(meaning)} |"
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from error_rows(child, depth + 1)


# --- the protocol -------------------------------------------------------------------------------

RPC = re.compile(r"rpc (\w+)\((stream )?(\w+)\) returns \((stream )?(\w+)\)")


def protocol_lines() -> Iterator[str]:
    yield "The services of package `paramserver.v1`, for a client in any language. The messages are"
    yield "in [`protos/paramserver/v1`](../../protos/paramserver/v1)."
    for path in sorted((ROOT / "protos" / "paramserver" / "v1").glob("*.proto")):
        yield from service_lines(path.read_text())


def service_lines(text: str) -> Iterator[str]:
    comment: list[str] = []
    for line in map(str.strip, text.splitlines()):
        if line.startswith("//"):
            comment.append(line[2:].strip())
            continue
        if line.startswith("service "):
            yield f"\n## `{line.split()[1]}`\n"
            yield " ".join(comment)
        elif match := RPC.search(line):
            name, takes_stream, takes, gives_stream, gives = match.groups()
            yield f"\n### `{name}`\n"
            yield f"`{takes_stream or ''}{takes}` → `{gives_stream or ''}{gives}`\n"
            yield " ".join(comment)
        comment = []


PAGES = {
    "cli.md": ("The command line", cli_lines),
    "api.md": ("The Python API", api_lines),
    "errors.md": ("Errors", errors_lines),
    "protocol.md": ("The protocol", protocol_lines),
}


def main(check: bool) -> int:
    """Write the pages, or compare them; the exit status."""
    stale = []
    for name, (title, lines) in PAGES.items():
        text, path = page(title, lines()), REFERENCE / name
        if check and (not path.exists() or path.read_text() != text):
            stale.append(name)
        elif not check:
            path.write_text(text)
    if stale:
        print(f"docs/reference is out of date: {', '.join(stale)}; run make docs", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main("--check" in sys.argv[1:]))
