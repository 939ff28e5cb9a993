"""The page on Parquet: its commands run, and its query gives rows."""

import importlib
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import CHECKOUT, Ran
from documents import fenced, mf_commands

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
PAGE = (CHECKOUT / "docs" / "how-to" / "parquet.md").read_text()


def test_the_commands_run(mf: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(CHECKOUT / "examples", "photos")
    pictures = [path.read_bytes() for path in Path("photos").glob("*.jpg")] * 6
    parquet.write_table(pyarrow.table({"photo": pictures}), "train.parquet")
    Path("data").mkdir()
    columns = {"photo": pictures[:2], "small": pictures[:2], "id": [1, 2], "label": ["a", "b"]}
    parquet.write_table(pyarrow.table(columns), "data/0.parquet")
    assert mf("predict", "photos", "-o", "march.jsonl").code == 0
    for command in mf_commands(PAGE):
        ran = mf(*shlex.split(command))
        assert ran.code == 0, (command, ran.err)


def test_the_query_gives_rows(mf: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("duckdb")
    monkeypatch.chdir(tmp_path)
    assert mf("predict", CHECKOUT / "examples", "-o", "answers.parquet").code == 0
    (query,) = fenced(PAGE, "sql")
    assert importlib.import_module("duckdb").sql(query).fetchall()
