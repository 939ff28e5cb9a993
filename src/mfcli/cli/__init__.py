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
from mfcli.cli.doctor import doctor
from mfcli.cli.predict import predict
from mfcli.cli.streams import ReaderGoneError, fail, keep_descriptors, say, standard_output
from mfcli.errors import EngineError, ExitCode, MfError
from mfcli.settings import Settings
from mfcli.version import __version__

app = typer.Typer(
    name="mf",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Classify pictures with the MetaFormer family: IdentityFormer, RandFormer, PoolFormer, ConvFormer, CAFormer.",
)
app.command()(predict)
app.command()(models.list_models)
app.command()(models.info)
app.command()(models.download)
app.add_typer(cache.app)
app.command()(benchmark)
app.command()(doctor)
app.command()(completion)


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


def _print_traceback() -> None:
    import traceback

    say(traceback.format_exc())


def run() -> NoReturn:
    """Run `main` as a program: everything is written, so leave at once; taking the interpreter down costs 40 ms."""
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
    """Run the command line and return its exit code; errors become `error:` and `hint:` lines on stderr."""
    if os.environ.get(COMPLETE_VARIABLE):
        return answer(app)
    for name in ("COLUMNS", "LINES", "TERMINAL_WIDTH"):  # of the shell's; libraries take them for numbers
        if not os.environ.get(name, "0").isdecimal():
            del os.environ[name]
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # libraries warn about things a user of the command cannot change
    debug = False
    try:
        debug = Settings.from_environ().debug
        with nullcontext() if sys.stdout is None else standard_output():  # help and version too
            return _ran(app(args=argv, prog_name="mf", standalone_mode=False))
    except (ReaderGoneError, BrokenPipeError):
        return ExitCode.OK
    except typer.TyperException as error:
        if message := _usage_message(error):
            fail(message, _usage_hint(error, message, sys.argv[1:] if argv is None else argv))
        return ExitCode.USAGE
    except MfError as error:
        if debug:
            _print_traceback()
        if isinstance(error, EngineError) and signals.was_interrupted():  # while its package was imported
            return ExitCode.INTERRUPTED
        fail(error.message, error.hint)
        return error.exit_code
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except Exception as error:
        if debug:
            _print_traceback()
        if signals.was_interrupted():  # while something was imported, which then failed
            return ExitCode.INTERRUPTED
        if isinstance(error, PermissionError) and error.filename is not None:  # of a file that nobody foresaw
            fail(f"cannot use {error.filename}: {error.strerror}", "see who may: ls -ld; MF_DEBUG=1 shows where")
            return ExitCode.OUTPUT
        fail(f"unexpected {type(error).__name__}: {error}", "this is a bug; MF_DEBUG=1 shows where it happened")
        return ExitCode.BUG


def _usage_message(error: typer.TyperException) -> str:
    """What is wrong with the command line; nothing where a command without arguments asks for its help instead."""
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


def _ran(returned: object) -> int:
    return int(returned) if isinstance(returned, int) else ExitCode.OK
