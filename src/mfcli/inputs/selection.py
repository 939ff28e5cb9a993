"""Which files of folders, archives and lists are taken, and in which order. Only names count; nothing is opened."""

import fnmatch
import functools
import heapq
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from mfcli.errors import FailureCode
from mfcli.inputs.codecs import DEFAULT_SUFFIXES
from mfcli.inputs.left_out import LeftOut
from mfcli.results import Failure

DEFAULT_TIMEOUT_S = 30.0
DEFAULT_MAX_BYTES = 256 * 2**20
"""More than any compressed picture has under the default limit of pixels."""

MAX_NAME = 4096
"""Characters of a member's name: the limit of a path on Linux."""

OFFLINE = Failure(FailureCode.NETWORK, "not fetched while offline (offline=True, MF_OFFLINE or HF_HUB_OFFLINE)")
"""The failure of a picture that would have to be fetched."""

_DIGITS = re.compile(r"[0-9]+")
_ANY_DEPTH = "**"
_ANY_DIGIT = str.maketrans("123456789", "0" * 9)
_MAX_MERGED = 64
_RUN_NAMES = 100_000
"""Names whose keys are in memory at once."""
_Name = TypeVar("_Name")


def natural_key(name: str) -> str:
    """Return a sort key that puts img2 before img10, ignores case, and sorts paths folder by folder."""
    return _DIGITS.sub(_pad_number, name.casefold()).replace("/", "\0")


def _pad_number(digits: re.Match[str]) -> str:
    number = digits[0].lstrip("0")
    return f"{len(number):05}{number}"


def sort_naturally(names: Iterable[_Name], text: Callable[[_Name], str]) -> Iterator[_Name]:
    """Yield the names in natural order; equal ones (img1, img01) in the order of their characters.

    The first name comes early, however many there are: names that differ only in the values of their digits have the
    same natural and plain order, so each such group is sorted plainly, and a folder's few groups are merged lazily.

    Args:
        names: any objects.
        text: returns the name of one.
    """
    names = list(names)
    groups: dict[str, list[_Name]] = {}

    def key(name: _Name) -> tuple[str, str]:
        return natural_key(text(name)), text(name)

    for name in names:
        groups.setdefault(text(name).translate(_ANY_DIGIT), []).append(name)
        if len(groups) > _MAX_MERGED:
            # all keys at once would take several times the memory of the names
            starts = range(0, len(names), _RUN_NAMES)
            return heapq.merge(*(sorted(names[at : at + _RUN_NAMES], key=key) for at in starts), key=key)
    return heapq.merge(*(sorted(group, key=text) for group in groups.values()), key=key)


@dataclass(frozen=True, slots=True)
class Glob:
    """A case-sensitive glob that matches paths part by part; `**` matches any number of folders.

    Attributes:
        parts: a compiled pattern per part, None for `**`.
    """

    parts: tuple[re.Pattern[str] | None, ...]

    def matches(self, names: Sequence[str]) -> bool:
        """Whether the path with these parts matches."""
        return len(self.parts) in self._advance(names)

    def leads_below(self, names: Sequence[str]) -> bool:
        """Whether a path below the folder with these parts can match."""
        return any(position < len(self.parts) for position in self._advance(names))

    def _advance(self, names: Sequence[str]) -> set[int]:
        """Return how many parts of the glob the names can have consumed; linear in the path, whatever the `**`."""
        positions = self._skip_any_depth({0})
        for name in names:
            positions = self._skip_any_depth({self._step(at, name) for at in positions} - {-1})
        return positions

    def _step(self, at: int, name: str) -> int:
        if at == len(self.parts):
            return -1
        part = self.parts[at]
        if part is None:
            return at
        return at + 1 if part.match(name) else -1

    def _skip_any_depth(self, positions: set[int]) -> set[int]:
        """Add the positions behind each `**`, which may match no folder at all."""
        for at, part in enumerate(self.parts):
            if at in positions and part is None:
                positions.add(at + 1)
        return positions


@functools.lru_cache(maxsize=256)
def compile_glob(text: str) -> Glob:
    """Compile a glob; leading or doubled slashes and parts `.` are ignored."""
    parts = [part for part in text.split("/") if part not in ("", ".")]
    return Glob(tuple(None if part == _ANY_DEPTH else re.compile(fnmatch.translate(part)) for part in parts))


def _matches_any(globs: tuple[str, ...], path: str) -> bool:
    """Whether a glob matches the base name of a path or, if the glob has a slash, the whole path."""
    if not globs:
        return False
    names = [name for name in path.split("/") if name not in ("", ".")]
    return any(compile_glob(glob).matches(names if "/" in glob else names[-1:]) for glob in globs)


def is_hidden(name: str) -> bool:
    """Whether a base name is that of a hidden file."""
    return name.startswith(".") and name not in (".", "..")


@dataclass(frozen=True, slots=True)
class Selection:
    """Which files of folders, archives and lists are taken, and the limits of what is read.

    Attributes:
        recursive: whether subfolders of a folder or archive are entered.
        include: globs that select files, in place of `suffixes`.
        exclude: globs of files and folders that are skipped.
        timeout_s: for one URL, from the DNS look-up to the last byte.
        offline: whether URLs fail without being fetched.
        max_bytes: the largest body of a URL, and the largest member of an archive.
        suffixes: suffixes of pictures, in lower case and with their dot.
        left_out: counts the files that are not taken because of their suffix alone.
        column: the column of the pictures in Parquet files; None where they have one that may be it.
        keep: their columns that are copied into the rows of the results; of a tar, the suffixes of the files beside a
            picture, see webdataset.py.
        names_only: whether pictures are only listed: the rows of Parquet files are not read, and cannot be opened.
    """

    recursive: bool = True
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    timeout_s: float = DEFAULT_TIMEOUT_S
    offline: bool = False
    max_bytes: int = DEFAULT_MAX_BYTES
    suffixes: frozenset[str] = DEFAULT_SUFFIXES
    left_out: LeftOut | None = None
    column: str | None = None
    keep: tuple[str, ...] = ()
    names_only: bool = False

    @property
    def names_folders(self) -> bool:
        """Whether a filter is about folders, so that the same file may be taken by one path and not by another."""
        return any("/" in glob for glob in self.include) or bool(self.exclude)

    def takes(self, relative: str, folder: str | None = None) -> bool:
        """Whether a file is taken, by its path inside the folder or archive.

        As in a shell, a hidden file is taken only by an include glob whose name begins with a dot.

        Args:
            relative: the path.
            folder: the folder; None for an archive.
        """
        name = relative.rpartition("/")[2]
        include = self.include
        if not include and not self.exclude:  # the usual case, and the fast one
            return name[:1] != "." and self._has_suffix(name, relative, folder)
        if is_hidden(name):
            include = tuple(glob for glob in include if is_hidden(glob.rpartition("/")[2]))
            if not include:
                return False
        if include:
            return _matches_any(include, relative) and not _matches_any(self.exclude, relative)
        return not _matches_any(self.exclude, relative) and self._has_suffix(name, relative, folder)

    def _has_suffix(self, name: str, relative: str, folder: str | None) -> bool:
        has_suffix = name[name.rfind(".") :].lower() in self.suffixes
        if not has_suffix and self.left_out is not None:
            self.left_out.add(relative, folder)
        return has_suffix

    def enters(self, relative: str) -> bool:
        """Whether a subfolder is entered, by its path inside the folder or archive."""
        return not is_hidden(relative.rpartition("/")[2]) and not _matches_any(self.exclude, relative)

    def takes_member(self, relative: str) -> bool:
        """Whether a member of an archive is taken, and every folder that it lies in is entered."""
        cuts = [at for at, character in enumerate(relative) if character == "/" and at]
        if cuts and not self.recursive:
            return False
        return all(self.enters(relative[:cut]) for cut in cuts if cut <= MAX_NAME) and self.takes(relative)

    def passes(self, path: str) -> bool:
        """Whether the filters let a path of a list or of a glob through, whatever its suffix."""
        return (not self.include or _matches_any(self.include, path)) and not _matches_any(self.exclude, path)

    def excludes(self, path: str) -> bool:
        """Whether a path of a list or of a glob is excluded."""
        return _matches_any(self.exclude, path)


class MemberMatcher:
    """Decides which members of an archive are wanted: the one of this name, those in a folder, or those a glob matches.

    Attributes:
        wanted: the name.
        is_filtered: whether the filters skip a member of this name.
        exists: whether a member or a folder of this name was seen; True for a glob.
    """

    def __init__(
        self, wanted: str, selection: Selection, glob: Callable[[str], bool] | None, *, is_filtered: bool = False
    ) -> None:
        self.wanted, self.is_filtered, self.exists = wanted, is_filtered, glob is not None
        self._folder, self._selection, self._glob = f"{wanted.rstrip('/')}/", selection, glob

    def takes(self, name: str) -> bool:
        """Whether a member is wanted, by its path in the archive."""
        if name == self.wanted:
            self.exists = True
            return not self.is_filtered
        if name.startswith(self._folder):
            self.exists = True
            return self._selection.takes_member(name[len(self._folder) :])
        return self._glob is not None and self._glob(name)
