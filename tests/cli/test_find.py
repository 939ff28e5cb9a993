"""The command mf find: which names it prints, its exit codes, rows, and what it says of words."""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import jsonschema
import pytest

from conftest import CHECKOUT, Ran

Mf = Callable[..., Ran]
NAMES = ("espresso.jpg", "lemon.jpg", "orange.jpg")


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in NAMES:
        shutil.copy(CHECKOUT / "examples" / name, folder)
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.parametrize(
    ("arguments", "code", "found"),
    [
        (["citrus"], 0, ["lemon.jpg", "orange.jpg"]),
        (["Citrus-Fruits"], 0, ["lemon.jpg", "orange.jpg"]),
        (["orange"], 0, ["orange.jpg"]),
        (["n07747607,espresso"], 0, ["espresso.jpg", "orange.jpg"]),
        (["orange,citrus", "--all"], 0, ["orange.jpg"]),
        (["citrus", "--invert"], 0, ["espresso.jpg"]),
        (["citrus", "-v", "--min", "1e-12"], 10, []),
        (["orange", "--min", "0.99"], 10, []),
        (["dog"], 10, []),
    ],
)
def test_names(arguments: list[str], code: int, found: list[str], photos: Path, mf: Mf) -> None:
    ran = mf("find", *arguments, "photos", "-q")
    assert (ran.code, ran.out.splitlines(), ran.err) == (code, [f"photos/{name}" for name in found], "")
    counted = mf("find", *arguments, photos, "-q", "-c")
    assert (counted.code, counted.out) == (code, f"{len(found)}\n")


def test_rows_have_the_sums_of_predicts_distribution(photos: Path, mf: Mf) -> None:
    distribution = [
        json.loads(line) for line in mf("predict", photos, "-k", "all", "--format", "jsonl").out.splitlines()
    ]
    citrus = {row["wnid"] for row in map(json.loads, mf("labels", "citrus", "--format", "jsonl").out.splitlines())}
    ran = mf("find", "citrus,n07747607", photos, "--format", "jsonl")
    assert ran.code == 0
    for whole, row in zip(distribution, map(json.loads, ran.out.splitlines()), strict=True):
        probs = {p["wnid"]: p["prob"] for p in whole["predictions"]}
        fruit, orange = row["match"]["concepts"]
        assert fruit["prob"] == pytest.approx(sum(probs[wnid] for wnid in citrus), rel=1e-12)
        assert orange == {"wnid": "n07747607", "label": "orange", "prob": probs["n07747607"], "classes": 1}
        assert row["match"]["matches"] == (fruit["prob"] >= 0.5)
        assert row["run"] != whole["run"]


def test_rows_in_a_file_can_be_resumed(photos: Path, mf: Mf) -> None:
    command = ("find", "citrus", photos, "-q", "--format", "csv", "-o")
    assert mf(*command, "whole.csv").code == 0
    (photos / "orange.jpg").rename("orange.jpg")
    (photos / "orange.jpg").write_bytes(b"")
    assert mf(*command, "part.csv").code == 5
    Path("orange.jpg").rename(photos / "orange.jpg")
    ran = mf(*command, "part.csv", "--retry-failed")
    assert ran.code == 0
    assert Path("part.csv").read_text() == Path("whole.csv").read_text()
    rows = list(csv.DictReader(Path("whole.csv").read_text().splitlines()))
    assert [row["matches"] for row in rows] == ["False", "True", "True"]
    assert [float(row["match_prob_1"]) > 0.5 for row in rows] == [False, True, True]
    other = mf("find", "lemon", photos, "-q", "--format", "csv", "-o", "part.csv", "--resume")
    assert other.code == 8


def test_rows_are_converted(photos: Path, mf: Mf) -> None:
    for suffix in ("csv", "jsonl", "json"):
        assert mf("find", "citrus,n07747607", photos, "-q", "-o", f"found.{suffix}").code == 0
        assert mf("convert", f"found.{suffix}", "--format", "csv").out == Path("found.csv").read_text()
    assert mf("convert", "found.json", "--format", "json").out == Path("found.json").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["crane", "-m", "MODEL"], 2, "'crane' has 2 meanings"),
        (["bat"], 2, "the model has no class of 'bat'\nhint: one that has: --model caformer_s18_in21k"),
        (["lemmon"], 2, "no concept and no class is named 'lemmon'\nhint: did you mean lemon"),
        (["Zitrone"], 2, "no concept and no class is named 'Zitrone'"),
        ([""], 2, "the concept is empty"),
        (["dog,"], 2, "the concept is empty"),
        (["--dog"], 2, "No such option"),
        (["dog", "--min", "0"], 2, "--min 0 is not more than 0 and at most 1"),
        (["dog", "--min", "nan"], 2, "--min nan is not more than 0 and at most 1"),
        (["dog", "-c", "-0"], 2, "--count and --null exclude each other"),
        (["dog", "-c", "--format", "jsonl"], 2, "--count and --null are about names on standard output"),
        (["dog", "--format", "table"], 2, "mf find writes names, or rows"),
    ],
)
def test_what_cannot_be_searched_for(
    arguments: list[str], code: int, message: str, photos: Path, mf: Mf, tmp_path: Path
) -> None:
    if "MODEL" in arguments:  # with two cranes
        labels = ["n02012849,crane", "n03126707,crane", *(f",other {i}" for i in range(198))]
        (tmp_path / "labels.csv").write_text("wnid,name\n" + "\n".join(labels) + "\n")
        arguments = ["crane", "--labels", "labels.csv"]
    ran = mf("find", *arguments, photos, "-q")
    assert (ran.code, ran.out) == (code, "")
    assert message in ran.err
    if "crane" in arguments:
        first, second, *_ = ran.err.splitlines()
        assert first.startswith("crane#1  n02012849  crane: large long-necked wading bird")
        assert second == "crane#2  n03126707  crane: lifts and moves heavy objects"
        assert mf("find", "crane#2", *arguments[1:], photos, "-q").code == 10


def test_a_note_says_what_is_looked_for(photos: Path, mf: Mf) -> None:
    notes = mf("find", "citrus,N07747607", photos).err.splitlines()
    assert notes[:2] == [
        "note: looking for citrus (n07747055): 2 of 200 classes",
        "note: looking for orange (n07747607): 1 of 200 classes",
    ]


def test_rows_agree_with_the_schema(photos: Path, mf: Mf) -> None:
    schema = json.loads((resources.files("mfcli.outputs") / "predict.schema.json").read_text())
    (photos / "broken.jpg").write_bytes(b"no picture")
    lines = mf("find", "citrus", photos, "-q", "--format", "jsonl").out.splitlines()
    assert [("match" in row, row["status"]) for row in map(json.loads, lines)] == [
        (False, "error"),
        *[(True, "ok")] * 3,
    ]
    for line in lines:
        jsonschema.validate(json.loads(line), schema)
    document = json.loads(mf("find", "citrus", photos, "-q", "--format", "json").out)
    jsonschema.validate(document, {"$ref": "mf.predict/1#/$defs/document", "$defs": {"row": schema}})
    assert document["run"]["query"] == ["citrus"]


@pytest.mark.parametrize(
    ("command", "is_noted"),
    [
        (["find", "citrus"], True),
        (["find", "citrus", "-c"], True),
        (["find", "citrus", "--format", "csv"], False),
        (["predict", "--template", "{label}"], True),
        (["predict", "--template", "{label}{error_message}"], False),
    ],
)
def test_failures_are_noted_where_no_row_says_them(
    command: list[str], is_noted: bool, photos: Path, mf: Mf, tmp_path: Path
) -> None:
    (tmp_path / "empty.jpg").touch()
    ran = mf(*command, photos / "lemon.jpg", tmp_path / "empty.jpg")
    assert ran.code == 5
    assert (f"note: {tmp_path}/empty.jpg: is empty (0 bytes)\n" in ran.err) == is_noted


def test_failures_and_no_inputs(photos: Path, mf: Mf) -> None:
    (photos / "broken.jpg").write_bytes(b"no picture")
    assert mf("find", "citrus", photos, "-q").code == 5
    assert mf("find", "dog", photos, "-q").code == 5
    assert mf("find", "dog", photos, "-q", "--allow-failures").code == 10
    assert mf("find", "dog", photos / "broken.jpg", "-q").code == 6
    assert mf("find", "dog", "-q").code == 3


def test_exact_names_for_xargs(photos: Path, tmp_path: Path) -> None:
    odd = os.fsencode(photos) + b"/a\n\xff.jpg"
    shutil.copy(os.fsencode(photos / "lemon.jpg"), odd)
    (tmp_path / "citrus").mkdir()
    mf = f"{sys.executable} -m mfcli"
    command = (
        f"find photos -name '*.jpg' -print0 | {mf} find citrus --files-from - --null-list -0 -q | xargs -0 cp -t citrus"
    )
    subprocess.run(command, shell=True, check=True)
    assert sorted(os.listdir(os.fsencode(tmp_path / "citrus"))) == [b"a\n\xff.jpg", b"lemon.jpg", b"orange.jpg"]
    os.unlink(odd)  # below, what docs/how-to/find.md shows
    (tmp_path / "lemons").mkdir()
    command = f"find . -name '*.jpg' | {mf} find lemon --files-from - -0 -q | xargs -0 cp -t ../lemons/"
    subprocess.run(command, shell=True, check=True, cwd=photos)
    assert os.listdir(tmp_path / "lemons") == ["lemon.jpg"]


def test_members_of_archives(photos: Path, mf: Mf) -> None:
    shutil.make_archive("photos", "zip", photos)
    assert mf("find", "lemon", "photos.zip", "-q").out == "photos.zip/lemon.jpg\n"


def test_classes_of_the_users_own(photos: Path, mf: Mf, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("".join(f"thing {i}\n" for i in range(200)))
    lemon = json.loads(mf("labels", "n07749582", "--format", "jsonl").out)["class_index"]
    ran = mf("find", f"thing {lemon}", photos, "--labels", "names.txt", "-q")
    assert (ran.code, ran.out) == (0, f"{photos}/lemon.jpg\n")
