"""The page on big jobs: its commands run, and its job is one that Kubernetes knows."""

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import CHECKOUT, Ran
from documents import fenced

PAGE = (CHECKOUT / "docs" / "how-to" / "big-jobs.md").read_text()


def test_the_commands_run(mf: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(CHECKOUT / "examples", "photos")
    commands, *others = fenced(PAGE, "sh")
    for command in commands.splitlines():
        ran = mf(*shlex.split(command)[1:])
        assert ran.code == 0, (command, ran.err)
    (job,) = fenced(PAGE, "yaml")
    for text in (*others, job):  # their command, as the first of many
        (command,) = re.findall(r"mf (predict[^'\":]*)", text)
        words = shlex.split(re.sub(r" --ray \S+", "", re.sub(r"\{\}|\$\w+", "0", command)))
        assert mf(*words).code == 0, words
