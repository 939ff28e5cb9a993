"""The training recipe: the same seed gives the same losses, and a run that was cut goes on to the same weights."""

import csv
import importlib.util
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from conftest import CHECKOUT
from deterministic import picture


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train", CHECKOUT / "weights" / "train.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    name = "convformer_t9"
    module.ARCHITECTURES = {name: replace(module.ARCHITECTURES[name], depths=(1, 1, 1, 1), dims=(8, 16, 24, 32))}
    return module


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for label in range(4):
        (folder / f"n{label}").mkdir()
        for number in range(6):
            picture(48 + label, 48, name=f"{label} {number}").save(folder / f"n{label}" / f"{number}.png")
    return folder


def trained(recipe: ModuleType, pictures: Path, output: Path, phases: str, *more: str) -> list[dict[str, str]]:
    fixed = ["--batch-size", "4", "--warmup-steps", "2", "--decay-epochs", "1", "--holdout", "1", "--workers", "0"]
    recipe.main([str(pictures), str(output), "--phases", phases, *fixed, *more])
    with (output / "curve.csv").open() as stream:
        return [{name: row[name] for name in row if name != "seconds"} for row in csv.DictReader(stream)]


def test_the_same_seed_gives_the_same_losses(recipe: ModuleType, pictures: Path, tmp_path: Path) -> None:
    first = trained(recipe, pictures, tmp_path / "a", "32:1,48:1", "--max-steps", "2")
    again = trained(recipe, pictures, tmp_path / "b", "32:1,48:1", "--max-steps", "2")
    other = trained(recipe, pictures, tmp_path / "c", "32:1,48:1", "--max-steps", "2", "--seed", "1")
    assert [row["size"] for row in first] == ["32", "48"]
    assert first == again
    assert first != other


def test_mixing_can_end_before_the_run(recipe: ModuleType, pictures: Path, tmp_path: Path) -> None:
    never = trained(recipe, pictures, tmp_path / "never", "32:2", "--mixup-prob", "0")
    mixed = trained(recipe, pictures, tmp_path / "mixed", "32:2", "--mixup-prob", "1")
    ended = trained(recipe, pictures, tmp_path / "ended", "32:2", "--mixup-prob", "1", "--mixup-off-epoch", "1")
    assert trained(recipe, pictures, tmp_path / "off", "32:2", "--mixup-prob", "1", "--mixup-off-epoch", "0") == never
    assert mixed[0] == ended[0]
    assert len({row[1]["train_loss"] for row in (never, mixed, ended)}) == 3


def test_a_run_goes_on_where_it_stopped(recipe: ModuleType, pictures: Path, tmp_path: Path) -> None:
    whole = trained(recipe, pictures, tmp_path / "whole", "32:3")

    class Stopped(Exception):  # noqa: N818
        pass

    save = recipe.Run.save

    def save_once(run: object) -> None:
        save(run)
        raise Stopped

    recipe.Run.save = save_once  # type: ignore[attr-defined]
    try:
        with pytest.raises(Stopped):
            trained(recipe, pictures, tmp_path / "cut", "32:3")
    finally:
        recipe.Run.save = save  # type: ignore[attr-defined]
    assert trained(recipe, pictures, tmp_path / "cut", "32:3") == whole
    weights = [load_file(tmp_path / run / "model.safetensors") for run in ("whole", "cut")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert weights[0]["head.weight"].shape == (4, 32)
