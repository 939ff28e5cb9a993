"""mf evaluate: figures from pictures and from rows, restricted heads, and everything that would give wrong figures."""

import csv
import io
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from PIL import Image

import mfcli
from conftest import CHECKOUT, Ran
from mfcli.errors import UsageError
from mfcli.models.labels import load_imagenet_labels
from mfcli.outputs.reader import StoredResults
from mfcli.settings import Settings
from mfcli.tasks.evaluate import EvaluateRequest, evaluate, evaluate_results

Mf = Callable[..., Ran]
ORANGE, LEMON, BEACON, BASSET = "n07747607", "n07749582", "n02814860", "n02088238"
PICTURES = ((ORANGE, "orange"), (LEMON, "lemon"), (BEACON, "espresso"), (LEMON, "orange"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four pictures of three classes, two of them under a wrong one."""
    for wnid, name in PICTURES:
        (tmp_path / "val" / wnid).mkdir(parents=True, exist_ok=True)
        shutil.copy(CHECKOUT / "examples" / f"{name}.jpg", tmp_path / "val" / wnid)
    return tmp_path / "val"


def read(mf: Mf, *arguments: str | Path, code: int = 0) -> dict[str, Any]:
    ran = mf("evaluate", *arguments, "--format", "json")
    assert ran.code == code, ran.err
    return dict(json.loads(ran.out))


def drop(figures: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in figures.items() if name not in names}


def test_the_figures_are_those_of_the_probabilities(mf: Mf, folder: Path) -> None:
    figures = read(mf, folder, "--per-class")
    predictor = mfcli.load_predictor(top_k="all")
    wnids = [label.wnid for label in predictor.labels]
    losses, briers = [], []
    for path in sorted(folder.rglob("*.jpg")):
        probs = {p.wnid: p.prob for p in predictor.predict(path).predictions}
        losses.append(-np.log(probs[path.parent.name]))
        briers.append(sum((prob - (wnid == path.parent.name)) ** 2 for wnid, prob in probs.items()))
    assert (figures["pictures"], figures["classes"], figures["num_classes"]) == (4, 3, len(wnids))
    assert (figures["top1"], figures["top5"], figures["macro_recall"]) == (0.5, 0.75, pytest.approx(0.5))
    assert figures["log_loss"] == pytest.approx(np.mean(losses))
    assert figures["brier"] == pytest.approx(np.mean(briers))
    assert figures["published_top1"] is None
    rows = {row["wnid"]: row for row in figures["per_class"]}
    assert (rows[LEMON]["count"], rows[LEMON]["recall"], rows[LEMON]["precision"]) == (2, 0.5, 1)
    assert (rows[ORANGE]["count"], rows[ORANGE]["recall"], rows[ORANGE]["precision"]) == (1, 1, 0.5)
    assert {(pair["truth"], pair["predicted"]) for pair in figures["confusions"]} == {
        ("lemon", "orange"),
        ("beacon, lighthouse, beacon light, pharos", "espresso"),
    }
    assert (figures["concept_named"], figures["concept_holds"]) == (1, pytest.approx(0.5, abs=0.25))


def test_names_indices_and_files_give_the_same_figures(mf: Mf, folder: Path, tmp_path: Path) -> None:
    names = ("data", "run", "images_per_s")
    expected = drop(read(mf, folder), *names)
    labels = mfcli.load_predictor().labels
    (tmp_path / "flat").mkdir()
    truth, table, class_map = [], ["path,label"], [label.wnid for label in labels]
    for number, path in enumerate(sorted(folder.rglob("*.jpg"))):
        shutil.copy(path, tmp_path / "flat" / f"{number}.jpg")
        truth.append(path.parent.name)
        table.append(f"flat/{number}.jpg,{path.parent.name}")
    (tmp_path / "truth.txt").write_text("\n".join(truth))
    (tmp_path / "table.csv").write_text("\r\n".join(table))
    (tmp_path / "map.txt").write_text("\n".join(f"folder {wnid}" for wnid in class_map))
    assert drop(read(mf, tmp_path / "flat", "--ground-truth", tmp_path / "truth.txt"), *names) == expected
    assert drop(read(mf, tmp_path / "table.csv"), *names) == expected
    cases: tuple[tuple[dict[str, str], list[str | Path]], ...] = (
        ({wnid: labels[class_map.index(wnid)].name.split(",")[0] for wnid in truth}, []),
        ({wnid: str(class_map.index(wnid)) for wnid in truth}, []),
        ({wnid: f"folder {wnid}" for wnid in truth}, ["--class-map", tmp_path / "map.txt"]),
    )
    for forms, options in cases:
        shutil.copytree(folder, tmp_path / "copy")
        for wnid, form in forms.items():
            (tmp_path / "copy" / wnid).rename(tmp_path / "copy" / form)
        assert drop(read(mf, tmp_path / "copy", *options), *names) == expected
        shutil.rmtree(tmp_path / "copy")


def test_without_a_class_the_others_figures_are_the_same(mf: Mf, folder: Path) -> None:
    before = {row["wnid"]: row for row in read(mf, folder, "--per-class")["per_class"]}
    shutil.rmtree(folder / ORANGE)
    after = {row["wnid"]: row for row in read(mf, folder, "--per-class")["per_class"]}
    assert after == {wnid: before[wnid] for wnid in (LEMON, BEACON)}


def test_a_model_is_judged_by_what_it_knows(mf: Mf, folder: Path) -> None:
    expected = read(mf, folder)
    shutil.copytree(folder / BEACON, folder / BASSET)
    ran = mf("evaluate", folder, "--format", "json")
    figures = json.loads(ran.out)
    assert "left out: 1 of 5 pictures, of 1 class that the model does not have, or is not to give" in ran.err
    assert "classes by WordNet id: n02814860 = beacon" in ran.err
    assert (figures["coverage"], figures["pictures_outside"], figures["classes_outside"]) == (0.8, 1, 1)
    names = ("coverage", "pictures_outside", "classes_outside", "images_per_s")
    assert drop(figures, *names) == drop(expected, *names)


def test_failures_are_left_out_and_counted_as_wrong(mf: Mf, folder: Path) -> None:
    (folder / LEMON / "broken.jpg").write_bytes(b"no picture")
    figures = read(mf, folder, code=5)
    assert (figures["pictures"], figures["failed"]) == (4, 1)
    assert (figures["top1"], figures["strict_top1"], figures["strict_top5"]) == (0.5, 0.4, 0.6)
    assert mf("evaluate", folder, "--allow-failures", "--expect-top1", "0.4").code == 0
    ran = mf("evaluate", folder, "--allow-failures", "--expect-top1", "45%")
    assert (ran.code, "error: top-1 is 40.00%, which is below 45.00%" in ran.err) == (9, True)
    for path in folder.rglob("*.jpg"):
        path.write_bytes(b"no picture")
    assert read(mf, folder, code=6) == {**read(mf, folder, code=6), "pictures": 0, "failed": 5}


def test_answers_are_restricted_to_valid_labels(mf: Mf, folder: Path, tmp_path: Path) -> None:
    (folder / BASSET).mkdir()
    (tmp_path / "valid.txt").write_text("cracked\n")
    ran = mf("evaluate", folder, "--valid-labels", tmp_path / "valid.txt")
    assert (ran.code, f"{tmp_path / 'valid.txt'}: no name is a class of the model: 'cracked'" in ran.err) == (2, True)
    assert f"note: 1 class has no pictures and is left out: {BASSET}" in ran.err
    (tmp_path / "valid.txt").write_text(f"{LEMON}\n{BEACON}\n")
    rows = tmp_path / "rows.jsonl"
    ran = mf("evaluate", folder, "--valid-labels", tmp_path / "valid.txt", "--predictions", rows, "--format", "json")
    figures = json.loads(ran.out)
    assert "left out: 1 of 4 pictures" in ran.err
    assert (figures["pictures"], figures["num_classes"], figures["top5"]) == (3, 2, None)
    predictor = mfcli.load_predictor(top_k="all")
    losses = []
    for path in (*folder.glob(f"{LEMON}/*"), *folder.glob(f"{BEACON}/*")):
        probs = {p.wnid: p.prob for p in predictor.predict(path).predictions}
        losses.append(-np.log(probs[path.parent.name] / (probs[LEMON] + probs[BEACON])))
    assert figures["log_loss"] == pytest.approx(np.mean(losses))
    given = [p["wnid"] for line in rows.read_text().splitlines() for p in json.loads(line)["predictions"]]
    assert sorted(given) == sorted([LEMON, BEACON] * 3)
    assert read(mf, rows)["log_loss"] == figures["log_loss"]
    schema = json.loads((resources.files("mfcli.outputs") / "predict.schema.json").read_text())
    for line in rows.read_text().splitlines():
        jsonschema.validate(json.loads(line), schema)


def test_real_labels(mf: Mf, tmp_path: Path) -> None:
    """Several classes are right, by their places in ImageNet-1k; a picture that has none does not count."""
    in1k = [label.wnid for label in load_imagenet_labels(1000)]
    lists = [[in1k.index(ORANGE), in1k.index(LEMON)], [in1k.index(BASSET)], []]
    (tmp_path / "real.json").write_text(json.dumps(lists))
    for number, (wnid, name) in enumerate(((LEMON, "orange"), (LEMON, "lemon"), (ORANGE, "orange")), 1):
        (tmp_path / "val" / wnid).mkdir(parents=True, exist_ok=True)
        shutil.copy(CHECKOUT / "examples" / f"{name}.jpg", tmp_path / "val" / wnid / f"ILSVRC2012_val_{number:08}.JPEG")
    figures = read(mf, tmp_path / "val", "--real-labels", tmp_path / "real.json")
    assert (figures["top1"], figures["real_pictures"], figures["real_top1"]) == (pytest.approx(2 / 3), 1, 1)


@pytest.mark.parametrize("format", ["jsonl", "csv", "json"])
def test_rows_of_an_earlier_run_give_the_same_figures(mf: Mf, folder: Path, tmp_path: Path, format: str) -> None:
    expected = read(mf, folder)
    names = ("data", "run", "engine", "precision", "images_per_s", "weights_sha256")
    assert mf("predict", folder, "-k", "all", "-o", tmp_path / f"all.{format}").code == 0
    everything = read(mf, tmp_path / f"all.{format}")
    numbers = ("log_loss", "brier")
    concepts = ("concept_named", "concept_holds")
    assert drop(everything, *names, *numbers, *concepts) == drop(expected, *names, *numbers, *concepts)
    assert [everything[name] for name in numbers] == pytest.approx([expected[name] for name in numbers])
    assert mf("predict", folder, "-k", "1", "-o", tmp_path / f"one.{format}").code == 0
    first = read(mf, tmp_path / f"one.{format}")
    assert (first["top1"], first["top5"], first["log_loss"], first["brier"]) == (0.5, None, None, None)


def test_rows_know_the_head_that_no_row_shows(mf: Mf, folder: Path, tmp_path: Path) -> None:
    """A class that was never given is one of the model's nevertheless, and failed rows need no class."""
    (folder / "broken.jpg").write_bytes(b"no picture")
    assert mf("predict", folder, "-k", "1", "-o", tmp_path / "rows.csv").code == 5
    figures = read(mf, tmp_path / "rows.csv", "--confusion", tmp_path / "confusion.csv", code=5)
    assert (figures["pictures"], figures["failed"], figures["classes"]) == (4, 1, 3)
    with (tmp_path / "confusion.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert [row[0] for row in rows] == header[1:4]
    assert header[4:] == ["espresso"]
    assert {row[0]: list(map(int, row[1:])) for row in rows}["lemon"][header.index("orange") - 1] == 1


def test_the_rows_of_mf_train_are_judged(mf: Mf, tmp_path: Path) -> None:
    from colours import write_classes

    assert mf("train", write_classes(tmp_path / "photos", 10), "-o", tmp_path / "runs" / "x", "-q").code == 0
    figures = json.loads((tmp_path / "runs" / "x" / "metrics.json").read_text())["val"]
    again = read(mf, tmp_path / "runs" / "x" / "predictions.jsonl")
    assert again["top1"] == figures["top1"]
    assert again["log_loss"] == pytest.approx(figures["log_loss"], abs=1e-6)
    photos = read(mf, tmp_path / "photos", "-m", tmp_path / "runs" / "x")
    assert (photos["pictures"], photos["num_classes"]) == (30, 3)


def test_pictures_that_were_learned_from_and_promises_that_cannot_be_kept_are_told(mf: Mf, tmp_path: Path) -> None:
    from colours import write_classes

    photos, model = write_classes(tmp_path / "photos", 10), tmp_path / "runs" / "x"
    assert mf("train", photos, "-o", model, "-q").code == 0
    told = "24 of the 30 pictures were learned from: these figures are too good"
    ran = mf("evaluate", photos, "-m", model, "--max-error", "5%")
    assert told in ran.err
    assert "at most 5% of the answers are wrong, so every one is marked as unsure" in ran.err
    assert mf("predict", photos, "-m", model, "-o", tmp_path / "rows.jsonl", "-q").code == 0
    assert told in mf("evaluate", tmp_path / "rows.jsonl", "-m", model).err
    new = mf("evaluate", write_classes(tmp_path / "new", 2), "-m", model, "--abstain", "off")
    assert ("learned" in new.err, "promise" in new.err) == (False, False)


def test_the_bundled_model_says_which_errors_it_can_promise(mf: Mf, folder: Path) -> None:
    for arguments in (["evaluate", folder], ["predict", folder]):
        ran = mf(*arguments, "--max-error", "1%")
        assert "to promise that at most 1% of the answers are wrong, so every one is marked as unsure" in ran.err


def test_answers_that_abstain_are_counted(mf: Mf, folder: Path, tmp_path: Path) -> None:
    assert mf("predict", folder, "-o", tmp_path / "rows.jsonl").code == 0
    first, *others = map(json.loads, (tmp_path / "rows.jsonl").read_text().splitlines())
    assert "abstained" not in read(mf, tmp_path / "rows.jsonl")
    rows = [first | {"abstained": "unsure"}, *others]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    figures = read(mf, tmp_path / "rows.jsonl")
    assert (figures["abstained"], figures["kept_top1"]) == (0.25, pytest.approx(2 / 3))


UNUSABLE = "has no classes with probabilities for"


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        ([], UNUSABLE),
        ([{"prob": float("nan")}], "is not a row of mf predict"),
        ([{"prob": 7}], UNUSABLE),
        ([{"class_index": -1}], UNUSABLE),
        ([{"class_index": 10**12}], UNUSABLE),
    ],
)
def test_rows_without_usable_answers_are_refused(
    mf: Mf, folder: Path, tmp_path: Path, damage: list[dict[str, object]], problem: str
) -> None:
    rows = tmp_path / "rows.jsonl"
    assert mf("predict", folder, "-k", "1", "-o", rows).code == 0
    first, *others = map(json.loads, rows.read_text().splitlines())
    first["predictions"] = [first["predictions"][0] | own for own in damage]
    rows.write_text("".join(json.dumps(row) + "\n" for row in (first, *others)))
    ran = mf("evaluate", rows)
    assert (ran.code, problem in ran.err) == (8, True), ran.err


def test_the_classes_of_a_head_that_rows_do_not_show(mf: Mf, folder: Path, tmp_path: Path) -> None:
    """The rows of an own model do not say which classes it has; one that was never given must be named."""
    rows, names = tmp_path / "rows.jsonl", tmp_path / "names.txt"
    names.write_text("".join(f"{label.wnid}\n" for label in mfcli.load_predictor().labels))
    assert mf("predict", folder, "-k", "1", "-o", rows).code == 0
    expected = drop(read(mf, rows), "model")
    rows.write_text(rows.read_text().replace('"model":"convformer_t8_64"', '"model":"mine"'))
    ran = mf("evaluate", rows)
    assert "note: only the classes of mine that were given are known; --model NAME names all of them" in ran.err
    assert (ran.code, f"error: whether mine has {BEACON} is unknown" in ran.err) == (2, True)
    assert drop(read(mf, rows, "--model", "bundled"), "model") == expected
    assert drop(read(mf, rows, "--labels", names), "model") == expected
    ran = mf("evaluate", rows, "--model", "caformer_s18")
    assert (ran.code, "the rows have other classes than caformer_s18" in ran.err) == (2, True)
    names.write_text("orange\n")
    assert "1 labels for rows with class" in mf("evaluate", rows, "--labels", names).err


def test_rows_of_an_unfinished_run_are_said_to_be(mf: Mf, folder: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    assert mf("predict", folder, "-o", rows).code == 0
    rows.write_bytes(rows.read_bytes()[:-200])
    ran = mf("evaluate", rows)
    assert (ran.code, "is of an unfinished run: the figures are of its 3 rows" in ran.err) == (0, True), ran.err


def test_rows_that_are_added_meanwhile_are_left_for_later(mf: Mf, folder: Path) -> None:
    row = mf("predict", folder / ORANGE / "orange.jpg", "--format", "jsonl").out.encode()
    file = io.BytesIO(2 * row)

    def add_row(_: object) -> None:
        file.seek(0, io.SEEK_END)
        file.write(row)

    results = StoredResults(file, "it")
    evaluation = evaluate_results(results, EvaluateRequest(Path("it")), Settings.from_environ(), add_row)
    assert (evaluation.summary.inputs, file.getvalue().count(b"\n") > 2) == (2, True)


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_is_resumed_to_the_same_rows(mf: Mf, tmp_path: Path, kind: signal.Signals) -> None:
    random = np.random.default_rng(0)
    for number in range(400):
        path = tmp_path / "val" / (ORANGE if number % 2 else LEMON) / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (80, 80, 3), np.uint8)).save(path)
    whole, rows = tmp_path / "whole.jsonl", tmp_path / "rows.jsonl"
    expected = read(mf, tmp_path / "val", "--predictions", whole)
    command = [sys.executable, "-m", "mfcli", "evaluate", str(tmp_path / "val"), "--predictions", str(rows), "-b", "1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        partial = rows.with_name("rows.jsonl.partial")
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (partial.exists() and partial.stat().st_size > 5000):
            time.sleep(0.01)
        process.send_signal(kind)
        said = process.communicate()[1]
    assert (not rows.exists(), f"interrupted: {partial} holds what was done" in said) == (True, kind is signal.SIGINT)
    ran = mf("evaluate", tmp_path / "val", "--predictions", rows)
    assert (ran.code, "unfinished run" in ran.err) == (8, True)
    names = ("images_per_s",)
    assert drop(read(mf, tmp_path / "val", "--predictions", rows, "--resume"), *names) == drop(expected, *names)
    assert rows.read_bytes() == whole.read_bytes()
    (tmp_path / "valid.txt").write_text(f"{ORANGE}\n{LEMON}\n")
    ran = mf("evaluate", tmp_path / "val", "--predictions", rows, "--resume", "--valid-labels", tmp_path / "valid.txt")
    assert (ran.code, "belongs to a different run: other valid labels" in ran.err) == (8, True)
    assert drop(read(mf, tmp_path / "val", "--predictions", rows, "--resume"), *names) == drop(expected, *names)


def test_rows_of_other_pictures_are_not_gone_on_with(mf: Mf, folder: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    read(mf, folder, "--predictions", rows)
    before = rows.read_bytes()
    ran = mf("evaluate", folder, "--limit", "2", "--predictions", rows, "--resume")
    assert (ran.code, "is not among the pictures of this one" in ran.err, "--limit N" in ran.err) == (8, True, True)
    assert (rows.read_bytes(), list(tmp_path.glob("*.partial"))) == (before, [])


def test_the_table_and_the_csv(mf: Mf, folder: Path, tmp_path: Path) -> None:
    ran = mf("evaluate", folder, "--per-class", "--confusion", tmp_path / "confusion.png")
    assert (ran.code, Image.open(tmp_path / "confusion.png").format) == (0, "PNG")
    rows = [line.split() for line in ran.out.splitlines()]
    assert ["top-1", "50.00%", "15.0%", "to", "85.0%"] in rows
    assert ["lemon", "2", "100.0%", "50.0%", "66.7%"] in rows
    assert ["lemon", "orange", "1"] in rows
    (figures,) = csv.DictReader(mf("evaluate", folder, "--format", "csv").out.splitlines())
    assert (figures["top1"], figures["top1_interval_low"][:5], figures["risk_at_coverage_50%"]) == (
        "0.5",
        "0.150",
        "0.5",
    )
    classes = list(csv.DictReader(mf("evaluate", folder, "--format", "csv", "--per-class").out.splitlines()))
    assert [row["count"] for row in classes] == ["1", "1", "2"]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["cracked"], 2, "no name is a class of the model convformer_t8_64: 'cracked'"),
        (["cracked"], 2, "or name a model of yours: --model FOLDER"),
        (["empty"], 2, "has no folders with pictures"),
        (["missing"], 2, "is neither a folder nor a file"),
        (["rows.csv", "--limit", "3"], 2, "holds results, for which nothing is computed"),
        (["rows.csv", "--max-error", "5%", "--limit", "3"], 2, "hint: leave out --max-error, --limit"),
        (["two.jsonl"], 8, "holds no results that can be read"),
        (["val", "--expect-top1", "83"], 2, "--expect-top1 '83' is not a share between 0 and 1"),
        (["val", "--map-to", "in2k"], 2, "--map-to 'in2k' is unknown"),
        (["val", "--confusion", "x.gif"], 2, "is neither .csv nor .png"),
        (["val", "--resume"], 2, "--overwrite and --resume are about --predictions"),
        (["val", "--predictions", "x.csv"], 2, "is not .jsonl"),
        (["val", "--ground-truth", "nothing.txt"], 2, "cannot read nothing.txt"),
        (["val", "--valid-labels", "nothing.txt"], 2, "cannot read nothing.txt"),
        (["val", "--real-labels", "real.json"], 2, "is not a picture of real.json"),
        (["val", "-m", "caformer_s19"], 4, "unknown model"),
    ],
)
def test_what_would_give_wrong_figures_is_refused(
    mf: Mf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "cracked" / "cracked").mkdir(parents=True)
    shutil.copy(CHECKOUT / "examples" / "orange.jpg", tmp_path / "cracked" / "cracked")
    (tmp_path / "two.jsonl").write_text("no rows\n")
    (tmp_path / "real.json").write_text("[[1], [2]]")
    assert mf("predict", "val", "-o", "rows.csv").code == 0
    ran = mf("evaluate", *arguments)
    assert (ran.code, message in ran.err, "Traceback" in ran.err) == (code, True, False), ran.err


@pytest.mark.slow
def test_a_head_of_the_full_imagenet_answers_with_imagenet_1k(mf: Mf, tmp_path: Path) -> None:
    """999 of the 1000 classes can be given; pictures of the other one are left out."""
    from safetensors.torch import save_file

    from deterministic import fill

    save_file(fill(mfcli.create_model("caformer_s18_in21k")).state_dict(), tmp_path / "w.safetensors")
    for wnid in (ORANGE, "n04399382"):
        (tmp_path / "val" / wnid).mkdir(parents=True)
        shutil.copy(CHECKOUT / "examples" / "orange.jpg", tmp_path / "val" / wnid)
    options = ["-m", "caformer_s18_in21k", "--weights", str(tmp_path / "w.safetensors")]
    figures = read(mf, tmp_path / "val", *options, "--map-to", "in1k")
    assert (figures["num_classes"], figures["pictures"], figures["pictures_outside"]) == (999, 1, 1)


def test_the_bar_knows_the_number_of_pictures(mf_terminal: Callable[..., Ran], folder: Path) -> None:
    assert "/4" in mf_terminal("evaluate", folder).err


def test_a_predictor_without_logits_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="does not give logits"):
        evaluate(mfcli.load_predictor(), EvaluateRequest(folder))


@pytest.mark.parametrize("judged", [None, "x", {}, {"class_index": 0}, {"class_index": 186, "rank": None}])
def test_rows_whose_judgement_is_damaged_are_judged_by_their_answers(
    mf: Mf, folder: Path, tmp_path: Path, judged: object
) -> None:
    rows = tmp_path / "rows.jsonl"
    expected = read(mf, folder, "--predictions", rows)
    damaged = [json.loads(line) | {"judged": judged} for line in rows.read_text().splitlines()]
    rows.write_text("".join(json.dumps(row) + "\n" for row in damaged))
    assert read(mf, rows)["top5"] == expected["top5"]
