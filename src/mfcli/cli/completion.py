"""The command `mf completion`, and the replies to the requests that its scripts send on each Tab.

Scripts and protocol are those of `typer.completion`: a script calls mf with `_MF_COMPLETE=complete_bash` and the words
typed so far. Why not typer's own `add_completion=True`: it adds two options to `mf --help`, one of which edits the
user's ~/.bashrc; it does not complete `--option=value` in bash; and in zsh and fish it imports rich on each Tab, which
then takes 184 ms of CPU time instead of 107 ms (two cores, typer 0.28).
"""

import os
import sys
from collections.abc import MutableMapping
from enum import StrEnum
from typing import Annotated

import typer

from mfcli.cli import COMPLETE_VARIABLE
from mfcli.cli.streams import standard_output


class Shell(StrEnum):
    """The supported shells."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(
    shell: Annotated[Shell, typer.Argument(metavar="SHELL", help="bash, zsh or fish.", show_default=False)],
) -> None:
    """Print the script that makes a shell complete commands, options, their values and model names.

    Put the example for bash into ~/.bashrc, that for zsh into ~/.zshrc after compinit, or run that for fish once.
    """
    from typer.completion import get_completion_script  # type: ignore[attr-defined]

    with standard_output() as stream:
        stream.write(get_completion_script(prog_name="mf", complete_var=COMPLETE_VARIABLE, shell=shell) + "\n")


def answer(app: typer.Typer) -> int:
    """Write the completions that the environment requests; return the exit code that the shell's script expects.

    Errors stay silent: a message would appear in the middle of the line being typed.
    """
    from typer.completion import completion_init  # type: ignore[attr-defined]

    completion_init()  # registers the shells; typer itself does so only for add_completion=True
    sys.modules["rich"] = None  # type: ignore[assignment]  # typer takes it as not installed; our help has no markup
    _join_equals_signs(os.environ)
    try:
        app(args=[], prog_name="mf", standalone_mode=False)
    except SystemExit as done:
        return int(done.code or 0)
    except Exception:
        pass
    return 1


def _join_equals_signs(environ: MutableMapping[str, str]) -> None:
    """Drop the `=` of `--model=caf`, which bash passes as three words, so that it reads `--model caf`."""
    words = environ.get("COMP_WORDS", "").split("\n")
    if len(words) > 3 and words[-2] == "=" and words[-3].startswith("--") and environ.get("COMP_CWORD", "").isdecimal():
        environ["COMP_WORDS"] = "\n".join([*words[:-2], words[-1]])
        environ["COMP_CWORD"] = str(int(environ["COMP_CWORD"]) - 1)
