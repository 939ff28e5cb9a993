"""What a terminal shows: every command at 80 and 60 columns."""

import contextlib
import fcntl
import itertools
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from typer.main import get_command

import mfcli
from conftest import Ran
from documents import check_options, mf_commands
from mfcli.cli import make_app
from mfcli.models.registry import list_variants

Screen = Callable[..., Ran]
Answers = dict[bytes, bytes]
"""What a terminal answers to queries."""


@pytest.fixture
def screen() -> Screen:
    """Return a function that runs a command line with a terminal of a given width as stdin and stdout."""

    def run(columns: int, *arguments: str | Path, answers: Answers = {}, **environment: str) -> Ran:  # noqa: B006
        controller, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
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
                    for query, answer in answers.items():
                        if query in read:
                            os.write(controller, answer)
            assert process.stderr is not None
            errors = process.stderr.read().decode()
            code = process.wait(60)
        os.close(controller)
        return Ran(code, shown.decode().replace("\r\n", "\n"), errors)

    return run


def plain(shown: str) -> str:
    """Return what a terminal shows without its colours, and without queries and graphics."""
    return re.sub(r"\x1b(?:\[[?\d;]*[a-zA-Z]|[P_].*?\x1b\\|[78])", "", shown, flags=re.DOTALL)


def assert_fits(shown: str, columns: int) -> None:
    assert [line for line in plain(shown).splitlines() if cell_len(line) > columns] == []


@pytest.mark.parametrize("columns", [80, 60])
def test_list_models_fits(screen: Screen, columns: int) -> None:
    ran = screen(columns, "list-models")
    assert_fits(ran.out, columns)
    rows = {line.split()[0]: line.split() for line in plain(ran.out).splitlines()}
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
        assert whole in plain(ran.out).split()
        assert_fits(ran.out, columns)


@pytest.mark.slow
@pytest.mark.parametrize("columns", [80, 60])
def test_doctor_and_benchmark_fit(screen: Screen, columns: int, coffee: Path) -> None:
    quick = ("--images", coffee, "--seconds", "0.1", "--rounds", "1", "-b", "1", "-b", "2", "-q")
    for arguments in (("doctor",), ("benchmark", *quick)):
        ran = screen(columns, *arguments)
        assert ran.code == 0
        assert_fits(ran.out, columns)


@pytest.mark.slow
def test_benchmark_shows_what_it_measures(mf_terminal: Callable[..., Ran], coffee: Path) -> None:
    ran = mf_terminal("benchmark", "--images", coffee, "--seconds", "1", "--rounds", "2", "-b", "1")
    shown = plain(ran.err)
    assert ran.code == 0
    for what in ("loading", "engine, round 1", "end to end, round 2", "latency"):
        assert re.search(rf"━ +[\d:-]+ {what}: convformer_t8_64, auto, fp32, batches of 1", shown)


ROOT: Any = get_command(make_app())
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
        assert parameter.metavar or getattr(parameter, "is_flag", False)  # else rich breaks a list of choices anywhere
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
        if words[0] in QUICK and not {"--against-torch", "rm"} & {*words}:
            assert mf(*words).code == 0, example
        else:  # only read
            COMMANDS[words[0]].make_context(words[0], words[1:])


ATTRIBUTES, KITTY = b"\x1b[c", b",a=q,"
COLOURS = {"TERM": "xterm-256color", "COLORTERM": "truecolor"}
GRAPHICS: dict[str, tuple[Answers, str]] = {
    "half blocks": ({}, r"\x1b\[38;2;\d+;\d+;\d+;48;2;\d+;\d+;\d+m▀"),
    "sixels": ({ATTRIBUTES: b"\x1b[?62;4c"}, r"\x1bP.*q.*\x1b\\"),
    "kitty": ({ATTRIBUTES: b"\x1b[?62c", KITTY: b"\x1b_Gi=1;OK\x1b\\"}, "\U0010eeee"),
}


@pytest.fixture
def textual_image() -> None:
    pytest.importorskip("textual_image._terminal")  # the package itself asks the terminal


@pytest.mark.slow
@pytest.mark.usefixtures("textual_image")
@pytest.mark.parametrize("graphics", GRAPHICS)
def test_show_draws_with_what_the_terminal_has(screen: Screen, coffee: Path, graphics: str) -> None:
    answers, _ = GRAPHICS[graphics]
    ran = screen(80, "predict", coffee, "/none.jpg", "--show", "-q", answers=answers, **COLOURS)
    assert ran.code == 5
    assert [name for name, (_, pattern) in GRAPHICS.items() if re.search(pattern, ran.out, re.DOTALL)] == [graphics]
    shown = plain(ran.out)
    assert re.search(r"^\S* *│ 1 │ espresso ", shown, re.MULTILINE)
    assert shown.endswith("/none.jpg: no such file\n2 pictures: 1 classified, 1 failed\n")


@pytest.mark.slow
@pytest.mark.usefixtures("textual_image")
@pytest.mark.parametrize(("columns", "beside"), [(80, True), (60, True), (40, False)])
def test_show_fits_the_terminal(screen: Screen, coffee: Path, tmp_path: Path, columns: int, beside: bool) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(coffee.read_bytes())
    ran = screen(columns, "predict", tmp_path, "--show", "-q", **COLOURS)
    assert_fits(ran.out, columns)
    lines = plain(ran.out).splitlines()
    assert sum("▀" * 24 in line for line in lines) == 2 * 8  # 600x400 pixels
    assert sum(bool(re.match("▀{24}  .*│ 1 │ espresso", line)) for line in lines) == 2 * beside
    assert sum("│ 1 │ espresso" in line for line in lines) == 2


@pytest.mark.parametrize(
    ("environment", "note"),
    [
        ({"NO_COLOR": "1"}, "pictures are shown only in a terminal with colours"),
        ({"TERM": "dumb"}, "pictures are shown only in a terminal with colours"),
        ({}, "pictures are shown by textual-image: pip install textual-image"),
    ],
)
def test_show_says_why_it_shows_nothing(
    screen: Screen, coffee: Path, tmp_path: Path, environment: dict[str, str], note: str
) -> None:
    (tmp_path / "textual_image.py").write_text("raise ModuleNotFoundError('no textual-image')")
    path = f"{tmp_path}:{Path(mfcli.__file__).parents[1]}"
    ran = screen(80, "predict", coffee, "--show", **COLOURS | environment | {"PYTHONPATH": path})
    assert (ran.code, ran.err.splitlines()[0]) == (0, f"note: {note}")
    assert "│ 1 │ espresso" in plain(ran.out)


@pytest.mark.parametrize("options", [["--format", "csv"], ["-o", "x.txt"]])
def test_show_is_about_tables_in_a_terminal(mf: Callable[..., Ran], coffee: Path, options: list[str]) -> None:
    ran = mf("predict", coffee, "--show", *options)
    assert (ran.code, ran.err.splitlines()[0]) == (2, "error: --show is about tables in a terminal")
    ran = mf("predict", coffee, "--show")
    assert (ran.code, ran.out.splitlines()[0]) == (0, f"{coffee}  600x400")
    assert "note: pictures are shown only in a terminal with colours" in ran.err
