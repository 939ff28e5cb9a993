"""The option types that several commands share."""

from enum import StrEnum
from typing import Annotated

import typer

from mfcli.formats.base import FormatName


class InfoFormat(StrEnum):
    """The formats of one record."""

    TABLE = "table"
    JSON = "json"


Format = Annotated[FormatName, typer.Option("--format", help="How results are written.")]
Offline = Annotated[
    bool, typer.Option("--offline", help="Open no connection; the same as MF_OFFLINE=1.", show_default=False)
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No notes on stderr, only errors.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
