"""Reading Markdown documents in tests: code blocks, the commands in them, and links."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from typer.main import get_command

from mfcli.cli import make_app

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_MF = re.compile(r"(?:^|[|;&] |[A-Z_]+=\S+ |\()(?:\.venv/bin/)?mf ([^|#>)\n]*)", re.MULTILINE)


def fenced(text: str, language: str) -> list[str]:
    """Return the code blocks of a language."""
    return [block for name, block in _FENCE.findall(text) if name == language]


def prose(text: str) -> str:
    """Return a document without its code blocks."""
    return _FENCE.sub("", text)


def mf_commands(text: str) -> Iterator[str]:
    """Yield what follows `mf` in the shell examples of a document."""
    for block in fenced(text, "sh"):
        yield from _MF.findall(block)


def check_options(command: str) -> None:
    """Fail for a command of `mf` that does not exist, or has an option that does not."""
    name, *words = shlex.split(command)
    described = get_command(make_app()).commands[name]  # type: ignore[attr-defined]
    if hasattr(described, "commands"):
        described = described.commands[words.pop(0) if words[0] in described.commands else "create"]
    known = {option for parameter in described.params for option in parameter.opts}
    options = {word for word in words if re.match(r"--?[a-z]", word)} - {"-0"}
    assert options <= known, command


def broken_links(document: Path) -> list[str]:
    """Return the relative links of a document that lead to no file, or to no heading of a Markdown file."""
    links = [link for link in _LINK.findall(prose(document.read_text())) if "://" not in link]
    return [link for link in links if not _leads_somewhere(document, *link.partition("#")[::2])]


def _leads_somewhere(document: Path, path: str, anchor: str) -> bool:
    target = document.parent / path if path else document
    return target.exists() and (not anchor or anchor in _anchors(target))


def _anchors(document: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
