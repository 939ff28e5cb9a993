"""The script that measures named concepts: two pictures of known classes, and the two rules on made-up answers."""

import importlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from conftest import CHECKOUT


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(CHECKOUT / "weights"))
        yield importlib.import_module("concepts")


def test_both_rules(script: ModuleType) -> None:
    answers = object.__new__(script.Answers)
    answers.bits = np.array([10.0, 2.0])  # a class, and a concept over it
    answers.probs = np.array([[0.9, 1.0], [0.4, 0.9], [0.3, 0.6]])
    answers.truth = np.array([[True, True], [False, True], [False, False]])
    assert answers.threshold(0.8) == script.Row(
        0.8, pytest.approx(2 / 3), 1.0, pytest.approx(0.9), pytest.approx(12 / 3)
    )
    assert answers.threshold(0.5) == script.Row(
        0.5, 1.0, pytest.approx(2 / 3), pytest.approx(0.8), pytest.approx(12 / 3)
    )
    assert answers.gain_most(0.0).right == pytest.approx(1 / 3)  # the class every time
    assert answers.gain_most(15.0).named == pytest.approx(2 / 3)


@pytest.mark.slow
def test_a_run(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for wnid, name in (("n07747607", "orange"), ("n07749582", "lemon")):
        (tmp_path / wnid).mkdir()
        shutil.copy(CHECKOUT / "examples" / f"{name}.jpg", tmp_path / wnid)
    monkeypatch.setattr(sys, "argv", ["concepts.py", str(tmp_path), "--json", str(tmp_path / "figures.json")])
    script.main()
    assert capsys.readouterr().out.startswith("2 pictures\n  confidence   named   right")
    rows = json.loads((tmp_path / "figures.json").read_text())["concepts"]
    assert [row["setting"] for row in rows] == [0.5, 0.6, 0.7, 0.8, 0.9, 0.95]
