"""What a terminal shows: every command at 80 and 60 columns."""

import contextlib
import itertools
import os
import pty
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from typer.main import get_command

from conftest import Ran
from documents import check_options, mf_commands
from mfcli.cli import app
from mfcli.models.registry import list_variants

Screen = Callable[..., Ran]


@pytest.fixture
def screen() -> Screen:
    """Return a function that runs a command line with a terminal of a given width as stdin and stdout."""

    def run(columns: int, *arguments: str | Path, **environment: str) -> Ran:
        controller, terminal = pty.openpty()
        shown = b""
        with subprocess.Popen(
            [sys.executable, "-m", "mfcli", *arguments],
            stdin=terminal,
            stdout=terminal,
            stderr=subprocess.PIPE,
            env=os.environ | {"COLUMNS": str(columns), "TERM": "xterm"} | environment,
        ) as process:
            os.close(terminal)
            with contextlib.suppress(OSError):  # at its end
                while read := os.read(controller, 65536):
                    shown += read
            assert process.stderr is not None
            errors = process.stderr.read().decode()
            code = process.wait(60)
        os.close(controller)
        return Ran(code, re.sub(r"\x1b\[[\d;]*m", "", shown.decode()).replace("\r\n", "\n"), errors)

    return run


def assert_fits(shown: str, columns: int) -> None:
    assert [line for line in shown.splitlines() if cell_len(line) > columns] == []


@pytest.mark.parametrize("columns", [80, 60])
def test_list_models_fits(screen: Screen, columns: int) -> None:
    ran = screen(columns, "list-models")
    assert_fits(ran.out, columns)
    rows = {line.split()[0]: line.split() for line in ran.out.splitlines()}
    for variant in list_variants():  # whole
        assert variant.published_top1 is None or str(variant.published_top1) in rows[variant.name]


@pytest.mark.parametrize("columns", [80, 60])
def test_info_and_the_cache_fit(screen: Screen, columns: int, own_cache: Path) -> None:
    placed = own_cache / "checkpoints" / "caformer_s18" / "caformer_s18.pth"
    placed.parent.mkdir(parents=True)
    placed.write_bytes(bytes(1234567))
    for command, whole in (("info caformer_s18", "26341656"), ("info bundled", "7211595"), ("cache ls", "1234567")):
        ran = screen(columns, *command.split())
        assert ran.code == 0
        assert whole in ran.out.split()
        assert_fits(ran.out, columns)


@pytest.mark.slow
@pytest.mark.parametrize("columns", [80, 60])
def test_doctor_and_benchmark_fit(screen: Screen, columns: int, coffee: Path) -> None:
    quick = ("--images", coffee, "--seconds", "0.1", "--rounds", "1", "-b", "1", "-b", "2", "-q")
    for arguments in (("doctor",), ("benchmark", *quick)):
        ran = screen(columns, *arguments)
        assert ran.code == 0
        assert_fits(ran.out, columns)


ROOT: Any = get_command(app)
COMMANDS = {
    "": ROOT,
    **ROOT.commands,
    **{f"cache {name}": command for name, command in ROOT.commands["cache"].commands.items()},
}
QUICK = {"list-models", "info", "cache", "completion"}


@pytest.mark.parametrize("columns", [80, 60])
@pytest.mark.parametrize("name", COMMANDS)
def test_help_breaks_lines_between_words(
    mf: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, name: str, columns: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = mf(*name.split(), "--help").out
    assert_fits(shown, columns)
    command = COMMANDS[name]
    texts = [command.help, command.epilog]
    for parameter in command.params:
        texts += [parameter.help, parameter.metavar, *(opt for opt in parameter.opts if opt.startswith("-"))]
    assert set(" ".join(filter(None, texts)).split()) <= set(shown.split())
    description = shown.partition("╭")[0].splitlines()
    for paragraph in "\n".join(line.strip() for line in description).split("\n\n"):  # no line ends before it must
        lines = paragraph.strip().splitlines()
        for line, following in itertools.pairwise(lines):
            assert cell_len(f" {line} {following.split()[0]} ") > columns


@pytest.mark.parametrize("name", COMMANDS)
def test_help_ends_with_three_examples(mf: Callable[..., Ran], name: str) -> None:
    head, *examples = COMMANDS[name].epilog.splitlines()
    commands = [*mf_commands("```sh\n{}\n```".format("\n".join(examples)))]
    assert (head, len(examples), len(commands)) == ("Examples:", 3, 3)
    assert mf(*name.split(), "--help").out.split()[-len(" ".join(examples).split()) :] == " ".join(examples).split()
    for example in commands:
        assert name in example
        check_options(example)
        words = shlex.split(example)
        if words[0] in QUICK and "--against-torch" not in words:
            assert mf(*words).code == 0, example
        else:  # only read
            COMMANDS[words[0]].make_context(words[0], words[1:])
