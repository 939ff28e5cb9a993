"""mf predict."""

import contextlib
import math
import shlex
import sys
import threading
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mfcli.cli.options import MAX_WORKERS, Offline, Quiet, complete_device, complete_model, parse_batch_size
from mfcli.cli.streams import goes_into_a_file, note, standard_input, standard_output
from mfcli.errors import ExitCode, MfError, OutputError, UsageError
from mfcli.files import exists, is_file, is_glob, is_url
from mfcli.inference.engines.base import EngineName, Precision
from mfcli.inputs.codecs import ALL_SUFFIXES, OPTIONAL_FORMATS, formats_with, suffixes_of
from mfcli.inputs.selection import DEFAULT_TIMEOUT_S
from mfcli.models.registry import Pretraining, find_variant
from mfcli.outputs.writer import FormatName, NotifyingWriter
from mfcli.results import Summary
from mfcli.settings import DEFAULT_MAX_PIXELS, DEFAULT_TOP_K, Settings

if TYPE_CHECKING:
    from mfcli.cli.progress import StderrProgress
    from mfcli.inference.predictor import Predictor
    from mfcli.inputs.sources import Source
    from mfcli.outputs.journal import Journal
    from mfcli.outputs.writer import Writer

MANY = 4
"""Pictures up to which each gets a table of its own."""

_STANDARD_OUTPUT = Path("-")
_INPUTS, _MODEL, _OUTPUT, _RUNNING, _FAILING = "Inputs", "Model", "Output", "Running", "Failures"


def predict(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT...",
            help="Files, folders, globs, http(s) addresses, .zip and .tar archives; - for picture bytes on standard "
            "input.",
            show_default=False,
        ),
    ] = None,
    lists: Annotated[
        list[str] | None,
        typer.Option(
            "--files-from",
            metavar="FILE",
            help="Read inputs from FILE, one a line; - for standard input.",
            show_default=False,
            rich_help_panel=_INPUTS,
        ),
    ] = None,
    null: Annotated[
        bool, typer.Option("--null", "-0", help="In --files-from, NUL ends a name.", rich_help_panel=_INPUTS)
    ] = False,
    include: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB",
            help="In folders, archives, globs and lists, take only what matches.",
            show_default="picture suffixes",
            rich_help_panel=_INPUTS,
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Leave out what matches.", show_default=False, rich_help_panel=_INPUTS),
    ] = None,
    no_recursive: Annotated[
        bool, typer.Option("--no-recursive", help="Leave subfolders out.", rich_help_panel=_INPUTS)
    ] = False,
    no_exif: Annotated[
        bool,
        typer.Option("--no-exif", help="Do not turn pictures by their EXIF orientation.", rich_help_panel=_INPUTS),
    ] = False,
    formats: Annotated[
        str | None,
        typer.Option(
            metavar="F,F",
            help=f"Decode these formats, too: {', '.join(OPTIONAL_FORMATS).lower()}.",
            show_default=False,
            rich_help_panel=_INPUTS,
        ),
    ] = None,
    max_pixels: Annotated[
        int,
        typer.Option(
            min=1, help="Refuse pictures with more pixels, before or after resizing.", rich_help_panel=_INPUTS
        ),
    ] = DEFAULT_MAX_PIXELS,
    timeout: Annotated[
        float,
        typer.Option(min=0.1, metavar="S", help="Seconds that an address may take.", rich_help_panel=_INPUTS),
    ] = DEFAULT_TIMEOUT_S,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="A name from mf list-models.",
            show_default="MF_MODEL, else bundled",
            autocompletion=complete_model,
            rich_help_panel=_MODEL,
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            help="A checkpoint of that model: .pth or .safetensors.",
            show_default=False,
            readable=False,
            rich_help_panel=_MODEL,
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            "--top-k",
            "-k",
            help="Predictions a picture.",
            show_default=f"{DEFAULT_TOP_K}, or all classes",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="Class names: one a line in head order, or CSV with wnid and name.",
            show_default=False,
            readable=False,
            rich_help_panel=_MODEL,
        ),
    ] = None,
    format: Annotated[
        FormatName | None,
        typer.Option(
            "--format",
            help="How results are written.",
            show_default="of -o's suffix, else table",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write results there; - for standard output.",
            show_default=False,
            readable=False,
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing FILE.", rich_help_panel=_OUTPUT)
    ] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with a .jsonl FILE: skip what is finished.", rich_help_panel=_OUTPUT),
    ] = False,
    retry_failed: Annotated[
        bool,
        typer.Option("--retry-failed", help="Resume, and take the failed pictures again.", rich_help_panel=_OUTPUT),
    ] = False,
    batch_size: Annotated[
        str, typer.Option("--batch-size", "-b", metavar="N|auto", help="Pictures in a batch.", rich_help_panel=_RUNNING)
    ] = "auto",
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            "-j",
            min=1,
            max=MAX_WORKERS,
            help="Threads that read and decode.",
            show_default="one a core",
            rich_help_panel=_RUNNING,
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Cores for the engine.", show_default="all", rich_help_panel=_RUNNING),
    ] = None,
    engine: Annotated[
        EngineName, typer.Option(help="What computes the logits.", rich_help_panel=_RUNNING)
    ] = EngineName.AUTO,
    device: Annotated[
        str,
        typer.Option(
            metavar="D",
            help="auto, cpu, cuda, cuda:N or mps.",
            rich_help_panel=_RUNNING,
            autocompletion=complete_device,
        ),
    ] = "auto",
    precision: Annotated[Precision, typer.Option(help="The arithmetic.", rich_help_panel=_RUNNING)] = Precision.FP32,
    allow_failures: Annotated[
        bool, typer.Option("--allow-failures", help="Exit with 0 whatever failed.", rich_help_panel=_FAILING)
    ] = False,
    max_failures: Annotated[
        str | None,
        typer.Option(metavar="N|P%", help="Stop when more have failed.", show_default=False, rich_help_panel=_FAILING),
    ] = None,
    offline: Offline = False,
    quiet: Quiet = False,
) -> None:
    """Name what is in pictures.

    Every input gives one row, in order; one that cannot be read gives a row that says why. Exit code 0: all were
    classified, 5: some were not, 6: none was.
    """
    from mfcli.cli.progress import StderrProgress
    from mfcli.inference.predictor import load_predictor
    from mfcli.inputs.sources import Selection, iter_sources
    from mfcli.models.labels import read_labels
    from mfcli.outputs.files import refuse_existing
    from mfcli.tasks import predict as task

    resume = resume or retry_failed
    if output == _STANDARD_OUTPUT:
        output = None
    format = _format(format, output, resume, overwrite)
    limit = task.MaxFailures.parse(max_failures) if max_failures is not None else task.ANY_FAILURES
    size = parse_batch_size(batch_size)
    extra_formats = formats.split(",") if formats is not None else []
    if output is not None and not (overwrite or resume):
        refuse_existing(output)
    inputs = inputs or []
    if lists and len(lists) > 1:
        raise UsageError("--files-from is given twice", f"cat {shlex.join(lists)} | mf predict --files-from -")
    files_from = lists[0] if lists else None
    if not math.isfinite(timeout):
        raise UsageError(f"--timeout {timeout} is no number of seconds", f"--timeout {DEFAULT_TIMEOUT_S:g}")
    if output is not None:
        _check_not_read(output, [*inputs, *([files_from] if files_from else [])])
    is_one = files_from is None and len(inputs) == 1 and not _is_a_set(inputs[0])
    many = files_from is not None or len(inputs) > MANY or any(_is_a_set(name) for name in inputs)
    settings = Settings.from_environ(offline=offline)
    selection = Selection(
        recursive=not no_recursive,
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        timeout_s=timeout,
        offline=settings.offline,
        suffixes=suffixes_of(formats_with(extra_formats)),
    )
    stdin = standard_input()
    elsewhere = output is not None or goes_into_a_file(sys.stdout)
    progress = StderrProgress(note, quiet, elsewhere)
    sources = iter_sources(inputs, stdin, files_from=files_from, nul=null, selection=selection, notice=progress)
    with StderrProgress(note, quiet) as loading:  # its bars are gone before the first row
        predictor = load_predictor(
            model,
            weights=weights,
            labels=read_labels(labels) if labels else None,
            top_k=top_k,
            engine=engine,
            device=device,
            precision=precision,
            threads=threads,
            exif=not no_exif,
            max_pixels=max_pixels,
            formats=extra_formats,
            settings=settings,
            progress=loading,
        )
    with progress:
        if progress.draws_runs and many and _can_be_counted(inputs, files_from):
            _count(progress, lambda: iter_sources(inputs, stdin, files_from=files_from, nul=null, selection=selection))
        with (
            _saying_what_is_kept(output, format, quiet),
            _writers(predictor, format, output, many, overwrite, resume, retry_failed) as (writer, journal, retries),
        ):
            if not quiet and (limits := _limits(predictor, weights, labels)):
                say = cache(partial(progress, limits))  # once, whichever writes the first answer
                writer, retries = NotifyingWriter(writer, say), retries and NotifyingWriter(retries, say)
            summary = task.predict(
                predictor,
                sources,
                writer,
                batch_size=size,
                workers=0 if is_one else workers,
                max_failures=limit,
                journal=journal,
                retry_writer=retries,
                progress=progress,
            )
    if output is not None and not quiet:
        note(f"{summary.in_words()}; {output}")
    raise typer.Exit(ExitCode.OK if allow_failures else _exit_code(summary))


@contextlib.contextmanager
def _saying_what_is_kept(output: Path | None, format: FormatName, quiet: bool) -> Iterator[None]:
    """After an interrupt, say where the results are, if there are any of this run."""

    def state() -> tuple[int, int, int] | None:
        with contextlib.suppress(OSError):
            if output is not None and (found := output.stat()).st_size:
                return found.st_ino, found.st_size, found.st_mtime_ns
        return None

    before = state()
    try:
        yield
    except KeyboardInterrupt:
        if not quiet and state() not in (None, before):
            go_on = "; --resume goes on" if format is FormatName.JSONL else ""
            note(f"interrupted: {output} holds what was done{go_on}")
        raise


def _check_not_read(output: Path, names: list[str]) -> None:
    """Refuse an output that is an input or the list of them, or that may be among what they hold.

    Raises:
        OutputError: it is.
    """
    from mfcli.inputs.walk import is_archive_name

    is_named_so = output.suffix.lower() in ALL_SUFFIXES or is_archive_name(str(output))
    if is_named_so and is_file(output):
        raise OutputError(f"{output} has the name of a picture or an archive", "name another file with -o")
    for name in names:
        with contextlib.suppress(OSError, ValueError):
            if output.is_file() and output.samefile(name):
                raise OutputError(f"{output} is an input", "name another file with -o")


def _can_be_counted(inputs: list[str], files_from: str | None) -> bool:
    """Whether the inputs can be gone through twice: not what comes through a pipe, and no tar, which is read whole."""
    from mfcli.inputs.sources import STDIN
    from mfcli.inputs.walk import is_archive_name

    is_list = files_from is None or (files_from != STDIN and is_file(Path(files_from)))
    archives = [bare for name in inputs if is_archive_name(bare := name.rstrip("/").lower())]
    return is_list and all(name.endswith(".zip") for name in archives)


def _count(progress: "StderrProgress", sources: "Callable[[], Iterator[Source]]") -> None:
    """Count the pictures beside the run, for the time that is left."""

    def count() -> None:
        with contextlib.suppress(MfError, OSError):
            progress.total = sum(1 for _ in sources())

    with contextlib.suppress(RuntimeError):  # a limit on processes: then the end is not known
        threading.Thread(target=count, daemon=True, name="mf-count").start()


def _format(format: FormatName | None, output: Path | None, resume: bool, overwrite: bool) -> FormatName:
    """The format that is meant; refuses what does not go together.

    Raises:
        UsageError: resuming without a .jsonl file, or while overwriting; overwriting nothing; an unknown suffix.
    """
    if overwrite and resume:
        raise UsageError("--overwrite and --resume exclude each other", "mf predict --help")
    if output is None:
        if resume or overwrite:
            raise UsageError("--resume, --retry-failed and --overwrite are about a file", "-o results.jsonl")
        return format or FormatName.TABLE
    if format is None:
        suffix = output.suffix.lower().removeprefix(".")
        suffix = {"ndjson": "jsonl", "txt": "table"}.get(suffix, suffix)
        if suffix not in list(FormatName):
            raise UsageError(f"the suffix of {output} names no format", f"add --format, one of {', '.join(FormatName)}")
        format = FormatName(suffix)
    if resume and format is not FormatName.JSONL:
        raise UsageError(f"only jsonl can be resumed, not {format}", "-o results.jsonl")
    return format


def _is_a_set(name: str) -> bool:
    """Whether an argument may stand for many pictures."""
    from mfcli.inputs.walk import is_archive_name, split_member

    if is_url(name):
        return False
    with contextlib.suppress(OSError, ValueError):
        path = Path(name)
        if path.is_dir() or is_archive_name(name.rstrip("/")):
            return True
        if (split := split_member(name)) is not None:
            is_folder = Path(split[1]).suffix.lower() not in ALL_SUFFIXES
            return is_folder or is_glob(split[1])
        return not path.exists() and is_glob(name)
    return False


@contextlib.contextmanager
def _writers(
    predictor: "Predictor",
    format: FormatName,
    output: Path | None,
    many: bool,
    overwrite: bool,
    resume: bool,
    retry_failed: bool,
) -> Iterator[tuple["Writer", "Journal | None", "Writer | None"]]:
    """Where results go: a writer, and, for a .jsonl file, what is finished in it and where retried rows go."""
    from mfcli.outputs import open_writer
    from mfcli.outputs.files import atomic_output, refuse_existing, translate_write_errors
    from mfcli.outputs.journal import Journal

    if output is None:
        with standard_output() as stream:
            yield open_writer(format, stream, compact=many), None, None
    elif format is not FormatName.JSONL or (exists(output) and not is_file(output)):
        with atomic_output(output, replace=overwrite) as stream:
            yield open_writer(format, stream, compact=True), None, None
    else:
        if not (overwrite or resume):
            refuse_existing(output)  # again: making a model ready may have taken a while
        journal = Journal(
            output,
            predictor.run.run,
            overwrite=not resume,
            retry_failed=retry_failed,
            difference=predictor.difference,
        )
        with contextlib.closing(journal), translate_write_errors(output):
            retries = None if journal.retries is None else open_writer(format, journal.retries)
            yield open_writer(format, journal.rows), journal, retries


def _limits(predictor: "Predictor", weights: Path | None, labels: Path | None) -> str | None:
    """What the reader of the answers has to know about the model, if anything."""
    variant, classes = find_variant(predictor.artifact.variant), len(predictor.labels)
    if weights is None and variant.pretraining is Pretraining.BUNDLED:
        return (
            f"answered by the small bundled model, which knows {classes} classes and can name nothing else; "
            "one that knows 1000: --model caformer_s18"
        )
    if classes != variant.num_classes and labels is None:
        return f"the head of {weights} has {classes} classes without names; name them: --labels FILE"
    return None


def _exit_code(summary: Summary) -> ExitCode:
    if not summary.failed:
        return ExitCode.OK
    return ExitCode.SOME_FAILED if summary.ok else ExitCode.ALL_FAILED
