"""What is left out: counted by suffix, once, in bounded memory, and said on one line."""

import random
import zipfile
from pathlib import Path

import pytest

from mfcli.errors import NoInputsError
from mfcli.inputs.left_out import LeftOut
from mfcli.inputs.sources import Selection, iter_sources

_NAMES = [
    "a.jpg",
    "b.CR2",
    "b2.cr2",
    "c.mp4",
    "d/d.MP4",
    "d/e.zip",
    "f.tar.gz",
    "noext",
    "x.psd",
    "odd.(1)",
    ".hidden.mp4",
    ".git/x.mp4",
    "a.xmp",
    "a.JSON",
    "notes.txt",
    "Thumbs.db",
    "desktop.ini",
    "out.jsonl",
    "out.csv.gz",
    "out.csv.gz.partial",
]
_COUNTS = {".cr2": 2, ".mp4": 2, "": 1, ".psd": 1, ".tar.gz": 1, ".zip": 1, "other": 1}


@pytest.fixture
def phone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder and an archive as a phone leaves them."""
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("phone.zip", "w") as archive:
        for name in _NAMES:
            path = tmp_path / "phone" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            archive.writestr(name, "")
    return tmp_path


def left_out_of(*arguments: str, **options: tuple[str, ...]) -> LeftOut:
    left_out = LeftOut()
    selection = Selection(left_out=left_out, **options)  # type: ignore[arg-type]
    assert list(iter_sources(["a.jpg", *arguments], None, selection=selection))
    return left_out


@pytest.mark.parametrize(
    ("argument", "wanted"),
    [
        ("phone", _COUNTS),
        ("phone/", _COUNTS),
        ("phon?", _COUNTS),
        ("phone.zip", _COUNTS),
        ("phone/**", _COUNTS),
        ("phone.zip/**", _COUNTS),
        ("phone/d", {".mp4": 1, ".zip": 1}),
        ("phone.zip/d", {".mp4": 1, ".zip": 1}),
        ("phone/*.jpg", {}),
        ("phone.zip/*.jpg", {}),
        ("phone/c.mp4", {}),
    ],
)
@pytest.mark.usefixtures("phone")
def test_each_file_is_counted_once(argument: str, wanted: dict[str, int]) -> None:
    assert left_out_of(argument).counts == wanted


def test_links_are_counted_as_what_they_lead_to(phone: Path) -> None:
    (phone / "links").mkdir()
    (phone / "links" / "v.mp4").symlink_to(phone / "phone" / "c.mp4")
    (phone / "links" / "f.zip").symlink_to(phone / "phone" / "d", target_is_directory=True)
    (phone / "links" / "up").symlink_to(phone / "links", target_is_directory=True)
    assert left_out_of("links").counts == {".mp4": 2, ".zip": 1}


@pytest.mark.usefixtures("phone")
def test_what_the_filters_skip_is_not_left_out() -> None:
    assert left_out_of("phone", include=("*.jpg",)).counts == {}
    assert left_out_of("phone", "phone.zip", exclude=("d", "*.cr2", "noext", "[!c]*.*")).counts == {".mp4": 2}


@pytest.mark.usefixtures("phone")
def test_one_line_says_it() -> None:
    assert left_out_of("phone/d").in_words() == (
        "left out: 1 .mp4, 1 .zip; archives in folders are searched if they are named: phone/d/e.zip"
    )
    assert left_out_of("phone.zip").in_words() == (
        "left out: 2 .cr2, 2 .mp4, 1 without a suffix, 1 .psd, 1 .tar.gz and 2 others; "
        "more formats are decoded with formats=psd"
    )
    left_out = LeftOut()
    left_out.add("odd.(1)", "folder")
    assert left_out.in_words() == "left out: 1 other"
    assert left_out_of("phone/a.jpg").in_words() is None
    with pytest.raises(NoInputsError, match=r"^no pictures in phone/d; left out: 1 .mp4, 1 .zip; archives"):
        list(iter_sources(["phone/d"], None, selection=Selection(left_out=LeftOut())))


def test_memory_is_bounded() -> None:
    left_out, draw = LeftOut(), random.Random(0)
    for _ in range(20_000):
        left_out.add(f"x.{draw.randbytes(4).hex()}", "folder")
    left_out.add("x.mp4" + "\udcff" * 10_000, "folder")
    assert len(left_out.counts) == 100
    assert sum(left_out.counts.values()) == 20_001
    words = left_out.in_words()
    assert words is not None
    assert len(words) < 200
