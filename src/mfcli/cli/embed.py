"""The command `mf embed`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from mfcli.cli import predict_options as option
from mfcli.cli.destination import Destination, FeatureLayout, name_leftovers
from mfcli.cli.options import Offline, Quiet, parse_batch_size
from mfcli.cli.predict import exit_code, make_selection, only_list
from mfcli.cli.streams import note, standard_input
from mfcli.errors import ExitCode
from mfcli.inference.engines.base import EngineName, Precision
from mfcli.inputs.left_out import LeftOut
from mfcli.inputs.selection import DEFAULT_TIMEOUT_S
from mfcli.settings import DEFAULT_DECODE_TIMEOUT_S, DEFAULT_MAX_PIXELS, Settings

Output = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="Write them there: .npz, or .parquet, which needs pyarrow.",
        readable=False,
    ),
]


def embed(
    output: Output,
    inputs: option.Inputs = None,
    lists: option.FilesFrom = None,
    null: option.Null = False,
    include: option.Include = None,
    exclude: option.Exclude = None,
    no_recursive: option.NoRecursive = False,
    column: option.Column = None,
    no_exif: option.NoExif = False,
    formats: option.Formats = None,
    max_pixels: option.MaxPixels = DEFAULT_MAX_PIXELS,
    decode_timeout: option.DecodeTimeout = DEFAULT_DECODE_TIMEOUT_S,
    model: option.Model = None,
    weights: option.Weights = None,
    overwrite: option.Overwrite = False,
    resume: option.Resume = False,
    retry_failed: option.RetryFailed = False,
    batch_size: option.BatchSize = "auto",
    workers: option.Workers = None,
    threads: option.Threads = None,
    engine: option.Engine = EngineName.AUTO,
    device: option.Device = "auto",
    precision: option.ArithmeticPrecision = Precision.FP32,
    timeout: option.Timeout = DEFAULT_TIMEOUT_S,
    allow_failures: option.AllowFailures = False,
    offline: Offline = False,
    quiet: Quiet = False,
) -> None:
    """Write the features of pictures: the vectors that the model's head classifies.

    Every input gives one row, in order: input, member, status, width, height, features and error. Exit code 0: all have
    features, 5: some failed, 6: all did.
    """
    from mfcli.cli.progress import StderrProgress
    from mfcli.inference.predictor import load_predictor
    from mfcli.inputs.sources import iter_sources
    from mfcli.outputs.files import check_folder
    from mfcli.tasks.predict import predict

    layout = FeatureLayout.parse(output)
    destination = Destination.parse(output, layout, overwrite=overwrite, resume=resume, retry_failed=retry_failed)
    check_folder(output)
    destination.check([*map(str, inputs or ())])
    if not quiet:
        name_leftovers(output)
    size = parse_batch_size(batch_size)
    extra_formats = tuple(formats.split(",")) if formats is not None else ()
    settings = Settings.from_environ(offline=offline)
    left_out = LeftOut()
    selection = make_selection(include, exclude, not no_recursive, timeout, extra_formats, settings, column)
    selection = replace(selection, left_out=left_out)
    with StderrProgress(note, quiet, with_bar=True) as progress:
        sources = iter_sources(
            inputs or (),
            standard_input(),
            files_from=only_list(lists or []),
            nul=null,
            selection=selection,
        )
        predictor = load_predictor(
            model,
            weights=weights,
            engine=engine,
            device=device,
            precision=precision,
            threads=threads,
            exif=not no_exif,
            max_pixels=max_pixels,
            decode_timeout_s=decode_timeout,
            formats=extra_formats,
            features=True,
            confidence=None,
            abstain="off",
            settings=settings,
            progress=progress,
        )
        with destination.open(predictor, compact=True, quiet=quiet) as sink:
            summary = predict(
                predictor,
                sources,
                sink.writer,
                batch_size=size,
                workers=workers,
                journal=sink.journal,
                retry_writer=sink.retry_writer,
                progress=progress,
            )
        if words := left_out.in_words():
            progress(words)
    if not quiet:
        note(f"{summary.in_words()}; {output}")
    raise typer.Exit(ExitCode.OK if allow_failures else exit_code(summary))
