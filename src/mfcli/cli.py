"""The command line: options in, plain function calls, text and exit codes out.

Thin on purpose: what a command does is in tasks/. `main` is the only place that catches errors; stdout is data, all
talk goes to stderr.
"""

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn, TextIO

import typer

from mfcli import __version__
from mfcli.engines.base import EngineName
from mfcli.errors import ExitCode, MfError, OutputError
from mfcli.formats.base import FormatName
from mfcli.results import Summary
from mfcli.settings import DEFAULT_MAX_PIXELS, DEFAULT_TOP_K, Settings
from mfcli.variants import Family, Pretraining, Variant, find_variant

app = typer.Typer(
    name="mf",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Classify pictures with the MetaFormer family: IdentityFormer, RandFormer, PoolFormer, ConvFormer, CAFormer.",
)


class InfoFormat(StrEnum):
    """The formats of one record."""

    TABLE = "table"
    JSON = "json"


Format = Annotated[FormatName, typer.Option("--format", help="How results are written.")]


class _ReaderGoneError(Exception):
    """Whoever read our output has stopped reading; that is no failure."""


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mf {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
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
    top_k: Annotated[int, typer.Option("--top-k", "-k", help="Predictions a picture.")] = DEFAULT_TOP_K,
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
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No notes on stderr, only errors.")] = False,
) -> None:
    """Name what is in pictures.

    Every input gives one row, in order; one that cannot be read gives a row that says why. Exit code 0: all were
    classified, 5: some were not, 6: none was.
    """
    from mfcli.formats import open_writer
    from mfcli.labels import read_labels
    from mfcli.predictor import load_predictor
    from mfcli.sources import from_arguments
    from mfcli.tasks import predict as task

    sources = from_arguments(inputs, None if sys.stdin is None else sys.stdin.buffer)
    predictor = load_predictor(
        model,
        weights=weights,
        labels=read_labels(labels) if labels else None,
        top_k=top_k,
        engine=engine,
        exif=not no_exif,
        max_pixels=max_pixels,
        progress=(lambda _: None) if quiet else _note,
    )
    if not quiet:
        _say_what_the_model_cannot_do(find_variant(predictor.artifact.variant), weights, len(predictor.labels), labels)
    with _stdout() as stream:
        summary = task.predict(predictor, sources, open_writer(format, stream))
    raise typer.Exit(_exit_code(summary))


def _say_what_the_model_cannot_do(variant: Variant, weights: Path | None, classes: int, labels: Path | None) -> None:
    if weights is None and variant.pretraining is Pretraining.BUNDLED:
        _note(
            f"answered by the small bundled model, which knows {classes} classes and can name nothing else; "
            "one that knows 1000: --model caformer_s18 --weights FILE"
        )
    elif classes != variant.num_classes and labels is None:
        _note(f"the head of {weights} has {classes} classes without names; name them: --labels FILE")


def _exit_code(summary: Summary) -> ExitCode:
    if not summary.failed:
        return ExitCode.OK
    return ExitCode.SOME_FAILED if summary.ok else ExitCode.ALL_FAILED


@app.command()
def list_models(
    pattern: Annotated[str | None, typer.Argument(help="A glob, or a part of a name.", show_default=False)] = None,
    family: Annotated[Family | None, typer.Option(help="Only this family.", show_default=False)] = None,
    input_size: Annotated[int | None, typer.Option(help="Only this height and width.", show_default=False)] = None,
    pretraining: Annotated[Pretraining | None, typer.Option(help="Only this training.", show_default=False)] = None,
    format: Format = FormatName.TABLE,
) -> None:
    """List the models, with their published figures.

    params_m: millions of parameters; macs_g: billions of multiply-adds; top1: ImageNet-1k accuracy in percent as
    published.
    """
    from mfcli.formats.records import write_records
    from mfcli.tasks import list_models as task

    variants = task.list_models(task.ModelFilter(pattern, family, input_size, pretraining))
    in_brief = format is FormatName.TABLE
    with _stdout() as stream:
        write_records(format, stream, [_brief(v) if in_brief else v.as_record() for v in variants])


def _brief(variant: Variant) -> dict[str, str | int | float | None]:
    return {
        "name": variant.name,
        "input_size": variant.input_size[1],
        "pretraining": variant.pretraining.value,
        "classes": variant.num_classes,
        "params_m": round(variant.params / 1e6, 1),
        "macs_g": variant.published_macs_g,
        "top1": variant.published_top1,
    }


@app.command()
def info(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A name from mf list-models.")],
    format: Annotated[InfoFormat, typer.Option("--format", help="How it is written.")] = InfoFormat.TABLE,
) -> None:
    """Show everything about one model: its row, how pictures are prepared for it, and its artifacts on this machine."""
    from mfcli.formats.json import indented
    from mfcli.formats.records import write_records
    from mfcli.tasks.info import describe

    fields = describe(find_variant(model), Settings.from_environ())
    with _stdout() as stream:
        if format is InfoFormat.JSON:
            stream.write(indented(fields))
            return
        artifacts = fields.pop("artifacts")
        fields |= {f"artifact_{key}": value for artifact in artifacts[:1] for key, value in artifact.items()}
        fields["other_artifacts"] = [artifact["path"] for artifact in artifacts[1:]]
        rows = [{"field": name, "value": value} for name, value in fields.items() if value not in (None, [])]
        write_records(FormatName.TABLE, stream, rows)


@contextmanager
def _stdout() -> Iterator[TextIO]:
    """Standard output as UTF-8; a reader that went away ends the program quietly, a full disk with exit code 8."""
    if sys.stdout is None:
        raise OutputError("standard output is closed", "send it to a file: mf ... > FILE")
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8", errors="replace", newline="\n")
    try:
        yield sys.stdout
        sys.stdout.flush()
    except BrokenPipeError as error:
        _drop_stdout()
        raise _ReaderGoneError from error
    except OSError as error:
        _drop_stdout()
        reason = error.strerror or str(error)
        raise OutputError(f"cannot write the results: {reason}", "free some space, or send them elsewhere") from error
    except SystemExit as error:  # typer's way to end when the reader of the help has gone
        _drop_stdout()
        raise _ReaderGoneError from error


def _drop_stdout() -> None:
    """What is still buffered can go nowhere: without this, it is tried again at exit, with a complaint."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(line: str) -> None:
    """Write a line to stderr, if there is one."""
    with suppress(OSError, ValueError):
        if sys.stderr is not None:
            print(line, file=sys.stderr, flush=True)


def _note(message: str) -> None:
    _say(f"note: {message}")


def _fail(message: str, hint: str | None = None) -> None:
    _say(f"error: {message}")
    if hint:
        _say(f"hint: {hint}")


def _print_traceback() -> None:
    import traceback

    _say(traceback.format_exc())


def run() -> NoReturn:
    """Run `main` as a program: everything is written, so leave at once; taking the interpreter down costs 40 ms."""
    os._exit(main())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; errors become `error:` and `hint:` lines on stderr."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # libraries warn about things a user of the command cannot change
    debug = False
    try:
        debug = Settings.from_environ().debug
        with _stdout():  # help and version too
            return _ran(app(args=argv, prog_name="mf", standalone_mode=False))
    except _ReaderGoneError:
        return ExitCode.OK
    except typer.TyperException as error:
        _fail(error.format_message(), "mf --help")
        return ExitCode.USAGE
    except MfError as error:
        if debug:
            _print_traceback()
        _fail(error.message, error.hint)
        return error.exit_code
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except Exception as error:
        if debug:
            _print_traceback()
        _fail(f"unexpected {type(error).__name__}: {error}", "this is a bug; MF_DEBUG=1 shows where it happened")
        return ExitCode.BUG


def _ran(returned: object) -> int:
    return int(returned) if isinstance(returned, int) else ExitCode.OK
