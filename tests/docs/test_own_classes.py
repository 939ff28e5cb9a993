"""The page on own classes: its commands run, and its table lists what is written."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from colours import write_picture
from conftest import CHECKOUT, Ran
from documents import fenced

PAGE = (CHECKOUT / "docs" / "own-classes.md").read_text()


def test_the_commands_run(mf: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, colour in (("ants", "red"), ("bees", "blue")):
        for seed in range(10):
            write_picture(tmp_path / "photos" / name / f"{seed:04}.jpg", colour, seed)
    for command in "".join(fenced(PAGE, "sh")).splitlines():
        *variables, name = re.match(r"((?:\w+=\S+ )*)(mf)", command).groups()  # type: ignore[union-attr]
        for variable in "".join(variables).split():
            monkeypatch.setenv(*variable.split("=", 1))
        ran = mf(*shlex.split(command[len("".join(variables)) + len(name) :]))
        assert ran.code == 0, (command, ran.err)
    listed = set(
        re.findall(r"`([\w.]+)`", "".join(line.split("|")[1] for line in PAGE.splitlines() if line[:3] == "| `"))
    )
    assert {path.name for path in (tmp_path / "runs" / "insects").iterdir()} == listed
