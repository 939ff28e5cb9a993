"""The command `mf embed`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from mfcli.cli import predict_options as option
from mfcli.cli.destination import name_leftovers
from mfcli.cli.options import Offline, Quiet, parse_batch_size
from mfcli.cli.predict import exit_code, make_selection, only_list
from mfcli.cli.streams import note, standard_input
from mfcli.errors import ExitCode, UsageError
from mfcli.inference.engines.base import EngineName, Precision
from mfcli.inputs.left_out import LeftOut
from mfcli.inputs.selection import DEFAULT_TIMEOUT_S
from mfcli.outputs.features import FeatureFormat
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
    from mfcli.outputs.features import open_feature_writer
    from mfcli.outputs.files import check_folder, open_beside, refuse_existing, translate_write_errors
    from mfcli.tasks.predict import predict

    format = _format_of_suffix(output)
    check_folder(output) if overwrite else refuse_existing(output)
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
        with translate_write_errors(output), open_beside(output, overwrite) as (file, publish):
            writer = open_feature_writer(format, file)
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
            summary = predict(predictor, sources, writer, batch_size=size, workers=workers, progress=progress)
            publish()
        if words := left_out.in_words():
            progress(words)
    if not quiet:
        note(f"{summary.in_words()}; {output}")
    raise typer.Exit(ExitCode.OK if allow_failures else exit_code(summary))


def _format_of_suffix(path: Path) -> FeatureFormat:
    suffix = path.suffix.lower().removeprefix(".")
    if suffix not in list(FeatureFormat):
        raise UsageError(f"the suffix of {path} is neither .npz nor .parquet", "-o features.npz")
    return FeatureFormat(suffix)
