"""Walking folders and globs: order, filters, laziness, and the oddities of file systems."""

import contextlib
import inspect
import os
import socket
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest

from mfcli.errors import FailureCode, PictureError
from mfcli.inputs.selection import Selection
from mfcli.inputs.walk import FoundPath, open_file, walk_folder, walk_glob

NAMES = [
    "img10.jpg",
    "img2.JPG",
    "img1.png",
    "notes.txt",
    ".hidden.jpg",
    ".cache/x.jpg",
    "b/3.jpg",
    "b/c/4.jpg",
    "b/t.zip",
    "a2.jpg",
]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in NAMES:
        path = tmp_path / "f" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "f"


def names_of(found: Iterator[FoundPath]) -> list[str]:
    return [one.path if one.failure is None else f"{one.path}: {one.failure.code}" for one in found]


@pytest.mark.parametrize("given", ["f", "f/", "./f", "f/."])
@pytest.mark.usefixtures("tree")
def test_a_folder(given: str) -> None:
    top = given if given.endswith("/") else f"{given}/"
    wanted = ["a2.jpg", "b/3.jpg", "b/c/4.jpg", "img1.png", "img2.JPG", "img10.jpg"]
    assert names_of(walk_folder(given, Selection())) == [top + name for name in wanted]
    flat = names_of(walk_folder(given, Selection(recursive=False)))
    assert flat == [top + name for name in wanted if "/" not in name]


@pytest.mark.usefixtures("tree")
def test_include_replaces_the_suffixes() -> None:
    assert names_of(walk_folder("f", Selection(include=("*.txt", "b/*.zip")))) == ["f/b/t.zip", "f/notes.txt"]
    assert names_of(walk_folder("f", Selection(exclude=("img*", "c")))) == ["f/a2.jpg", "f/b/3.jpg"]


def test_folders_are_listed_lazily(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(300):
        (tmp_path / f"{number}.jpg").touch()
        (tmp_path / f"d{number}").mkdir()
    listed, looked_at = [], []
    scandir, look = os.scandir, os.stat
    monkeypatch.setattr(os, "scandir", lambda path: (listed.append(path), scandir(path))[1])
    monkeypatch.setattr(os, "stat", lambda path, **options: (looked_at.append(path), look(path, **options))[1])
    first = list(islice(walk_folder(str(tmp_path), Selection()), 3))
    monkeypatch.undo()
    assert [Path(found.path).name for found in first] == ["0.jpg", "1.jpg", "2.jpg"]
    assert (len(listed), len(looked_at)) == (1, 1)


def test_links(tree: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "o.jpg").touch()
    (tree / "z").symlink_to(outside)
    (outside / "back").symlink_to(tree)
    (tree / "b" / "up").symlink_to("..")
    (tree / "self.jpg").symlink_to("self.jpg")
    (tree / "dangling.jpg").symlink_to("nowhere")
    (tree / "dangling.txt").symlink_to("nowhere")
    (tree / "k.jpg").symlink_to(tree / "img1.png")
    found = names_of(walk_folder("f", Selection()))
    assert [name for name in found if name not in {f"f/{name}" for name in NAMES}] == [
        "f/dangling.jpg",
        "f/k.jpg",
        "f/self.jpg",
        "f/z/o.jpg",
    ]
    for name in ("dangling.jpg", "self.jpg"):
        with pytest.raises(PictureError) as caught:
            open_file(f"f/{name}")
        assert caught.value.code is FailureCode.NOT_FOUND


@pytest.mark.parametrize(
    ("walk", "count"),
    [
        (lambda: walk_folder("f0", Selection()), 1),
        (lambda: walk_folder(".", Selection(include=("*.jpg",))), 1),
        (lambda: walk_glob("f0/**/*.jpg", Selection()), 1),
        (lambda: walk_glob("f0/*/", Selection()), 2),  # as a shell would, then each is walked
    ],
)
def test_a_folder_to_which_a_billion_ways_lead_is_walked_once(
    walk: Callable[[], Iterator[FoundPath]], count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(31):
        (tmp_path / f"f{number}").mkdir()
        for side in "ab" if number < 30 else "":
            (tmp_path / f"f{number}" / side).symlink_to(f"../f{number + 1}")
    (tmp_path / "f30" / "x.jpg").touch()
    assert [Path(name).name for name in names_of(islice(walk(), 9))] == ["x.jpg"] * count


def test_a_filter_decides_by_every_path_to_a_folder(tree: Path) -> None:
    (tree / "a").symlink_to("b")
    assert names_of(walk_folder("f", Selection(include=("b/*.jpg",)))) == ["f/b/3.jpg"]
    assert names_of(walk_folder("f", Selection())).count("f/b/3.jpg") == 0  # it was walked as f/a


@pytest.mark.skipif(not os.path.ismount("/proc"), reason="no /proc")
def test_the_folders_of_the_kernel_are_not_walked(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/proc")
    (tmp_path / "z.txt").touch()
    everything = Selection(include=("*",))
    assert names_of(walk_folder(str(tmp_path), everything)) == [str(tmp_path / "z.txt")]
    assert names_of(walk_folder("/proc/self/task", everything)) == []


def test_filters_apply_to_the_name_of_a_link_not_its_target(tree: Path) -> None:
    (tree / "seen").symlink_to(".cache")
    (tree / ".unseen").symlink_to("b")
    (tree / "out").symlink_to("b")
    found = names_of(walk_folder("f", Selection(exclude=("out",))))
    assert "f/seen/x.jpg" in found
    assert not [name for name in found if "unseen" in name or "out" in name]


def test_folders_that_cannot_be_read(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refuse(path: str) -> object:
        if path.endswith("/b"):
            raise PermissionError(13, "Permission denied")
        if path.endswith("/gone"):
            raise FileNotFoundError(2, "No such file or directory")
        return scandir(path)

    (tree / "gone").mkdir()
    monkeypatch.setattr(os, "scandir", refuse)
    assert names_of(walk_folder("f", Selection()))[:3] == ["f/a2.jpg", "f/b: permission", "f/gone: not_found"]
    assert names_of(walk_folder("nowhere", Selection())) == ["nowhere: not_found"]


def test_a_tree_deeper_than_the_longest_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "top").mkdir()
    os.chdir("top")
    name = "d" * 200
    for _ in range(25):  # 5000 characters, which only relative names can make
        Path("a.jpg").touch()
        os.mkdir(name)
        os.chdir(name)
    os.chdir(tmp_path)
    found = names_of(walk_folder("top", Selection()))
    assert 18 <= len([one for one in found if one.endswith("a.jpg")]) <= 21
    assert next(one for one in found if not one.endswith("a.jpg")).endswith(": not_found")
    descend = ["top", *[name] * 25]
    for part in descend:  # pytest cannot remove it either
        os.chdir(part)
    for part in reversed(descend):
        os.chdir("..")
        with contextlib.suppress(OSError):
            os.unlink(f"{part}/a.jpg")
        os.rmdir(part)


def test_deep_trees_do_not_exhaust_the_recursion_limit(tmp_path: Path) -> None:
    deep = tmp_path / "/".join(["d"] * 150)
    deep.mkdir(parents=True)
    (deep / "a.jpg").touch()
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 60)
    try:
        found = names_of(walk_folder(str(tmp_path), Selection()))
    finally:
        sys.setrecursionlimit(limit)
    assert found == [str(deep / "a.jpg")]


def test_pipes_and_sockets_are_refused_without_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.jpg")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s.jpg"))
        found = names_of(walk_folder(str(tmp_path), Selection()))
        assert [Path(name).name for name in found] == ["p.jpg", "s.jpg"]
        for name in [*found, "/dev/null"]:
            with pytest.raises(PictureError) as caught:
                open_file(name)
            assert caught.value.code is FailureCode.UNSUPPORTED


def test_a_file_replaced_by_a_pipe_is_refused_without_blocking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jpg"
    os.mkfifo(path)
    monkeypatch.setattr(os, "stat", lambda _: os.lstat(__file__))
    with pytest.raises(PictureError) as caught:
        open_file(str(path))
    assert caught.value.code is FailureCode.UNSUPPORTED


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("f/*.jpg", ["f/a2.jpg", "f/img10.jpg"]),
        ("./f/img?.*", ["./f/img1.png", "./f/img2.JPG"]),
        ("f/**/*.jpg", ["f/a2.jpg", "f/b/3.jpg", "f/b/c/4.jpg", "f/img10.jpg"]),
        ("**/4.*", ["f/b/c/4.jpg"]),
        ("f/*/*.jpg", ["f/b/3.jpg"]),
        ("*/b/c/*", ["f/b/c/4.jpg"]),
        ("f/*.txt", ["f/notes.txt"]),
        ("f/**", ["f/a2.jpg", "f/b/3.jpg", "f/b/c/4.jpg", "f/img1.png", "f/img2.JPG", "f/img10.jpg"]),
        ("f/*", ["f/a2.jpg", "f/b/3.jpg", "f/b/c/4.jpg", "f/img1.png", "f/img2.JPG", "f/img10.jpg"]),
        ("f/b*", ["f/b/3.jpg", "f/b/c/4.jpg"]),
        ("f/b*/", ["f/b/3.jpg", "f/b/c/4.jpg"]),
        ("f/b/t.*", ["f/b/t.zip"]),
        ("f/.h*", ["f/.hidden.jpg"]),
        ("f/.c*/*.jpg", ["f/.cache/x.jpg"]),
        ("f/[ab]*.jpg", ["f/a2.jpg"]),
        ("nowhere/*.jpg", []),
        ("f/a2.jpg/*", []),
        ("f/*.gif", []),
        ("[", []),
    ],
)
@pytest.mark.usefixtures("tree")
def test_globs(pattern: str, wanted: list[str]) -> None:
    assert names_of(walk_glob(pattern, Selection())) == wanted


@pytest.mark.usefixtures("tree")
def test_globs_are_filtered() -> None:
    assert names_of(walk_glob("f/**", Selection(exclude=("*.jpg", "*.JPG")))) == ["f/img1.png"]
    assert names_of(walk_glob("f/*", Selection(include=("*.txt",)))) == ["f/notes.txt"]
    assert names_of(walk_glob("f/*", Selection(recursive=False)))[:2] == ["f/a2.jpg", "f/b/3.jpg"]
    assert names_of(walk_glob("f/*/", Selection())) == ["f/b/3.jpg", "f/b/c/4.jpg"]
    for pattern, left in (("f/*/", []), ("f/**/*.jpg", ["f/a2.jpg", "f/img10.jpg"])):
        assert names_of(walk_glob(pattern, Selection(exclude=("b",)))) == left
    assert names_of(walk_glob("f/*/", Selection(exclude=("c",)))) == ["f/b/3.jpg"]


def test_permission(tmp_path: Path, as_nobody: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    (tmp_path / "a.jpg").touch(mode=0)
    tmp_path.chmod(0o755)
    os.chdir(tmp_path)
    with as_nobody():
        assert names_of(walk_folder(".", Selection())) == ["./a.jpg", "./closed: permission"]
        with pytest.raises(PictureError) as caught:
            open_file("a.jpg")
    assert caught.value.code is FailureCode.PERMISSION


@pytest.fixture
def as_nobody() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Return a context manager that drops root's permissions."""

    @contextlib.contextmanager
    def somebody_else() -> Iterator[None]:
        before, folder = os.geteuid(), os.getcwd()
        if before == 0:
            os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(before)
            os.chdir(folder)

    return somebody_else
