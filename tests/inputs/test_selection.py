"""Selection: which names are taken, and in which order."""

import hashlib
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfcli.inputs import selection
from mfcli.inputs.codecs import formats_with, suffixes_of
from mfcli.inputs.selection import Selection, compile_glob, natural_key, sort_naturally


def test_optional_formats_are_taken_on_request() -> None:
    names = ["a.jpg", "b.HEIC", "c.ppm", "d.eps"]
    assert [name for name in names if Selection().takes(name)] == names[:2]
    asked = Selection(suffixes=suffixes_of(formats_with(["PPM"])))
    assert [name for name in names if asked.takes(name)] == names[:3]


@pytest.mark.parametrize(
    "names",
    [
        ["img1.jpg", "img2.jpg", "img10.jpg"],
        ["1.jpg", "01.jpg", "2.jpg", "10.jpg", "a.jpg"],
        ["a1b2.jpg", "a1b10.jpg", "a2b1.jpg"],
        ["a.jpg", "B.jpg", "c.jpg"],
        ["a/2.jpg", "a/10.jpg", "a.jpg", "a10/1.jpg"],
        ["x" + "9" * 300, "x1" + "0" * 300],
    ],
)
def test_natural_order(names: list[str]) -> None:
    assert list(sort_naturally(reversed(names), str)) == list(sort_naturally(names, str))
    if "01.jpg" not in names:
        assert list(sort_naturally(reversed(names), str)) == names
    else:
        assert list(sort_naturally(names, str)) == ["01.jpg", "1.jpg", *names[2:]]


@given(st.lists(st.text("aA1/", max_size=6), unique=True, max_size=40))
def test_many_names_are_sorted_in_runs(names: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "_MAX_MERGED", 0)
        patch.setattr(selection, "_RUN_NAMES", 2)
        assert list(sort_naturally(names, str)) == sorted(names, key=lambda name: (natural_key(name), name))


def test_the_keys_of_many_names_are_not_in_memory_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "_RUN_NAMES", 500)
    names = [hashlib.md5(str(number).encode()).hexdigest() for number in range(10_000)]
    tracemalloc.start()
    try:
        assert len(list(sort_naturally(names, str))) == 10_000
        assert tracemalloc.get_traced_memory()[1] < 1e6  # keys take 2.5 MB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("glob", "path", "matches"),
    [
        ("*.jpg", "a.jpg", True),
        ("*.jpg", "b/a.jpg", False),
        ("b/*.jpg", "b/a.jpg", True),
        ("b/*.jpg", "b/c/a.jpg", False),
        ("**/*.jpg", "a.jpg", True),
        ("**/*.jpg", "b/c/a.jpg", True),
        ("b/**", "b/c/a.jpg", True),
        ("b/**/a.jpg", "b/a.jpg", True),
        ("b/**/c/**/a.jpg", "b/x/c/y/z/a.jpg", True),
        ("b/**/c/**/a.jpg", "b/x/y/z/a.jpg", False),
        ("./b//[!x].jpg", "b/a.jpg", True),
        ("[", "[", True),
        ("/".join(["**", "a"] * 30), "/".join(["a"] * 200) + "/b", False),  # must not take exponential time
    ],
)
def test_globs(glob: str, path: str, matches: bool) -> None:
    assert compile_glob(glob).matches(path.split("/")) is matches


@pytest.mark.parametrize(
    ("include", "exclude", "taken"),
    [
        ((), (), ["a.jpg", "B.PNG", "s/c.webp", "s/t/d.gif"]),
        (("*.txt",), (), ["n.txt"]),
        (("*.jpg", "*.webp"), (), ["a.jpg", "s/c.webp"]),
        (("s/*",), (), ["s/c.webp"]),
        (("s/**",), ("*.gif",), ["s/c.webp"]),
        ((), ("s",), ["a.jpg", "B.PNG"]),
        ((), ("s/t",), ["a.jpg", "B.PNG", "s/c.webp"]),
        ((), ("s/**",), ["a.jpg", "B.PNG"]),
        (("*",), (), ["a.jpg", "B.PNG", "s/c.webp", "s/t/d.gif", "n.txt", "z.zip"]),
        ((".*",), (), [".h.jpg"]),
        ((), ("*",), []),
    ],
)
def test_include_and_exclude(include: tuple[str, ...], exclude: tuple[str, ...], taken: list[str]) -> None:
    selection = Selection(include=include, exclude=exclude)
    names = ["a.jpg", "B.PNG", "s/c.webp", "s/t/d.gif", "n.txt", "z.zip", ".h.jpg", ".d/e.jpg", "x.pdf", "x.eps"]
    wanted = [*taken, "x.pdf", "x.eps"] if include == ("*",) else taken
    assert [name for name in names if selection.takes_member(name)] == wanted


def test_without_recursion_only_the_top_level_of_an_archive_is_taken() -> None:
    selection = Selection(recursive=False)
    assert [name for name in ("a.jpg", "s/c.webp", "s/t/d.gif") if selection.takes_member(name)] == ["a.jpg"]


@given(st.lists(st.text("aB.01259/", max_size=6), max_size=300))
def test_natural_order_is_the_same_for_few_and_many_groups(names: list[str]) -> None:
    expected = sorted(sorted(names), key=natural_key)
    assert list(sort_naturally(names, str)) == expected
    assert list(sort_naturally(names[:3] * 40, str)) == sorted(sorted(names[:3] * 40), key=natural_key)
