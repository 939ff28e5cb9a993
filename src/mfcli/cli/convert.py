"""The command `mf convert`."""

import contextlib
import dataclasses
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from mfcli.cli import predict_options as option
from mfcli.cli.destination import name_leftovers, parse_output
from mfcli.cli.layouts import Layout
from mfcli.cli.options import Quiet
from mfcli.cli.streams import note, standard_input, standard_output
from mfcli.errors import NoInputsError
from mfcli.outputs.writer import Writer
from mfcli.store_urls import refuse_addresses


def convert(
    results: Annotated[
        str, typer.Argument(metavar="RESULTS", help="What mf predict wrote, also FILE.partial; - for standard input.")
    ],
    format: option.Format = None,
    template: option.Template = None,
    no_header: option.NoHeader = False,
    csv_safe: option.CsvSafe = False,
    label_type: option.ShownLabel = None,
    output: option.Output = None,
    overwrite: option.Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Turn results into another format.

    RESULTS is jsonl, json, csv, tsv or parquet, compressed or not, which is told by its content. Csv and tsv do not say
    the weights and the run; they are null then.
    """
    from mfcli.outputs.files import is_partial, refuse_existing
    from mfcli.outputs.journal import read_settings
    from mfcli.outputs.reader import StoredResults
    from mfcli.tasks import convert as task

    path = parse_output(output)
    if path is not None:
        refuse_addresses(path, "name a local file")
    layout = Layout.parse(path, format, template, header=not no_header, csv_safe=csv_safe, label_type=label_type)
    if path is not None and not overwrite:
        refuse_existing(path)
    if not quiet:
        name_leftovers(path)
    with _open_input(results) as file:
        settings = None if results == "-" else read_settings(Path(results))
        stored = StoredResults(file, "standard input" if results == "-" else results, settings)
        run, summary = task.survey(stored, settings)
        if is_partial(Path(results)):
            summary = dataclasses.replace(summary, complete=False)
        with _open_output(layout, path, overwrite, compact=summary.inputs > 1) as writer:
            task.convert(stored, run, summary, writer)
    if path is not None and not quiet:
        note(f"{summary.in_words()}; {path}")


@contextlib.contextmanager
def _open_input(name: str) -> Iterator[BinaryIO]:
    """Open a file so that it can be read twice: a pipe is copied first."""
    with contextlib.ExitStack() as stack:
        stream = standard_input() if name == "-" else None
        try:
            file = stream or stack.enter_context(Path(name).open("rb"))
        except OSError as error:
            refuse_addresses(name, "copy it to a local file")
            raise NoInputsError(f"cannot read {name}: {error.strerror}", "name a file that mf predict wrote") from error
        if not file.seekable():
            copy = stack.enter_context(tempfile.TemporaryFile())
            shutil.copyfileobj(file, copy)
            copy.seek(0)
            file = copy
        yield file


@contextlib.contextmanager
def _open_output(layout: Layout, path: Path | None, overwrite: bool, *, compact: bool) -> Iterator[Writer]:
    from mfcli.outputs.files import atomic_output

    if path is None:
        with standard_output() as stream:
            yield layout.open_writer(stream, compact=compact)
    else:
        with atomic_output(path, replace=overwrite) as stream:
            yield layout.open_writer(stream, compact=True)
