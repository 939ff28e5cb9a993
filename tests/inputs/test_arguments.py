"""Arguments: what each kind is, which may stand for many pictures, and which can be counted ahead."""

import os
from pathlib import Path

import pytest

from mfcli.inputs.arguments import Argument, ArgumentKind, classify, classify_list, is_input_name, split_member


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.jpg", "p.zip", "p.parquet", "t.TAR.gz", "[x].jpg", "list.txt"):
        Path(name).touch()
    for name in ("folder", "folder.zip", "d.tar"):
        Path(name).mkdir()
    Path("dangling*.jpg").symlink_to("nowhere")
    os.mkfifo("pipe")


@pytest.mark.parametrize(
    ("name", "kind", "is_many", "is_countable"),
    [
        ("a.jpg", ArgumentKind.FILE, False, True),
        ("missing.jpg", ArgumentKind.FILE, False, True),
        ("a.jpg/b", ArgumentKind.FILE, False, True),
        ("pipe", ArgumentKind.FILE, False, True),
        ("", ArgumentKind.FILE, False, True),
        ("a\0b", ArgumentKind.FILE, False, True),
        ("x" * 5000, ArgumentKind.FILE, False, True),
        ("[x].jpg", ArgumentKind.FILE, False, True),
        ("dangling*.jpg", ArgumentKind.FILE, False, True),
        ("missing.zip", ArgumentKind.FILE, True, True),
        ("missing.tgz/", ArgumentKind.FILE, True, False),
        ("folder", ArgumentKind.FOLDER, True, True),
        ("folder.zip/", ArgumentKind.FOLDER, True, True),
        ("d.tar", ArgumentKind.FOLDER, True, False),
        ("p.zip", ArgumentKind.ARCHIVE, True, True),
        ("./p.zip//", ArgumentKind.ARCHIVE, True, True),
        ("t.TAR.gz", ArgumentKind.ARCHIVE, True, False),
        ("p.parquet", ArgumentKind.ARCHIVE, True, True),
        ("p.parquet/3", ArgumentKind.MEMBER, False, True),
        ("p.zip/b/a.JPG", ArgumentKind.MEMBER, False, True),
        ("p.zip/a.ppm", ArgumentKind.MEMBER, False, True),
        ("p.zip/b", ArgumentKind.MEMBER, True, True),
        ("p.zip/b*.jpg", ArgumentKind.MEMBER, True, True),
        ("t.TAR.gz/a.jpg", ArgumentKind.MEMBER, False, True),
        ("folder.zip/a.jpg", ArgumentKind.FILE, False, True),
        ("*.jpg", ArgumentKind.GLOB, True, True),
        ("*.tar", ArgumentKind.GLOB, True, False),
        ("[x", ArgumentKind.GLOB, True, True),
        ("http://host/a.jpg", ArgumentKind.URL, False, True),
        ("HTTP://host/*.tar", ArgumentKind.URL, False, False),
        ("ftp://host/p.zip", ArgumentKind.URL, False, True),
        ("-", ArgumentKind.STDIN, False, True),
    ],
)
def test_classify(name: str, kind: ArgumentKind, is_many: bool, is_countable: bool) -> None:
    argument = classify(name)
    assert (argument.kind, argument.is_many, argument.is_countable) == (kind, is_many, is_countable)
    assert argument.name == name


@pytest.mark.parametrize(("name", "path"), [("p.zip//", "p.zip"), ("./p.zip", "./p.zip")])
def test_an_archive_has_a_path_without_trailing_slashes(name: str, path: str) -> None:
    assert classify(name) == Argument(name, ArgumentKind.ARCHIVE, path)


def test_a_member_has_an_archive_and_a_path_inside_it() -> None:
    assert classify("./p.zip/b/a.jpg/") == Argument("./p.zip/b/a.jpg/", ArgumentKind.MEMBER, "./p.zip", "b/a.jpg")


@pytest.mark.parametrize("name", ["-", "*.jpg"])
def test_a_line_of_a_list_is_neither_standard_input_nor_a_glob(name: str) -> None:
    assert classify(name, is_listed=True).kind is ArgumentKind.FILE


@pytest.mark.parametrize(("name", "is_countable"), [("list.txt", True), ("-", False), ("pipe", False)])
def test_a_list_is_many_and_countable_unless_piped(name: str, is_countable: bool) -> None:
    argument = classify_list(name)
    assert (argument.is_many, argument.is_countable) == (True, is_countable)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.jpg", True), ("b/A.PPM", True), ("t.tar.gz", True), ("a.jsonl", False), ("jpg", False)],
)
def test_is_input_name(name: str, expected: bool) -> None:
    assert is_input_name(name) is expected


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("p.zip/a.jpg", ("p.zip", "a.jpg")),
        ("./p.zip/b/a.jpg", ("./p.zip", "b/a.jpg")),
        ("p.zip/", None),
        ("p.zip", None),
        ("missing.zip/a.jpg", None),
        ("folder.zip/a.jpg", None),
    ],
)
def test_split_member(path: str, split: object) -> None:
    assert split_member(path) == split
