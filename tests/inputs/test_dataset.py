"""Datasets: the layouts, and everything that could give a picture a wrong class."""

import unicodedata
from pathlib import Path

import pytest

from mfcli.errors import MfError, NoInputsError, UsageError
from mfcli.inputs.dataset import Split, read_dataset, read_judged, spread


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def rows(path: Path) -> list[tuple[str, str, str]]:
    dataset = read_dataset(path)
    folder = path if path.is_dir() else path.parent
    return [(str(Path(p.source.input).relative_to(folder)), p.label, p.split.value) for p in dataset.pictures]


def test_a_folder_of_folders(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.jpg", "b/10.jpg", "b/deep/er.png", "a/x.jpg", "a/notes.txt", ".git/y.jpg", "z.jpg")
    assert rows(tmp_path) == [
        ("a/x.jpg", "a", "train"),
        ("b/2.jpg", "b", "train"),
        ("b/10.jpg", "b", "train"),
        ("b/deep/er.png", "b", "train"),
    ]
    assert read_dataset(tmp_path).classes == ("a", "b")


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_split_folders_match_classes_by_name(val: str, tmp_path: Path) -> None:
    touch(
        tmp_path, "train/a/1.jpg", "train/b/1.jpg", "train/c/1.jpg", f"{val}/c/2.jpg", f"{val}/a/2.jpg", "test/b/3.jpg"
    )
    dataset = read_dataset(tmp_path)
    judged = {(p.label, p.split) for p in dataset.pictures if p.split is not Split.TRAIN}
    assert judged == {("a", Split.VAL), ("c", Split.VAL), ("b", Split.TEST)}
    assert dataset.classes == ("a", "b", "c")


def test_pictures_to_judge_by_need_none_to_learn_from(tmp_path: Path) -> None:
    touch(tmp_path, "val/a/1.jpg", "test/a/2.jpg")
    assert [Path(picture.source.input).name for picture in read_judged(tmp_path)] == ["1.jpg"]
    with pytest.raises(UsageError, match="none to learn from"):
        read_dataset(tmp_path)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    touch(tmp_path, "train/1.jpg", "plane/1.jpg")
    assert read_dataset(tmp_path).classes == ("plane", "train")


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_csv_file(end: str, tmp_path: Path) -> None:
    touch(tmp_path, "x/1.jpg", "2.jpg")
    lines = ["﻿Label, Path", '"a, b",x/1.jpg', "c,missing.jpg", "", " c ,2.jpg", ""]
    (tmp_path / "l.csv").write_bytes(end.join(lines).encode())
    assert rows(tmp_path / "l.csv") == [
        ("x/1.jpg", "a, b", "train"),
        ("missing.jpg", "c", "train"),
        ("2.jpg", "c", "train"),
    ]


def test_a_csv_file_with_splits(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("path,label,split\n1,a,train\n2,b,train\n3,a,valid\n4,b,test\n")
    assert [row[2] for row in rows(tmp_path / "l.csv")] == ["train", "train", "val", "test"]


def test_empty_classes_are_named(tmp_path: Path) -> None:
    touch(tmp_path, "a/1.jpg", "b/1.jpg", "c/readme.txt")
    assert read_dataset(tmp_path).empty == ("c",)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a/1.jpg"], "a single class, a"),
        (["a.jpg"], "no folders with pictures"),
        (["train/a/1.jpg", "train/b/1.jpg", "val/c/1.jpg"], "c: pictures to judge by, but none to learn from"),
        (["train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "valid/a/1.jpg"], "has train, val, valid"),
        (["train/a/1.jpg", "train/b/1.jpg", "extra/a/1.jpg"], "has extra beside train"),
        (["Ants/1.jpg", "ants/1.jpg"], "'Ants' and 'ants' differ only in case"),
        ([f"{unicodedata.normalize(form, 'é')}/1.jpg" for form in ("NFC", "NFD")], "differ only in case or Unicode"),
        (["a\nb/1.jpg", "c/1.jpg"], r"'a\nb' cannot be the name of a class"),
    ],
)
def test_folders_that_are_refused(names: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read_dataset(touch(tmp_path, *names))
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label,colour\n", "has the columns path,label,colour"),
        ("a.jpg,a\nb.jpg,b\n", "has the columns a.jpg,a"),
        ("path,label\na.jpg\n", "line 2: 1 columns instead of 2"),
        ("path,label\na.jpg,\n", "line 2: an empty path or label"),
        ("path,label\na.jpg,a/b\nb.jpg,c\n", "'a/b' cannot be the name of a class"),
        ("path,label\na.jpg,.a\nb.jpg,c\n", "'.a' cannot be the name of a class"),
        ("path,label,split\na.jpg,a,all\n", "unknown split 'all'"),
        ("path,label\n\xff", "is not a CSV file in UTF-8"),
        ("path,label\n", "no folders with pictures"),
    ],
)
def test_csv_files_that_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError) as caught:
        read_dataset(tmp_path / "l.csv")
    assert message in caught.value.message


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(MfError, match="neither a folder nor a file"):
        read_dataset(tmp_path / "missing")
    with pytest.raises(NoInputsError, match="no pictures in"):
        read_dataset(touch(tmp_path, "a/x.txt", "b/y.txt"))


@pytest.mark.parametrize("url", ["s3://bucket/x", "hf://datasets/a/b", "https://host/x.csv"])
def test_addresses_are_not_supported(url: str, tmp_path: Path) -> None:
    message = f"{url}: object stores and addresses are not supported here"
    with pytest.raises(UsageError, match=message):
        read_dataset(Path(url))
    with pytest.raises(UsageError, match=message):
        read_judged(Path(url), tmp_path / "truth.txt")


def judged(path: Path, ground_truth: Path | None = None) -> list[tuple[str, str]]:
    return [(Path(p.source.input).name, p.label) for p in read_judged(path, ground_truth)]


def test_a_model_is_judged_by_val_then_by_test_then_by_all(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.jpg", "val/a/2.jpg", "test/a/3.jpg")
    assert judged(tmp_path) == [("2.jpg", "a")]
    assert judged(tmp_path / "train") == [("1.jpg", "a")]  # a single class will do
    (tmp_path / "some.csv").write_text("path,label,split\nx.jpg,a,train\ny.jpg,b,test\n")
    assert judged(tmp_path / "some.csv") == [("y.jpg", "b")]
    (tmp_path / "some.csv").write_text("path,label\nx.jpg,a\nx.jpg,b\n")
    with pytest.raises(UsageError, match=r"has 1 pictures twice: .*x\.jpg"):
        judged(tmp_path / "some.csv")


@pytest.mark.parametrize(
    ("names", "text", "labels"),
    [
        (("b10.jpg", "b2.jpg"), "n01\r\nn02\r\n", {"b2.jpg": "n01", "b10.jpg": "n02"}),
        (("x/ILSVRC2012_val_00000003.JPEG",), "0\n1\n2\n", {"ILSVRC2012_val_00000003.JPEG": "2"}),
        (("a.jpg",), "a.jpg 65\nother.jpg 1\n", {"a.jpg": "65"}),
        (("a.jpg",), "a.jpg tiger shark\n", {"a.jpg": "tiger shark"}),
        (("a.jpg",), "a.jpg\tgolden retriever\t0\t1\n", {"a.jpg": "golden retriever"}),
        (("a.JPEG",), "ImageId,PredictionString\na,n03995372 85 1 499 272 n0 1\n", {"a.JPEG": "n03995372"}),
    ],
)
def test_the_ground_truth_of_pictures_in_one_folder(
    names: tuple[str, ...], text: str, labels: dict[str, str], tmp_path: Path
) -> None:
    truth = tmp_path / "truth.txt"
    truth.write_text(text)
    assert dict(judged(touch(tmp_path / "val", *names), truth)) == labels
    truth.rename(tmp_path / "val" / "val_annotations.txt")
    assert dict(judged(tmp_path / "val")) == dict(judged(tmp_path)) == labels


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n01\n", "has 1 labels for 2 pictures"),
        ("a.jpg n01\n", "has no label for"),
        ("n01\na.jpg n01\n", "mixes labels with and without names"),
        ("490\n1000\n", "has ILSVRC's own ids"),
        ("", "is empty"),
        (None, "cannot read"),
    ],
)
def test_a_ground_truth_that_could_be_wrong_is_refused(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "truth.txt").write_text(text)
    with pytest.raises(UsageError, match=message):
        read_judged(touch(tmp_path / "val", "a.jpg", "b.jpg"), tmp_path / "truth.txt")


@pytest.mark.parametrize(
    ("limit", "chosen"),
    [
        (2, ["a/0.jpg", "b/0.jpg"]),
        (5, ["a/0.jpg", "a/2.jpg", "a/4.jpg", "b/0.jpg", "b/1.jpg"]),
        (99, [f"a/{n}.jpg" for n in range(6)] + ["b/0.jpg", "b/1.jpg"]),
    ],
)
def test_a_limit_is_spread_over_the_classes(limit: int, chosen: list[str], tmp_path: Path) -> None:
    touch(tmp_path, *(f"a/{n}.jpg" for n in range(6)), "b/0.jpg", "b/1.jpg")
    pictures = spread(read_judged(tmp_path), limit)
    assert [str(Path(p.source.input).relative_to(tmp_path)) for p in pictures] == chosen


def test_a_limit_below_the_number_of_classes_is_spread_over_them(tmp_path: Path) -> None:
    pictures = read_judged(touch(tmp_path, *(f"{label}/1.jpg" for label in "abcdef")))
    assert [p.label for p in spread(pictures, 3)] == ["a", "c", "e"]
