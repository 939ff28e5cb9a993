"""The recipe of the bundled model: training, pruning, averaging, calibration."""

import csv
import importlib
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file, save_file

from conftest import CHECKOUT
from deterministic import picture


@pytest.fixture(scope="module")
def recipe() -> Iterator[ModuleType]:
    """train.py, with a network that is quick to train."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(CHECKOUT / "weights"))
        module = importlib.import_module("train")
        small = {
            name: replace(module.ROWS[name], depths=depths, dims=(8, 16, 24, 32))
            for name, depths in (("convformer_t9", (1, 1, 2, 1)), ("convformer_t8", (1, 1, 1, 1)))
        }
        patch.setattr(module, "ROWS", small)
        yield module


def with_rows_of(recipe: ModuleType, name: str) -> Iterator[ModuleType]:
    """Another script of the recipe, with the same networks."""
    module = importlib.import_module(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "ROWS", recipe.ROWS)
        yield module


@pytest.fixture(scope="module")
def calibrate(recipe: ModuleType) -> Iterator[ModuleType]:
    yield from with_rows_of(recipe, "calibrate")


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


@pytest.fixture(scope="module")
def finished(recipe: ModuleType, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    trained(recipe, pictures, folder, "32:2")
    return folder


def test_the_same_seed_gives_the_same_losses(recipe: ModuleType, pictures: Path, tmp_path: Path) -> None:
    first = trained(recipe, pictures, tmp_path / "a", "32:1,48:1", "--max-steps", "2")
    again = trained(recipe, pictures, tmp_path / "b", "32:1,48:1", "--max-steps", "2")
    other = trained(recipe, pictures, tmp_path / "c", "32:1,48:1", "--max-steps", "2", "--seed", "1")
    assert [row["size"] for row in first] == ["32", "48"]
    assert first == again
    assert first != other


@pytest.mark.slow
def test_mixing_can_end_before_the_run(recipe: ModuleType, pictures: Path, tmp_path: Path) -> None:
    never = trained(recipe, pictures, tmp_path / "never", "32:2", "--mixup-prob", "0")
    mixed = trained(recipe, pictures, tmp_path / "mixed", "32:2", "--mixup-prob", "1", "--mixup-off-epochs", "0")
    ended = trained(recipe, pictures, tmp_path / "ended", "32:2", "--mixup-prob", "1", "--mixup-off-epochs", "1")
    assert trained(recipe, pictures, tmp_path / "off", "32:2", "--mixup-prob", "1", "--mixup-off-epochs", "2") == never
    assert mixed[0] == ended[0]
    assert len({row[1]["train_loss"] for row in (never, mixed, ended)}) == 3


@pytest.mark.slow
def test_a_run_resumes_where_it_stopped(recipe: ModuleType, pictures: Path, tmp_path: Path) -> None:
    whole = trained(recipe, pictures, tmp_path / "whole", "32:3", "--precision", "bf16")

    class Stopped(Exception):  # noqa: N818
        pass

    save = recipe.Run.save

    def save_once(run: object) -> None:
        save(run)
        raise Stopped

    recipe.Run.save = save_once
    try:
        with pytest.raises(Stopped):
            trained(recipe, pictures, tmp_path / "cut", "32:3", "--precision", "bf16")
    finally:
        recipe.Run.save = save
    assert trained(recipe, pictures, tmp_path / "cut", "32:3", "--precision", "bf16") == whole
    weights = [load_file(tmp_path / run / "model.safetensors") for run in ("whole", "cut")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert weights[0]["head.weight"].shape == (4, 32)


def test_ema_power_sets_the_decay_of_the_average(recipe: ModuleType, pictures: Path, tmp_path: Path) -> None:
    def weights(power: str) -> list[torch.Tensor]:
        trained(recipe, pictures, tmp_path / power, "32:1", "--max-steps", "3", "--ema-power", power)
        files = ("model.safetensors", "last.safetensors")
        return [load_file(tmp_path / power / name)["head.weight"] for name in files]

    (mean, last), (average, same) = weights("1"), weights("0.75")
    assert torch.equal(last, same)
    before = 2 * mean - last  # the first step counts for nothing: the average begins with the second
    assert not torch.allclose(before, last, rtol=1e-5)
    assert torch.allclose(average, torch.lerp(last, before, 1 - 2**-0.75), atol=1e-6)


@pytest.mark.slow
def test_distill_sets_the_share_of_the_teacher(
    recipe: ModuleType, pictures: Path, finished: Path, tmp_path: Path
) -> None:
    taught = ("--teacher", str(finished / "model.safetensors"), "--distill")
    alone = trained(recipe, pictures, tmp_path / "alone", "32:1")
    assert trained(recipe, pictures, tmp_path / "none", "32:1", *taught, "0") == alone
    assert trained(recipe, pictures, tmp_path / "all", "32:1", *taught, "1") != alone
    small = ("--architecture", "convformer_t8")
    assert trained(recipe, pictures, tmp_path / "small", "32:1", *small, *taught, "1")
    with pytest.raises(SystemExit, match=r"model\.safetensors cannot be loaded"):
        trained(recipe, pictures, tmp_path / "no", "32:1", *taught, "1", "--teacher-architecture", "convformer_t8")


def test_grayscale_works_with_auto_augment(recipe: ModuleType, pictures: Path, tmp_path: Path) -> None:
    others = ("--auto-augment", "rand-m5-n1")
    before = trained(recipe, pictures, tmp_path / "before", "32:1", *others)
    assert trained(recipe, pictures, tmp_path / "after", "32:1", *others, "--grayscale", "1") != before


def test_the_highest_magnitude_of_auto_augment_works(recipe: ModuleType, pictures: Path) -> None:
    options = recipe.parse_arguments([str(pictures), "run", "--auto-augment", "rand-m9-n8-mstd2-inc1"])
    augment = recipe.create_train_transform(options, 32)
    recipe.seed_generators(0, 0)
    for number in range(60):  # without the upper bound one in a dozen asks for posterizing to 0 bits
        assert augment(picture(48, 48, name=str(number))).shape == (3, 32, 32)


def test_init_sets_the_initial_weights(recipe: ModuleType, pictures: Path, finished: Path, tmp_path: Path) -> None:
    start = finished / "model.safetensors"
    trained(recipe, pictures, tmp_path / "run", "32:1", "--init", str(start), "--lr", "0")
    before, after = load_file(start), load_file(tmp_path / "run" / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(SystemExit, match="size mismatch|[Mm]issing key|[Uu]nexpected key"):
        trained(recipe, pictures, tmp_path / "t8", "32:1", "--init", str(start), "--architecture", "convformer_t8")
    with pytest.raises(SystemExit, match=r"nowhere\.safetensors"):
        trained(recipe, pictures, tmp_path / "no", "32:1", "--teacher", "nowhere.safetensors")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--holdout", "2"), "was started with another holdout"),
        (("--optimizer", "adamw"), "was started with another optimizer"),
        (("--init", "other.safetensors"), "was started with another init"),
        (("--decay-epochs", "2"), "the learning rate is already decaying"),
        (("--holdout", "6"), "n0: --holdout 6 leaves none of 6"),
        (("--warmup-steps", "10"), "--warmup-steps 10 is not less than the run's 10 steps"),
        (("--batch-size", "32"), "20 pictures do not fill one batch of 32"),
    ],
)
def test_options_that_a_resumed_run_refuses(
    recipe: ModuleType, pictures: Path, finished: Path, options: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SystemExit, match=re.escape(message)):
        trained(recipe, pictures, finished, "32:2", *options)


def test_a_refused_option_does_not_change_the_run(recipe: ModuleType, pictures: Path, finished: Path) -> None:
    before = (finished / "options.json").read_bytes()
    with pytest.raises(SystemExit, match="--device nowhere"):
        trained(recipe, pictures, finished, "32:2", "--device", "nowhere")
    assert (finished / "options.json").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--device", "nowhere"), "--device nowhere: "),
        (("--optimizer", "adamww"), "--optimizer adamww: "),
        (("--auto-augment", "random"), "--auto-augment random is unknown to timm"),
        (("--auto-augment", "rand-m5.5"), "--auto-augment rand-m5.5 is unknown to timm"),
    ],
)
def test_options_that_a_new_run_refuses(
    recipe: ModuleType, pictures: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SystemExit, match=re.escape(message)):
        trained(recipe, pictures, tmp_path, "32:2", *options)


@pytest.mark.parametrize(
    "options",
    [
        ("--phases", "32"),
        ("--phases", "32:0"),
        ("--batch-size", "3"),
        ("--decay-epochs", "0"),
        ("--distill", "2"),
        ("--grayscale", "10"),
        ("--workers", "-1"),
        ("--color-jitter", "0.4", "--auto-augment", "rand-m5"),
    ],
)
def test_options_that_the_command_line_refuses(
    recipe: ModuleType, options: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        recipe.parse_arguments(["data", "run", *options])
    assert caught.value.code == 2
    assert options[0] in capsys.readouterr().err


def test_an_unreadable_picture_is_named(recipe: ModuleType, pictures: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(pictures, data)
    (data / "n1" / "3.png").write_bytes(b"no picture")
    with pytest.raises(SystemExit, match=r"cannot read .*n1.3\.png"):
        trained(recipe, data, tmp_path / "run", "32:1", "--warmup-steps", "1")
    with pytest.raises(SystemExit, match="not a folder of class folders"):
        trained(recipe, tmp_path / "run", tmp_path / "other", "32:1")


def test_a_finished_run_becomes_a_checkpoint(
    calibrate: ModuleType,
    pictures: Path,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "out" / "small.safetensors"
    monkeypatch.setattr(calibrate, "fit_temperature", lambda *_: 2.0)
    calibrate.main([str(pictures), str(finished), str(output)])
    before, after = load_file(finished / "model.safetensors"), load_file(output)
    assert all(torch.equal(after[name], (before[name] / 2).half()) for name in ("head.weight", "head.bias"))
    assert torch.equal(after["norm.weight"], before["norm.weight"].half())
    assert (tmp_path / "out" / "classes.txt").read_text().split() == ["n0", "n1", "n2", "n3"]
    printed = capsys.readouterr().out
    losses = {crop: float(loss) for crop, loss in re.findall(r"^crop_pct ([\d.]+), .* loss ([\d.]+)", printed, re.M)}
    assert len(losses) == 4
    assert f"chosen: crop_pct {min(losses, key=losses.__getitem__)}, temperature 2.0000" in printed
    calibrate.main([str(pictures), str(finished), str(output), "--size", "48"])
    assert capsys.readouterr().out != printed  # the same pictures, larger


def test_an_unfinished_run_is_refused(
    calibrate: ModuleType, pictures: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"

    def refused() -> str:
        with pytest.raises(SystemExit):
            calibrate.main([str(pictures), str(run), str(tmp_path / "out.safetensors")])
        return capsys.readouterr().err

    assert "model.safetensors is missing" in refused()
    run.mkdir()
    shutil.copy(finished / "model.safetensors", run)
    assert "options.json is missing" in refused()
    options = (finished / "options.json").read_text()
    (run / "options.json").write_text(options.replace('"convformer_t9"', '"convformer_t0"'))
    assert "trained convformer_t0, which mfcli.models.registry does not have" in refused()
    (run / "options.json").write_text(options.replace('"n3"', '"n4"'))
    assert "is not what" in refused()


def test_the_fitted_temperature_is_the_true_one(calibrate: ModuleType) -> None:
    torch.manual_seed(0)
    logits = 3 * torch.randn(4000, 5)
    targets = torch.distributions.Categorical(logits=logits).sample()
    assert calibrate.fit_temperature(2.5 * logits, targets) == pytest.approx(2.5, rel=0.05)


@pytest.fixture(scope="module")
def prune(recipe: ModuleType) -> Iterator[ModuleType]:
    yield from with_rows_of(recipe, "prune")


def test_a_finished_run_is_pruned_to_the_smaller_row(
    prune: ModuleType, recipe: ModuleType, pictures: Path, finished: Path, tmp_path: Path
) -> None:
    start = tmp_path / "start.safetensors"
    fixed = ["--holdout", "1", "--size", "32"]
    prune.main([str(pictures), str(finished / "model.safetensors"), str(start), *fixed])
    weights = load_file(start)
    assert weights["stages.2.0.mlp.fc1.weight"].shape == (2 * 24, 24)
    assert "stages.2.1.norm1.weight" not in weights
    options = ("--init", str(start), "--architecture", "convformer_t8")
    assert len(trained(recipe, pictures, tmp_path / "run", "32:1", *options)) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--holdout", "0"), "held-out pictures choose"),
        (("--to", "convformer_t9", "--architecture", "convformer_t8"), "fewer blocks or narrower MLPs"),
        (("--architecture", "convformer_t8"), "cannot be loaded"),
        ((), "nowhere.safetensors"),
    ],
)
def test_networks_that_are_not_pruned(
    prune: ModuleType,
    pictures: Path,
    finished: Path,
    tmp_path: Path,
    options: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    weights = finished / "model.safetensors" if options else Path("nowhere.safetensors")
    with pytest.raises(SystemExit) as caught:
        prune.main([str(pictures), str(weights), str(tmp_path / "start.safetensors"), "--holdout", "1", *options])
    assert message in f"{caught.value} {capsys.readouterr().err}"


@pytest.mark.parametrize("idle", [0, 1])
def test_the_block_without_effect_is_removed(
    prune: ModuleType, calibrate: ModuleType, recipe: ModuleType, pictures: Path, idle: int
) -> None:
    torch.manual_seed(0)
    model = prune.build_model(recipe.ROWS["convformer_t9"], num_classes=4).eval()
    held_out = recipe.DecodedPictures.read(recipe.split(pictures, 1)[1], calibrate.create_eval_transform(32, 1.0))
    for block in model.stages[2]:
        torch.nn.init.normal_(block.mlp.fc1.weight)
        torch.nn.init.normal_(block.mlp.fc2.weight)
    torch.nn.init.zeros_(model.stages[2][idle].token_mixer.pwconv2.weight)
    torch.nn.init.zeros_(model.stages[2][idle].mlp.fc2.weight)
    with torch.no_grad():  # a head under which the pictures are what they are
        features = model.forward_features(recipe.normalise(torch.stack([pixels for pixels, _ in held_out])))
        model.head.weight.copy_((torch.linalg.pinv(features) @ (20 * torch.eye(4))).T)
    busy = model.stages[2][1 - idle]
    prune.drop_blocks(model, (1, 1, 1, 1), held_out)
    assert list(model.stages[2]) == [busy]


def test_an_mlp_of_duplicated_channels_keeps_its_function(prune: ModuleType) -> None:
    from mfcli.models.metaformer import Mlp

    torch.manual_seed(0)
    mlp = Mlp(8)
    inputs = torch.randn(200, 8)
    with torch.no_grad():  # channels as important as each other, then every other one a weaker copy of its neighbour
        mlp.fc1.weight.copy_(torch.nn.functional.normalize(torch.randn(32, 8), dim=1))
        mlp.fc2.weight.copy_(torch.nn.functional.normalize(torch.randn(8, 32), dim=0))
        mlp.fc1.weight[1::2] = mlp.fc1.weight[::2]
        mlp.fc2.weight[:, 1::2] *= 0.3
        before, hidden = mlp(inputs), mlp.act(mlp.fc1(inputs)).double()
        small = prune.narrow_mlp(mlp, 2, hidden.T @ hidden / 200)
        after = small(inputs)
    assert small.fc1.weight.shape == (16, 8)
    assert (small.fc1.out_features, small.fc2.in_features) == (16, 16)
    assert torch.allclose(before, after, rtol=0.05, atol=0.05 * before.std().item())


@pytest.fixture(scope="module")
def average(recipe: ModuleType) -> Iterator[ModuleType]:
    yield from with_rows_of(recipe, "average")


def test_checkpoints_are_averaged_and_the_mean_is_calibrated(
    average: ModuleType, calibrate: ModuleType, pictures: Path, finished: Path, tmp_path: Path
) -> None:
    first = load_file(finished / "model.safetensors")
    save_file({name: 3 * tensor for name, tensor in first.items()}, tmp_path / "second.safetensors")
    paths = [str(finished / "model.safetensors"), str(tmp_path / "second.safetensors")]
    fixed = ["--holdout", "1", "--size", "32", "--architecture", "convformer_t9"]
    for shares, factor in ((), None), (("--shares", "0.75", "0.25"), 1.5):
        average.main([str(pictures), str(tmp_path / "mean.safetensors"), *paths, *shares, *fixed])
        mean = load_file(tmp_path / "mean.safetensors")
        assert mean.keys() == first.keys()
        if factor:
            assert all(torch.allclose(mean[name], factor * first[name]) for name in first)
    output = tmp_path / "out.safetensors"
    more = ["--weights", str(tmp_path / "mean.safetensors")]
    calibrate.main([str(pictures), str(finished), str(output), *more])
    assert torch.equal(load_file(output)["norm.weight"], (1.5 * first["norm.weight"]).half())


def test_shares_minimise_the_loss(average: ModuleType) -> None:
    class Evaluator:
        def measure_loss(self, weights: dict[str, torch.Tensor], _: str) -> float:
            return float((weights["x"] - 0.6) ** 2)

    weights = [{"x": torch.tensor([value])} for value in (0.0, 1.0, 10.0)]
    assert average.choose_shares(weights, Evaluator()) == pytest.approx([0.4, 0.6, 0.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--shares", "0.5", "0.4"), "not 1 numbers with a sum of 1"),
        (("--shares", "0.9"), "not 1 numbers with a sum of 1"),
        (("--holdout", "0"), "held-out pictures choose"),
        (("--architecture", "convformer_t8"), "cannot be loaded"),
    ],
)
def test_checkpoints_that_are_not_averaged(
    average: ModuleType,
    pictures: Path,
    finished: Path,
    tmp_path: Path,
    options: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    paths = map(str, (pictures, tmp_path / "mean.safetensors", finished / "model.safetensors"))
    with pytest.raises(SystemExit) as caught:
        average.main([*paths, "--holdout", "1", *options])
    assert message in f"{caught.value} {capsys.readouterr().err}"
