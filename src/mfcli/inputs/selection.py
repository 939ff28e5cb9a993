"""Which of the files in folders, archives and lists are taken, and in which order: names only, nothing is opened."""

import fnmatch
import functools
import heapq
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from mfcli.inputs.codecs import DEFAULT_SUFFIXES

DEFAULT_TIMEOUT_S = 30.0
DEFAULT_MAX_BYTES = 256 * 2**20
"""More than any picture under the cap of pixels has when it is compressed at all."""

MAX_NAME = 4096
"""Characters of a member's name; no longer path can be opened on Linux."""

_DIGITS = re.compile(r"[0-9]+")
_ANY_DEPTH = "**"
_ANY_DIGIT = str.maketrans("123456789", "0" * 9)
_FEW = 64
_Name = TypeVar("_Name")


def natural_key(name: str) -> str:
    """Return what sorts names as people count, img2 before img10, whatever their case; of paths, folder by folder."""
    return _DIGITS.sub(_counted, name.casefold()).replace("/", "\0")


def _counted(digits: re.Match[str]) -> str:
    number = digits[0].lstrip("0")
    return f"{len(number):05}{number}"


def in_natural_order(names: Iterable[_Name], text: Callable[[_Name], str]) -> Iterator[_Name]:
    """Yield the names sorted; those that count as equal (img1, img01) by their characters.

    The first comes soon, however many there are: names that differ in nothing but the values of their digits have the
    same natural and plain order, and the few such sorts of names that a folder has are merged as they are asked for.
    """
    alike: dict[str, list[_Name]] = {}
    for name in names:
        alike.setdefault(text(name).translate(_ANY_DIGIT), []).append(name)

    def key(name: _Name) -> tuple[str, str]:
        return natural_key(text(name)), text(name)

    if len(alike) > _FEW:
        return iter(sorted(itertools.chain.from_iterable(alike.values()), key=key))
    return heapq.merge(*(sorted(group, key=text) for group in alike.values()), key=key)


@dataclass(frozen=True, slots=True)
class Glob:
    """A glob over paths whose parts are matched one by one, case-sensitively; `**` stands for any number of folders.

    Attributes:
        parts: a compiled pattern per part, None for `**`.
    """

    parts: tuple[re.Pattern[str] | None, ...]

    def matches(self, names: Sequence[str]) -> bool:
        """Whether the path with these parts is meant."""
        return len(self.parts) in self._reached(names)

    def leads_below(self, names: Sequence[str]) -> bool:
        """Whether a path below the folder with these parts can be meant."""
        return any(position < len(self.parts) for position in self._reached(names))

    def _reached(self, names: Sequence[str]) -> set[int]:
        """How many parts of the glob the names can have used up; linear in the path, however many `**` there are."""
        reached = self._skipping({0})
        for name in names:
            reached = self._skipping({self._step(at, name) for at in reached} - {-1})
        return reached

    def _step(self, at: int, name: str) -> int:
        if at == len(self.parts):
            return -1
        part = self.parts[at]
        if part is None:
            return at
        return at + 1 if part.match(name) else -1

    def _skipping(self, reached: set[int]) -> set[int]:
        for at, part in enumerate(self.parts):
            if at in reached and part is None:
                reached.add(at + 1)
        return reached


@functools.lru_cache(maxsize=256)
def glob_of(text: str) -> Glob:
    """Return a glob from its text; a leading or doubled slash and a part `.` say nothing."""
    parts = [part for part in text.split("/") if part not in ("", ".")]
    return Glob(tuple(None if part == _ANY_DEPTH else re.compile(fnmatch.translate(part)) for part in parts))


def _meant_by(globs: tuple[str, ...], path: str) -> bool:
    """Whether a glob names this path: by its base name, or, for a glob with a slash, by the whole of it."""
    if not globs:
        return False
    names = [name for name in path.split("/") if name not in ("", ".")]
    return any(glob_of(glob).matches(names if "/" in glob else names[-1:]) for glob in globs)


def is_hidden(name: str) -> bool:
    """Whether a base name is left out unless it is asked for."""
    return name.startswith(".") and name not in (".", "..")


@dataclass(frozen=True, slots=True)
class Selection:
    """What of folders, archives and lists is taken, and the limits of what is read.

    Attributes:
        recursive: whether the folders in a folder or archive are entered.
        include: globs; where there are any, they say which files are pictures, and not the suffix.
        exclude: globs of files and folders that are left out.
        timeout_s: for one URL, from the look-up of its host to its last byte.
        offline: whether a URL fails without being asked.
        max_bytes: the largest body of a URL, and the largest member of an archive.
        suffixes: of pictures, in lower case and with their dot.
    """

    recursive: bool = True
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    timeout_s: float = DEFAULT_TIMEOUT_S
    offline: bool = False
    max_bytes: int = DEFAULT_MAX_BYTES
    suffixes: frozenset[str] = DEFAULT_SUFFIXES

    def takes(self, relative: str) -> bool:
        """Whether a file is taken from its folder or archive, by its path in there.

        A hidden file is taken only by an include glob that begins with a dot itself; those are shell's rules.
        """
        name = relative.rpartition("/")[2]
        include = self.include
        if not include and not self.exclude:  # the usual case, a hundred thousand times
            return name[:1] != "." and name[name.rfind(".") :].lower() in self.suffixes
        if is_hidden(name):
            include = tuple(glob for glob in include if is_hidden(glob.rpartition("/")[2]))
            if not include:
                return False
        if include:
            return _meant_by(include, relative) and not _meant_by(self.exclude, relative)
        return name[name.rfind(".") :].lower() in self.suffixes and not _meant_by(self.exclude, relative)

    def enters(self, relative: str) -> bool:
        """Whether a folder in a folder or archive is looked into, by its path in there."""
        return not is_hidden(relative.rpartition("/")[2]) and not _meant_by(self.exclude, relative)

    def takes_member(self, relative: str) -> bool:
        """Whether a member of an archive is taken, and every folder that it lies in is entered."""
        cuts = [at for at, character in enumerate(relative) if character == "/" and at]
        if cuts and not self.recursive:
            return False
        return self.takes(relative) and all(self.enters(relative[:cut]) for cut in cuts if cut <= MAX_NAME)

    def passes(self, path: str) -> bool:
        """Whether a path that was listed, or that a glob has found, is not filtered out; any suffix will do."""
        return (not self.include or _meant_by(self.include, path)) and not _meant_by(self.exclude, path)

    def lets_in(self, path: str) -> bool:
        """Whether a folder or archive that was listed is not excluded itself."""
        return not _meant_by(self.exclude, path)
