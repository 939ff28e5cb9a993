"""Sources: names as given, in order and lazily, and the codes of what cannot be opened."""

import io
import os
import re
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import pytest

from mfcli.errors import FailureCode, NoInputsError, PictureError, UsageError
from mfcli.inputs.codecs import formats_with
from mfcli.inputs.sources import Selection, Source, iter_sources
from mfcli.inputs.walk import open_file


class Terminal(io.BytesIO):
    def isatty(self) -> bool:
        return True


class Failing(io.BytesIO):
    def read1(self, _: int | None = -1) -> bytes:
        raise OSError(5, "Input/output error")


def code_of(source: Source) -> FailureCode:
    with pytest.raises(PictureError) as caught:
        source.open()
    return caught.value.code


def shown(sources: Iterator[Source]) -> list[str]:
    """Return each source as its input, `! member` and `= code` of its failure."""
    found = []
    for source in sources:
        try:
            source.open().close()
            code = ""
        except PictureError as error:
            code = f" = {error.code}"
        found.append(source.input + (f" ! {source.member}" if source.member else "") + code)
    return found


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with pictures, folders and an archive."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.jpg", "f/1.jpg", "f/10.jpg", "f/2.jpg", "f/g/3.png", "f/notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as file:
        for name in ("in/1.jpg", "in/2.jpg", "3.jpg", "notes.txt"):
            file.writestr(name, "x")
    return tmp_path


def test_order_and_names_are_kept() -> None:
    sources = list(iter_sources(["b.jpg", "./a.jpg", "-", "b.jpg"], io.BytesIO(b"bytes")))
    assert [source.input for source in sources] == ["b.jpg", "./a.jpg", "-", "b.jpg"]
    assert [source.input_b64 for source in sources] == [None] * 4
    assert [sources[2].open().read() for _ in range(2)] == [b"bytes"] * 2


def test_a_name_that_is_not_utf8() -> None:
    source = Source(os.fsdecode(b"caf\xe9.jpg"))
    assert source.input == "caf\ufffd.jpg"
    assert source.input_b64 == "Y2Fm6S5qcGc="


_EMPTY = ["empty = not_found", "p.zip ! *.gif = not_found"]


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["f"], ["f/1.jpg", "f/2.jpg", "f/10.jpg", "f/g/3.png"]),
        (["f/", "a.jpg", "a.jpg"], ["f/1.jpg", "f/2.jpg", "f/10.jpg", "f/g/3.png", "a.jpg", "a.jpg"]),
        (["f/notes.txt"], ["f/notes.txt"]),
        (["f/1?.jpg"], ["f/10.jpg"]),
        (["**/3.*"], ["f/g/3.png"]),
        (["f/*.gif", "a.jpg"], ["f/*.gif = not_found", "a.jpg"]),
        (["empty", "p.zip/*.gif", "a.jpg", "empty/"], [*_EMPTY, "a.jpg", "empty/ = not_found"]),
        (["*.zip"], ["p.zip ! 3.jpg", "p.zip ! in/1.jpg", "p.zip ! in/2.jpg"]),
        (["f*"], ["f/1.jpg", "f/2.jpg", "f/10.jpg", "f/g/3.png"]),
        (["p.zip"], ["p.zip ! 3.jpg", "p.zip ! in/1.jpg", "p.zip ! in/2.jpg"]),
        (["p.zip/in/1.jpg"], ["p.zip ! in/1.jpg"]),
        (["p.zip/in"], ["p.zip ! in/1.jpg", "p.zip ! in/2.jpg"]),
        (["p.zip/*/2.*"], ["p.zip ! in/2.jpg"]),
        (["./p.zip/notes.txt"], ["./p.zip ! notes.txt"]),
        (["p.zip/none.jpg"], ["p.zip ! none.jpg = not_found"]),
        (["none.zip", "none.zip/a.jpg"], ["none.zip = not_found", "none.zip/a.jpg = not_found"]),
        (["gopher://host/a.jpg"], ["gopher://host/a.jpg = unsupported"]),
        (["file://elsewhere/a.jpg"], ["file://elsewhere/a.jpg = unsupported"]),
        (["file://["], ["file://[ = unsupported"]),
        (["file:///"], ["file:/// = unsupported"]),
    ],
)
@pytest.mark.usefixtures("here")
def test_arguments(arguments: list[str], wanted: list[str]) -> None:
    assert shown(iter_sources(arguments, None)) == wanted


def test_a_file_url(here: Path) -> None:
    (here / "a b.jpg").write_bytes(b"spaced")
    (source,) = iter_sources([f"file://{here}/a%20b.jpg"], None)
    assert source.input.endswith("a%20b.jpg")
    assert source.open().read() == b"spaced"


def test_a_file_name_with_wildcards(here: Path) -> None:
    (here / "[x]*.jpg").touch()
    assert shown(iter_sources(["[x]*.jpg"], None)) == ["[x]*.jpg"]


def test_odd_names(here: Path) -> None:
    names = [b"new\nline.jpg", b"quote\"'.jpg", b"caf\xe9.jpg", b" space .jpg", b"-dash.jpg"]
    (here / "odd").mkdir()
    for name in names:
        (here / "odd" / os.fsdecode(name)).touch()
    sources = list(iter_sources(["odd"], None))
    assert {os.fsencode(source.argument) for source in sources} == {b"odd/" + name for name in names}
    assert [source.open().read() for source in sources] == [b""] * len(names)


def test_archives_in_folders_are_not_opened(here: Path) -> None:
    (here / "p.zip").rename(here / "f" / "p.zip")
    assert "p.zip" not in " ".join(shown(iter_sources(["f"], None)))


def test_a_file_that_is_deleted_meanwhile(here: Path) -> None:
    sources = list(iter_sources(["f"], None))
    (here / "f" / "2.jpg").unlink()
    assert [source.input for source in sources if source.input == "f/2.jpg" and code_of(source) == "not_found"]


def test_sources_are_lazy(here: Path) -> None:
    sources = iter_sources(["a.jpg", "f", "late"], None)
    assert [source.input for source in islice(sources, 3)] == ["a.jpg", "f/1.jpg", "f/2.jpg"]
    (here / "late").mkdir()
    (here / "late" / "l.jpg").touch()
    assert list(sources)[-1].input == "late/l.jpg"


@pytest.mark.parametrize("argument", ["empty", "f/*.gif", "none/*.jpg", "p.zip/*.gif", "p.zip/**/none.*"])
@pytest.mark.usefixtures("here")
def test_inputs_without_pictures(argument: str) -> None:
    with pytest.raises(NoInputsError, match="(?m)" + re.escape(f"no pictures in {argument}") + "$") as caught:
        list(iter_sources([argument], None))
    assert "hidden" in str(caught.value.hint)
    with pytest.raises(NoInputsError, match="(?m), empty and 10 others$"):
        list(iter_sources([argument, *["empty"] * 19], None))
    assert len(list(iter_sources([argument], io.BytesIO(b"empty\n" * 1000), files_from="-"))) == 1001  # not held


@pytest.mark.usefixtures("here")
def test_inputs_without_selected_pictures() -> None:
    with pytest.raises(NoInputsError, match="no pictures in f, p.zip") as caught:
        list(iter_sources(["f", "p.zip"], None, selection=Selection(exclude=("*",))))
    assert caught.value.hint == "check exclude=*; globs are case-sensitive"


def test_no_inputs() -> None:
    with pytest.raises(NoInputsError):
        iter_sources([], io.BytesIO())


@pytest.mark.parametrize(
    ("arguments", "options", "stdin", "message"),
    [
        (["-", "-"], {}, io.BytesIO(), "can be given once"),
        (["-"], {}, None, "closed"),
        (["-"], {}, Terminal(), "a terminal"),
        (["-"], {"files_from": "-"}, io.BytesIO(), "at once"),
        ([], {"files_from": "-"}, None, "closed"),
        ([], {"files_from": "-"}, Terminal(), "a terminal"),
        (["a.jpg"], {"nul": True}, None, "nul=True is about"),
        ([], {"files_from": "none.txt"}, None, "cannot read the list none.txt: No such file"),
        ([], {"files_from": "f"}, None, "Is a directory"),
        ([], {"files_from": "a\0b"}, None, "cannot read the list"),
    ],
)
@pytest.mark.usefixtures("here")
def test_usage(arguments: list[str], options: dict[str, object], stdin: io.BytesIO | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        iter_sources(arguments, stdin, **options)  # type: ignore[arg-type]


def test_a_string_is_no_list() -> None:
    with pytest.raises(TypeError, match=r"iter_sources\(\['photos'\]\)"):
        iter_sources("photos")
    with pytest.raises(TypeError, match=r"list of names, such as \['ico'\]"):
        formats_with("ico")


@pytest.mark.parametrize(
    ("listed", "nul", "wanted"),
    [
        (b"a.jpg\nf/1.jpg\n", False, ["a.jpg", "f/1.jpg"]),
        (b"a.jpg\r\n\r\n\n  \nf/1.jpg", False, ["a.jpg", "f/1.jpg"]),
        (b"\xef\xbb\xbfa.jpg\n", False, ["a.jpg"]),
        (b"f\np.zip\np.zip/3.jpg\n-\n", False, None),
        (b"*.jpg\n", False, ["*.jpg = not_found"]),
        (b"none.jpg\nf/notes.txt\n", False, ["none.jpg = not_found", "f/notes.txt"]),
        (b"a.jpg\0f/1.jpg\0\0new\nline.jpg\0", True, ["a.jpg", "f/1.jpg", "new\nline.jpg = not_found"]),
        (b"a.jpg\0f/1.jpg\0", False, ["a.jpg\0f/1.jpg\0 = not_found"]),
        (b"caf\xe9.jpg\n", False, ["caf\ufffd.jpg = not_found"]),
        (b"ftp://x/a.jpg\nftp://[\na.jpg\n", False, ["ftp://x/a.jpg = unsupported", "ftp://[ = unsupported", "a.jpg"]),
    ],
)
def test_lists(here: Path, listed: bytes, nul: bool, wanted: list[str] | None) -> None:
    (here / "list").write_bytes(listed)
    found = shown(iter_sources([], None, files_from="list", nul=nul))
    assert shown(iter_sources([], io.BytesIO(listed), files_from="-", nul=nul)) == found
    assert shown(iter_sources(["a.jpg"], None, files_from="list", nul=nul)) == ["a.jpg", *found]
    members = ["p.zip ! 3.jpg", "p.zip ! in/1.jpg", "p.zip ! in/2.jpg", "p.zip ! 3.jpg"]
    assert found == (wanted or ["f/1.jpg", "f/2.jpg", "f/10.jpg", "f/g/3.png", *members, "- = not_found"])


@pytest.mark.usefixtures("here")
def test_an_empty_list() -> None:
    for listed in (b"", b"\n\r\n"):
        with pytest.raises(NoInputsError, match="no pictures in the list on standard input"):
            list(iter_sources([], io.BytesIO(listed), files_from="-"))


@pytest.mark.usefixtures("here")
def test_long_lines() -> None:
    listed = b"a.jpg\n" + b"x" * 500_000 + b"\na.jpg\n" + b"y" * 70_000
    found = list(iter_sources([], io.BytesIO(listed), files_from="-"))
    assert [source.argument[:9] for source in found] == ["a.jpg", "xxxxxxxxx", "a.jpg", "yyyyyyyyy"]
    assert max(len(source.argument) for source in found) < 300
    assert [code_of(source) for source in found if source.argument != "a.jpg"] == ["too_large"] * 2


@pytest.mark.parametrize("listed", [b"a.jpg\nf/1.jpg\n", b"f\0a.jpg\0", b"./a.jpg\r\n"])
@pytest.mark.usefixtures("here")
def test_names_in_place_of_a_picture(listed: bytes) -> None:
    (source,) = iter_sources(["-"], io.BytesIO(listed))
    with pytest.raises(UsageError, match="lists names") as caught:
        source.open()
    assert caught.value.hint == "files_from=-"
    with pytest.raises(NoInputsError) as found:
        iter_sources([], io.BytesIO(listed))
    assert "files_from=-" in str(found.value.hint)


@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.usefixtures("here")
def test_a_list_read_in_small_chunks(size: int) -> None:
    class Pieces(io.BytesIO):
        def read1(self, _: int | None = -1) -> bytes:
            return super().read1(size)

    listed = b"a.jpg\r\n\r\nf/1.jpg\r\nlast"
    assert [s.input for s in iter_sources([], Pieces(listed), files_from="-")] == ["a.jpg", "f/1.jpg", "last"]


@pytest.mark.usefixtures("here")
def test_a_list_that_is_still_being_written() -> None:
    """The first picture of `find -print0 | mf predict --files-from - -0` does not wait for the last."""
    reading, writing = os.pipe()
    with open(reading, "rb") as stdin, open(writing, "wb", buffering=0) as find:
        sources = iter_sources([], stdin, files_from="-", nul=True)
        find.write(b"a.jpg\0f/1.")
        assert next(sources).input == "a.jpg"
        find.write(b"jpg\0")
        assert next(sources).input == "f/1.jpg"
        find.close()
        assert list(sources) == []


@pytest.mark.usefixtures("here")
def test_a_list_in_a_named_pipe() -> None:
    os.mkfifo("list")
    writer = threading.Thread(target=Path("list").write_bytes, args=(b"a.jpg\n",))
    writer.start()
    assert shown(iter_sources([], None, files_from="list")) == ["a.jpg"]
    writer.join()


@pytest.mark.usefixtures("here")
def test_a_read_error_within_a_list_is_a_row() -> None:
    found = list(iter_sources(["a.jpg"], Failing(), files_from="-"))
    assert [source.input for source in found] == ["a.jpg", "-"]
    with pytest.raises(PictureError, match="as a list, cannot be read: Input/output error"):
        found[1].open()


@pytest.mark.usefixtures("here")
def test_lists_are_filtered() -> None:
    listed = b"a.jpg\nf/1.jpg\nf\nempty\nhttp://h/x/a.jpg?b.png\nb.png\n"

    def found(**options: tuple[str, ...]) -> list[str]:
        selection = Selection(offline=True, **options)  # type: ignore[arg-type]
        return [s.input for s in iter_sources([], io.BytesIO(listed), files_from="-", selection=selection)]

    assert found(include=("a.*",)) == ["a.jpg", "f", "empty", "http://h/x/a.jpg?b.png"]
    assert found(exclude=("f", "f/**")) == ["a.jpg", "empty", "http://h/x/a.jpg?b.png", "b.png"]
    assert found(exclude=("*.jpg",)) == ["f/g/3.png", "empty", "b.png"]


@pytest.mark.usefixtures("here")
def test_lists_are_filtered_in_archives() -> None:
    listed = b"p.zip/in\np.zip/3.jpg\np.zip/in/1.jpg\np.zip/none.jpg\np.zip/*.jpg\n"

    def found(**options: tuple[str, ...]) -> list[str]:
        return shown(iter_sources([], io.BytesIO(listed), files_from="-", selection=Selection(**options)))  # type: ignore[arg-type]

    folder = ["p.zip ! in/1.jpg", "p.zip ! in/2.jpg"]
    missing = ["p.zip ! none.jpg = not_found", "p.zip ! *.jpg = not_found"]
    assert found() == [*folder, "p.zip ! 3.jpg", "p.zip ! in/1.jpg", *missing]
    assert found(include=("*.jpg",)) == found()
    assert found(include=("1.*",)) == ["p.zip ! in/1.jpg"] * 2
    assert found(exclude=("in", "none.jpg", "[*].jpg")) == ["p.zip ! 3.jpg", "p.zip ! in/1.jpg"]
    with pytest.raises(NoInputsError) as caught:
        found(exclude=("*.jpg", "in"))
    assert caught.value.hint == "check exclude=*.jpg, exclude=in; globs are case-sensitive"


@pytest.mark.parametrize("name", ["q.zip", "q.tar", "q.tar.gz"])
def test_an_archive_is_opened_once_for_a_list(name: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "q.zip":
        (here / "p.zip").rename(name)
    else:
        with tarfile.open(name, "w:gz" if name.endswith("gz") else "w") as file:
            for member in ("3.jpg", "./in/1.jpg", "in/2.jpg"):
                file.add("a.jpg", member)
    opened: list[str] = []

    def counted(path: str) -> BinaryIO:
        opened.append(path)
        return open_file(path)

    monkeypatch.setattr("mfcli.inputs.objects.open_file", counted)

    def found(*members: str) -> list[str]:
        opened.clear()
        listed = "".join(f"{name}/{member}\n" for member in members)
        return [
            line.partition(" ! ")[2] for line in shown(iter_sources([], io.BytesIO(listed.encode()), files_from="-"))
        ]

    in_order = ["3.jpg", "in/1.jpg", "in/2.jpg"]
    assert [member.removeprefix("./") for member in found(*in_order)] == in_order
    assert len(opened) == (1 if name == "q.zip" else 2)
    assert [member.removeprefix("./") for member in found(*in_order[::-1], "3.jpg")] == [*in_order[::-1], "3.jpg"]
    assert len(opened) == (1 if name == "q.zip" else 5)
    assert found("in/1.jpg", "none.jpg", "3.jpg")[1:] == ["none.jpg = not_found", "3.jpg"]


def test_duplicate_names_in_a_tar(here: Path) -> None:
    with tarfile.open("t.tar", "w") as file:
        for member in ("a.jpg", "b.jpg", "a.jpg"):
            file.add(here / "a.jpg", member)
    for listed, wanted in ((b"t.tar/a.jpg\n", "aa"), (b"t.tar/b.jpg\nt.tar/a.jpg\n", "baa")):
        found = shown(iter_sources([], io.BytesIO(listed), files_from="-"))
        assert found == [f"t.tar ! {letter}.jpg" for letter in wanted]


def test_a_glob_matches_the_same_in_archives_and_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["trip/a.jpg", "trip/b.jpg", "trip/notes.txt", "trip/.hid.jpg", "__MACOSX/trip/._a.jpg", ".git/c.jpg"]
    with zipfile.ZipFile("mac.zip", "w") as archive:
        for name in names:
            archive.writestr(name, b"")
            (tmp_path / "mac" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "mac" / name).touch()
    globs = "**/*.jpg ** */* */*.txt trip/*.jpg trip/.* .git/* .*/*.jpg */._a.jpg **/.*.jpg"
    for glob in globs.split():
        found = {source.member or source.input for source in iter_sources([f"mac.zip/{glob}", "x"], None)}
        wanted = {source.input.removeprefix("mac/") for source in iter_sources([f"mac/{glob}", "x"], None)}
        assert found == wanted, glob


def test_a_member_name_with_wildcards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["a[1].jpg", "a1.jpg", "s/b.jpg"]
    with zipfile.ZipFile("p.zip", "w") as file, tarfile.open("p.tar", "w") as tar:
        for name in names:
            file.writestr(name, "x")
            tar.addfile(tarfile.TarInfo(f"./{name}"))
    for archive, prefix in (("p.zip", ""), ("p.tar", "./")):
        assert shown(iter_sources([f"{archive}/a[1].jpg"], None)) == [f"{archive} ! {prefix}a[1].jpg"]
        assert shown(iter_sources([f"{archive}/a[12].jpg"], None)) == [f"{archive} ! {prefix}a1.jpg"]
        assert shown(iter_sources([f"{archive}/./s/b.jpg"], None)) == [f"{archive} ! {prefix}s/b.jpg"]
        assert len(list(iter_sources([f"{archive}/"], None))) == 3
    (missing,) = iter_sources([os.fsdecode(b"p.zip/\xff.jpg")], None)
    assert missing.member == "\ufffd.jpg"


@pytest.mark.usefixtures("here")
def test_a_folder_in_an_archive_is_filtered() -> None:
    with pytest.raises(NoInputsError, match=r"(?m)no pictures in p\.zip/in$"):
        list(iter_sources(["p.zip/in"], None, selection=Selection(include=("*.png",))))


@pytest.mark.usefixtures("here")
def test_named_files_are_not_filtered() -> None:
    selection = Selection(include=("*.png",), exclude=("a*",))
    assert shown(iter_sources(["a.jpg"], None, selection=selection)) == ["a.jpg"]


def test_codes_of_files_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert code_of(Source(str(tmp_path / "none.jpg"))) is FailureCode.NOT_FOUND
    assert code_of(Source(str(tmp_path / "file" / "x.jpg"))) is FailureCode.NOT_FOUND
    assert code_of(Source(str(tmp_path / "dangling"))) is FailureCode.NOT_FOUND
    assert code_of(Source(str(tmp_path / "loop"))) is FailureCode.NOT_FOUND
    assert code_of(Source("a\0b")) is FailureCode.NOT_FOUND
    assert code_of(Source("x" * 5000)) is FailureCode.NOT_FOUND
    assert code_of(Source(str(tmp_path))) is FailureCode.UNSUPPORTED
    assert code_of(Source(str(tmp_path / "fifo"))) is FailureCode.UNSUPPORTED
    assert code_of(Source("/dev/null")) is FailureCode.UNSUPPORTED


def test_odd_arguments_are_rows(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.zip")
    arguments = ["a\0b", "x" * 5000, "", "x*" * 500, "a\0*", "/dev/null", str(tmp_path / "p.zip"), "http://", "://"]
    found = shown(iter_sources(arguments, None))
    assert len(found) == len(arguments)
    assert all(" = " in one for one in found)


def test_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret.jpg"
    path.write_bytes(b"x")
    if os.geteuid() == 0:  # root may read everything: let the system call say no

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "open", refuse)
    else:
        path.chmod(0)
    assert code_of(Source(str(path))) is FailureCode.PERMISSION


def test_standard_input_is_limited_in_size() -> None:
    with open("/dev/zero", "rb") as stdin:
        (source,) = iter_sources(["-"], stdin, selection=Selection(max_bytes=1000))
        assert code_of(source) is FailureCode.TOO_LARGE


def test_offline() -> None:
    (source,) = iter_sources(["HTTP://127.0.0.1:9/a.jpg"], None, selection=Selection(offline=True))
    with pytest.raises(PictureError, match="offline=True") as caught:
        source.open()
    assert caught.value.code is FailureCode.NETWORK


def test_a_url_is_fetched_when_it_is_opened() -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(self.path.encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://user:secret@127.0.0.1:{server.server_port}/a%20b.jpg?x=1"
        (source,) = iter_sources([url], None)
        assert source.input == url
        with source.open() as file:
            assert file.seek(1) == 1
            assert file.read() == b"a%20b.jpg?x=1"
        server.shutdown()
