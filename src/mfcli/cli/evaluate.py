"""The command `mf evaluate`."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from mfcli.cli import predict_options as option
from mfcli.cli.option_groups import DecodingOptions, ModelOptions, OverrideOptions, RunningOptions
from mfcli.cli.options import Format, Offline, Quiet, parse_batch_size, parse_share
from mfcli.cli.requests import ModelRequest, exit_code
from mfcli.cli.streams import note, require_standard_output, standard_output
from mfcli.errors import CheckError, OutputError, UsageError
from mfcli.inputs.codecs import DecodeMode
from mfcli.outputs.writer import RecordFormat
from mfcli.settings import DEFAULT_DECODE_TIMEOUT_S, DEFAULT_MAX_PIXELS, Settings

if TYPE_CHECKING:
    from mfcli.inference.judging import Evaluation
    from mfcli.outputs.reader import StoredResults

_TRUTH, _FIGURES, _ROWS = "Truth", "Figures", "Rows"
_DATASET_SUFFIXES = {".csv", ".tsv", ".txt"}

Data = Annotated[
    Path,
    typer.Argument(
        metavar="DIR|CSV|RESULTS",
        help="DIR/CLASS/*.jpg, a CSV file with the columns path,label, or what mf predict wrote.",
        readable=False,
    ),
]
GroundTruth = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Classes of the pictures in one folder: a label a line, or NAME LABEL.",
        show_default="DIR/val_annotations.txt",
        readable=False,
        rich_help_panel=_TRUTH,
    ),
]
ClassMap = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="The dataset's names of classes, in the head's order.",
        show_default=False,
        readable=False,
        rich_help_panel=_TRUTH,
    ),
]
ValidLabels = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Answer with these classes alone, one a line.",
        show_default=False,
        readable=False,
        rich_help_panel=_TRUTH,
    ),
]
MapTo = Annotated[
    str | None,
    typer.Option(
        metavar="in1k", help="Answer with the classes of ImageNet-1k alone.", show_default=False, rich_help_panel=_TRUTH
    ),
]
RealLabels = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Several right classes for each picture of ImageNet's validation set, as JSON.",
        show_default=False,
        readable=False,
        rich_help_panel=_TRUTH,
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Take N pictures, spread over the classes.",
        show_default="all",
        rich_help_panel=_TRUTH,
    ),
]
ExpectTop1 = Annotated[
    str | None,
    typer.Option(
        metavar="P",
        help="Exit with 9 if top-1 is below P: 0.83 or 83%.",
        show_default=False,
        rich_help_panel=_FIGURES,
    ),
]
PerClass = Annotated[bool, typer.Option("--per-class", help="Show each class.", rich_help_panel=_FIGURES)]
Confusion = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Write the confusion matrix: .csv or .png.",
        show_default=False,
        readable=False,
        rich_help_panel=_FIGURES,
    ),
]
Predictions = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Write a row for every picture, .jsonl.",
        show_default=False,
        readable=False,
        rich_help_panel=_ROWS,
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace --predictions.", rich_help_panel=_ROWS)]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with --predictions.", rich_help_panel=_ROWS)]


def evaluate(
    *,
    data: Data,
    model: ModelOptions,
    overrides: OverrideOptions,
    no_exif: option.NoExif = False,
    max_pixels: option.MaxPixels = DEFAULT_MAX_PIXELS,
    decode: option.Decode = DecodeMode.EXACT,
    decode_timeout: option.DecodeTimeout = DEFAULT_DECODE_TIMEOUT_S,
    abstain: option.ShownAbstentions = None,
    max_error: option.MaxError = None,
    ground_truth: GroundTruth = None,
    class_map: ClassMap = None,
    valid_labels: ValidLabels = None,
    map_to: MapTo = None,
    real_labels: RealLabels = None,
    limit: Limit = None,
    expect_top1: ExpectTop1 = None,
    per_class: PerClass = False,
    confusion: Confusion = None,
    format: Format = RecordFormat.TABLE,
    predictions: Predictions = None,
    overwrite: Overwrite = False,
    resume: Resume = False,
    running: RunningOptions,
    allow_failures: option.AllowFailures = False,
    offline: Offline = False,
    quiet: Quiet = False,
) -> None:
    """Measure how right a model is on pictures whose classes are known.

    Classes are named by WordNet id, name or index. With --format csv and --per-class there is a row for each class.
    Exit code 5: some pictures failed, 6: all did, 9: top-1, failures counted as wrong, is below --expect-top1.
    """
    from mfcli.cli.progress import StderrProgress
    from mfcli.models.label_files import read_labels
    from mfcli.tasks import evaluate as task

    require_standard_output()
    expected = None if expect_top1 is None else parse_share(expect_top1, "--expect-top1")
    _check_outputs(confusion, predictions, overwrite=overwrite, resume=resume)
    if map_to is not None and map_to not in list(task.Subset):
        raise UsageError(f"--map-to {map_to!r} is unknown", f"--map-to {task.Subset.IN1K}")
    request = task.EvaluateRequest(
        data=data,
        ground_truth=ground_truth,
        class_map=class_map,
        valid_labels=valid_labels,
        map_to=None if map_to is None else task.Subset(map_to),
        real_labels=real_labels,
        limit=limit,
        predictions=predictions,
        overwrite=overwrite,
        resume=resume,
        is_published=model.weights is None and overrides._replace(labels=None) == OverrideOptions(),
        batch_size=parse_batch_size(running.batch_size),
        workers=running.workers,
    )
    settings = Settings.from_environ(offline=offline)
    with StderrProgress(note, quiet, with_bar=True) as progress, _open_results(data) as stored:
        if stored is not None:
            computing = {
                "--weights": model.weights,
                "--abstain": abstain,
                "--max-error": max_error,
                "--valid-labels": valid_labels,
                "--map-to": map_to,
                "--limit": limit,
                "--predictions": predictions,
            }
            _refuse_given(computing, f"{data} holds results, for which nothing is computed")
            given = None if overrides.labels is None else read_labels(overrides.labels)
            evaluation = task.evaluate_results(stored, request, settings, progress, labels=given, model=model.model)
        else:
            asked = ModelRequest(
                model=model,
                running=running,
                decoding=DecodingOptions(no_exif, max_pixels=max_pixels, decode_timeout=decode_timeout),
                overrides=overrides,
                decode=decode,
                abstain=abstain,
                max_error=None if max_error is None else parse_share(max_error, "--max-error"),
                logits=True,
            )
            predictor = asked.load(settings, progress)
            if promise := asked.describe_promise(predictor):
                progress(promise)
            with _announce_unfinished(predictions, quiet):
                evaluation = task.evaluate(predictor, request, progress)
    _write_figures(evaluation, format, per_class=per_class)
    if confusion is not None:
        _write_confusions(confusion, evaluation)
    top1 = evaluation.figures.get("strict_top1", 0.0)
    if expected is not None and top1 < expected:
        raise CheckError(f"top-1 is {top1:.2%}, which is below {expected:.2%}", "mf evaluate --per-class shows where")
    raise typer.Exit(exit_code(evaluation.summary, allow_failures=allow_failures))


def _check_outputs(confusion: Path | None, predictions: Path | None, *, overwrite: bool, resume: bool) -> None:
    """Check before any work that the files can be written."""
    from mfcli.outputs.files import check_folder, refuse_existing

    if confusion is not None:
        if confusion.suffix.lower() not in (".csv", ".png"):
            raise UsageError(f"the suffix of {confusion} is neither .csv nor .png", "--confusion confusion.png")
        check_folder(confusion)
    if predictions is None:
        if overwrite or resume:
            raise UsageError("--overwrite and --resume are about --predictions", "--predictions rows.jsonl")
        return
    if overwrite and resume:
        raise UsageError("--overwrite and --resume exclude each other", "mf evaluate --help")
    if predictions.suffix.lower() != ".jsonl":
        raise UsageError(f"the suffix of {predictions} is not .jsonl", "--predictions rows.jsonl")
    if not (overwrite or resume):
        refuse_existing(predictions, resumable=True)


def _refuse_given(options: Mapping[str, object], problem: str) -> None:
    """Check that none of some options is given.

    Raises:
        UsageError: one is.
    """
    if given := [flag for flag, value in options.items() if value is not None]:
        raise UsageError(problem, f"leave out {', '.join(given)}")


def _announce_unfinished(predictions: Path | None, quiet: bool) -> contextlib.AbstractContextManager[None]:
    from mfcli.cli.destination import announce_unfinished
    from mfcli.outputs.files import partial_path

    return contextlib.nullcontext() if predictions is None else announce_unfinished(partial_path(predictions), quiet)


@contextlib.contextmanager
def _open_results(path: Path) -> "Iterator[StoredResults | None]":
    """Open results of an earlier run; yield None if it is something else."""
    from mfcli.outputs.journal import read_settings
    from mfcli.outputs.reader import StoredResults

    if not path.is_file():
        yield None
        return
    with _open(path) as file:
        try:
            stored = StoredResults(file, str(path), read_settings(path))
        except OutputError:
            if path.suffix.lower() not in _DATASET_SUFFIXES:
                raise
            yield None
            return
        yield stored


def _open(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}", f"check its permissions: ls -l {path}") from error


def _write_figures(evaluation: "Evaluation", format: RecordFormat, *, per_class: bool) -> None:
    from mfcli.outputs.evaluation import flatten, list_classes, list_confusions, list_figures
    from mfcli.outputs.json import format_document
    from mfcli.outputs.records import write_records

    figures, classes = evaluation.figures, evaluation.per_class
    with standard_output() as stream:
        if format is RecordFormat.JSON:
            stream.write(format_document(figures | ({"per_class": classes} if per_class else {})))
        elif format is not RecordFormat.TABLE:
            write_records(format, stream, classes if per_class else [flatten(figures)])
        else:
            write_records(format, stream, list_figures(figures))
            for records in (list_classes(classes) if per_class else [], list_confusions(figures)):
                if records:
                    stream.write("\n")
                    write_records(format, stream, records, optional=("f1", "precision"))


def _write_confusions(path: Path, evaluation: "Evaluation") -> None:
    from mfcli.outputs.confusion import Confusions
    from mfcli.outputs.files import atomic_output, open_beside, translate_write_errors

    confusions = Confusions({row["name"]: row["correct"] for row in evaluation.per_class}, evaluation.confusions)
    if path.suffix.lower() == ".csv":
        with atomic_output(path) as stream:
            confusions.write_csv(stream)
        return
    if not confusions.is_matrix or not confusions.correct:
        raise UsageError(f"{len(confusions.correct)} classes make no picture", "--confusion confusion.csv")
    with translate_write_errors(path), open_beside(path) as (file, publish):
        confusions.draw().save(file, "PNG")
        publish()
