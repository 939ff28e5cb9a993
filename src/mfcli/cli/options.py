"""The option types that several commands share."""

import contextlib
from enum import StrEnum
from typing import Annotated, Literal

import typer

from mfcli.cli.help import list_choices
from mfcli.errors import UsageError
from mfcli.models.registry import list_variants
from mfcli.outputs.writer import RecordFormat
from mfcli.settings import BUNDLED_ALIAS

MAX_BATCH_SIZE = 4096
"""Pictures in a batch."""

MAX_WORKERS = 256
"""Threads that decode; more wait for one another."""


class InfoFormat(StrEnum):
    """The formats of one record."""

    TABLE = "table"
    JSON = "json"


Format = Annotated[
    RecordFormat,
    typer.Option("--format", metavar="FORMAT", help=f"How results are written: {list_choices(RecordFormat)}."),
]
OneFormat = Annotated[
    InfoFormat, typer.Option("--format", metavar="FORMAT", help=f"How it is written: {list_choices(InfoFormat)}.")
]
Offline = Annotated[
    bool, typer.Option("--offline", help="Open no connection; the same as MF_OFFLINE=1.", show_default=False)
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No notes on stderr, only errors.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]


def complete_model(incomplete: str) -> list[str]:
    """Return the model names that begin so: the paper's, and timm's once there is a dot in it."""
    names = [BUNDLED_ALIAS, *(variant.name for variant in list_variants())]
    if "." in incomplete:
        names += [alias for variant in list_variants() for alias in variant.aliases if "." in alias]
    return [name for name in names if name.startswith(incomplete)]


def complete_device(incomplete: str) -> list[str]:
    """Return the devices that begin so; whether the machine has them is not checked, because that takes torch."""
    return [name for name in ("auto", "cpu", "cuda", "mps") if name.startswith(incomplete)]


Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A name from mf list-models.", autocompletion=complete_model)
]
Models = Annotated[
    list[str],
    typer.Argument(metavar="MODEL|GLOB...", help="Names, or globs between quotes.", autocompletion=complete_model),
]


ModelsOrFiles = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL|GLOB|FILE...",
        help="Names, globs between quotes, or files: of the cache, or whose artifact is meant.",
        autocompletion=complete_model,
    ),
]


def parse_numbers(text: str | None, option: str) -> tuple[float, ...] | None:
    """Read numbers with commas between them; None stays None.

    Raises:
        UsageError: one is not a number.
    """
    try:
        return None if text is None else tuple(map(float, text.split(",")))
    except ValueError as error:
        raise UsageError(f"{option} {text!r} is not a list of numbers", f"{option} 0.5,0.5,0.5") from error


_MAX_DIGITS = 10


def parse_batch_size(text: str) -> int | None:
    """Read a number of pictures; None for `auto`.

    Raises:
        UsageError: it is neither.
    """
    if text == "auto":
        return None
    if text.isdecimal() and len(text) < _MAX_DIGITS and 1 <= int(text) <= MAX_BATCH_SIZE:
        return int(text)
    raise UsageError(
        f"--batch-size {text!r} is neither a number from 1 to {MAX_BATCH_SIZE} nor auto", "--batch-size auto"
    )


def parse_top_k(text: str) -> int | Literal["all"]:
    """Read a number of predictions, or `all`.

    Raises:
        UsageError: it is neither.
    """
    if text == "all":
        return "all"
    try:
        return int(text)
    except ValueError as error:
        raise UsageError(f"--top-k {text!r} is neither a number nor all", "--top-k 5") from error


def parse_share(text: str, option: str) -> float:
    """Read a share: a percentage such as `10%`, or a number from 0 to 1 such as `0.1`.

    Raises:
        UsageError: it is neither.
    """
    with contextlib.suppress(ValueError):
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        if 0 <= share <= 1:
            return share
    raise UsageError(f"{option} {text!r} is not a share between 0 and 1", f"{option} 10%, or {option} 0.1")
