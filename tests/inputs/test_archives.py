"""Archives: readable members are read, and hostile or damaged ones are failures."""

import bz2
import gzip
import io
import lzma
import random
import struct
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from mfcli.errors import EngineError, FailureCode, PictureError
from mfcli.inputs import members, walk
from mfcli.inputs.archives import iter_members
from mfcli.inputs.members import Member
from mfcli.inputs.selection import Selection

ALL = Selection()
FILES = {
    "img10.jpg": b"ten",
    "./img2.jpg": b"two",
    "b/c.PNG": b"c" * 5000,
    "notes.txt": b"text",
    ".hidden.jpg": b"x",
    "__MACOSX/._img2.jpg": b"x",
    "inner.zip": b"PK",
}


def zip_of(path: Path, files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in files.items():
            file.writestr(name, data)
    return path


def tar_of(path: Path, files: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as file:  # type: ignore[call-overload]
        for name, data in files.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            file.addfile(header, io.BytesIO(data))
    return path


def read(path: Path, selection: Selection = ALL) -> dict[str | None, bytes | str]:
    """Each member's bytes, or the code of its failure; None stands for the archive."""
    found = {}
    for member in iter_members(str(path), selection.takes_member, selection):
        assert member.name not in found
        found[member.name] = bytes_of(member)
    return found


def bytes_of(member: Member) -> bytes | str:
    if member.failure is not None:
        return str(member.failure.code)
    assert member.opener is not None
    try:
        with member.opener() as file:
            assert file.seekable()
            return file.read()
    except PictureError as error:
        return str(error.code)


def test_zip(tmp_path: Path) -> None:
    found = read(zip_of(tmp_path / "p.ZIP", FILES))
    assert list(found.items()) == [("./img2.jpg", b"two"), ("b/c.PNG", b"c" * 5000), ("img10.jpg", b"ten")]


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("p.tar", "w"),
        ("p.tar.gz", "w:gz"),
        ("p.TGZ", "w:gz"),
        ("p.tar.bz2", "w:bz2"),
        ("p.tar.xz", "w:xz"),
        ("p.tgz", "w"),  # not compressed, despite its suffix
        ("p.tar", "w:xz"),
    ],
)
def test_tar(tmp_path: Path, name: str, mode: str) -> None:
    found = read(tar_of(tmp_path / name, FILES, mode))
    assert list(found.items()) == [("img10.jpg", b"ten"), ("./img2.jpg", b"two"), ("b/c.PNG", b"c" * 5000)]


def test_include_and_exclude(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "p.zip", FILES)
    assert set(read(path, Selection(include=("*.txt", "b/*")))) == {"notes.txt", "b/c.PNG"}
    assert set(read(path, Selection(exclude=("b", "img2*")))) == {"img10.jpg"}


@pytest.mark.parametrize("make", [zip_of, tar_of])
def test_names_that_lead_out_of_the_archive_are_refused(tmp_path: Path, make: Callable[..., Path]) -> None:
    names = ["/etc/a.jpg", "../a.jpg", "b/../../a.jpg", "C:/a.jpg", "..\\a.jpg", "ok.jpg"]
    suffix = "zip" if make is zip_of else "tar"
    found = read(make(tmp_path / f"p.{suffix}", dict.fromkeys(names, b"x")))
    assert found == dict.fromkeys(names, "unsupported") | {"ok.jpg": b"x"}


def test_links_and_devices_in_a_tar(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "p.tar", "w") as file:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE):
            header = tarfile.TarInfo(f"{kind.decode()}.jpg")
            header.type, header.linkname = kind, "/etc/passwd"
            file.addfile(header)
    assert set(read(tmp_path / "p.tar").values()) == {"unsupported"}
    assert len(read(tmp_path / "p.tar")) == 4


def test_a_link_in_a_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as file:
        link = zipfile.ZipInfo("l.jpg")
        link.external_attr = 0o120777 << 16
        file.writestr(link, "/etc/passwd")
    assert read(tmp_path / "p.zip") == {"l.jpg": "unsupported"}


@pytest.mark.parametrize("make", [zip_of, tar_of])
def test_a_member_that_is_too_large(tmp_path: Path, make: Callable[..., Path]) -> None:
    suffix = "zip" if make is zip_of else "tar"
    path = make(tmp_path / f"p.{suffix}", {"a.jpg": b"x" * 1001, "b.jpg": b"y" * 1000})
    assert read(path, Selection(max_bytes=1000)) == {"a.jpg": "too_large", "b.jpg": b"y" * 1000}


def patched_zip(path: Path, signature: bytes, offset: int, value: bytes) -> None:
    """Write over a field of the first header with this signature."""
    data = bytearray(path.read_bytes())
    at = data.index(signature) + offset
    data[at : at + len(value)] = value
    path.write_bytes(data)


def test_a_zip_header_with_a_wrong_size(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "p.zip", {"a.jpg": b"x" * 100_000, "b.jpg": b"y"})
    patched_zip(path, b"PK\1\2", 24, struct.pack("<I", 10))  # claims to hold 10 bytes
    assert read(path) == {"a.jpg": "decode", "b.jpg": b"y"}


def test_zip_bomb(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "p.zip", {"a.jpg": bytes(65 * 2**20), "b.jpg": b"y", "c.jpg": bytes(63 * 2**20)})
    found = read(path)
    assert (found["a.jpg"], found["b.jpg"], len(found["c.jpg"])) == ("too_large", b"y", 63 * 2**20)


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
@pytest.mark.parametrize("name", ["b.jpg", "b.txt"])
def test_a_tar_header_with_a_wrong_size(name: str, compress: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tar_of(tmp_path / "p.tar", {"a.jpg": b"a"})
    header = tarfile.TarInfo(name)
    header.size = 10**15
    path.write_bytes(compress(path.read_bytes()[:1024] + header.tobuf(tarfile.GNU_FORMAT) + bytes(10_240)))
    wanted = {"a.jpg": b"a", None: "truncated"} | ({name: "too_large"} if name == "b.jpg" else {})
    assert read(path) == wanted


@pytest.mark.parametrize("folders", ["a/", "./"])
def test_very_long_names_are_refused(folders: str, tmp_path: Path) -> None:
    name = 200_000 * folders + "0.jpg"
    found = read(tar_of(tmp_path / "p.tar", {name: b"x", "b.jpg": b"b"}, "w"))
    assert found == {name: "unsupported", "b.jpg": b"b"}
    path = tar_of(tmp_path / "q.tar", {f"sub/{folders}{5000 * 'x'}.jpg": b"x", ".git/" + name: b"x", "b.jpg": b"b"})
    assert read(path, Selection(exclude=("sub",))) == {"b.jpg": b"b"}
    assert read(path, Selection(recursive=False)) == {"b.jpg": b"b"}


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "compress"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)])
def test_tar_bomb(tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes]) -> None:
    tar_of(tmp_path / "p.tar", {"a.jpg": b"a", "bomb.bin": bytes(80 * 2**20), "c.jpg": b"c"})
    path = tmp_path / f"p.tar.{suffix}"
    path.write_bytes(compress((tmp_path / "p.tar").read_bytes()))
    assert read(path) == {"a.jpg": b"a", None: "too_large"}


@pytest.mark.parametrize("name", ["p.zip", "p.tar"])
def test_an_archive_for_which_there_is_no_memory(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    (tmp_path / name).write_bytes(b"x")
    monkeypatch.setattr("mfcli.inputs.objects.open_file", fail)
    assert read(tmp_path / name) == {None: "too_large"}
    monkeypatch.setattr("mfcli.inputs.archives.has_free_memory", lambda _: False)
    with pytest.raises(EngineError, match="too little memory to read "):
        read(tmp_path / name)


def test_oversized_and_chained_name_headers_of_a_tar(tmp_path: Path) -> None:
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 2**33
    (tmp_path / "p.tar").write_bytes(header.tobuf() + bytes(10_240))
    assert read(tmp_path / "p.tar") == {None: "decode"}
    header.size = 5
    chain = (header.tobuf() + b"name\0" + bytes(507)) * 2000
    (tmp_path / "p.tar").write_bytes(chain)
    assert read(tmp_path / "p.tar") == {None: "decode"}


def test_overlapping_members_of_a_zip(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "p.zip", {"a.jpg": b"a" * 1000, "b.jpg": b"b" * 1000})
    with zipfile.ZipFile(path) as file:
        second = file.getinfo("b.jpg").header_offset
    data = bytearray(path.read_bytes())
    at = data.rfind(struct.pack("<I", second))  # in the directory's entry of b.jpg
    data[at : at + 4] = bytes(4)
    path.write_bytes(data)
    assert read(path) == {None: "decode"}


@pytest.mark.parametrize("suffix", ["zip", "tar.gz"])
@pytest.mark.parametrize(("limit", "value"), [("_TOTAL_FROM_BYTES", 25_000), ("_SECONDS", -1.0)])
def test_an_archive_has_a_budget(
    limit: str, value: float, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"{number}.jpg": bytes(10_240) for number in range(3)}
    path = tmp_path / f"p.{suffix}"
    (zip_of if suffix == "zip" else partial(tar_of, mode="w:gz"))(path, files)
    assert "too_large" not in read(path).values()
    monkeypatch.setattr(members, "_MAX_TOTAL_RATIO", 1)
    monkeypatch.setattr(members, limit, value)
    assert list(read(path).values())[-1] == "too_large"


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_hole_of_zeros_in_a_tar_is_said(mode: str, tmp_path: Path) -> None:
    path = tar_of(tmp_path / "whole.tar", {f"{number}.jpg": b"x" * 10_000 for number in range(50)})
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as whole:
        start, end = (whole.getmember(name).offset for name in ("20.jpg", "22.jpg"))
    data[start:end] = bytes(end - start)
    path.write_bytes(data if mode == "w" else gzip.compress(data))
    *found, last = iter_members(str(path), ALL.takes_member, ALL)
    assert [member.name for member in found] == [f"{number}.jpg" for number in range(20)]
    assert last.failure
    assert "after its end marker" in last.failure.message


def test_attributes_of_a_tar_take_little_time(tmp_path: Path) -> None:
    attributes = tarfile.TarInfo("pax")
    attributes.type, attributes.size = tarfile.XHDTYPE, 2**18
    header = tarfile.TarInfo("a.jpg").tobuf()
    (tmp_path / "p.tar").write_bytes(attributes.tobuf() + b"1" * 2**18 + header + bytes(1024))
    began = time.monotonic()
    assert set(read(tmp_path / "p.tar")) in ({None}, {"a.jpg"})  # by the version of Python
    assert time.monotonic() - began < 20


def test_encrypted(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "p.zip", {"a.jpg": b"x"})
    patched_zip(path, b"PK\1\2", 8, b"\1")
    assert read(path) == {"a.jpg": "unsupported"}


def test_an_unknown_compression(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "p.zip", {"a.jpg": b"x"})
    patched_zip(path, b"PK\1\2", 10, b"\x63")
    patched_zip(path, b"PK\3\4", 8, b"\x63")
    assert read(path) == {"a.jpg": "unsupported"}


def test_damaged_members(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "p.zip", {"a.jpg": b"0123456789", "b.jpg": b"y"}, zipfile.ZIP_STORED)
    path.write_bytes(path.read_bytes().replace(b"0123456789", b"0123456780"))
    assert read(path) == {"a.jpg": "decode", "b.jpg": b"y"}


@pytest.mark.parametrize(
    ("name", "data", "code"),
    [
        ("p.zip", b"", "decode"),
        ("p.zip", b"no zip", "decode"),
        ("p.zip", b"PK\3\4" + bytes(100), "truncated"),
        ("p.tar", b"", "truncated"),
        ("p.tar", b"no tar", "truncated"),
        ("p.tar", b"no tar" * 1000, "decode"),
        ("p.tar.gz", b"\x1f\x8bxx" * 100, "decode"),
        ("p.tar.gz", gzip.compress(bytes(1000), mtime=0)[:15], "truncated"),
        ("p.tar.xz", b"\xfd7zXZ\0" + b"x" * 100, "decode"),
        ("p.tar.bz2", b"BZh9" + b"x" * 100, "decode"),
    ],
)
def test_files_that_are_not_archives(tmp_path: Path, name: str, data: bytes, code: str) -> None:
    (tmp_path / name).write_bytes(data)
    assert read(tmp_path / name) == {None: code}


def test_a_missing_archive(tmp_path: Path) -> None:
    assert read(tmp_path / "p.zip") == {None: "not_found"}


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_a_truncated_tar(tmp_path: Path, suffix: str) -> None:
    noise = bytes(range(256)) * 40
    path = tar_of(tmp_path / f"p.{suffix}", {"a.jpg": b"a", "b.jpg": noise}, "w:gz" if suffix == "tar.gz" else "w")
    if suffix == "tar":
        path.write_bytes(path.read_bytes()[:5000])
    else:
        path.write_bytes(path.read_bytes()[:-12])
    found = read(path)
    assert found["a.jpg"] == b"a"
    assert list(found)[-1] is None
    assert found[None] == "truncated"


def test_a_tar_truncated_between_two_members(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "p.tar", {"a.jpg": b"a" * 600, "b.jpg": b"b"})
    whole = path.read_bytes()
    for size, found in (
        (512 + 1024, {"a.jpg": b"a" * 600, None: "truncated"}),
        (512 + 1024 + 1024, {"a.jpg": b"a" * 600, "b.jpg": b"b", None: "truncated"}),
        (512 + 1024 + 1024 + 512, {"a.jpg": b"a" * 600, "b.jpg": b"b"}),  # one empty block marks the end
    ):
        path.write_bytes(whole[:size])
        assert read(path) == found


def test_a_tar_damaged_in_the_middle(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "p.tar", {"a.jpg": b"a", "b.jpg": b"b", "c.jpg": b"c"})
    data = bytearray(path.read_bytes())
    data[1024:1100] = b"z" * 76  # the second header; tarfile would take it for the end
    path.write_bytes(data)
    assert read(path) == {"a.jpg": b"a", None: "decode"}


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_truncated_zip_gives_the_members_before_the_cut(tmp_path: Path, compression: int) -> None:
    noise = random.Random(1).randbytes(3000)
    files = {"b.jpg": noise, "a.jpg": b"a" * 500, "n.txt": b"n", "é.jpg": b"e", "c.jpg": noise}
    path = zip_of(tmp_path / "p.zip", files, compression)
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.index(b"PK\1\2") - 10])
    found = read(path)
    assert list(found) == ["b.jpg", "a.jpg", "é.jpg", None]
    assert found == {name: files[name] for name in ("b.jpg", "a.jpg", "é.jpg")} | {None: "truncated"}
    path.write_bytes(path.read_bytes().replace(noise[:100], noise[100:200]))
    assert read(path)["b.jpg"] == "decode"
    assert read(path, Selection(max_bytes=100)) == {None: "truncated"}


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    tar_of(tmp_path / "p.tar", {"caf\udce9.jpg": b"x"})
    assert read(tmp_path / "p.tar") == {"caf\ufffd.jpg": b"x"}
    path = zip_of(tmp_path / "p.zip", {"caf12.jpg": b"x", "quote\"' \n.jpg": b"y"})
    path.write_bytes(path.read_bytes().replace(b"caf12", b"caf\xc3\xa9"))
    assert set(read(path)) == {"café.jpg", "quote\"' \n.jpg"}


def test_a_zip_whose_names_are_flagged_utf8_and_are_not(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "p.zip", {"é.jpg": b"x"})
    path.write_bytes(path.read_bytes().replace("é".encode(), b"\xff\xff"))
    assert read(path) == {None: "decode"}


def test_a_tar_is_read_lazily(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "p.tar", {f"{number}.jpg": bytes(20_000) for number in range(5)})
    path.write_bytes(path.read_bytes()[:50_000])
    stream = iter_members(str(path), lambda _: True, ALL)
    assert [next(stream).name, next(stream).name] == ["0.jpg", "1.jpg"]
    assert [member.failure and member.failure.code for member in stream] == [FailureCode.TRUNCATED]


def test_a_tar_keeps_no_headers_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tar_of(tmp_path / "p.tar", {f"{number}.jpg": b"" for number in range(50)})
    opened = []
    original = tarfile.open
    monkeypatch.setattr(tarfile, "open", lambda *a, **o: opened.append(original(*a, **o)) or opened[-1])
    for _ in iter_members(str(path), lambda _: True, ALL):
        assert len(opened[0].members) == 0  # type: ignore[attr-defined]


def test_a_zip_in_many_threads(tmp_path: Path) -> None:
    files = {f"{number}.jpg": bytes([number]) * 50_000 for number in range(40)}
    found = list(iter_members(str(zip_of(tmp_path / "p.zip", files)), lambda _: True, ALL))
    results: dict[str, bytes | str] = {}

    def work(part: list[Member]) -> None:
        results.update({str(member.name): bytes_of(member) for member in part})

    threads = [threading.Thread(target=work, args=(found[start::4],)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == files


def test_a_zip_is_closed_with_its_last_member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    original = walk.open_file
    monkeypatch.setattr("mfcli.inputs.objects.open_file", lambda path: opened.append(original(path)) or opened[-1])
    found = list(iter_members(str(zip_of(tmp_path / "p.zip", {"a.jpg": b"x", "b.jpg": b"y"})), lambda _: True, ALL))
    assert not opened[0].closed
    assert [bytes_of(member) for member in found] == [b"x", b"y"]
    del found
    assert opened[0].closed
