"""The page on mf evaluate: its commands run."""

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import CHECKOUT, Ran
from documents import fenced

PAGE = (CHECKOUT / "docs" / "how-to" / "evaluate.md").read_text()
CLASSES = {"beacon": "n02814860", "orange": "n07747607", "lemon": "n07749582"}


def test_the_commands_run(mf: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flat").mkdir()
    for number, (name, wnid) in enumerate(CLASSES.items()):
        picture = CHECKOUT / "examples" / f"{'espresso' if name == 'beacon' else name}.jpg"
        (tmp_path / "val" / wnid).mkdir(parents=True)
        shutil.copy(picture, tmp_path / "val" / wnid)
        shutil.copy(picture, tmp_path / "flat" / f"{number}.jpg")
    (tmp_path / "truth.txt").write_text("\n".join(CLASSES.values()))
    (tmp_path / "labels.csv").write_text("path,label\nflat/1.jpg,orange\n")
    commands = "".join(fenced(PAGE, "sh")).splitlines()
    for command in commands:
        ran = mf(*shlex.split(command)[1:])
        assert ran.code == 0, (command, ran.err)
        if command == "mf evaluate val":
            assert fenced(PAGE, "text")[0] in ran.err
    assert len(commands) == 13
