"""mf completion, and the answers that a shell asks for while somebody types.

The scripts and the protocol are typer's: the shell calls mf with `_MF_COMPLETE` set to `complete_bash` and the like,
and the words so far in other variables. Nothing is imported for an answer beyond what `mf --help` needs.
"""

import os
from collections.abc import MutableMapping
from enum import StrEnum
from typing import Annotated

import typer

from mfcli.cli.streams import standard_output

COMPLETE_VARIABLE = "_MF_COMPLETE"


class Shell(StrEnum):
    """The shells that completion is there for."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def completion(
    shell: Annotated[Shell, typer.Argument(metavar="SHELL", help="bash, zsh or fish.", show_default=False)],
) -> None:
    """Print the script that makes a shell complete commands, options, their values and model names.

    Put eval "$(mf completion bash)" into ~/.bashrc; the same with zsh into ~/.zshrc, after compinit; for fish:
    mf completion fish > ~/.config/fish/completions/mf.fish
    """
    from typer._completion_shared import get_completion_script

    with standard_output() as stream:
        stream.write(get_completion_script(prog_name="mf", complete_var=COMPLETE_VARIABLE, shell=shell) + "\n")


def answer(app: typer.Typer) -> int:
    """Write the completions that the environment asks for, and return the exit code that the shell's script expects.

    Never says anything else: whoever presses Tab has not asked for an error message.
    """
    from typer import _completion_classes

    _completion_classes.completion_init()  # typer does it itself only for programs with its --install-completion
    # it renders markup, of which our help has none, and rich takes 100 ms to import
    _completion_classes._sanitize_help_text = lambda text: text
    _join_equals_signs(os.environ)
    try:
        app(args=[], prog_name="mf", standalone_mode=False)
    except SystemExit as done:
        return int(done.code or 0)
    except Exception:
        pass
    return 1


def _join_equals_signs(environ: MutableMapping[str, str]) -> None:
    """Bash takes `--model=caf` for three words; without the sign, they read as `--model caf`."""
    words = environ.get("COMP_WORDS", "").split("\n")
    if len(words) > 3 and words[-2] == "=" and words[-3].startswith("--") and environ.get("COMP_CWORD", "").isdecimal():
        environ["COMP_WORDS"] = "\n".join([*words[:-2], words[-1]])
        environ["COMP_CWORD"] = str(int(environ["COMP_CWORD"]) - 1)
