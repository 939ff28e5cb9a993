"""mf predict: turns options into a request, and runs it."""

import contextlib
import math
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from mfcli.cli import predict_options as option
from mfcli.cli.destination import Destination, Layout, Sink, name_leftovers, parse_output
from mfcli.cli.flags import name_flags
from mfcli.cli.options import Offline, Quiet, parse_batch_size, parse_numbers, parse_share, parse_top_k
from mfcli.cli.streams import is_terminal, note, standard_input
from mfcli.errors import ExitCode, MfError, UsageError
from mfcli.hub.bundled import is_bundled
from mfcli.inference.engines.base import EngineName, Precision
from mfcli.inputs.arguments import Argument, ArgumentKind, classify, classify_list
from mfcli.inputs.codecs import DecodeMode, formats_with, suffixes_of
from mfcli.inputs.left_out import LeftOut
from mfcli.inputs.selection import DEFAULT_TIMEOUT_S, Selection
from mfcli.models.registry import Interpolation, find_variant
from mfcli.outputs.writer import FormatName, MappingWriter, Writer
from mfcli.results import Abstain, PictureResult, Query
from mfcli.runs import Summary
from mfcli.settings import (
    DEFAULT_CONFIDENCE,
    DEFAULT_DECODE_TIMEOUT_S,
    DEFAULT_MAX_PIXELS,
    Settings,
    usable_cores,
)

if TYPE_CHECKING:
    from mfcli.cli.progress import StderrProgress
    from mfcli.inference.predictor import Predictor
    from mfcli.inputs.sources import Source
    from mfcli.outputs.pictures import PictureRenderer
    from mfcli.tasks.predict import MaxFailures

MANY = 4
"""Inputs up to which each picture gets a table of its own."""

_LONG_DECODING_S = 5
"""Seconds of decoding from which on it is worth a word."""

_THUMBNAIL_SIDE = 384
"""Pixels of a picture beside its table, sharp on a screen of high resolution."""


def predict(
    inputs: option.Inputs = None,
    lists: option.FilesFrom = None,
    null: option.Null = False,
    include: option.Include = None,
    exclude: option.Exclude = None,
    no_recursive: option.NoRecursive = False,
    column: option.Column = None,
    keep: option.Keep = None,
    plan: option.Plan = None,
    shard: option.Shard = None,
    shards: option.Shards = None,
    no_exif: option.NoExif = False,
    formats: option.Formats = None,
    max_pixels: option.MaxPixels = DEFAULT_MAX_PIXELS,
    decode_timeout: option.DecodeTimeout = DEFAULT_DECODE_TIMEOUT_S,
    timeout: option.Timeout = DEFAULT_TIMEOUT_S,
    model: option.Model = None,
    weights: option.Weights = None,
    top_k: option.TopK = None,
    confidence: option.Confidence = DEFAULT_CONFIDENCE,
    abstain: option.ShownAbstentions = Abstain.BOTH,
    max_error: option.MaxError = "10%",
    labels: option.Labels = None,
    mean: option.Mean = None,
    std: option.Std = None,
    crop_pct: option.CropPct = None,
    interpolation: option.Interpolation = None,
    input_size: option.InputSize = None,
    decode: option.Decode = DecodeMode.EXACT,
    format: option.Format = None,
    label_type: option.ShownLabel = None,
    show: option.Show = False,
    template: option.Template = None,
    no_header: option.NoHeader = False,
    csv_safe: option.CsvSafe = False,
    output: option.Output = None,
    overwrite: option.Overwrite = False,
    resume: option.Resume = False,
    retry_failed: option.RetryFailed = False,
    batch_size: option.BatchSize = "auto",
    workers: option.Workers = None,
    threads: option.Threads = None,
    engine: option.Engine = EngineName.AUTO,
    device: option.Device = "auto",
    precision: option.ArithmeticPrecision = Precision.FP32,
    allow_failures: option.AllowFailures = False,
    max_failures: option.MaxFailures = None,
    offline: Offline = False,
    quiet: Quiet = False,
) -> None:
    """Classify pictures.

    Every input gives one row, in order; one that cannot be read gives a row that says why. Exit code 0: all were
    classified, 5: some were not, 6: none was.
    """
    from mfcli.tasks.predict import ANY_FAILURES, MaxFailures

    path = parse_output(output)
    if plan is not None:
        _check_plan(bool(inputs or lists), show=show, resumes=overwrite or resume or retry_failed)
        format = format or FormatName.JSONL
    elif shard is not None or shards is not None:
        raise UsageError("--shard and --shards are about a plan", "mf predict --plan PLAN -o OUT --shard 0/8")
    layout = Layout.parse(path, format, template, header=not no_header, csv_safe=csv_safe, label_type=label_type)
    destination = Destination.parse(path, layout, overwrite=overwrite, resume=resume, retry_failed=retry_failed)
    if show and (path is not None or layout.format is not FormatName.TABLE):
        raise UsageError("--show is about tables in a terminal", "leave out --show, or -o and --format")
    failures = ANY_FAILURES if max_failures is None else MaxFailures.parse(max_failures)
    size = parse_batch_size(batch_size)
    extra_formats = tuple(formats.split(",")) if formats is not None else ()
    settings = Settings.from_environ(offline=offline)
    selection = make_selection(include, exclude, not no_recursive, timeout, extra_formats, settings, column, keep)
    request = PredictRequest(
        inputs=InputRequest(tuple(inputs or ()), only_list(lists or []), null, selection),
        model=ModelRequest(
            name=model,
            weights=weights,
            labels=labels,
            mean=parse_numbers(mean, "--mean"),
            std=parse_numbers(std, "--std"),
            crop_pct=crop_pct,
            interpolation=interpolation,
            input_size=input_size,
            top_k=None if top_k is None else parse_top_k(top_k),
            confidence=confidence,
            abstain=abstain,
            max_error=parse_share(max_error),
            engine=engine,
            device=device,
            precision=precision,
            threads=threads,
            exif=not no_exif,
            decode=decode,
            max_pixels=max_pixels,
            decode_timeout_s=decode_timeout,
            formats=extra_formats,
        ),
        destination=destination,
        batch_size=size,
        workers=workers,
        max_failures=failures,
        settings=settings,
        quiet=quiet,
        show=show,
    )
    if plan is None:
        summary = run(request)
    else:
        from mfcli.cli.plan import predict_shards

        summary = predict_shards(request, plan, shard, shards)
    if destination.path is not None and not quiet:
        note(f"{summary.in_words()}; {destination.path}")
    raise typer.Exit(ExitCode.OK if allow_failures else exit_code(summary))


def _check_plan(has_inputs: bool, *, show: bool, resumes: bool) -> None:
    if has_inputs:
        raise UsageError("--plan has the inputs already", "leave out --plan, or the inputs")
    if show:
        raise UsageError("--show is about tables in a terminal", "leave out --show")
    if resumes:
        raise UsageError(
            "a part of a plan that is there is done", "leave out --overwrite and --resume, or delete the part"
        )


def make_selection(
    include: list[str] | None,
    exclude: list[str] | None,
    recursive: bool,
    timeout: float,
    formats: tuple[str, ...],
    settings: Settings,
    column: str | None = None,
    keep: list[str] | None = None,
    names_only: bool = False,
) -> Selection:
    """Return what the options of inputs select.

    Raises:
        UsageError: the timeout is not finite, or a format is unknown.
    """
    if not math.isfinite(timeout):
        raise UsageError(f"--timeout {timeout} is not a number of seconds", f"--timeout {DEFAULT_TIMEOUT_S:g}")
    return Selection(
        recursive=recursive,
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        timeout_s=timeout,
        offline=settings.offline,
        suffixes=suffixes_of(formats_with(formats)),
        column=column,
        keep=tuple(dict.fromkeys(keep or ())),
        names_only=names_only,
    )


def only_list(lists: list[str]) -> str | None:
    """Return the list of inputs, if there is one.

    Raises:
        UsageError: there are several.
    """
    if len(lists) > 1:
        raise UsageError("--files-from is given twice", f"cat {shlex.join(lists)} | mf predict --files-from -")
    return lists[0] if lists else None


@dataclass(frozen=True, slots=True)
class InputRequest:
    """What to classify."""

    names: tuple[str, ...]
    files_from: str | None
    nul: bool
    selection: Selection

    @property
    def arguments(self) -> list[Argument]:
        """The inputs and the list of inputs, told apart."""
        listed = [] if self.files_from is None else [classify_list(self.files_from)]
        return [*map(classify, self.names), *listed]

    def open(self, left_out: LeftOut | None = None, *, names_only: bool = False) -> "Iterator[Source]":
        """Return the pictures, or only their names."""
        from mfcli.inputs.sources import iter_sources

        return iter_sources(
            self.names,
            standard_input(),
            files_from=self.files_from,
            nul=self.nul,
            selection=replace(self.selection, left_out=left_out, names_only=names_only),
        )


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """What to classify with; see `load_predictor`."""

    name: str | None
    weights: Path | None
    labels: Path | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    crop_pct: float | None
    interpolation: Interpolation | None
    input_size: int | None
    top_k: int | Literal["all"] | None
    confidence: float
    abstain: Abstain
    max_error: float
    engine: EngineName
    device: str
    precision: Precision
    threads: int | None
    exif: bool
    decode: DecodeMode
    max_pixels: int
    decode_timeout_s: float
    formats: tuple[str, ...]
    query: Query | None = None

    def load(self, settings: Settings, progress: "StderrProgress", with_thumbnails: bool) -> "Predictor":
        """Load the model."""
        from mfcli.inference.predictor import load_predictor

        return load_predictor(
            self.name,
            weights=self.weights,
            labels=self.labels,
            mean=self.mean,
            std=self.std,
            crop_pct=self.crop_pct,
            interpolation=self.interpolation,
            input_size=self.input_size,
            top_k=self.top_k,
            confidence=self.confidence,
            abstain=self.abstain,
            max_error=self.max_error,
            engine=self.engine,
            device=self.device,
            precision=self.precision,
            threads=self.threads,
            exif=self.exif,
            decode=self.decode,
            max_pixels=self.max_pixels,
            decode_timeout_s=self.decode_timeout_s,
            formats=self.formats,
            query=self.query,
            thumbnail_side=_THUMBNAIL_SIDE if with_thumbnails else None,
            settings=settings,
            progress=progress,
        )

    def describe_limits(self, predictor: "Predictor") -> str | None:
        """What the reader of the answers has to know about the model, if anything."""
        classes = len(predictor.labels)
        if is_bundled(predictor.artifact.path):
            return (
                f"answered by the small bundled model, which knows {classes} classes and can name nothing else; "
                "one that knows 1000: --model caformer_s18"
            )
        if self.weights is None:
            return None
        if (
            classes != find_variant(predictor.artifact.variant).num_classes
            and predictor.labels == predictor.artifact.labels
        ):
            return f"the head of {self.weights} has {classes} classes without names; name them: --labels FILE"
        return None


@dataclass(frozen=True, slots=True)
class PredictRequest:
    """Everything that one `mf predict` or `mf find` was asked for, checked as far as it can be without reading a file.

    `wrap` is put around each writer of the results.
    """

    inputs: InputRequest
    model: ModelRequest
    destination: Destination
    batch_size: int | None
    workers: int | None
    max_failures: "MaxFailures"
    settings: Settings
    quiet: bool
    show: bool = False
    wrap: Callable[[Writer], Writer] | None = None


def run(request: PredictRequest) -> Summary:
    """Classify what was asked for and write the results.

    Raises:
        MfError: of any kind.
    """
    from mfcli.cli.progress import StderrProgress

    inputs, destination, quiet = request.inputs, request.destination, request.quiet
    destination.check([*inputs.names, *([inputs.files_from] if inputs.files_from else [])])
    if not quiet:
        name_leftovers(destination.path)
    arguments = inputs.arguments
    many = len(arguments) > MANY or any(argument.is_many for argument in arguments)
    rows_elsewhere = destination.path is not None or not is_terminal(sys.stdout)
    progress = StderrProgress(note, quiet, with_bar=many and rows_elsewhere)
    left_out = LeftOut()
    sources = inputs.open(left_out)  # checks the usage before a model is loaded
    with StderrProgress(note, quiet) as loading:  # its bars are gone before the first row
        renderer = _load_renderer(loading) if request.show else None
        predictor = request.model.load(request.settings, loading, with_thumbnails=renderer is not None)
        for target in predictor.targets:
            what = target.label if target.wnid is None else f"{target.label} ({target.wnid})"
            loading(f"looking for {what}: {len(target.members)} of {len(predictor.labels)} classes")
    compact = many and renderer is None
    with progress, destination.open(predictor, compact=compact, quiet=quiet, renderer=renderer) as sink:
        if progress.draws_runs and all(argument.is_countable for argument in arguments):
            _count(progress, partial(inputs.open, names_only=True))
        sink = _wrap(sink, lambda writer: MappingWriter(writer, name_flags_of_error))
        if request.wrap is not None:
            sink = _wrap(sink, request.wrap)
        if not quiet and (limits := request.model.describe_limits(predictor)):
            sink = _notify_before_first_answer(sink, partial(progress, limits))
        is_few = not many and (len(arguments) == 1 or all(a.kind is ArgumentKind.FILE for a in arguments))
        started_s = time.perf_counter()
        summary = _classify(request, predictor, sources, sink, left_out, progress, is_few=is_few)
    if words := left_out.in_words():
        progress(words)
    if is_terminal(sys.stderr) and (words := _recommend_scaled(predictor, time.perf_counter() - started_s)):
        progress(words)
    return summary


def _recommend_scaled(predictor: "Predictor", run_s: float) -> str | None:
    """Return what decode=scaled would do, if decoding took most of a long run."""
    share = predictor.spare_decoding_s / (run_s * usable_cores())
    if predictor.spare_decoding_s < _LONG_DECODING_S or share < 0.5:
        return None
    return (
        f"decoding large JPEGs took {share:.0%} of the time; decode=scaled takes about a third as long for them, "
        "and its answers are nearly the same"
    )


def _load_renderer(progress: "StderrProgress") -> "PictureRenderer | None":
    from mfcli.outputs.pictures import load_renderer

    try:
        return load_renderer(sys.stdout)
    except UsageError as error:
        progress(error.message)
        return None


def _classify(
    request: PredictRequest,
    predictor: "Predictor",
    sources: "Iterator[Source]",
    sink: Sink,
    left_out: LeftOut,
    progress: "StderrProgress",
    *,
    is_few: bool,
) -> Summary:
    from mfcli.tasks.predict import predict

    return predict(
        predictor,
        sources,
        sink.writer,
        batch_size=request.batch_size,
        workers=0 if is_few else request.workers,
        max_failures=request.max_failures,
        journal=sink.journal,
        retry_writer=sink.retry_writer,
        left_out=left_out,
        keep=request.inputs.selection.keep,
        progress=progress,
    )


def _notify_before_first_answer(sink: Sink, say: Callable[[], None]) -> Sink:
    once = cache(say)  # whichever writer writes the first answer

    def notify(result: PictureResult) -> PictureResult:
        if result.error is None:
            once()
        return result

    return _wrap(sink, lambda writer: MappingWriter(writer, notify))


def name_flags_of_error(result: PictureResult) -> PictureResult:
    """Return a result whose error speaks of options, not of parameters."""
    if result.error is None:
        return result
    return replace(result, error=replace(result.error, message=name_flags(result.error.message)))


def _wrap(sink: Sink, wrap: Callable[[Writer], Writer]) -> Sink:
    retry_writer = None if sink.retry_writer is None else wrap(sink.retry_writer)
    return Sink(wrap(sink.writer), sink.journal, retry_writer)


def _count(progress: "StderrProgress", sources: "Callable[[], Iterator[Source]]") -> None:
    """Count the pictures in a thread beside the run, so that the bar knows the total."""

    def count() -> None:
        with contextlib.suppress(MfError, OSError):
            progress.total = sum(1 for _ in sources())

    with contextlib.suppress(RuntimeError):  # a limit on processes: the bar does without a total
        threading.Thread(target=count, daemon=True, name="mf-count").start()


def exit_code(summary: Summary) -> ExitCode:
    """Return what a run's counts mean."""
    if not summary.failed:
        return ExitCode.OK
    return ExitCode.SOME_FAILED if summary.ok else ExitCode.ALL_FAILED
