"""mf predict."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from mfcli.cli.options import Format, Offline, Quiet
from mfcli.cli.streams import note, standard_output
from mfcli.engines.base import EngineName
from mfcli.errors import ExitCode
from mfcli.formats.base import FormatName
from mfcli.results import Summary
from mfcli.settings import DEFAULT_MAX_PIXELS, DEFAULT_TOP_K, Settings
from mfcli.variants import Pretraining, Variant, find_variant


def predict(
    inputs: Annotated[
        list[str], typer.Argument(metavar="INPUT...", help="Picture files; - for picture bytes on standard input.")
    ],
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="A name from mf list-models.", show_default="MF_MODEL, else bundled"),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="A checkpoint of that model: .pth or .safetensors.", show_default=False)
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option("--top-k", "-k", help="Predictions a picture.", show_default=f"{DEFAULT_TOP_K}, or all classes"),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="Class names: one a line in head order, or CSV with wnid and name.", show_default=False),
    ] = None,
    format: Format = FormatName.TABLE,
    engine: Annotated[EngineName, typer.Option(help="What computes the logits.")] = EngineName.AUTO,
    no_exif: Annotated[bool, typer.Option("--no-exif", help="Do not turn pictures by their EXIF orientation.")] = False,
    max_pixels: Annotated[
        int, typer.Option(min=1, help="Refuse pictures with more pixels, before or after resizing.")
    ] = DEFAULT_MAX_PIXELS,
    offline: Offline = False,
    quiet: Quiet = False,
) -> None:
    """Name what is in pictures.

    Every input gives one row, in order; one that cannot be read gives a row that says why. Exit code 0: all were
    classified, 5: some were not, 6: none was.
    """
    from mfcli.formats import open_writer
    from mfcli.labels import read_labels
    from mfcli.predictor import load_predictor
    from mfcli.progress import StderrProgress
    from mfcli.sources import from_arguments
    from mfcli.tasks import predict as task

    sources = from_arguments(inputs, None if sys.stdin is None else sys.stdin.buffer)
    with StderrProgress(note, quiet) as progress:
        predictor = load_predictor(
            model,
            weights=weights,
            labels=read_labels(labels) if labels else None,
            top_k=top_k,
            engine=engine,
            exif=not no_exif,
            max_pixels=max_pixels,
            settings=Settings.from_environ(offline=offline),
            progress=progress,
        )
    if not quiet:
        _say_what_the_model_cannot_do(find_variant(predictor.artifact.variant), weights, len(predictor.labels), labels)
    with standard_output() as stream:
        summary = task.predict(predictor, sources, open_writer(format, stream))
    raise typer.Exit(_exit_code(summary))


def _say_what_the_model_cannot_do(variant: Variant, weights: Path | None, classes: int, labels: Path | None) -> None:
    if weights is None and variant.pretraining is Pretraining.BUNDLED:
        note(
            f"answered by the small bundled model, which knows {classes} classes and can name nothing else; "
            "one that knows 1000: --model caformer_s18"
        )
    elif classes != variant.num_classes and labels is None:
        note(f"the head of {weights} has {classes} classes without names; name them: --labels FILE")


def _exit_code(summary: Summary) -> ExitCode:
    if not summary.failed:
        return ExitCode.OK
    return ExitCode.SOME_FAILED if summary.ok else ExitCode.ALL_FAILED
