"""Help pages: what a command's docstring says, and examples at the end."""

from collections.abc import Callable, Iterable
from enum import StrEnum
from inspect import cleandoc
from typing import Any

import typer

from mfcli.cli.signatures import expand_groups


def add_command(app: typer.Typer, function: Callable[..., Any], *examples: str) -> None:
    """Add a function as a command, its groups of options expanded, with examples at the end of its help."""
    # typer keeps the line breaks of a docstring, and rich breaks the lines again at the terminal's width
    paragraphs = cleandoc(function.__doc__ or "").split("\n\n")
    text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    app.command(help=text, epilog=list_examples(examples))(expand_groups(function))


def list_examples(examples: Iterable[str]) -> str:
    """Return the end of a help page; lines of at most 58 characters stay whole in a terminal of 60 columns."""
    return "\n".join(["Examples:", *examples])


def list_choices(kind: type[StrEnum]) -> str:
    """Return the values of an option for its help: `a, b or c`."""
    *first, last = kind
    return f"{', '.join(first)} or {last}"
