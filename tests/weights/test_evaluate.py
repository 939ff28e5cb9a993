"""The script that measures a model for its card: a run on the examples, and what it adds to mf evaluate."""

import importlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from conftest import CHECKOUT

ORANGE, LEMON, BEACON = "n07747607", "n07749582", "n02814860"
OUTSIDE = "n02088238"
"""A basset, which the bundled model does not know."""


@pytest.fixture(scope="module")
def evaluate() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(CHECKOUT / "weights"))
        yield importlib.import_module("evaluate")


def test_auroc_counts_ties_half(evaluate: ModuleType) -> None:
    assert evaluate.compute_auroc([0.9, 0.5], [0.1, 0.5]) == pytest.approx((1 + 1 + 1 + 0.5) / 4)
    assert evaluate.compute_auroc([0.2], [0.4]) == 0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for wnid, name in ((ORANGE, "orange"), (LEMON, "lemon"), (BEACON, "espresso"), (OUTSIDE, "espresso")):
        (tmp_path / wnid).mkdir()
        shutil.copy(CHECKOUT / "examples" / f"{name}.jpg", tmp_path / wnid)
    return tmp_path


def run(evaluate: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments)])
    evaluate.main()


def test_the_figures_of_a_folder(
    evaluate: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(evaluate, monkeypatch, folder, "--json", folder / "figures.json", "--rounds", 3)
    figures = json.loads((folder / "figures.json").read_text())
    assert list(figures)[:-2] == list(json.loads((CHECKOUT / "weights" / "figures.json").read_text()))
    assert (figures["pictures"], figures["pictures_outside"]) == (3, 1)
    assert figures["top1"] == pytest.approx(200 / 3)
    assert figures["worst_classes"][-1] == [0.0, "beacon, lighthouse, beacon light, pharos"]
    assert sum(count for count, _, _ in figures["bins"]) == 3
    assert sorted(figures["images_per_s_rounds"])[1] == pytest.approx(figures["images_per_s"], abs=0.06)
    assert len(figures["images_per_s_rounds"]) == 3
    assert "top1               66.6667" in capsys.readouterr().out


def test_folders_that_cannot_be_measured(
    evaluate: ModuleType, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match="is neither a folder nor a file"):
        run(evaluate, monkeypatch, tmp_path / "nowhere")
    with pytest.raises(SystemExit, match="unknown model 'nothing'"):
        run(evaluate, monkeypatch, folder, "--model", "nothing")
    with pytest.raises(SystemExit) as caught:
        run(evaluate, monkeypatch, folder, "--rounds", 0)
    assert caught.value.code == 2
    (folder / ORANGE / "broken.png").write_bytes(b"no picture")
    with pytest.raises(SystemExit, match="1 pictures failed: mf evaluate"):
        run(evaluate, monkeypatch, folder)
