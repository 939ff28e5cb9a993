"""The command line: options in, plain function calls, text and exit codes out.

Thin on purpose: what a command does is in tasks/. `main` is the only place that catches errors.
"""

import os
import shlex
import sys
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from mfcli import signals
from mfcli.cli import cache, models
from mfcli.cli.benchmark import benchmark
from mfcli.cli.completion import COMPLETE_VARIABLE, answer, completion
from mfcli.cli.convert import convert
from mfcli.cli.doctor import doctor
from mfcli.cli.embed import embed
from mfcli.cli.help import add_command, list_examples
from mfcli.cli.labels import labels
from mfcli.cli.predict import predict
from mfcli.cli.streams import ReaderGoneError, fail, keep_descriptors, say, standard_output
from mfcli.cli.train import train
from mfcli.errors import EngineError, ExitCode, MfError, is_out_of_memory, memory_error
from mfcli.settings import Settings
from mfcli.version import __version__

app = typer.Typer(
    name="mf",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Classify pictures with the MetaFormer family: IdentityFormer, RandFormer, PoolFormer, ConvFormer, CAFormer.",
    epilog=list_examples(("mf predict cat.jpg", "mf predict photos -m caformer_s18 -o answers.csv", "mf list-models")),
)
add_command(
    app,
    predict,
    "mf predict cat.jpg",
    "mf predict photos -o answers.csv",
    "mf predict photos -m caformer_s18 -o answers.jsonl",
)
add_command(
    app,
    convert,
    "mf convert answers.jsonl -o answers.csv",
    "mf convert answers.csv.partial",
    "mf convert answers.csv.gz --format jsonl | jq .input",
)
add_command(
    app,
    models.list_models,
    "mf list-models",
    "mf list-models 'caformer_*_384'",
    "mf list-models --family convformer --pretraining in1k",
)
add_command(
    app,
    models.info,
    "mf info bundled",
    "mf info caformer_s18",
    "mf info caformer_s18.sail_in1k --format json",
)
add_command(
    app,
    models.download,
    "mf download caformer_s18",
    "mf download 'caformer_*_384' --dry-run",
    "mf download caformer_s18 --from caformer_s18.pth",
)
add_command(
    app,
    labels,
    "mf labels dog",
    "mf labels 'sports car' -m caformer_s18",
    "mf labels animal --tree",
)
app.add_typer(cache.app)
add_command(
    app,
    train,
    "mf train photos -o runs/flowers",
    "mf train labels.csv -o runs/flowers --model caformer_s18",
    "mf predict photo.jpg --model runs/flowers",
)
add_command(
    app,
    embed,
    "mf embed photos -o features.npz",
    "mf embed photos -m caformer_s18 -o features.parquet",
    "find photos -name '*.jpg' | mf embed --files-from - -o features.npz",
)
add_command(
    app,
    benchmark,
    "mf benchmark bundled",
    "mf benchmark caformer_s18 --random-weights",
    "mf benchmark bundled -b 1 -b 16 --format json",
)
add_command(
    app,
    doctor,
    "mf doctor",
    "mf doctor --format json",
    "MF_CACHE_DIR=/data/mf mf doctor",
)
add_command(
    app,
    completion,
    'eval "$(mf completion bash)"',
    'eval "$(mf completion zsh)"',
    "mf completion fish > ~/.config/fish/completions/mf.fish",
)


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


def run() -> NoReturn:
    """Run `main` as a program; it exits without shutting the interpreter down, which takes 40 ms."""
    signals.install()
    keep_descriptors()
    try:
        code = main()
    except KeyboardInterrupt:
        code = ExitCode.INTERRUPTED
    if code == ExitCode.INTERRUPTED:
        signals.end_by_sigint()
    os._exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; errors become `error:` and `hint:` lines on stderr.

    Args:
        argv: the arguments without the program's name; None for those of the process.
    """
    if os.environ.get(COMPLETE_VARIABLE):
        return answer(app)
    for name in ("COLUMNS", "LINES", "TERMINAL_WIDTH"):  # the shell's variables, which libraries read as numbers
        if not os.environ.get(name, "0").isdecimal():
            del os.environ[name]
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # libraries warn about things that a user of the command cannot change
    debug = False
    try:
        debug = Settings.from_environ().debug
        with nullcontext() if sys.stdout is None else standard_output():  # for help and version too
            returned = app(args=argv, prog_name="mf", standalone_mode=False)
            return returned if isinstance(returned, int) else ExitCode.OK
    except (ReaderGoneError, BrokenPipeError):
        return ExitCode.OK
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except typer.TyperException as error:
        if message := _usage_message(error):
            fail(message, _usage_hint(error, message, sys.argv[1:] if argv is None else argv))
        return ExitCode.USAGE
    except Exception as error:
        return _report(error, debug)


def _report(error: Exception, debug: bool) -> int:
    """Write what went wrong and the next step, and return the exit code."""
    if debug:
        import traceback

        say(traceback.format_exc())
    if is_out_of_memory(error) and not isinstance(error, MfError):
        error = memory_error("go on")
    is_ours = isinstance(error, MfError)
    if signals.was_interrupted() and (not is_ours or isinstance(error, EngineError)):
        return ExitCode.INTERRUPTED  # a KeyboardInterrupt inside an import, which then failed with another error
    if isinstance(error, MfError):
        fail(error.message, error.hint)
        return error.exit_code
    if isinstance(error, PermissionError) and error.filename is not None:
        fail(f"cannot use {error.filename}: {error.strerror}", "check its permissions: ls -ld; MF_DEBUG=1 shows where")
        return ExitCode.OUTPUT
    fail(f"unexpected {type(error).__name__}: {error}", "this is a bug; MF_DEBUG=1 shows where it happened")
    return ExitCode.BUG


def _usage_message(error: typer.TyperException) -> str:
    """Return what is wrong with the command line; empty where a command without arguments shows its help instead."""
    if type(error).__name__ == "NoArgsIsHelpError":
        typer.echo(str(error))
        return ""
    return " ".join(error.format_message().split())  # choices come as lines


def _usage_hint(error: typer.TyperException, message: str, argv: Sequence[str]) -> str:
    context = getattr(error, "ctx", None)
    names = list(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    if message.startswith("No such command") and context and context.command_path == "mf":
        wanted = next((word for word in argv if word != "--"), "--")
        if os.path.lexists(wanted) or Path(wanted).suffix or "://" in wanted:
            return f"mf predict {shlex.quote(wanted)}"
        near = [name for name in names if name in wanted or wanted in name]
        return f"mf {near[0]} --help" if near else "mf --help"
    named = ["mf", *[name for name in names if argv[:1] == [name]]]
    command = f"{context.command_path if context else ' '.join(named)} --help"
    if message.startswith("No such option"):
        return f"{command}; a file that begins with a dash comes after --"
    return command
