"""mf train --finetune: the whole backbone learns, goes on after a kill, and is judged by what it has not learned."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from timm.optim import create_optimizer_v2

import mfcli
from colours import write_classes, write_picture
from conftest import Ran
from mfcli.errors import UsageError
from mfcli.hub.bundled import bundled_file
from mfcli.inference.engines.base import Precision
from mfcli.inputs.dataset import read_dataset
from mfcli.models.metaformer import create_model
from mfcli.models.registry import find_variant
from mfcli.results import Step
from mfcli.settings import Settings
from mfcli.tasks.train import train
from mfcli.training import finetune
from mfcli.training.augmentation import AugmentedPictures, make_loader
from mfcli.training.candidates import Candidate
from mfcli.training.decoding import DecodedPictures
from mfcli.training.request import FinetuneOptions, OptimizerName, TrainRequest

Mf = Callable[..., Ran]
SHORT = ("--finetune", "--epochs", "2", "--batch-size", "8", "--device", "cpu", "-q")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of torch that other tests leave no core for wait for one another."""
    monkeypatch.setattr("mfcli.training.finetune.usable_cores", lambda: 1)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_classes(tmp_path / "photos", 8)


@pytest.fixture
def keep_finetuned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the fine-tuned model whatever its figures are: colours are easy for a probe."""

    def choose(candidates: list[Candidate], _: object) -> Candidate:
        return candidates[-1]

    monkeypatch.setattr("mfcli.tasks.train.choose", choose)


@pytest.mark.usefixtures("keep_finetuned")
def test_a_finetuned_model_is_a_model_like_any_other(mf: Mf, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    ran = mf("train", photos, "-o", folder, *SHORT)
    assert (ran.code, ran.err) == (0, "")
    assert [line.split(" pictures")[0].split() for line in ran.out.splitlines()[1:]] == [
        ["probe"],
        ["probe"],
        ["finetuned,", "kept"],
        ["finetuned,", "kept"],
    ]
    metrics = json.loads((folder / "metrics.json").read_text())
    tried, head = metrics["finetune"], metrics["head"]
    assert (tried["kept"], len(tried["epochs"]), head["method"]) == ("finetuned", 2, "fine_tuning")
    assert tried["finetuned"]["val"]["log_loss"] == metrics["val"]["log_loss"]
    assert tried["finetuned"]["held_out"] == metrics["held_out"]
    assert metrics["out_of_fold"] is None
    weights, base = load_file(folder / "model.safetensors"), load_file(bundled_file("convformer_t8_64.safetensors"))
    assert all(np.abs(weights[name] - base[name]).max() > 0 for name in base if not name.startswith("head."))
    picture = write_picture(tmp_path / "new.png", "green", 99)
    rows = [
        json.loads(mf("predict", picture, "-m", folder, "--format", "jsonl", "-q", "--engine", engine).out)
        for engine in ("onnxruntime", "torch")
    ]
    assert (rows[0]["predictions"][0]["label"], rows[0]["abstained"]) == ("green", rows[1]["abstained"])
    assert rows[0]["predictions"][0]["prob"] == pytest.approx(rows[1]["predictions"][0]["prob"], abs=1e-4)
    assert not (tmp_path / ".m.part").exists()


def make_lessons(photos: Path) -> finetune.Lessons:
    pictures = read_dataset(photos).pictures[::2]
    names = sorted({own.label for own in pictures})
    targets = np.array([names.index(own.label) for own in pictures])
    held_out = np.arange(len(pictures)) % 5 == 0
    return finetune.Lessons([own.source for own in pictures], targets, held_out, np.ones(len(names)))


def learn(lessons: finetune.Lessons, state: Path, epochs: int = 1, **options: Any) -> dict[str, torch.Tensor]:
    """Train a model from the same weights each time; return the average."""
    torch.manual_seed(0)
    weights = {name: tensor.numpy() for name, tensor in create_model("bundled", num_classes=3).state_dict().items()}
    plan, chosen = mfcli.load_predictor().artifact.plan, FinetuneOptions(epochs, batch_size=4, device="cpu", **options)
    finetune.finetune(find_variant("bundled").architecture, weights, plan, lessons, chosen, 0, state, "fingerprint")
    return dict(torch.load(state / "last.pt")["ema"])


def test_pictures_that_are_held_out_teach_nothing(photos: Path, tmp_path: Path) -> None:
    lessons = make_lessons(photos)
    others = replace(lessons, targets=np.where(lessons.held_out, 2 - lessons.targets, lessons.targets))
    first, second = learn(lessons, tmp_path / "a"), learn(others, tmp_path / "b")
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("options", [{"optimizer": OptimizerName.LAMB}, {"precision": Precision.BF16}])
def test_options_change_the_weights(options: dict[str, Any], photos: Path, tmp_path: Path) -> None:
    lessons = make_lessons(photos)
    first, second = learn(lessons, tmp_path / "a"), learn(lessons, tmp_path / "b", **options)
    assert all(torch.isfinite(tensor).all() for tensor in second.values())
    assert not torch.equal(first["norm.weight"], second["norm.weight"])


@pytest.mark.parametrize("optimizer", OptimizerName)
def test_an_interrupted_training_goes_on_to_the_same_bytes(
    optimizer: OptimizerName, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted in the middle of an epoch, and before and after the best weights are written."""

    def interrupt(patched: pytest.MonkeyPatch, name: str, moment: int) -> None:
        function, calls = resolve_name(f"mfcli.training.finetune:{name}"), iter(range(1000))

        def call(*arguments: Any, **more: Any) -> Any:
            if next(calls) == moment:
                raise KeyboardInterrupt
            return function(*arguments, **more)

        patched.setattr(f"mfcli.training.finetune.{name}", call)

    lessons = make_lessons(photos)
    whole = learn(lessons, tmp_path / "whole", epochs=2, optimizer=optimizer)
    for name, moment in (("_Run._learn", 1), ("write_atomically", 0), ("write_atomically", 1), ("_Run._learn", 3)):
        with monkeypatch.context() as patched:
            interrupt(patched, name, moment)
            with pytest.raises(KeyboardInterrupt):
                learn(lessons, tmp_path / "cut", epochs=2, optimizer=optimizer)
    cut = learn(lessons, tmp_path / "cut", epochs=2, optimizer=optimizer)
    assert all(torch.equal(cut[name], whole[name]) for name in whole)
    assert (tmp_path / "cut" / "best.safetensors").read_bytes() == (
        tmp_path / "whole" / "best.safetensors"
    ).read_bytes()


@pytest.mark.slow
def test_a_killed_training_goes_on_to_the_same_bytes(photos: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "mfcli",
        "train",
        str(photos),
        "--finetune",
        "--epochs",
        "3",
        "-b",
        "8",
        "--resume",
    ]
    subprocess.run([*command, "-o", str(tmp_path / "whole" / "m")], capture_output=True, check=True)
    command += ["-o", str(tmp_path / "m")]
    for epoch in range(1, 4):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as run:
            assert run.stderr is not None
            next(line for line in run.stderr if f"epoch {epoch} of 3" in line)
            run.kill()
        assert run.returncode == -signal.SIGKILL
    subprocess.run(command, capture_output=True, check=True)
    names = ("model.onnx", "head.safetensors", "predictions.jsonl", "card.md")
    assert [(tmp_path / "m" / name).read_bytes() for name in names] == [
        (tmp_path / "whole" / "m" / name).read_bytes() for name in names
    ]


def test_what_is_interrupted_is_not_lost_by_accident(
    mf: Mf, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    command = ("train", photos, "-o", tmp_path / "m", *SHORT)
    with monkeypatch.context() as patched:
        patched.setattr("mfcli.artifact.build.build_artifact", stop)
        assert mf(*command).code == 130
    ran = mf(*command)
    assert (ran.code, ran.err) == (
        8,
        f"error: a fine-tuning of {tmp_path}/m was interrupted\nhint: --resume goes on, --overwrite begins again\n",
    )
    ran = mf(*command, "--resume", "--lr", "1e-5")
    assert (ran.code, "was trained with another lr" in ran.err) == (2, True)
    write_picture(photos / "red" / "more.png", "red", 77)
    ran = mf(*command, "--resume")
    assert (ran.code, "the pictures or the base model have changed since" in ran.err) == (2, True)
    (tmp_path / ".m.part" / "state" / "last.pt").write_bytes(b"damaged")
    ran = mf(*command, "--resume")
    assert (ran.code, "last.pt is damaged" in ran.err) == (8, True)
    assert mf(*command, "--overwrite").code == 0


def test_a_training_that_diverges(mf: Mf, photos: Path, tmp_path: Path) -> None:
    ran = mf("train", photos, "-o", tmp_path / "m", *SHORT, "--lr", "1e30")
    assert re.fullmatch(
        r"error: the training diverged: the loss of epoch 1 is (nan|inf)\nhint: --lr 1e\+29\n", ran.err
    ), ran.err
    assert ran.code == 7
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--lr", "1e-3"), 2, "--lr 0.001 is an option of fine-tuning"),
        (("--finetune", "--epochs", "0"), 2, "--epochs 0 is less than 1"),
        (("--finetune", "--batch-size", "7"), 2, "--batch-size 7 is not a positive even number"),
        (("--finetune", "--lr", "nan"), 2, "--lr nan is not a positive number"),
        (("--finetune", "--precision", "fp16"), 2, "fp16 is too narrow to train in"),
        (("--finetune", "--device", "nowhere"), 2, "unknown device 'nowhere'"),
        (("--finetune", "--device", "cuda:99"), 7, "CUDA device"),
    ],
)
def test_options_that_are_refused(
    options: tuple[str, ...], code: int, message: str, mf: Mf, photos: Path, tmp_path: Path
) -> None:
    ran = mf("train", photos, "-o", tmp_path / "m", *options)
    assert (ran.code, message in ran.err) == (code, True), ran.err
    assert not list(tmp_path.glob(".*"))


def test_it_needs_torch(mf: Mf, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mfcli.models.checkpoint.find_spec", lambda _: None)
    ran = mf("train", photos, "-o", tmp_path / "m", *SHORT)
    assert (ran.code, ran.err) == (7, "error: torch and timm are not installed\nhint: pip install torch timm\n")
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_too_few_pictures_to_hold_some_out(mf: Mf, tmp_path: Path) -> None:
    ran = mf("train", write_classes(tmp_path / "few", 1), "-o", tmp_path / "m", *SHORT)
    assert (ran.code, "too few pictures to hold some out" in ran.err) == (2, True)


@pytest.mark.parametrize("count", [2, 3])
def test_few_pictures_a_class(count: int, mf: Mf, tmp_path: Path) -> None:
    ran = mf("train", write_classes(tmp_path / "few", count), "-o", tmp_path / "m", *SHORT)
    assert ran.code == 0, ran.err


def test_the_worse_model_is_not_kept(mf: Mf, photos: Path, tmp_path: Path) -> None:
    ran = mf("train", photos, "-o", tmp_path / "m", *SHORT[:-1], "--lr", "1")
    assert (ran.code, "note: the probe is kept: log loss 0." in ran.err) == (0, True)
    assert "note: epoch 2 of 2: loss " in ran.err
    card = (tmp_path / "m" / "card.md").read_text()
    assert "- the probe is kept: " in card
    assert not (tmp_path / "m" / "model.safetensors").exists()


def test_the_end_of_the_time_ends_with_an_epoch(photos: Path, tmp_path: Path) -> None:
    options = FinetuneOptions(5, batch_size=8, device="cpu")
    request = TrainRequest(photos, tmp_path / "m", finetune=options, time_limit_s=1e-9)
    assert len(train(request, Settings.from_environ())["finetune"]["epochs"]) == 1


def test_learning_rates_fall_towards_the_stem() -> None:
    optimizer = create_optimizer_v2(create_model("bundled"), "adamw", lr=1.0, layer_decay=0.5)
    assert sorted({group["lr_scale"] for group in optimizer.param_groups}) == [0.5**layer for layer in range(9, -1, -1)]


def test_the_same_epoch_gives_the_same_picture(photos: Path) -> None:
    lessons, plan = make_lessons(photos), mfcli.load_predictor().artifact.plan
    pictures = DecodedPictures(lessons.sources, lessons.held_out, plan, 20, print)
    loader, loaded = make_loader(AugmentedPictures(plan, 0), pictures, 0), []
    for epoch in (3, 3, 4):
        pictures.request(epoch, [np.array([0, 1])])
        loaded += [pixels for _, pixels in loader]
    first, again, other = loaded
    assert lessons.held_out[:2].tolist() == [True, False]
    assert torch.equal(first, again)
    assert torch.equal(first[0], other[0])
    assert not torch.equal(first[1], other[1])


@pytest.mark.slow
def test_processes_load_the_same_pictures(photos: Path) -> None:
    lessons, plan = make_lessons(photos), mfcli.load_predictor().artifact.plan
    pictures = DecodedPictures(lessons.sources, lessons.held_out, plan, 20, print)
    loaded = []
    for processes in (0, 2):
        loader = make_loader(AugmentedPictures(plan, 0), pictures, processes)
        for epoch in range(2):
            pictures.request(epoch, [np.array([0, 1]), np.array([2, 3])])
            loaded.append(torch.cat([pixels for _, pixels in loader]))
    assert torch.equal(torch.cat(loaded[:2]), torch.cat(loaded[2:]))


def test_an_odd_number_of_pictures_in_a_batch(photos: Path, tmp_path: Path) -> None:
    lessons = make_lessons(photos)
    learned = np.flatnonzero(~lessons.held_out)
    Path(lessons.sources[learned[0]].argument).unlink()
    assert all(torch.isfinite(tensor).all() for tensor in learn(lessons, tmp_path / "a").values())


def lose_pictures(photos: Path, output: Path, names: str) -> tuple[Any, list[str]]:
    """Train while pictures are removed after the first step; return the figures, and the notes."""
    notes: list[str] = []

    def progress(news: object) -> None:
        if isinstance(news, Step):
            for path in photos.glob(names):
                path.unlink()
        elif isinstance(news, str):
            notes.append(news)

    request = TrainRequest(photos, output, finetune=FinetuneOptions(1, batch_size=8, device="cpu"))
    return train(request, Settings.from_environ(), progress), notes


@pytest.mark.usefixtures("keep_finetuned")
def test_pictures_that_are_lost_while_others_are_learned_are_left_out(photos: Path, tmp_path: Path) -> None:
    lost = sorted(photos.glob("red/*"))[0]
    metrics, notes = lose_pictures(photos, tmp_path / "m", f"red/{lost.name}")
    assert f"1 picture can no longer be read and is left out: {lost}" in notes
    assert (sum(metrics["pictures"].values()), metrics["pictures"]["left_out"]) == (24, 1)
    assert f"{lost},red,left_out,,not_found: no such file" in (tmp_path / "m" / "split.csv").read_text()


def test_a_class_that_is_lost_while_others_are_learned(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"too few pictures can be read again: 8 pictures can no longer be read"):
        lose_pictures(photos, tmp_path / "m", "red/*")
