"""mf train: from pictures to a model that is used like any other, and everything that may go wrong on the way."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mfcli
from colours import COLOURS, write_classes, write_picture
from conftest import CHECKOUT, Ran
from mfcli.cli.progress import StderrProgress
from mfcli.errors import BatchTooLargeError
from mfcli.inputs.dataset import read_dataset
from mfcli.results import Step, Tally, Transfer
from mfcli.settings import Settings
from mfcli.training.folder import hold_folder
from mfcli.training.views import Views, compute_views

Mf = Callable[..., Ran]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_classes(tmp_path / "photos", 12)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_metrics(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "metrics.json").read_text()))


def test_a_trained_model_is_a_model_like_any_other(
    mf: Mf, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "runs" / "colours"
    ran = mf("train", photos, "-o", folder)
    assert (ran.code, ran.out.splitlines()[0].split()) == (
        0,
        ["judged_by", "pictures", "top1", "interval_95", "log_loss", "calibration_error"],
    )
    assert f"the model is in {folder}" in ran.err
    val = read_metrics(folder)["val"]
    assert (
        f"of the pictures set aside {val['abstention']['answered']} of {val['pictures']} are answered without a mark, "
        f"{val['abstention']['error_of_answers']:.1%} of them wrong"
    ) in ran.err
    picture = write_picture(tmp_path / "new.png", "green", 99)
    row = json.loads(mf("predict", picture, "--model", folder, "--format", "jsonl", "-q").out)
    assert (row["model"], row["predictions"][0]["label"], len(row["predictions"])) == ("colours", "green", 3)
    assert row["predictions"][0]["prob"] > 0.6
    assert "bundled" not in mf("predict", picture, "--model", folder).err
    assert mfcli.load_predictor(str(folder)).predict(picture).label == "green"
    told = json.loads(mf("info", folder, "--format", "json").out)
    assert (told["num_classes"], told["training"]["base"], told["training"]["judged_by"]) == (
        3,
        "convformer_t8_64",
        "val",
    )
    assert (told["training"]["judged_pictures"], told["training"]["top1"]) == (val["pictures"], val["top1"])
    assert f"training_top1 {round(val['top1'], 4)} " in " ".join(mf("info", folder).out.split())
    (folder / "metrics.json").write_text("[]")
    assert json.loads(mf("info", folder, "--format", "json").out)["training"] is None
    assert mf("embed", picture, "-m", folder, "-o", tmp_path / "f.npz", "-q").code == 0
    monkeypatch.setenv("MF_MODELS_DIR", str(folder.parent))
    assert json.loads(mf("list-models", "--pretraining", "own", "--format", "jsonl").out)["name"] == "colours"
    assert mf("predict", picture, "-m", "colours", "-q").code == 0
    assert mf("labels", "-m", "colours", "--tree").out == "blue\ngreen\nred\n"


def test_answers_that_are_not_to_be_trusted_are_marked(mf: Mf, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    assert mf("train", write_classes(tmp_path / "photos", 40), "-o", folder, "-q").code == 0
    known = write_picture(tmp_path / "known.png", "red", 999)
    rows = {}
    for options in ((), ("--abstain", "off"), ("--abstain", "unsure"), ("--max-error", "0.01%")):
        ran = mf("predict", known, CHECKOUT / "examples" / "espresso.jpg", "-m", folder, *options, "--format", "jsonl")
        rows[options] = [json.loads(line) for line in ran.out.splitlines()]
    assert [row["abstained"] for row in rows[()]] == [None, "unfamiliar"]
    assert [row["abstained"] for row in rows["--abstain", "off"]] == [None, None]
    assert [row["abstained"] for row in rows["--max-error", "0.01%"]] == ["unsure", "unfamiliar"]
    assert "unfamiliar" not in [row["abstained"] for row in rows["--abstain", "unsure"]]
    assert len({rows[options][0]["run"] for options in rows}) == 4
    assert rows[()][1]["predictions"]
    ran = mf("predict", CHECKOUT / "examples" / "espresso.jpg", "-m", folder)
    assert "unfamiliar: unlike the pictures that the model learned from" in ran.out
    ran = mf("predict", CHECKOUT / "examples" / "espresso.jpg", "-m", folder, "--format", "csv")
    assert ran.out.splitlines()[1].endswith(",unfamiliar")
    (tmp_path / "back.csv").write_text(ran.out)
    assert json.loads(mf("convert", tmp_path / "back.csv", "--format", "jsonl").out)["abstained"] == "unfamiliar"


def test_a_promise_that_cannot_be_kept_marks_nothing_unless_it_is_asked_for(mf: Mf, tmp_path: Path) -> None:
    photos, folder = write_classes(tmp_path / "photos", 6), tmp_path / "m"
    assert mf("train", photos, "-o", folder, "-q").code == 0
    marks = {}
    for options in ((), ("--max-error", "5%"), ("--abstain", "unsure")):
        ran = mf("predict", photos / "red", "-m", folder, *options, "--format", "jsonl")
        marks[options] = {json.loads(line)["abstained"] for line in ran.out.splitlines()} - {"unfamiliar"}
        assert (
            f"so {'every one' if options else 'none'} is marked as unsure; what it can promise: --max-error 37%"
            in ran.err
        )
        assert f"at most {'5' if '5%' in options else '10'}% of the answers" in ran.err
    assert marks == {(): {None}, ("--max-error", "5%"): {"unsure"}, ("--abstain", "unsure"): {"unsure"}}
    assert mf("predict", photos / "red", "-m", folder, "--abstain", "off").err == ""


@pytest.mark.parametrize("share", ["0", "100%", "x", "-5%", "nan"])
def test_shares_that_are_refused(share: str, mf: Mf) -> None:
    ran = mf("predict", CHECKOUT / "examples" / "orange.jpg", f"--max-error={share}")
    assert (ran.code, "between 0 and 1" in ran.err) == (2, True)


@pytest.mark.slow
def test_openvino_marks_the_same_answers(mf: Mf, photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    assert mf("train", photos, "-o", tmp_path / "m", "-q").code == 0
    marks = [
        [
            json.loads(line)["abstained"]
            for line in mf(
                "predict",
                photos,
                CHECKOUT / "examples",
                "-m",
                tmp_path / "m",
                "--engine",
                engine,
                "--format",
                "jsonl",
                "-q",
            ).out.splitlines()
        ]
        for engine in ("onnxruntime", "openvino")
    ]
    assert marks[0] == marks[1]
    assert set(marks[0]) > {"unfamiliar"}


def test_the_files_agree_with_one_another(mf: Mf, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "colours"
    figures = json.loads(mf("train", photos, "-o", folder, "--format", "json").out)
    assert figures == read_metrics(folder)
    assert figures["pictures"] == {"train": 30, "val": 6, "test": 0, "left_out": 0}
    assert figures["val"]["top1"] == 1
    split = read_csv(folder / "split.csv")
    assert sorted(row["path"] for row in split) == sorted(map(str, photos.glob("*/*.png")))
    judged = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert {row["input"] for row in judged} == {row["path"] for row in split if row["split"] == "val"}
    for row in judged:
        again = json.loads(mf("predict", row["input"], "-m", folder, "--format", "jsonl", "-q").out)
        for name in ("run", "width", "abstained"):
            assert again[name] == row[name]
        assert again["predictions"][0]["prob"] == pytest.approx(row["predictions"][0]["prob"], abs=1e-5)
    assert [(row["label"], row["train_count"], row["val_recall"]) for row in read_csv(folder / "results.csv")] == [
        (colour, "10", "1.0") for colour in sorted(COLOURS)
    ]
    assert (folder / "confusion.csv").read_text() == "truth,blue,green,red\nblue,2,0,0\ngreen,0,2,0\nred,0,0,2\n"
    assert "| blue | 10 |" in (folder / "card.md").read_text()


def test_the_same_pictures_give_the_same_bytes(mf: Mf, photos: Path, tmp_path: Path) -> None:
    models = []
    for name in ("a", "b"):
        folder = tmp_path / name / "colours"
        assert mf("train", photos, "-o", folder, "-q").code == 0
        models.append([(folder / file).read_bytes() for file in ("model.onnx", "head.safetensors", "split.csv")])
        if name == "a":
            shutil.rmtree(os.environ["MF_CACHE_DIR"])
    assert models[0] == models[1]


def test_moved_and_renamed_pictures_fall_on_the_same_side(mf: Mf, photos: Path, tmp_path: Path) -> None:
    sides = []
    for seed in ("0", "0", "1"):
        assert mf("train", photos, "-o", tmp_path / "m", "--overwrite", "--seed", seed, "-q").code == 0
        rows = read_csv(tmp_path / "m" / "split.csv")
        sides.append({Path(row["path"]).read_bytes() for row in rows if row["split"] == "val"})
        for number, path in enumerate(sorted(photos.glob("*/*.png"))):
            path.rename(path.with_name(f"{97 * number % 36 + 100}-{number}.png"))
    assert sides[0] == sides[1] != sides[2]


def test_a_val_class_that_is_missing_changes_nothing_else(mf: Mf, tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_classes(data / "train", 6)
    write_classes(data / "val", 4, first=50)
    assert mf("train", data, "-o", tmp_path / "whole", "-q").code == 0
    shutil.rmtree(data / "val" / "blue")
    ran = mf("train", data, "-o", tmp_path / "less" / "whole")
    assert (ran.code, "1 class has no pictures to judge by: blue" in ran.err) == (0, True)
    models = [(folder / "model.onnx").read_bytes() for folder in (tmp_path / "whole", tmp_path / "less" / "whole")]
    assert models[0] == models[1]
    rows = [
        {row["label"]: row["val_recall"] for row in read_csv(folder / "results.csv")}
        for folder in (tmp_path / "whole", tmp_path / "less" / "whole")
    ]
    assert rows[0] | {"blue": ""} == rows[1]


def test_what_is_wrong_with_pictures_is_listed(mf: Mf, photos: Path, tmp_path: Path) -> None:
    (photos / "red" / "broken.jpg").write_bytes(b"no picture")
    shutil.copy(photos / "red" / "0.png", photos / "blue" / "also.png")
    (photos / "empty").mkdir()
    write_picture(photos / "orange" / "0.png", "red", 77)
    ran = mf("train", photos, "-o", tmp_path / "m")
    assert ran.code == 0
    assert f"note: 1 picture cannot be read and is left out: {photos}/red/broken.jpg" in ran.err
    assert "note: 2 pictures are left out: under two labels" in ran.err
    assert "note: 1 class has no pictures and is left out: empty" in ran.err
    assert "note: 1 class has fewer than 5 pictures: orange" in ran.err
    notes = {Path(row["path"]).name: row["note"] for row in read_csv(tmp_path / "m" / "split.csv") if row["note"]}
    assert notes["also.png"] == "the same picture is in red"
    assert notes["broken.jpg"].startswith("unsupported: ")


def test_pictures_in_train_and_val_are_reported(mf: Mf, tmp_path: Path) -> None:
    write_classes(tmp_path / "data" / "train", 5)
    write_classes(tmp_path / "data" / "val", 1)
    ran = mf("train", tmp_path / "data", "-o", tmp_path / "m")
    assert "note: 3 pictures to judge by are also in train, which flatters the figures" in ran.err


def test_the_features_are_in_the_cache_until_they_are_removed(mf: Mf, photos: Path, tmp_path: Path) -> None:
    assert mf("train", photos, "-o", tmp_path / "m", "-q").code == 0
    (entry,) = json.loads(mf("cache", "ls", "--format", "json").out)
    assert (entry["kind"], entry["model"], Path(entry["path"]).parent.name) == (
        "features",
        "convformer_t8_64",
        "features",
    )
    size = Path(entry["path"]).stat().st_size
    with Path(entry["path"]).open("ab") as file:
        file.write(b"what a killed process left")
    write_picture(photos / "red" / "more.png", "red", 500)
    assert mf("train", photos, "-o", tmp_path / "m", "--overwrite", "-q").code == 0
    assert Path(entry["path"]).stat().st_size == size + (size - len("mfcli.features 320\n")) // 36
    assert mf("cache", "verify").code == 0
    assert mf("cache", "rm", "bundled").code == 0
    assert not Path(entry["path"]).exists()


def test_a_csv_file_with_a_missing_picture(mf: Mf, photos: Path, tmp_path: Path) -> None:
    rows = [f"{path.relative_to(photos)},{path.parent.name}" for path in sorted(photos.glob("*/*.png"))]
    (photos / "labels.csv").write_bytes("\r\n".join(["path,label", *rows, "gone.png,red", ""]).encode())
    ran = mf("train", photos / "labels.csv", "-o", tmp_path / "m")
    assert (ran.code, "1 picture cannot be read and is left out" in ran.err) == (0, True)
    assert read_metrics(tmp_path / "m")["pictures"] == {"train": 30, "val": 6, "test": 0, "left_out": 1}


def test_a_class_that_has_only_a_missing_picture(mf: Mf, photos: Path, tmp_path: Path) -> None:
    (photos / "labels.csv").write_text("path,label\nred/0.png,red\ngone.png,bees\n")
    ran = mf("train", photos / "labels.csv", "-o", tmp_path / "m")
    assert ran.code == 3
    assert f"hint: class bees has no readable picture: {photos / 'gone.png'}: no such file; at least two" in ran.err


def test_a_model_that_nothing_judges(mf: Mf, tmp_path: Path) -> None:
    ran = mf("train", write_classes(tmp_path / "few", 1), "-o", tmp_path / "m")
    assert (ran.code, "no pictures were set aside to judge the model by" in ran.err) == (0, True)


def test_similar_folders_are_suggested(mf: Mf, photos: Path, tmp_path: Path) -> None:
    assert mf("train", photos, "-o", tmp_path / "runs" / "insects", "-q").code == 0
    ran = mf("predict", photos, "-m", tmp_path / "runs" / "insect")
    assert ran.code == 4
    assert "and no such folder" in ran.err
    assert f"did you mean {tmp_path / 'runs' / 'insects'}?" in ran.err


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_pictures_a_class(count: int, mf: Mf, tmp_path: Path) -> None:
    assert mf("train", write_classes(tmp_path / "few", count), "-o", tmp_path / "m", "-q").code == 0
    picture = write_picture(tmp_path / "new.png", "red", 99)
    assert (
        json.loads(mf("predict", picture, "-m", tmp_path / "m", "--format", "jsonl", "-q").out)["predictions"][0][
            "label"
        ]
        == "red"
    )


def test_all_pictures_broken(mf: Mf, tmp_path: Path) -> None:
    for name in ("a/1.jpg", "a/2.jpg", "b/1.jpg"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(b"no picture")
    ran = mf("train", tmp_path / "data", "-o", tmp_path / "m")
    assert (ran.code, ran.out) == (3, "")
    assert "0 of 2 classes have readable pictures to learn from" in ran.err
    assert not (tmp_path / "m").exists()


def test_what_is_there_is_replaced_only_when_asked_for(mf: Mf, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    assert mf("train", photos, "-o", folder, "-q").code == 0
    before = (folder / "model.onnx").stat().st_mtime_ns
    assert mf("train", photos, "-o", folder).code == 8
    resumed = mf("train", photos, "-o", folder, "--resume")
    assert (resumed.code, f"note: {folder} is finished" in resumed.err) == (0, True)
    assert (folder / "model.onnx").stat().st_mtime_ns == before
    other = mf("train", photos, "-o", folder, "--resume", "--seed", "1")
    assert (other.code, "was trained with another seed" in other.err) == (2, True)
    assert mf("train", photos / "missing", "-o", folder, "--overwrite").code == 2
    assert (folder / "model.onnx").stat().st_mtime_ns == before
    assert mf("train", photos, "-o", folder, "--overwrite", "-q").code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "photos"]


def test_a_folder_that_was_being_replaced_comes_back(mf: Mf, photos: Path, tmp_path: Path) -> None:
    folder, aside = tmp_path / "m", tmp_path / ".m.part" / "old"
    assert mf("train", photos, "-o", folder, "-q").code == 0
    aside.parent.mkdir()
    folder.rename(aside)  # killed between the two renames
    ran = mf("train", photos, "-o", folder, "--resume")
    assert (ran.code, f"note: {folder} is finished" in ran.err, aside.exists()) == (0, True, False)
    shutil.copytree(folder, aside)  # killed after them
    shutil.copytree(folder, aside.with_name("model"))
    assert mf("train", photos, "-o", folder, "--overwrite").code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "photos"]


def test_a_folder_that_another_process_writes(mf: Mf, photos: Path, tmp_path: Path) -> None:
    with hold_folder(tmp_path / "m") as folder, folder.write() as path:
        (path / "first").touch()
        ran = mf("train", photos, "-o", tmp_path / "m")
        assert (ran.code, f"error: another mf train is writing {tmp_path}/m\n" in ran.err) == (8, True)
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["first"]
    assert not folder.work.exists()


def test_what_the_pictures_are_read_with(mf: Mf, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    load = mfcli.load_predictor
    monkeypatch.setattr("mfcli.tasks.train.load_predictor", lambda *a, **more: seen.update(more) or load(*a, **more))
    assert mf("train", photos, "-o", tmp_path / "m", "-q", "--decode-timeout", "7.5").code == 0
    assert seen["decode_timeout_s"] == 7.5


def test_the_bar_has_a_total_from_the_beginning(mf_terminal: Callable[..., Ran], photos: Path, tmp_path: Path) -> None:
    ran = mf_terminal("train", photos, "-o", tmp_path / "m")
    assert (ran.code, "/36" in ran.err, "0/?" in ran.err) == (0, True, False)


def test_one_bar_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mfcli.cli.progress.is_terminal", lambda _: True)
    with StderrProgress(note=lambda _: None, with_bar=True) as shown:
        for event, is_run in ((Tally(1, 0, 0, 2), True), (Step("epoch 1", 1, 2), False), (Tally(2, 0, 0, 2), True)):
            shown(event)
            assert (shown._run is not None, shown._bars is not None) == (is_run, not is_run)


def test_steps_after_a_download_and_downloads_between_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mfcli.cli.progress.is_terminal", lambda _: True)
    with StderrProgress(note=lambda _: None) as shown:
        for event in (Transfer("a", 1, 2), Step("loading", 0, 2), Transfer("b", 1, 2), Step("measuring", 1, 2)):
            shown(event)
            assert shown._bars is not None
            assert len(shown._bars.tasks) == 1


def test_the_progress_has_a_total(photos: Path) -> None:
    tallies: list[Any] = []
    sources = [picture.source for picture in read_dataset(photos).pictures]
    compute_views(mfcli.load_predictor(features=True), sources[:10], Settings.from_environ())
    compute_views(mfcli.load_predictor(features=True), sources, Settings.from_environ(), tallies.append)
    assert tallies[-1] == Tally(26, 0, 10, 36)


@pytest.mark.parametrize("digest", [None, "zz", ""])
def test_a_damaged_index_of_digests_is_replaced(digest: str | None, photos: Path) -> None:
    sources = [picture.source for picture in read_dataset(photos).pictures]
    settings = Settings.from_environ()
    compute_views(mfcli.load_predictor(features=True), sources, settings)
    (index,) = (settings.cache_dir / "digests").glob("pictures-*.json")
    known = index.read_text()
    damaged = {name: [*recorded[:-1], digest] for name, recorded in json.loads(known).items()}
    index.write_text("5" if digest is None else json.dumps(damaged))
    assert all(isinstance(own, Views) for own in compute_views(mfcli.load_predictor(features=True), sources, settings))
    assert index.read_text() == known


def test_batches_are_halved_where_memory_is_short(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = [picture.source for picture in read_dataset(photos).pictures]
    predictor = mfcli.load_predictor(features=True)
    expected = compute_views(predictor, sources, None)
    compute = predictor.engine.compute

    def compute_few(batch: np.ndarray) -> tuple[np.ndarray, ...]:
        if len(batch) > 1:
            raise BatchTooLargeError("too little memory")
        return compute(batch)

    monkeypatch.setattr(predictor.engine, "compute", compute_few)
    for own, wanted in zip(compute_views(predictor, sources, None), expected, strict=True):
        assert isinstance(own, Views)
        assert isinstance(wanted, Views)
        np.testing.assert_allclose(own.features, wanted.features, rtol=1e-4, atol=1e-4)


def test_torch_gives_the_same_answers(mf: Mf, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    assert mf("train", photos, "-o", folder, "-q").code == 0
    command = ("predict", photos / "red", CHECKOUT / "examples", "-m", folder, "--format", "jsonl", "-q", "--engine")
    rows = [[json.loads(line) for line in mf(*command, engine).out.splitlines()] for engine in ("onnxruntime", "torch")]
    assert len(rows[0]) > 12
    for first, second in zip(*rows, strict=True):
        assert first["abstained"] == second["abstained"]
        assert first["predictions"][0]["prob"] == pytest.approx(second["predictions"][0]["prob"], abs=1e-4)
    assert {row["abstained"] for row in rows[0]} >= {"unfamiliar"}


def test_torch_needs_the_checkpoint_of_the_base_model(mf: Mf, photos: Path, tmp_path: Path) -> None:
    folder, other = tmp_path / "m", tmp_path / "other.safetensors"
    assert mf("train", photos, "-o", folder, "-q").code == 0
    args = json.loads((folder / "args.json").read_text())
    other.write_bytes(b"other")

    def run(**changes: str | None) -> Ran:
        (folder / "args.json").write_text(json.dumps(args | changes))
        return mf("predict", photos / "red", "-m", folder, "--engine", "torch")

    assert run().code == run(checkpoint=str(tmp_path / "gone")).code == 0
    ran = run(checkpoint=str(other))
    assert (ran.code, f"{other} is not the checkpoint that {folder} was trained with" in ran.err) == (4, True)
    ran = run(base="caformer_s18", checkpoint=None)
    assert (ran.code, "the torch engine needs the checkpoint of its base model" in ran.err) == (4, True)
    shutil.copy(other, folder / "head.safetensors")
    ran = run()
    assert (ran.code, "head.safetensors is damaged, or of another version" in ran.err) == (4, True)


def test_a_known_digest_is_that_of_the_file(mf: Mf, photos: Path, tmp_path: Path) -> None:
    assert mf("train", photos, "-o", tmp_path / "a", "-q").code == 0
    (index,) = (Path(os.environ["MF_CACHE_DIR"]) / "digests").glob("pictures-*.json")
    assert len(json.loads(index.read_bytes())) == 36
    shutil.copy(photos / "blue" / "0.png", photos / "red" / "0.png")  # the same size, perhaps
    ran = mf("train", photos, "-o", tmp_path / "b")
    assert "note: 2 pictures are left out: under two labels" in ran.err
    index.write_bytes(b"{")
    assert mf("train", photos, "-o", tmp_path / "c", "-q").code == 0
    for name in ("model.onnx", "predictions.jsonl"):
        assert (tmp_path / "b" / name).read_bytes() != (tmp_path / "a" / name).read_bytes()


def test_an_own_model_is_no_base_model(mf: Mf, photos: Path, tmp_path: Path) -> None:
    assert mf("train", photos, "-o", tmp_path / "m", "-q").code == 0
    ran = mf("train", photos, "-o", tmp_path / "n", "--model", tmp_path / "m")
    assert (ran.code, ran.err) == (2, "error: m is a model of mf train itself\nhint: name its base model\n")
    assert not list(tmp_path.glob("*n*.part"))


def test_a_foreign_folder_is_never_replaced(mf: Mf, photos: Path) -> None:
    ran = mf("train", photos, "-o", photos, "--overwrite")
    assert (ran.code, "is not a folder of mf train" in ran.err) == (8, True)
    assert len(list(photos.glob("*/*.png"))) == 36


@pytest.mark.parametrize("name", ["bundled", "caformer_s18", "a\nb"])
def test_names_of_models_that_are_refused(name: str, mf: Mf, photos: Path, tmp_path: Path) -> None:
    ran = mf("train", photos, "-o", tmp_path / name)
    assert (ran.code, "cannot be the name of a model" in ran.err) == (2, True)


def test_a_model_is_not_written_to_a_store(mf: Mf, photos: Path) -> None:
    ran = mf("train", photos, "-o", "s3://bucket/m")
    assert (ran.code, ran.err.splitlines()[0]) == (2, "error: s3://bucket/m: a model cannot be in an object store")


def test_folders_that_are_no_models(mf: Mf, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    assert mf("train", photos, "-o", folder, "-q").code == 0
    args = json.loads((folder / "args.json").read_text())
    model, bytes_of = folder / "model.onnx", (folder / "model.onnx").read_bytes()
    for change, message in (
        (lambda: model.write_bytes(bytes_of[:1000]), "is damaged, or not an artifact"),
        (lambda: model.write_bytes(bytes_of[:-1] + b"x"), "changed since it was built"),
        (model.unlink, "has no model.onnx"),
        (lambda: (folder / "args.json").write_text(json.dumps(args | {"base": "resnet"})), "unknown base model"),
        (lambda: (folder / "args.json").write_text("{"), "is damaged"),
        (lambda: (folder / "args.json").unlink(), "is not a model of mf train"),
    ):
        change()
        ran = mf("predict", CHECKOUT / "examples" / "orange.jpg", "-m", folder)
        assert (ran.code, ran.out) == (4, "")
        assert message in ran.err


def test_own_weights_and_preprocessing_are_fixed(mf: Mf, photos: Path, tmp_path: Path) -> None:
    assert mf("train", photos, "-o", tmp_path / "m", "-q").code == 0
    for options in (("--weights", tmp_path / "x.pth"), ("--crop-pct", "0.8")):
        assert mf("predict", photos, "-m", tmp_path / "m", *options).code == 2


@pytest.mark.slow
def test_a_published_architecture_with_a_two_layer_head(mf: Mf, photos: Path, tmp_path: Path) -> None:
    from mfcli.models.checkpoint import write_random
    from mfcli.models.registry import find_variant

    write_random(tmp_path / "w.safetensors", find_variant("convformer_s18"))
    ran = mf("train", photos, "-o", tmp_path / "m", "-m", "convformer_s18", "--weights", tmp_path / "w.safetensors")
    assert ran.code == 0, ran.err
    row = json.loads(mf("predict", photos / "red" / "0.png", "-m", tmp_path / "m", "--format", "jsonl", "-q").out)
    assert (row["model"], len(row["predictions"])) == ("m", 3)
    assert np.isfinite(row["predictions"][0]["prob"])


@pytest.mark.slow
def test_a_killed_training_is_resumed_to_the_same_bytes(mf: Mf, tmp_path: Path) -> None:
    photos = write_classes(tmp_path / "photos", 60)
    assert mf("train", photos, "-o", tmp_path / "whole" / "m", "-q").code == 0
    runs = tmp_path / "runs"
    command = [sys.executable, "-m", "mfcli", "train", str(photos), "-o", str(runs / "m"), "-q", "--resume"]
    environment = os.environ | {"MF_CACHE_DIR": str(tmp_path / "cache")}
    for delay in (0.3, 0.7, 1.0, 1.3, 1.6, 2.0, 2.5):
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment) as run:
            time.sleep(delay)
            run.kill()
        assert run.returncode == -signal.SIGKILL or (runs / "m" / "card.md").exists()
    subprocess.run(command, stdout=subprocess.DEVNULL, env=environment, check=True)
    for file in ("model.onnx", "head.safetensors", "predictions.jsonl"):
        assert (runs / "m" / file).read_bytes() == (tmp_path / "whole" / "m" / file).read_bytes()
    assert [path.name for path in runs.iterdir()] == ["m"]
