"""The recipe for one GPU, on the CPU: packing, augmentation of batches, distillation, and the whole command."""

import csv
import functools
import importlib
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import CHECKOUT
from deterministic import picture
from mfcli.artifact.file import open_artifact
from mfcli.models.registry import find_variant

SIDE = 32


@pytest.fixture(scope="module")
def recipe() -> Iterator[ModuleType]:
    """train_gpu.py, with networks that are quick to train."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(CHECKOUT / "weights"))
        module = importlib.import_module("train_gpu")
        small = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}
        recipes = [replace(one, architecture=replace(one.architecture, **small)) for one in module.RECIPES]
        patch.setattr(module, "RECIPES", recipes)
        yield module


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for label in range(4):
        (folder / f"n{label}").mkdir()
        for number in range(6):
            picture(SIDE, SIDE, name=f"{label} {number}").save(folder / f"n{label}" / f"{number}.jpg")
    return folder


@pytest.fixture(scope="module")
def shards(recipe: ModuleType, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    importlib.import_module(recipe.read_shards.__module__).main(
        [str(pictures), str(folder), "--holdout", "1", "--shards", "2"]
    )
    return folder


def train(recipe: ModuleType, shards: Path, output: Path, *more: str) -> None:
    fixed = ["--device", "cpu", "--batch-size", "8", "--minutes", "0.01", "0.01", "--sizes", "16:1,32:1"]
    recipe.main([str(shards), str(output), *fixed, *(more or ["--no-compile"])])


def test_shards_have_the_pictures_of_the_folder(recipe: ModuleType, pictures: Path, shards: Path) -> None:
    packed = recipe.read_shards(shards)
    assert (packed.pictures.shape, packed.pictures.dtype) == ((24, 3, SIDE, SIDE), torch.uint8)
    assert packed.classes == ["n0", "n1", "n2", "n3"]
    assert packed.targets[packed.held_out].sort().values.tolist() == [0, 1, 2, 3]
    found = {(t, p.numpy().tobytes()) for t, p in zip(packed.targets.tolist(), packed.pictures, strict=True)}
    expected = {
        (int(path.parent.name[1:]), np.asarray(Image.open(path)).transpose(2, 0, 1).tobytes())
        for path in pictures.rglob("*.jpg")
    }
    assert found == expected


def test_a_missing_shard_is_named(recipe: ModuleType, shards: Path, tmp_path: Path) -> None:
    (tmp_path / "2-of-2.npz").write_bytes((shards / "2-of-2.npz").read_bytes())
    with pytest.raises(SystemExit, match="has no 1-of-2.npz"):
        recipe.read_shards(tmp_path)


def test_turned_crops_have_no_empty_corners(recipe: ModuleType) -> None:
    torch.manual_seed(0)
    white = torch.full((50, 3, 12, 12), 255, dtype=torch.uint8)
    assert torch.allclose(recipe.crop(white, 6, 0.3, degrees=45, shear=0.3), torch.tensor(255.0), atol=1e-3)


def test_crops_are_shares_of_the_area(recipe: ModuleType) -> None:
    torch.manual_seed(0)
    ramp = torch.linspace(0, 255, 64).expand(500, 3, 64, 64)
    seen = recipe.crop(ramp, 16, 0.25)[:, 0, 0]
    spans, signs = (seen[:, -1] - seen[:, 0]).abs() / 255, (seen[:, -1] > seen[:, 0]).float().mean()
    assert 0.35 < spans.min() < 0.5
    assert 0.8 < spans.max() <= 1
    assert 0.4 < signs < 0.6
    assert seen.min() < 20
    assert seen.max() > 235


def test_each_picture_has_colours_of_its_own(recipe: ModuleType) -> None:
    torch.manual_seed(0)
    same = (255 * torch.rand(1, 3, 16, 16)).expand(200, 3, 16, 16)
    changed = recipe.change_colours(same, 0.0)
    assert ((changed >= 0) & (changed <= 255)).all()
    grey = (changed.std(1) < 1e-3).all(2).all(1).float().mean()
    kept = (changed - same).abs().amax((1, 2, 3)) < 1e-3
    assert 0.15 < grey < 0.35
    assert 0.15 < kept.float().mean() < 0.35
    jittered = recipe.change_colours(same, 0.4).mean((1, 2, 3))
    assert jittered.std() > 10


def test_erasing_fills_a_share_of_the_pictures(recipe: ModuleType) -> None:
    torch.manual_seed(0)
    erased = recipe.erase(torch.zeros(400, 3, 32, 32), 0.25, torch.ones(()))
    areas = erased[:, 0].mean((1, 2))
    assert 0.15 < (areas > 0).float().mean() < 0.3
    assert areas.max() <= 0.4


def test_distilling_is_the_divergence_of_softened_probabilities(recipe: ModuleType) -> None:
    torch.manual_seed(0)
    ours, theirs = torch.randn(5, 7), torch.randn(5, 7)
    p, q = (theirs / 3).softmax(1), (ours / 3).softmax(1)
    expected = 9 * (p * (p / q).log()).sum(1).mean().item()
    assert recipe.distill(ours, theirs, 3.0).item() == pytest.approx(expected, rel=1e-5)
    assert recipe.distill(ours, ours, 3.0).item() == pytest.approx(0, abs=1e-6)


def test_the_command_gives_an_artifact(
    recipe: ModuleType, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(recipe, shards, tmp_path, "--no-compile", "--stop-after", "0")
    assert "the same command continues" in capsys.readouterr().out
    assert (tmp_path / "teacher" / "state.pt").exists()
    train(recipe, shards, tmp_path)
    variant = replace(find_variant("bundled"), name="convformer_t9_32", num_classes=4).with_input_size(SIDE, SIDE)
    artifact = open_artifact(tmp_path / "convformer_t9_32.onnx", variant, None, None)
    assert [label.name for label in artifact.labels] == ["n0", "n1", "n2", "n3"]
    assert artifact.plan.crop_size == (SIDE, SIDE)
    for network in ("teacher", "student"):
        with (tmp_path / network / "curve.csv").open() as stream:
            rows = list(csv.DictReader(stream))
        assert float(rows[-1]["minutes"]) >= 0.01
        assert float(rows[-1]["lr"]) == pytest.approx(0, abs=1e-9)
        assert math.isfinite(float(rows[-1]["train_loss"]))
    capsys.readouterr()
    train(recipe, shards, tmp_path)  # nothing is left to train
    assert "teacher step" not in capsys.readouterr().out


def test_a_run_does_not_continue_with_other_options(recipe: ModuleType, shards: Path, tmp_path: Path) -> None:
    train(recipe, shards, tmp_path, "--no-compile", "--stop-after", "0")
    with pytest.raises(SystemExit, match="was started with other options"):
        train(recipe, shards, tmp_path, "--no-compile", "--lr", "1")


def test_blocks_of_one_shape_are_compiled_once(recipe: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[object] = []

    def count(graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch.nn.Module, "compile", functools.partialmethod(torch.nn.Module.compile, backend=count))
    model = recipe.prepare_network(replace(recipe.RECIPES[0].architecture, depths=(2, 3, 4, 2)), 4, 0.1, "cpu")
    recipe.compile_blocks(model)
    assert model(torch.zeros(2, 3, SIDE, SIDE)).shape == (2, 4)
    assert len(graphs) == 4
