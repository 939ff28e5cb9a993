"""The command `mf find`: mf predict with a question."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from mfcli.cli import predict_options as option
from mfcli.cli.destination import Destination, parse_output
from mfcli.cli.layouts import Layout
from mfcli.cli.option_groups import (
    DecodingOptions,
    FileOptions,
    InputOptions,
    ModelOptions,
    OverrideOptions,
    RunningOptions,
)
from mfcli.cli.options import Offline, Quiet, parse_batch_size
from mfcli.cli.predict_run import run
from mfcli.cli.requests import InputRequest, ModelRequest, PredictRequest, exit_code, import_numpy
from mfcli.cli.streams import note, say
from mfcli.errors import ExitCode, NoInputsError, UsageError, escape_control_characters
from mfcli.inputs.codecs import DecodeMode
from mfcli.outputs.writer import FormatName, Writer
from mfcli.results import PictureResult, Query
from mfcli.settings import Settings

if TYPE_CHECKING:
    from mfcli.outputs.pictures import PictureRenderer

_FINDING = "Finding"

Concepts = Annotated[
    str,
    typer.Argument(
        metavar="CONCEPT",
        help="A word or several, a WordNet id, or a class's name; more than one with commas between.",
        show_default=False,
    ),
]
Min = Annotated[
    float,
    typer.Option("--min", metavar="P", help="Least probability of what is found, 0 to 1.", rich_help_panel=_FINDING),
]
All = Annotated[bool, typer.Option("--all", help="Find pictures of all concepts, not any.", rich_help_panel=_FINDING)]
Invert = Annotated[bool, typer.Option("--invert", "-v", help="Find the other pictures.", rich_help_panel=_FINDING)]
Count = Annotated[bool, typer.Option("--count", "-c", help="Print how many there are.", rich_help_panel=_FINDING)]
Null = Annotated[bool, typer.Option("--null", "-0", help="End each name with NUL.", rich_help_panel=_FINDING)]
NullList = Annotated[
    bool, typer.Option("--null-list", help="In --files-from, NUL ends a name.", rich_help_panel="Inputs")
]
Format = Annotated[
    FormatName | None,
    typer.Option(
        "--format",
        metavar="FORMAT",
        help="Write a row for every picture instead: json, jsonl, csv, tsv or parquet.",
        show_default="from the suffix of -o, else names",
        rich_help_panel="Output",
    ),
]


class _InputOptions(InputOptions):
    null: NullList


def find(
    *,
    concepts: Concepts,
    min_prob: Min = 0.5,
    all_: All = False,
    invert: Invert = False,
    count: Count = False,
    nul: Null = False,
    inputs: _InputOptions,
    decoding: DecodingOptions,
    model: ModelOptions,
    overrides: OverrideOptions,
    decode: option.Decode = DecodeMode.EXACT,
    format: Format = None,
    output: option.Output = None,
    existing: FileOptions,
    running: RunningOptions,
    allow_failures: option.AllowFailures = False,
    max_failures: option.MaxFailures = None,
    offline: Offline = False,
    quiet: Quiet = False,
) -> None:
    """Print the names of pictures that show a concept: a class, or a word over classes such as dog.

    A picture shows it if the probabilities of all classes below it have a sum of --min or more. mf labels lists what a
    model knows. Exit code 0: found, 10: nothing found, 5: some pictures failed, 6: all failed.
    """
    from mfcli.models.meanings import AmbiguousWordError
    from mfcli.outputs.names import is_match

    if not inputs.inputs and not inputs.lists:
        raise NoInputsError(f"no pictures to find {concepts!r} in", f"mf find {shlex.quote(concepts)} photos")
    import_numpy()
    from mfcli.tasks.predict import MaxFailures

    path = parse_output(output)
    layout = _parse_layout(path, format, count=count, nul=nul)
    settings = Settings.from_environ(offline=offline)
    found = 0

    def count_match(result: PictureResult) -> PictureResult:
        nonlocal found
        found += is_match(result)
        return result

    request = PredictRequest(
        inputs=InputRequest.parse(inputs, decoding, settings),
        model=ModelRequest(
            model=model,
            running=running,
            decoding=decoding,
            overrides=overrides,
            decode=decode,
            query=Query(tuple(word.strip() for word in concepts.split(",")), min_prob, all_, invert),
        ),
        destination=Destination.parse(path, layout, existing),
        batch_size=parse_batch_size(running.batch_size),
        workers=running.workers,
        max_failures=MaxFailures.parse(max_failures),
        settings=settings,
        quiet=quiet,
        observe=count_match,
    )
    try:
        summary = run(request)
    except AmbiguousWordError as error:
        for meaning in error.meanings:
            say(escape_control_characters(f"{meaning.choice}  {meaning.wnid}  {meaning.names}: {meaning.gloss}"))
        raise
    if path is not None and not quiet:
        note(f"{summary.in_words()}; {found} found; {request.destination.name}")
    code = exit_code(summary, allow_failures=allow_failures)
    raise typer.Exit(code or (ExitCode.OK if found else ExitCode.NOTHING_FOUND))


@dataclass(frozen=True, slots=True)
class _NameLayout(Layout):
    """Names, or their number, on standard output."""

    count: bool = False
    nul: bool = False

    @property
    def shows_errors(self) -> bool:
        """Whether what is written of a picture that failed says why: never."""
        return False

    def open_writer(self, stream: TextIO, *, compact: bool, renderer: "PictureRenderer | None" = None) -> Writer:  # noqa: ARG002
        from mfcli.outputs.names import CountWriter, NameWriter

        return CountWriter(stream) if self.count else NameWriter(stream, nul=self.nul)


def _parse_layout(path: Path | None, format: FormatName | None, *, count: bool, nul: bool) -> Layout:
    """Return how results are written: as names, unless a format or a file is given."""
    if path is None and format is None:
        if count and nul:
            raise UsageError("--count and --null exclude each other", "leave out one of them")
        return _NameLayout(FormatName.TABLE, count=count, nul=nul)
    layout = Layout.parse(path, format, None, header=True, label_type=None)
    if count or nul:
        raise UsageError("--count and --null are about names on standard output", "leave out --format and -o")
    if layout.format is FormatName.TABLE:
        raise UsageError("mf find writes names, or rows as json, jsonl, csv, tsv or parquet", "--format jsonl")
    return layout
