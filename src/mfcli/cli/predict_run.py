"""mf predict and mf find: from a request to rows, with notes and progress on stderr."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import TYPE_CHECKING

from mfcli.cli.destination import Sink, name_leftovers
from mfcli.cli.flags import name_flags_of_error
from mfcli.cli.requests import MAX_MISSING, PredictRequest, find_near
from mfcli.cli.streams import is_terminal, note
from mfcli.errors import MfError, UsageError
from mfcli.inputs.arguments import ArgumentKind
from mfcli.inputs.left_out import LeftOut
from mfcli.results import PictureResult
from mfcli.runs import Summary
from mfcli.settings import usable_cores

if TYPE_CHECKING:
    from mfcli.cli.progress import StderrProgress
    from mfcli.inference.predictor import Predictor
    from mfcli.inputs.source import Source
    from mfcli.outputs.pictures import PictureRenderer

MANY = 4
"""Inputs up to which each picture gets a table of its own."""

_LONG_DECODING_S = 5
"""Seconds of decoding from which on it is worth a word."""

_THUMBNAIL_SIDE = 384
"""Pixels of a picture beside its table, sharp on a screen of high resolution."""


def run(request: PredictRequest) -> Summary:
    """Classify what was asked for and write the results.

    Raises:
        MfError: of any kind.
    """
    from mfcli.cli.progress import StderrProgress

    inputs, destination, quiet = request.inputs, request.destination, request.quiet
    destination.check(inputs.all_names, offline=request.settings.offline)
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
        thumbnail_side = None if renderer is None else _THUMBNAIL_SIDE
        predictor = request.model.load(request.settings, loading, inputs.selection, thumbnail_side=thumbnail_side)
        for target in predictor.targets:
            what = target.label if target.wnid is None else f"{target.label} ({target.wnid})"
            loading(f"looking for {what}: {len(target.members)} of {len(predictor.labels)} classes")
    compact = many and renderer is None
    with progress, destination.open(predictor, compact=compact, quiet=quiet, renderer=renderer) as sink:
        if progress.draws_runs and all(argument.is_countable for argument in arguments):
            _count(progress, partial(inputs.open, names_only=True))
        sink = sink.map(name_flags_of_error)
        if not destination.layout.shows_errors:
            sink = sink.map(partial(_note_error, progress))
        if request.observe is not None:
            sink = sink.map(request.observe)
        if not quiet and (limits := request.model.describe_limits(predictor)):
            sink = _notify_before_first_doubt(sink, partial(progress, limits[0]), limits[1])
        is_few = not many and (len(arguments) == 1 or all(a.kind is ArgumentKind.FILE for a in arguments))
        started_s = time.perf_counter()
        summary = _classify(request, predictor, sources, sink, left_out, progress, is_few=is_few)
    if words := left_out.in_words():
        progress(words)
    if summary.failed:
        for name in inputs.list_missing()[:MAX_MISSING]:
            if near := find_near(name):
                progress(f"{name}: did you mean {near}?")
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
        progress=progress,
    )


def _notify_before_first_doubt(sink: Sink, say: Callable[[], None], below: float) -> Sink:
    once = cache(say)  # whichever writer writes the first answer of less than this probability

    def notify(result: PictureResult) -> PictureResult:
        if result.prob is not None and result.prob < below:
            once()
        return result

    return sink.map(notify)


def _note_error(progress: "StderrProgress", result: PictureResult) -> PictureResult:
    if result.error is not None:
        progress(f"{result.shown_name}: {result.error.message}")
    return result


def _count(progress: "StderrProgress", sources: "Callable[[], Iterator[Source]]") -> None:
    """Count the pictures in a thread beside the run, so that the bar knows the total."""

    def count() -> None:
        with contextlib.suppress(MfError, OSError):
            progress.total = sum(1 for _ in sources())

    with contextlib.suppress(RuntimeError):  # a limit on processes: the bar does without a total
        threading.Thread(target=count, daemon=True, name="mf-count").start()
