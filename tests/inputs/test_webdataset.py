"""WebDataset tars: rows keep what is beside their picture."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import CHECKOUT, Ran
from mfcli.inputs.sources import Selection, iter_sources

Mf = Callable[..., Ran]
FILES = {
    "a/0.cls": b"5\n",
    "a/0.jpg": b"0",
    "a/0.json": b'{"caption": "x", "size": [1, 2]}',
    "a/1.JPG": b"1",
    "a/1.seg.png": b"1s",
    "a/2.cls": b"7",
    "b/0.jpg": b"b0",
    "b/0.json": b"{broken",
    "b/0.cls": b"\xff",
    "b/1.json": b" " * 2**20 + b"1",
    "b/1.jpg": b"b1",
    "none": b"",
}
KEPT = {
    "a/0.jpg": {"__key__": "a/0", "cls": "5", "json": {"caption": "x", "size": [1, 2]}},
    "a/1.JPG": {"__key__": "a/1", "cls": None, "json": None},
    "a/1.seg.png": {"__key__": "a/1", "cls": None, "json": None},
    "b/0.jpg": {"__key__": "b/0", "cls": None, "json": None},
    "b/1.jpg": {"__key__": "b/1", "cls": None, "json": None},
}


def write(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as file:
        for name, data in files.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            file.addfile(header, io.BytesIO(data))
    return path


def kept_of(argument: Path | str, *keep: str) -> dict[str | None, Any]:
    found = iter_sources([str(argument)], selection=Selection(keep=keep))
    return {source.member: source.kept for source in found}


@pytest.mark.parametrize("prefix", ["", "./"])
def test_rows_keep_what_is_beside_them(prefix: str, tmp_path: Path) -> None:
    path = write(tmp_path / "s.tar", {prefix + name: data for name, data in FILES.items()})
    expected = {prefix + name: kept for name, kept in KEPT.items()}
    assert kept_of(path, "__key__", "cls", "json") == expected
    assert kept_of(f"{path}/a/0.jpg", "cls", "jpg") == {f"{prefix}a/0.jpg": {"cls": "5", "jpg": None}}
    assert kept_of(path) == dict.fromkeys(expected)


def test_a_sample_of_many_pictures_does_not_wait(tmp_path: Path) -> None:
    path = write(tmp_path / "s.tar", {"0.cls": b"5"} | {f"0.{number}.jpg": b"x" for number in range(40)})
    assert kept_of(path, "cls") == {f"0.{number}.jpg": {"cls": "5"} for number in range(40)}


def test_the_pictures_before_a_cut_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "s.tar", {"0.jpg": b"x", "0.cls": b"5", "0.txt": bytes(5000)})
    path.write_bytes(path.read_bytes()[:4000])
    assert kept_of(path, "cls") == {"0.jpg": {"cls": "5"}, None: None}


def test_predict(mf: Mf, tmp_path: Path) -> None:
    files = {"0.jpg": (CHECKOUT / "examples" / "orange.jpg").read_bytes(), "0.cls": b"950"}
    ran = mf("predict", write(tmp_path / "s.tar", files), "--keep", "cls", "--format", "jsonl", "-q")
    row = json.loads(ran.out)
    assert (row["member"], row["status"], row["kept"]) == ("0.jpg", "ok", {"cls": "950"})
