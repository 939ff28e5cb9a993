"""The command line: options in, plain function calls, text and exit codes out.

Thin on purpose: what a command does is in tasks/. `main` is the only place that catches errors.
"""

import gc
import os
import re
import shlex
import sys
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from mfcli import signals
from mfcli.cli.help import add_command, list_examples
from mfcli.cli.streams import ReaderGoneError, fail, keep_descriptors, say, standard_output
from mfcli.errors import EngineError, ExitCode, MfError, is_out_of_memory, memory_error
from mfcli.memory import is_memory_limited, share_arena
from mfcli.settings import Settings
from mfcli.version import __version__

COMPLETE_VARIABLE = "_MF_COMPLETE"
_HELP = "Classify pictures with the MetaFormer family: IdentityFormer, RandFormer, PoolFormer, ConvFormer, CAFormer."
_EXAMPLES = ("mf predict cat.jpg", "mf predict photos -m caformer_s18 -o answers.csv", "mf list-models")
_COMMANDS: dict[str, tuple[str, *tuple[str, ...]]] = {
    "predict": (
        "predict:predict",
        "mf predict cat.jpg",
        "mf predict photos -o answers.csv",
        "mf predict photos -m caformer_s18 -o answers.jsonl",
    ),
    "convert": (
        "convert:convert",
        "mf convert answers.jsonl -o answers.csv",
        "mf convert answers.csv.partial",
        "mf convert answers.csv.gz --format jsonl | jq .input",
    ),
    "list-models": (
        "models:list_models",
        "mf list-models",
        "mf list-models 'caformer_*_384'",
        "mf list-models --family convformer --pretraining in1k",
    ),
    "info": (
        "models:info",
        "mf info bundled",
        "mf info caformer_s18",
        "mf info caformer_s18.sail_in1k --format json",
    ),
    "download": (
        "models:download",
        "mf download caformer_s18",
        "mf download 'caformer_*_384' --dry-run",
        "mf download caformer_s18 --pin",
    ),
    "find": (
        "find:find",
        "mf find dog photos",
        "mf find cat,bird photos --min 0.8",
        "mf find 'sports car' photos -m caformer_s18 -o cars.csv",
    ),
    "labels": (
        "labels:labels",
        "mf labels dog",
        "mf labels 'sports car' -m caformer_s18",
        "mf labels animal --tree",
    ),
    "cache": ("cache:app",),
    "train": (
        "train:train",
        "mf train photos -o runs/flowers",
        "mf train labels.csv -o runs/flowers --model caformer_s18",
        "mf train photos -o runs/flowers --class-weight balanced --overwrite",
    ),
    "evaluate": (
        "evaluate:evaluate",
        "mf evaluate imagenette/val",
        "mf evaluate val -m caformer_s18 --limit 2000 --expect-top1 83%",
        "mf evaluate answers.jsonl --confusion confusion.png",
    ),
    "embed": (
        "embed:embed",
        "mf embed photos -o features.npz",
        "mf embed photos -m caformer_s18 -o features.parquet",
        "find photos -name '*.jpg' | mf embed --files-from - -o features.npz",
    ),
    "plan": ("plan:app",),
    "benchmark": (
        "benchmark:benchmark",
        "mf benchmark bundled",
        "mf benchmark caformer_s18 --random-weights",
        "mf benchmark bundled -b 1 -b 16 --format json",
    ),
    "doctor": (
        "doctor:doctor",
        "mf doctor",
        "mf doctor --format json",
        "MF_CACHE_DIR=/data/mf mf doctor",
    ),
    "completion": (
        "completion:completion",
        'eval "$(mf completion bash)"',
        'eval "$(mf completion zsh)"',
        "mf completion fish > ~/.config/fish/completions/mf.fish",
    ),
}
"""By name: the function or group, and examples for its help."""


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mf {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def make_app(name: str | None = None) -> typer.Typer:
    """Return the command line with a single command, so that only that command's module is imported.

    Args:
        name: the command; all commands if it is None or unknown.
    """
    app = typer.Typer(
        name="mf",
        add_completion=False,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        help=_HELP,
        epilog=list_examples(_EXAMPLES),
    )
    app.callback()(_options)
    for place, *examples in [_COMMANDS[name]] if name in _COMMANDS else _COMMANDS.values():
        module, attribute = place.split(":")
        command = getattr(import_module(f"mfcli.cli.{module}"), attribute)
        if isinstance(command, typer.Typer):
            app.add_typer(command)
        else:
            add_command(app, command, *examples)
    return app


def run() -> NoReturn:
    """Run `main` as a program; it exits without shutting the interpreter down, which takes 40 ms."""
    gc.set_threshold(50_000)  # loading modules leaves little garbage; looking for it took 2 % of the time
    signals.install()
    keep_descriptors()
    if is_memory_limited():
        share_arena()
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
        from mfcli.cli.completion import answer

        return answer(make_app())
    for name in ("COLUMNS", "LINES", "TERMINAL_WIDTH"):  # the shell's variables, which libraries read as numbers
        if not os.environ.get(name, "0").isdecimal():
            del os.environ[name]
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # libraries warn about things that a user of the command cannot change
    debug = False
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        debug = Settings.from_environ().debug
        with nullcontext() if sys.stdout is None else standard_output():  # for help and version too
            returned = make_app(*words[:1])(args=words, prog_name="mf", standalone_mode=False)
            return returned if isinstance(returned, int) else ExitCode.OK
    except (ReaderGoneError, BrokenPipeError):
        return ExitCode.OK
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except typer.TyperException as error:
        if message := _usage_message(error):
            fail(message, _usage_hint(error, message, words))
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
    message = " ".join(error.format_message().split())  # choices come as lines
    return re.sub(r"is not a valid (int|float)( range)?\b", lambda match: f"is not a {_KINDS[match[1]]}", message)


_KINDS = {"int": "whole number", "float": "number"}


def _usage_hint(error: typer.TyperException, message: str, argv: Sequence[str]) -> str:
    context = getattr(error, "ctx", None)
    if message.startswith("No such command") and context and context.command_path == "mf":
        wanted = next((word for word in argv if word != "--"), "--")
        if os.path.lexists(wanted) or Path(wanted).suffix or "://" in wanted:
            return f"mf predict {shlex.quote(wanted)}"
        near = [name for name in _COMMANDS if name in wanted or wanted in name]
        return f"mf {near[0]} --help" if near else "mf --help"
    named = ["mf", *[name for name in _COMMANDS if argv[:1] == [name]]]
    command = f"{context.command_path if context else ' '.join(named)} --help"
    if message.startswith("No such option"):
        from mfcli.outputs.writer import FormatName

        name = message.split()[3].removeprefix("--")
        if context and name in set(FormatName) and any(option.name == "format" for option in context.command.params):
            return f"--format {name}"
        return f"{command}; a file that begins with a dash comes after --"
    return command
