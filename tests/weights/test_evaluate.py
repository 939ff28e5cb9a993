"""The script that measures a model: its statistics, its folders, and a run on the examples."""

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


def test_the_interval_is_wilsons(evaluate: ModuleType) -> None:
    assert evaluate.wilson_interval(50, 100) == pytest.approx((40.383, 59.617), abs=1e-3)
    assert evaluate.wilson_interval(0, 10) == pytest.approx((0, 27.753), abs=1e-3)


def test_the_calibration_error_is_weighted_by_the_bins_counts(evaluate: ModuleType) -> None:
    probs, right = [0.5, 0.5, 1.0, 1.0], [True, False, True, False]
    assert evaluate.bin_answers(probs, right) == [(2, 0.5, 0.5), (2, 1.0, 0.5)]
    assert evaluate.compute_calibration_error(probs, right) == pytest.approx(0.25)
    assert evaluate.compute_calibration_error([0.9, 0.9, 0.9, 0.1], [True, True, True, False]) == pytest.approx(0.1)


def test_auroc_counts_ties_half(evaluate: ModuleType) -> None:
    assert evaluate.compute_auroc([0.9, 0.5], [0.1, 0.5]) == pytest.approx((1 + 1 + 1 + 0.5) / 4)
    assert evaluate.compute_auroc([0.2], [0.4]) == 0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for wnid, name in ((ORANGE, "orange"), (LEMON, "lemon"), (BEACON, "espresso"), (OUTSIDE, "espresso")):
        (tmp_path / wnid).mkdir()
        shutil.copy(CHECKOUT / "examples" / f"{name}.jpg", tmp_path / wnid)
    (tmp_path / ORANGE / "boxes.txt").write_text("no picture")
    (tmp_path / "notes.jpg").write_text("of no class")
    return tmp_path


def test_the_three_kinds_of_folder(
    evaluate: ModuleType, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    truth = [(folder / wnid / f"{name}.jpg", wnid) for wnid, name in ((OUTSIDE, "espresso"), (BEACON, "espresso"))]
    truth += [(folder / ORANGE / "orange.jpg", ORANGE), (folder / LEMON / "lemon.jpg", LEMON)]
    assert evaluate.list_labelled(folder) == truth
    listed = tmp_path_factory.mktemp("listed")
    (listed / "labels.csv").write_bytes(b"\xef\xbb\xbfpath,wnid,more\r\nx y.jpg,n01,1\r\n")
    assert evaluate.list_labelled(listed) == [(listed / "x y.jpg", "n01")]
    (listed / "val_annotations.txt").write_text("a.JPEG\tn02\t0\t1\n")
    assert evaluate.list_labelled(listed) == [(listed / "images" / "a.JPEG", "n02")]


def run(evaluate: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments)])
    evaluate.main()


def test_the_figures_of_a_folder(
    evaluate: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(evaluate, monkeypatch, folder, "--json", folder / "figures.json", "--rounds", 3)
    figures = json.loads((folder / "figures.json").read_text())
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
    with pytest.raises(SystemExit, match="has no picture of a class of convformer_t8_64"):
        run(evaluate, monkeypatch, tmp_path / "nowhere")
    with pytest.raises(SystemExit, match="unknown model 'nothing'"):
        run(evaluate, monkeypatch, folder, "--model", "nothing")
    with pytest.raises(SystemExit) as caught:
        run(evaluate, monkeypatch, folder, "--rounds", 0)
    assert caught.value.code == 2
    (folder / ORANGE / "broken.png").write_bytes(b"no picture")
    with pytest.raises(SystemExit, match=r"1 pictures failed, the first: .*broken\.png: "):
        run(evaluate, monkeypatch, folder)
